"""Modes: eigenpairs as a dense solver has them, two faces that fit each other, and what repeats in both halves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import markovlm as mk
from markovlm._modes import HALF_TOL
from markovlm._stability import agreement, halves_of
from markovlm.typing import FloatArray
from test_profile import assert_same

FACTORS = ("bhattacharyya", "expected_likelihood", "prototype")
ENTRYWISE = ("hellinger_gaussian", "jensen_shannon")
SINGLE = float(np.finfo(np.float32).eps)


def made_up(n: int = 90, vocabulary: int = 40, d: int = 6, sequences: int = 6, seed: int = 7) -> mk.Features:
    rng = np.random.default_rng(seed)
    return mk.Features(
        hidden=rng.normal(size=(n, d)).astype(np.float32),
        head=rng.normal(size=(vocabulary, d)).astype(np.float32),
        targets=rng.integers(0, vocabulary, n),
        token_ids=rng.integers(0, vocabulary, n),
        sequence_ids=np.arange(n) * sequences // n,
        positions=np.arange(n) % (n // sequences),
        layers=(0, 2),
        layer_rows=np.arange(0, n, 3),
        layer_hidden=rng.normal(size=(2, len(range(0, n, 3)), d)).astype(np.float32),
        num_layers=3,
        vocabulary=tuple(f"token {i}" for i in range(vocabulary)),
        provenance={"model": "made-up"},
    )


def clustered(noise: float, seed: int = 3) -> mk.Features:
    """Contexts of four kinds, dealt to sequences at random; each kind predicts eight tokens of its own."""
    rng = np.random.default_rng(seed)
    kind = rng.permutation(np.repeat(np.arange(4), [100, 55, 30, 15]))
    n, clusters, each, d = len(kind), 4, 8, 200
    head = rng.normal(size=(clusters * each + 200, d)) / np.sqrt(d)
    head[: clusters * each, :clusters] += 4 * np.repeat(np.eye(clusters), each, axis=0)
    hidden = noise * rng.normal(size=(n, d))
    hidden[np.arange(n), kind] += 2.5
    return mk.Features(
        hidden=hidden.astype(np.float32),
        head=head.astype(np.float32),
        targets=kind * each,
        token_ids=kind,
        sequence_ids=np.arange(n) // 10,
        positions=np.arange(n) % 10,
    )


@pytest.fixture(scope="module")
def features() -> mk.Features:
    return made_up()


@pytest.fixture(scope="module")
def found(features: mk.Features) -> mk.Modes:
    return mk.modes(features, k=8)


def factor_of(features: mk.Features, kind: str) -> FloatArray:
    p = features.softmax_kernel().matrix
    return np.asarray(
        np.sqrt(p) if kind == "bhattacharyya" else p if kind == "expected_likelihood" else p @ features.head
    )


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("kind", [*FACTORS, *ENTRYWISE])
def test_against_a_dense_solver(features: mk.Features, kind: str, centered: bool) -> None:
    k, n = 5, features.num_contexts
    modes = mk.modes(features, kind, k, centered=centered, beta=2.0, num_splits=0)
    M = mk.similarity_operator(features.softmax_kernel(), kind, centered=centered, beta=2.0).dense()
    values, vectors = np.linalg.eigh(M)
    values, vectors = values[::-1], vectors[:, ::-1]
    # entries are made in float32: some units in the last place of each, and 32 for exponentials of logits below 16
    error = 64 * SINGLE * np.trace(M)
    np.testing.assert_allclose(modes.eigenvalues, values[:k], rtol=0, atol=error)
    assert modes.trace == pytest.approx(float(np.trace(M)), abs=error)
    np.testing.assert_allclose(modes.shares, modes.eigenvalues / modes.trace)
    assert (modes.lower <= modes.eigenvalues).all()
    assert (modes.eigenvalues <= modes.upper).all()
    assert (modes.residual_norms <= modes.tol * modes.norm).all()
    # in L²(μ), and up to the angle that an error turns vectors of such gaps by (Davis and Kahan)
    np.testing.assert_allclose(modes.functions.T @ modes.functions / n, np.eye(k), rtol=0, atol=1e-12)
    gaps = np.minimum(-np.diff(values[: k + 1]), np.concatenate([[np.inf], -np.diff(values[:k])]))
    angles = np.abs(np.einsum("xi,xi->i", modes.functions, vectors[:, :k])) / np.sqrt(n)
    sines = np.minimum(4 * (error + modes.residual_norms) / gaps, 1)
    assert (angles >= np.sqrt(1 - sines**2) - 1e-12).all()
    assert modes.status.startswith("converged")
    assert np.isnan(modes.stability).all()
    assert np.isnan(modes.span_stability).all()


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("kind", FACTORS)
def test_faces_fit_each_other(features: mk.Features, kind: str, centered: bool) -> None:
    """``√λ φ(x) = Σ_w F(x, w) v(w)``, up to the mean where that is projected out."""
    modes = mk.modes(features, kind, 4, centered=centered, num_splits=0)
    F = factor_of(features, kind)
    face, n = modes.token_functions, features.num_contexts
    np.testing.assert_allclose(np.linalg.norm(face, axis=0), 1.0, rtol=1e-12)
    assert (face[np.abs(face).argmax(axis=0), np.arange(4)] > 0).all()
    if kind == "prototype":  # v is a direction of the states, and what is shown is W v: made of length 1
        direction = F.T @ (modes.functions - centered * modes.functions.mean(axis=0)) / n
        shown = features.head.astype(np.float64) @ direction
        np.testing.assert_allclose(face, shown / np.linalg.norm(shown, axis=0), rtol=0, atol=1e-5)
        face = direction / np.linalg.norm(direction, axis=0)
    image = F @ face
    image -= centered * image.mean(axis=0)
    expected = np.sqrt(modes.eigenvalues) * modes.functions
    size = np.abs(F).sum(axis=1).max()
    np.testing.assert_allclose(image, expected, rtol=0, atol=1e-5 * size)


@pytest.mark.parametrize("kind", ENTRYWISE)
def test_without_a_factor_tokens_are_those_of_the_bhattacharyya_factor(features: mk.Features, kind: str) -> None:
    modes = mk.modes(features, kind, 3, num_threads=1)
    expected = factor_of(features, "bhattacharyya").T @ modes.functions
    expected /= np.linalg.norm(expected, axis=0)
    np.testing.assert_allclose(modes.token_functions, expected, rtol=0, atol=1e-5)
    assert np.isfinite(modes.stability).all()


def test_shares_of_the_bhattacharyya_similarity_sum_to_1(features: mk.Features) -> None:
    modes = mk.modes(features, k=features.num_contexts, num_splits=0)
    assert modes.trace == pytest.approx(1.0, abs=1e-12)
    assert modes.shares.sum() == pytest.approx(1.0, abs=64 * SINGLE)
    assert (np.diff(modes.eigenvalues) <= 0).all()


@pytest.mark.parametrize("kind", FACTORS[:2])
def test_the_leading_mode_has_one_sign(features: mk.Features, kind: str) -> None:
    modes = mk.modes(features, kind, 3, num_splits=0)
    assert len(modes.top_contexts(0, 10**6)) == features.num_contexts
    assert len(modes.top_contexts(0, sign=-1)) == len(modes.top_tokens(0, sign=-1)[0]) == 0
    assert len(modes.top_contexts(1, sign=-1)) > 0


def test_leading_entries(found: mk.Modes) -> None:
    for sign in (1, -1):
        rows = found.top_contexts(2, 5, sign)
        values = sign * found.functions[:, 2]
        np.testing.assert_array_equal(values[rows], np.sort(values)[::-1][:5])
        ids, token_values = found.top_tokens(2, 7, sign)
        np.testing.assert_array_equal(token_values, found.token_functions[ids, 2])
        assert (sign * token_values > 0).all()
        assert (np.diff(sign * token_values) <= 0).all()
        assert len(ids) == 7
    assert len(found.top_tokens(2, 0)[0]) == 0


def test_eigenvalues_of_0_have_no_face_on_tokens() -> None:
    flat = replace(made_up(), hidden=np.repeat(made_up().hidden[:2], 45, axis=0))  # predictions of two kinds alone
    modes = mk.modes(flat, k=4)
    assert (modes.lower[2:] <= 0).all()
    assert np.linalg.norm(modes.token_functions, axis=0).round(12).tolist() == [1, 1, 0, 0]
    assert np.isnan(modes.stability[2:]).all()
    assert len(modes.top_tokens(3)[0]) == 0
    assert modes.functions[np.abs(modes.functions[:, 3]).argmax(), 3] > 0
    assert str(modes)


def test_planted_clusters_are_found_in_both_halves_and_noise_is_not() -> None:
    features = clustered(0.2)
    modes = mk.modes(features, k=10)
    assert modes.eigenvalues[3] > 20 * modes.eigenvalues[4]
    assert modes.stability[:4].min() > 0.99
    assert modes.span_stability[:4].min() > 0.99
    assert modes.stability[4:].max() < 0.9
    assert modes.span_stability[4:].mean() < 0.8
    for mode in range(4):  # one kind each, the most frequent first
        assert set(features.token_ids[modes.top_contexts(mode, 10)].tolist()) == {mode}
        assert set(modes.top_tokens(mode, 8)[0].tolist()) == set(range(8 * mode, 8 * mode + 8))


def test_stability_is_1_where_halves_are_the_same(features: mk.Features) -> None:
    twice = replace(
        features,
        **{
            name: np.concatenate([getattr(features, name)] * 2)
            for name in ("hidden", "targets", "token_ids", "positions")
        },
        sequence_ids=np.repeat([0, 1], features.num_contexts),
        layers=(),
        layer_rows=None,
        layer_hidden=None,
    )
    modes = mk.modes(twice, k=4)
    np.testing.assert_allclose(modes.stability, 1.0, rtol=0, atol=1e-12)  # of the same numbers, computed twice
    # residuals turn vectors of the halves by at most this angle, of which spans lose the square (Davis and Kahan)
    angle = HALF_TOL * modes.norm / np.abs(np.diff(mk.modes(twice, k=5).eigenvalues)).min()
    np.testing.assert_allclose(modes.span_stability, 1.0, rtol=0, atol=2 * angle**2)
    assert angle < 0.1


def test_span_stability_forgives_rotations() -> None:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(50, 3)))[0]
    turn = np.eye(3)
    turn[:2, :2] = np.array([[1, -1], [1, 1]]) / np.sqrt(2)
    alone, spanned = agreement(basis, basis, basis @ turn)
    np.testing.assert_allclose(alone, [np.sqrt(0.5), np.sqrt(0.5), 1], rtol=1e-12)
    np.testing.assert_allclose(spanned, 1, rtol=1e-12)
    other = np.linalg.qr(np.hstack([basis, rng.normal(size=(50, 3))]))[0][:, 3:]
    alone, spanned = agreement(basis, basis, other)
    np.testing.assert_allclose(np.hstack([alone, spanned]), 0, atol=1e-12)


def test_a_mode_without_counterpart_does_not_count_as_another() -> None:
    """Its closest one in either half may be that of the leading mode, and that one does replicate."""
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.normal(size=(50, 4)))[0]
    lead, noise, noise_of_a, noise_of_b = basis.T
    nearly = (noise + 1e-3 * lead) / np.hypot(1, 1e-3)
    alone, spanned = agreement(
        np.stack([lead, nearly], 1), np.stack([lead, noise_of_a], 1), np.stack([lead, noise_of_b], 1)
    )
    np.testing.assert_allclose(alone, [1, 0], atol=1e-12)
    np.testing.assert_allclose(spanned, [1, 1e-3], rtol=1e-5)


def test_halves_are_disjoint_whole_sequences_of_nearly_the_same_size() -> None:
    sizes = np.array([50, 3, 20, 20, 9, 40, 1])
    sequences = np.repeat(np.arange(7), sizes)
    seen = set()
    for seed in range(6):
        first, second = halves_of(sequences, [seed])
        assert sorted([*first, *second]) == list(range(len(sequences)))
        assert not set(sequences[first]) & set(sequences[second])
        assert abs(len(first) - len(second)) <= 17  # 50 and 40, 20 and 20, 9 and 3, 1
        seen.add(tuple(first))
    assert len(seen) > 1
    assert halves_of(np.zeros(5, dtype=int), [0]) == ()


def test_one_sequence_has_no_halves(features: mk.Features) -> None:
    modes = mk.modes(replace(features, sequence_ids=np.zeros_like(features.sequence_ids)), k=3)
    assert np.isnan(modes.stability).all()
    assert "not known" in str(modes)


def test_halves_smaller_than_k(features: mk.Features) -> None:
    modes = mk.modes(replace(features, sequence_ids=np.arange(90) // 88), k=20)
    assert np.isfinite(modes.stability).sum() == 2  # contexts of the smaller half
    assert np.isfinite(modes.span_stability).all()


def test_a_layer_has_its_own_rows(features: mk.Features) -> None:
    modes = mk.modes(features, k=3, layer=2)
    np.testing.assert_array_equal(modes.rows, features.layer_rows)
    assert modes.functions.shape == (30, 3)
    direct = mk.eigsh(mk.similarity_operator(features.softmax_kernel(2), "bhattacharyya"), 3)
    np.testing.assert_array_equal(modes.eigenvalues, direct.eigenvalues)
    assert len(modes.text) == features.num_contexts
    assert "layer 2" in str(modes)


def test_same_seed_same_bits(features: mk.Features, found: mk.Modes) -> None:
    assert_same(
        vars(mk.modes(features, k=8, num_threads=1, max_memory=2**15)), vars(mk.modes(features, k=8, max_memory=2**15))
    )
    assert_same(vars(mk.modes(features, k=8)), vars(found))


def test_progress_never_falls_and_ends_where_it_said(features: mk.Features) -> None:
    calls: list[tuple[int, int]] = []
    mk.modes(features, k=3, progress=lambda done, total: calls.append((done, total)))
    done = [call[0] for call in calls]
    assert done == sorted(done)
    assert all(a <= b for a, b in calls)
    assert calls[-1][0] == calls[-1][1]
    alone: list[tuple[int, int]] = []
    mk.modes(features, k=3, num_splits=0, progress=lambda *call: alone.append(call))
    assert 0 < len(alone) < len(calls)

    def stop(done: int, total: int) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        mk.modes(features, k=3, progress=stop)


def test_saves_and_loads_everything(found: mk.Modes, tmp_path: Path) -> None:
    path = tmp_path / "spectrum.safetensors"
    for modes in (found, replace(found, effective_rank=mk.Estimate(3.5, (2.0, 5.0)), rest=float("nan"))):
        modes.save(path)
        assert_same(vars(mk.Modes.load(path)), vars(modes))
    assert [file.name for file in tmp_path.iterdir()] == ["spectrum.safetensors"]


def test_refuses_files_of_another_kind(features: mk.Features, found: mk.Modes, tmp_path: Path) -> None:
    features.save(tmp_path / "features")
    with pytest.raises(mk.errors.FileFormatError, match="expected modes of schema 1, got a file of another kind"):
        mk.Modes.load(tmp_path / "features")
    found.save(tmp_path / "modes")
    whole = (tmp_path / "modes").read_bytes()
    newer = whole.replace(b'"markovlm.modes":"1"', b'"markovlm.modes":"9"')
    assert newer != whole
    (tmp_path / "newer").write_bytes(newer)
    with pytest.raises(mk.errors.FileFormatError, match="got 9"):
        mk.Modes.load(tmp_path / "newer")
    with pytest.raises(mk.errors.FileFormatError, match="expected a profile"):
        mk.Profile.load(tmp_path / "modes")


def test_repr_table_and_summary(found: mk.Modes) -> None:
    assert repr(found).startswith("Modes('made-up': 8 of bhattacharyya, 90 contexts, ")
    table = str(found)
    assert "made-up: 8 modes of the Bhattacharyya similarity, 90 contexts" in table
    assert f'"token {found.top_tokens(0)[0][0]}"' in table
    assert f"[{found.text[found.top_contexts(1)[0]]}]" in table
    assert max(map(len, table.splitlines())) <= 100
    summary = found.summary()
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["eigenvalues"] == found.eigenvalues.tolist()
    assert summary["tokens"][1][0] == f"token {found.top_tokens(1)[0][0]}"
    assert summary["tokens_of_negative_side"][0] == []
    assert "effective rank 3.5 [2.0, 5.0]" in str(replace(found, effective_rank=mk.Estimate(3.5, (2.0, 5.0))))


def test_names_every_token_that_it_shows(features: mk.Features, found: mk.Modes) -> None:
    for mode in range(8):
        for sign in (1, -1):
            assert set(found.top_tokens(mode, 24, sign)[0].tolist()) <= set(found.vocabulary)
    assert set(features.token_ids[::15].tolist()) <= set(found.vocabulary)  # sequences begin with them
    unnamed = mk.modes(replace(features, vocabulary=()), k=2)
    assert unnamed.vocabulary == {}
    assert f'"token {unnamed.top_tokens(0)[0][0]}"' in str(unnamed)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kind": "cosine"}, "kind: expected one of 'bhattacharyya', .* got 'cosine'"),
        ({"k": 0}, r"k: expected an integer in \[1, 90\], got 0"),
        ({"k": 91}, r"k: expected an integer in \[1, 90\], got 91"),
        ({"seed": -1}, "seed: expected an integer"),
        ({"tol": 1.5}, r"tol: expected a number in \(0, 1\)"),
        ({"layer": 1}, "layer: 1 was not kept"),
        ({"beta": 0.0}, "beta: expected a number > 0"),
        ({"max_memory": 0}, "max_memory: expected an integer"),
    ],
)
def test_arguments_out_of_range(features: mk.Features, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(mk.errors.ValueRangeError, match=words):
        mk.modes(features, **arguments)


def test_modes_and_signs_out_of_range(found: mk.Modes) -> None:
    with pytest.raises(mk.errors.ValueRangeError, match=r"mode: expected an integer in \[0, 7\], got 8"):
        found.top_contexts(8)
    with pytest.raises(mk.errors.ValueRangeError, match="sign: expected 1 or -1, got 0"):
        found.top_tokens(0, sign=0)
    with pytest.raises(mk.errors.ValueRangeError, match="count"):
        found.top_tokens(0, -1)


def test_no_contexts() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    empty = mk.Features(np.zeros((0, 2), np.float32), np.zeros((5, 2), np.float32), nothing, nothing, nothing, nothing)
    with pytest.raises(mk.errors.ShapeError, match="expected at least one context"):
        mk.modes(empty, k=1)
