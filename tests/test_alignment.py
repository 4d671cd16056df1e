"""Alignment: against its definition, its laws, planted cases, nulls, intervals, refusals."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

import markovlm as mk
import reference
from alignment_cases import Exact, exact, features_of, random_features, rounding
from markovlm import _alignment, _pairs
from markovlm._alignment_scores import Sample, Subject, layer_scores
from markovlm._similarity import KINDS
from markovlm._stability import halves_of
from markovlm._subspaces import canonical_pairs, normalizing, orthonormal, ritz, whitening
from markovlm.errors import SampleWarning, ValueRangeError
from markovlm.typing import FloatArray


def aligned(features: mk.Features, *args: Any, **options: Any) -> mk.Alignment:
    """Without the warnings of small samples, which have tests of their own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SampleWarning)
        return mk.alignment(features, *args, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("memory", [None, 2**16])
def test_scores_are_what_they_are_by_definition(kind: str, memory: int | None) -> None:
    n = 60 if kind == "jensen_shannon" else 160
    rng = np.random.default_rng(3)
    features = random_features(n, layers={0: rng.standard_normal((n, 4))})
    found = aligned(features, kind, ranks=(2, 5), beta=2.0, max_memory=memory)
    assert found.layers.tolist() == [0, 1]
    for i, layer in enumerate((0, 1)):
        expected = exact(features, kind, layer, beta=2.0)
        for j, r in enumerate((2, 5)):
            slack = rounding(expected, r) * (2.0 if kind != "jensen_shannon" else 4.0)
            assert found.captured_value[i, j] == pytest.approx(expected.captured(r), abs=slack)
        assert found.trace == pytest.approx(float(np.trace(expected.M)), abs=rounding(expected, 1))
        assert found.trace_share[i] == pytest.approx(
            expected.theta.sum() / np.trace(expected.M), abs=4 * rounding(expected, 4)
        )
        modes = ((expected.U.T @ expected.vectors[:, :2]) ** 2).sum(axis=0)
        gap = float(np.diff(-expected.values[:4]).min())
        turned = 4 * rounding(expected, 2) * float(expected.values[:2].sum()) / gap  # Davis and Kahan
        assert found.modes[i, :2] == pytest.approx(modes, abs=turned + 1e-5 * float(expected.values[0]) / gap)


@pytest.mark.parametrize("kind", KINDS[:4])
def test_the_table_of_pairs_is_right_for_heads_of_every_kind(kind: str) -> None:
    rng = np.random.default_rng(0)
    bias = rng.standard_normal(50).astype(np.float32)
    bias[7] = -np.inf
    P = mk.SoftmaxKernel(
        rng.standard_normal((30, 5)), rng.standard_normal((50, 5)), bias, temperature=0.8, scale=1.3, softcap=4.0
    )
    z = reference.kernel_logits(P)
    p = np.exp(reference.log_softmax(z))
    error = float(2 * np.exp(2 * reference.logit_error(P).max()) - 2) + 60 * 2.0**-24  # of p, relative; and of sums
    size = float(np.abs(P.head).max())
    overlap, means = np.sqrt(p) @ np.sqrt(p).T, p @ P.head.astype(np.float64)
    expected = {
        "bhattacharyya": overlap,
        "expected_likelihood": p @ p.T,
        "prototype": means @ means.T,
        "hellinger_gaussian": np.exp(-2 * 1.5 * (1 - overlap)),
    }[kind]
    J = np.eye(30) - 1 / 30
    pairs = _pairs.pairs_of(P, kind, 1.5, 2**30, None, None)
    got = np.asarray(pairs.times(slice(0, 30), slice(0, 30), np.eye(30)), np.float64)
    slack = {"prototype": 4 * size * float(np.abs(means).max()) * 5, "hellinger_gaussian": 6 * 1.5}.get(kind, 4.0)
    assert np.abs(J @ (got - expected) @ J).max() <= slack * error
    assert np.abs(got - got.T).max() <= 4 * 2.0**-24 * float(np.abs(got).max())
    assert np.abs(pairs.prototypes - means).max() <= 2 * error * size
    if pairs.log_normalizer is not None:
        assert pairs.log_normalizer == pytest.approx(reference.log_normalizer(z), abs=error)


@pytest.mark.parametrize("kind", ["bhattacharyya", "expected_likelihood"])
@pytest.mark.parametrize("noise", [1e-4, 1e-2])
def test_rare_tokens_share_columns(kind: str, noise: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their part of inner products is right on average, and off by what it is said to be; prototypes have all of it."""
    n, vocabulary, width, power = 150, 3000, 256, 0.5 if kind == "bhattacharyya" else 1.0
    rng = np.random.default_rng(0)
    bias = -4.0 * np.log1p(rng.permutation(vocabulary) / 20)  # steeper than texts have it: fewer tokens do here
    P = mk.SoftmaxKernel(rng.standard_normal((n, 4)), rng.standard_normal((vocabulary, 4)), bias.astype(np.float32))
    F = np.exp(power * reference.log_softmax(reference.kernel_logits(P)))
    F -= F.mean(axis=0)
    K, trace = F @ F.T, (F**2).sum() / n
    monkeypatch.setattr(_pairs, "_TILE_BYTES", 4 * n * width)
    monkeypatch.setattr(_pairs, "_SHARED_NOISE", noise)
    stats = mk.softmax_stats(P, mean=True)
    assert stats.mean is not None
    order, kept = _pairs._common_first(P, power, stats.log_normalizer, stats.mean, width)
    assert sorted(order.tolist()) == list(range(vocabulary))
    assert 0 < kept < vocabulary - width
    limit = noise * np.sqrt(width / 2) * trace  # which is guessed from some contexts
    assert stats.mean[order[kept:]].sum() / 1.5 <= limit <= 1.5 * stats.mean[order[kept - 1 :]].sum()
    pairs, every, J = _pairs.pairs_of(P, kind, 1.0, 2**30, None, None), slice(0, n), np.eye(n) - 1 / n
    off = (J @ pairs.times(every, every, np.eye(n)) @ J - K)[np.triu_indices(n, 1)]
    rare = F[:, order[kept:]]
    squares = (rare**2).sum(axis=1)
    said = np.sqrt(2 / width * np.outer(squares, squares)[np.triu_indices(n, 1)].mean())
    variance = np.zeros((n, n))  # of sums of x_w y_v ± over tokens w ≠ v in one column
    for column in range(width):
        x = rare[:, column::width]
        variance += np.outer((x**2).sum(axis=1), (x**2).sum(axis=1)) + (x @ x.T) ** 2 - 2 * x**2 @ (x**2).T
    expected, found = np.sqrt(variance[np.triu_indices(n, 1)].mean()), np.sqrt((off**2).mean())
    rounding = 1.3e-5 * trace
    assert found <= 1.3 * expected + rounding
    assert expected <= said <= 1.5 * noise * trace
    if (kind, noise) == ("bhattacharyya", 1e-2):  # where that is more than rounding: they do share
        assert found >= 0.7 * expected >= 5 * rounding
    assert abs(off.mean()) <= 0.2 * expected + 0.1 * rounding
    means = np.exp(reference.log_softmax(reference.kernel_logits(P))) @ P.head
    assert np.abs(pairs.prototypes - means).max() <= 1e-5 * np.abs(P.head).max()


def test_a_block_is_what_it_is_made_of() -> None:
    P = random_features(150, 60, 5).softmax_kernel()
    X = np.random.default_rng(0).standard_normal((50, 7))
    for kind in KINDS[:4]:
        for memory in (2**30, 2**16):
            K = _pairs.pairs_of(P, kind, 1.0, memory, None, None)
            rows, columns = slice(20, 150), slice(100, 150)
            exact = np.asarray(K.times(rows, columns, X), np.float64)
            table = np.asarray(K.times(rows, columns, np.eye(50)), np.float64)
            sizes = np.outer(np.linalg.norm(table, axis=1), np.linalg.norm(X, axis=0))
            assert np.all(np.abs(K.block(rows, columns, 2)(X) - exact) <= 8e-5 * sizes)  # six times what is random


@pytest.mark.parametrize("kind", KINDS[:4])
def test_predictions_that_hardly_differ_keep_their_modes(kind: str) -> None:
    """Of a model before training: all are nearly uniform, K is constant up to 1e-6, and modes are linear in logits."""
    rng = np.random.default_rng(0)
    found = aligned(features_of(rng.standard_normal((200, 6)), 1e-3 * rng.standard_normal((50, 6))), kind, ranks=(6,))
    assert found.trace < 1e-5
    assert found.score().value > 0.999
    assert found.score(held_out=True).value > 0.999


@given(seed=st.integers(0, 2**32 - 1), d=st.integers(1, 6), kind=st.sampled_from(KINDS[:4]))
def test_ritz_values_interlace_and_nothing_leaves_its_range(seed: int, d: int, kind: str) -> None:
    found = aligned(random_features(80, 20, d, seed), kind, ranks=(1, 6), num_null=2)
    slack = 1e-4 * found.eigenvalues[0]  # of float32
    assert np.all(found.ritz_values <= found.eigenvalues + slack)
    assert np.all(np.diff(found.ritz_values, axis=1) <= slack)
    assert np.all(found.ritz_values >= -slack)
    for values in (found.captured_value, found.trace_share, found.modes, found.correlations):
        assert np.all((values >= -1e-4) & (values <= 1 + 1e-4))
    assert np.all(found.held_out_value <= 1 + 1e-4)
    assert np.array_equal(found.dimension, [d])


def test_ritz_values_of_prototypes_are_generalised_eigenvalues_of_covariances() -> None:
    features = random_features(300, 40, 5, seed=1)
    found = aligned(features, "prototype", ranks=(4,))
    P = features.softmax_kernel()
    H = features.hidden.astype(np.float64)
    G = np.exp(reference.log_softmax(reference.kernel_logits(P))) @ features.head.astype(np.float64)
    h, g = H - H.mean(axis=0), G - G.mean(axis=0)
    C_hh, C_hg = h.T @ h / 300, h.T @ g / 300
    theta = scipy.linalg.eigh(C_hg @ C_hg.T, C_hh, eigvals_only=True)[::-1]
    assert found.ritz_values[0] == pytest.approx(theta[:4], rel=1e-5)  # prototypes are within 1e-6 or so


@given(seed=st.integers(0, 2**32 - 1))
def test_invertible_linear_maps_and_shifts_of_states_change_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, d = 120, 4
    states = rng.standard_normal((n, d))
    Q, R = np.linalg.qr(rng.standard_normal((d, d)))[0], np.linalg.qr(rng.standard_normal((d, d)))[0]
    mapped = states @ (Q * 10.0 ** rng.uniform(-1, 1, d)) @ R + 3 * rng.standard_normal(d)
    features = random_features(n, 30, d, seed, layers={0: states, 1: mapped})
    found = aligned(features, ranks=(3,), num_null=2)
    # float32 states: the map loses digits by its condition, 100 at most, and by the shift, next to the spread
    slack = 1e5 * 2.0**-24
    for name in ("captured_value", "captured_interval", "held_out_value", "trace_share", "modes", "correlations"):
        values = getattr(found, name)
        assert values[0] == pytest.approx(values[1], abs=slack)


def test_planted_angles_are_found() -> None:
    n, r = 400, 3
    features = random_features(n, 50, 4, seed=2)
    truth = exact(features, "bhattacharyya")
    rng = np.random.default_rng(0)
    angles = np.array([0.2, 0.7, 1.3])
    inside = truth.vectors[:, :r]
    outside = rng.standard_normal((n, r))
    outside -= outside.mean(axis=0)
    outside -= truth.vectors[:, :40] @ (truth.vectors[:, :40].T @ outside)
    outside = np.linalg.qr(outside)[0]
    planted = inside * np.cos(angles) + outside * np.sin(angles)
    features = features_of(features.hidden, features.head, layers={0: planted @ rng.standard_normal((r, 4))})
    found = aligned(features, ranks=(r,))
    assert found.dimension[0] == r
    assert found.cosines[0, 0] == pytest.approx(np.cos(angles), abs=1e-3)  # modes are within 1e-5 / gap
    assert found.modes[0] == pytest.approx(np.cos(angles) ** 2, abs=2e-3)


def test_random_features_score_inside_the_band_and_near_the_closed_form() -> None:
    n, d = 200, 5
    inside, shares, captured = [], [], []
    draws = [lambda rng: rng.standard_normal((n, d)), lambda rng: rng.uniform(-1, 1, (n, d))]
    for seed in range(30):
        states = draws[seed % 2](np.random.default_rng(1000 + seed))
        found = aligned(random_features(n, 30, d, seed=5, layers={0: states}), ranks=(4,), seed=seed)
        low, high = found.null_band[0, 0]
        inside.append(low <= found.captured_value[0, 0] <= high)
        low, high = found.null_held_out_band[0, 0]
        captured.append(low <= found.held_out_value[0, 0] <= high)
        shares.append([found.trace_share[0], *found.modes[0], (found.cosines[0] ** 2).mean()])
    # 95 % each: 25 of 30 or more but for one of 300 runs
    assert sum(inside) >= 25
    assert sum(captured) >= 25
    spread = np.std(shares, axis=0) / np.sqrt(len(shares))
    assert np.all(np.abs(np.mean(shares, axis=0) - found.random_share[0]) <= 4 * spread)


@pytest.mark.parametrize("kind", ["bhattacharyya", "prototype"])
def test_influence_is_the_derivative_with_respect_to_the_weights(kind: str) -> None:
    n, r = 90, 3
    features = random_features(n, 30, 4, seed=7)
    P = features.softmax_kernel()
    K = _pairs.pairs_of(P, kind, 1.0, 2**30, None, None)
    whole = Sample.of(K, slice(0, n), r, 0, None)
    scores = layer_scores(orthonormal(features.hidden.astype(np.float64)), Subject(K, whole, (), (r,), 2))
    rng = np.random.default_rng(0)
    exactly = exact(features, kind)
    for _ in range(4):
        direction = rng.standard_normal(n)
        direction -= direction.mean()
        step = 1e-4 / n
        ends = [Exact(exactly.K, exactly.H, 1 / n + sign * step * direction).captured(r) for sign in (1, -1)]
        slope = (ends[0] - ends[1]) / (2 * step)
        derivative = float(scores.captured.in_sample[:, 0] @ direction)
        size = float(np.abs(scores.captured.in_sample[:, 0] - exactly.captured(r)) @ np.abs(direction))
        assert derivative == pytest.approx(slope, abs=1e-4 * size)


def test_held_out_scores_are_what_directions_of_one_half_do_on_the_other() -> None:
    features = random_features(200, 30, 4, seed=9, layers={0: np.random.default_rng(2).standard_normal((200, 4))})
    found = aligned(features, "expected_likelihood", ranks=(2,), seed=3)
    halves = halves_of(features.sequence_ids, [3])
    for i, layer in enumerate((0, 1)):
        total = explained = 0.0
        errors, squares = np.zeros(2), np.zeros(2)
        whole = exact(features, "expected_likelihood", layer)
        for fitted, tested in (halves, halves[::-1]):
            a, b = (exact(features, "expected_likelihood", layer, rows) for rows in (fitted, tested))
            center = [x.H - x.H.mean(axis=0) for x in (a, b)]
            form, gram = center[0].T @ a.M @ center[0], center[0].T @ center[0]
            V = scipy.linalg.eigh(form, gram)[1][:, ::-1][:, :2]
            f = np.linalg.qr(center[1] @ V)[0]
            total += len(tested) / 200 * float(np.trace(f.T @ b.M @ f) / b.values[:2].sum())
            phi = whole.vectors[:, :2]
            weights = np.linalg.lstsq(np.column_stack([np.ones(100), a.H]), phi[fitted], rcond=None)[0]
            errors += ((phi[tested] - np.column_stack([np.ones(100), b.H]) @ weights) ** 2).sum(axis=0)
            squares += ((phi[tested] - phi[tested].mean(axis=0)) ** 2).sum(axis=0)
        explained = float(found.held_out_value[i, 0])
        assert explained == pytest.approx(total, abs=10 * rounding(whole, 2))
        assert found.modes_held_out[i] == pytest.approx(1 - errors / squares, abs=1e-3)  # modes are within 1e-5 / gap


def test_intervals_are_as_wide_as_scores_of_other_texts_spread() -> None:
    """Of states that are made from what predictions are made of, with noise that depends on the sequence."""
    head, size = np.random.default_rng(0).standard_normal((25, 3)), 10
    found = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        level = np.repeat(rng.standard_normal((24, 3)), size, axis=0)
        hidden = rng.standard_normal((24 * size, 3)) + level
        noise = rng.standard_normal(hidden.shape) * np.exp(0.5 * level[:, :1])
        found.append(
            aligned(features_of(hidden, head, length=size, layers={0: hidden + noise}), ranks=(2,), num_null=2)
        )
    scores = np.array([some.captured_value[0, 0] for some in found])
    low, high = np.array([some.captured_interval[0, 0] for some in found]).T
    expected = scores.mean()  # in sample: of texts as long as these
    # 95 %: 33 of 40 or more but for one of 200 runs; and no wider than that takes
    assert np.count_nonzero((low <= expected) & (expected <= high)) >= 33
    assert (high - low).mean() / (2 * 1.96) <= 1.5 * scores.std()


def test_canonical_pairs_and_bases() -> None:
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((50, 3)), rng.standard_normal((50, 4))
    X, Y = X - X.mean(axis=0), Y - Y.mean(axis=0)
    slack = 16 * 2.0**-23  # of an eigenproblem of 3 in float32
    correlations, a, b = canonical_pairs(X.T @ Y, whitening(X.T @ X), whitening(Y.T @ Y), 3)
    x, y = X @ a, Y @ b
    assert x.T @ x == pytest.approx(np.eye(3), abs=slack)
    assert y.T @ y == pytest.approx(np.eye(3), abs=slack)
    assert x.T @ y == pytest.approx(np.diag(correlations), abs=slack)
    sines = scipy.linalg.subspace_angles(X, Y)
    assert correlations == pytest.approx(np.cos(sines[::-1]), abs=slack)
    U = orthonormal(np.column_stack([1e6 + X[:, 0], 1e-3 * X[:, 1], X[:, 0] * 2, np.full(50, 4.0)]))
    assert U.shape == (50, 2)
    assert np.abs(U.T @ U - np.eye(2)).max() <= 1e-9
    theta, V = ritz(np.diag([1.0, 5.0, 3.0]), 2, normalizing(np.diag([1.0, 1.0, 0.0])))
    assert theta.tolist() == pytest.approx([5.0, 1.0])
    assert V[:, 0] == pytest.approx([0, 1, 0]) or V[:, 0] == pytest.approx([0, -1, 0])


def test_what_the_sample_cannot_carry_is_refused_or_said() -> None:
    with pytest.raises(ValueRangeError, match="more contexts than dimensions of states, got 20 contexts"):
        mk.alignment(random_features(20, 60, 30))
    with pytest.warns(SampleWarning, match="60 contexts for 20 dimensions flatter") as said:
        found = mk.alignment(random_features(60, 30, 20), ranks=[2])
    assert set(found.warnings) == {str(w.message) for w in said}
    with pytest.warns(SampleWarning, match="nothing is held out, since half of the text has 20 contexts"):
        found = mk.alignment(random_features(40, 30, 20), ranks=[2])
    assert np.isnan(found.held_out_value).all()
    assert np.isfinite(found.captured_value).all()
    with pytest.warns(SampleWarning, match="a single sequence"):
        found = mk.alignment(random_features(60, 30, 3, length=60), ranks=[2])
    assert np.isnan(found.captured_interval).all()
    assert np.isnan(found.modes_held_out).all()
    with pytest.warns(SampleWarning, match="rest on 3 sequences"):
        mk.alignment(random_features(60, 30, 3), ranks=[2])


def test_states_and_predictions_that_do_not_vary_are_refused() -> None:
    features = random_features(60, 30, 3, layers={0: np.ones((60, 3))})
    with pytest.raises(ValueRangeError, match="the same everywhere at layer 0; leave that layer out"):
        aligned(features, ranks=[2])
    assert aligned(features, ranks=[2], layers=[]).layers.tolist() == [1]
    with pytest.raises(ValueRangeError, match="predictions that differ between contexts"):
        aligned(replace(features, head=np.ones((30, 3), np.float32)), ranks=[2], layers=[])
    hidden = np.tile(features.hidden[:1], (60, 1))
    hidden[-1] = 0
    with pytest.raises(ValueRangeError, match="between contexts of each half of the sequences, on which"):
        aligned(replace(features, hidden=hidden), ranks=[2], layers=[])
    with pytest.raises(ValueRangeError, match="ranks"):
        aligned(features, ranks=[40])
    with pytest.raises(ValueRangeError, match="ranks: expected at least one"):
        aligned(features, ranks=[])
    with pytest.raises(ValueRangeError, match="similarity: expected one of"):
        aligned(features, "cosine")
    with pytest.raises(ValueRangeError, match="layer: 7 was not kept"):
        aligned(features, layers=[7])


def test_what_is_not_finite_in_a_layer_is_named() -> None:
    states = np.random.default_rng(0).standard_normal((60, 3))
    states[7, 1] = np.nan  # or the direction would be left out in silence
    with pytest.raises(ValueRangeError, match="got nan at row 7, column 1"):
        aligned(random_features(60, 30, 3, layers={0: states}), ranks=[2])


def test_a_rank_deficient_head_has_modes_that_states_cannot_all_fill() -> None:
    rng = np.random.default_rng(0)
    head = rng.standard_normal((40, 1)) @ rng.standard_normal((1, 4))  # predictions depend on one direction of states
    found = aligned(features_of(rng.standard_normal((200, 4)), head), "prototype", ranks=(1, 3))
    assert found.prototype_dimension == 1
    assert found.captured[1].value[0] > 0.8
    assert found.captured[3].value[0] == pytest.approx(found.captured[1].value[0], abs=1e-4)  # there is no second mode


def test_it_is_saved_loaded_summed_up_and_shown(tmp_path: Path) -> None:
    features = random_features(120, 30, 4, layers={0: np.random.default_rng(1).standard_normal((120, 4))})
    found = aligned(features, ranks=(2, 3))
    path = tmp_path / "alignment.safetensors"
    found.save(path)
    again = mk.Alignment.load(path)
    assert again.summary() == found.summary()
    assert json.loads(json.dumps(found.summary(), allow_nan=False))["ranks"] == [2, 3]
    assert found.score(0, 2).value == found.captured[2][0].value
    assert found.score(held_out=True).value == found.held_out[3][-1].value
    assert found.best_layer == 1
    assert len(found.tokens) == 3
    assert found.tokens[0][0][0].startswith("token ")
    with pytest.raises(ValueRangeError, match="expected one of"):
        found.score(5)
    features.save(path)
    with pytest.raises(mk.errors.FileFormatError, match="expected an alignment"):
        mk.Alignment.load(path)


def test_progress_rises_to_the_end_and_may_stop_the_work() -> None:
    seen: list[tuple[int, int]] = []
    features = random_features(60, 30, 3)
    aligned(features, ranks=[2], progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        aligned(features, ranks=[2], progress=stop)


def test_what_is_stopped_leaves_no_draws_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    true = _alignment.captured
    monkeypatch.setattr(_alignment, "captured", lambda U, subject: (made.append(1), true(U, subject))[1])

    def stop(done: int, total: int) -> None:
        if done > 4 / 505 * total:  # after the first layer
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        aligned(random_features(60, 30, 3), ranks=[2], num_null=500, progress=stop)
    assert len(made) < 400


def test_the_same_seed_gives_the_same_and_threads_change_nothing() -> None:
    features = random_features(100, 30, 3)
    one, two = (aligned(features, ranks=[2], num_threads=threads).summary() for threads in (1, 2))
    assert one == two


def test_contexts_below_a_layer_count_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers kept at some contexts: the final layer is scored on the same."""
    features = random_features(120, 30, 3)
    rows = np.arange(0, 120, 2)
    kept: FloatArray = features.hidden[rows][None]
    part = replace(features, layers=(0,), layer_rows=rows, layer_hidden=kept, num_layers=1)
    found = aligned(part, ranks=[2])
    assert found.num_contexts == 60
    assert found.captured_value[0] == pytest.approx(found.captured_value[1], abs=1e-6)
    assert _alignment._layers_and_rows(features, "all")[0] == [0]
