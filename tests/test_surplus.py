"""What surplus estimates, against what is known exactly of synthetic languages."""

from __future__ import annotations

import dataclasses
import itertools
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import markovlm as mk
from markovlm import _drafting, _ngrams, _scores
from markovlm.errors import FileFormatError, SampleWarning, ShapeError, ValueRangeError
from markovlm.synthetic import HiddenMarkovLanguage
from markovlm.typing import FloatArray
from synthetic_cases import READY_MADE, every_language

REPETITIONS = int(os.environ.get("MARKOVLM_REPETITIONS", "20"))  # of what holds in most cases

pytestmark = pytest.mark.filterwarnings("ignore::markovlm.errors.SampleWarning")


def of_whole_sequences(
    language: HiddenMarkovLanguage, num_sequences: int, length: int, horizon: int, seed: int = 0, **options: Any
) -> mk.Surplus:
    features = language.features(num_sequences, length, seed)
    return mk.surplus(features, horizon, max_rows=features.num_contexts, **options)


def mean_exact_surplus(language: HiddenMarkovLanguage, length: int, horizon: int) -> float:
    """Over the contexts of whole sequences, from one token on."""
    return float(np.mean([language.exact_surplus(t, horizon) for t in range(1, length - horizon + 2)]))


def true_figures(draft: mk.DraftHead, language: HiddenMarkovLanguage, length: int) -> FloatArray:
    """Acceptances of a fitted head and tokens per round, on many sequences."""
    features = language.features(4000, length, seed=10**6)
    starts = _drafting.Starts.of(features, draft.horizon, features.hidden)
    accepted, of_token = [], []
    for k in range(1, draft.horizon):
        q = draft.kernel(k, starts.states(), starts.tokens(k)).matrix
        p = features.softmax_kernel()[starts.rows + k].matrix
        accepted.append(np.minimum(p, q).sum(axis=1))
        here = np.arange(len(p)), starts.targets(k)
        of_token.append(np.minimum(1.0, q[here] / p[here]))
    a, tokens = np.stack(accepted, axis=1), np.stack(of_token, axis=1)
    weights = _scores.round_starts(tokens, starts.rows)
    reached = np.cumprod(np.column_stack([np.ones(len(a)), tokens[:, :-1]]), axis=1)
    return np.array([*a.mean(axis=0), weights @ (1 + (reached * a).sum(axis=1)) / weights.sum()])


class TestLanguages:
    @every_language
    def test_bound_surplus_usable(self, language: HiddenMarkovLanguage) -> None:
        """In this order, within their intervals."""
        T, K = 9, 3
        found = of_whole_sequences(language, 360, T, K, level=0.999)
        exact = mean_exact_surplus(language, T, K)
        assert found.upper_bound.interval[1] >= exact
        assert found.usable.interval[0] <= exact + 1e-3  # of smoothing by counts, where nothing is uncertain
        assert found.upper_bound.interval[1] >= found.usable.interval[0]
        assert found.usable.interval[1] >= 0
        np.testing.assert_allclose(found.usable_steps.value.sum(), found.usable.value, rtol=1e-12)
        np.testing.assert_allclose(found.upper_bound_steps.value.sum(), found.upper_bound.value, rtol=1e-12)
        loss, entropy = found.model_loss.interval, found.model_entropy.interval
        margin = 1e-5  # of float32 logits, where nothing is uncertain
        assert np.all(loss[:, 0] - margin <= entropy[:, 1])  # the text is the model's own
        assert np.all(entropy[:, 0] - margin <= loss[:, 1])

    @pytest.mark.parametrize("name", ["echo", "copy", "noisy_echo"])
    def test_what_is_linear_is_used_wholly(self, name: str) -> None:
        T, K = 9, 3
        found = of_whole_sequences(READY_MADE[name], 360, T, K, level=0.999)
        exact = mean_exact_surplus(READY_MADE[name], T, K)
        assert found.usable.interval[0] - 1e-3 <= exact <= found.usable.interval[1] + 1e-3
        assert np.all(found.acceptance.value > 0.99)  # 1 but for the penalty of the ridge
        assert found.expected_accepted_length.value > 2.98

    @pytest.mark.parametrize("name", ["mess3", "noisy_echo", "even_process"])
    def test_intervals_cover(self, name: str) -> None:
        """Nominally 95 %; at least 90 % of 200, or of fewer by 3 binomial standard deviations less."""
        language, T = READY_MADE[name], 9
        exact = mean_exact_surplus(language, T, 3)
        cover = np.zeros(5)
        for seed in range(REPETITIONS):
            found = of_whole_sequences(language, 90, T, 3, seed=seed, num_threads=1)
            assert found.draft is not None
            truth = true_figures(found.draft, language, T)
            estimates = [found.acceptance[0], found.acceptance[1], found.expected_accepted_length]
            for i, estimate in enumerate(estimates):
                low, high = estimate.interval
                cover[i] += low - 1e-6 <= truth[i] <= high + 1e-6  # of float32, where there is no spread at all
            cover[3:] += [exact <= found.upper_bound.interval[1], exact >= found.usable.interval[0]]
        chance = 3 * np.sqrt(0.09 * REPETITIONS) if REPETITIONS < 200 else 0.0
        print(f"{name}: {cover.astype(int).tolist()} of {REPETITIONS}")
        assert np.all(cover >= 0.9 * REPETITIONS - chance), cover

    def test_shuffled_states_know_nothing(self) -> None:
        language = READY_MADE["copy"]
        features = language.features(300, 9)
        states = features.hidden[np.random.default_rng(0).permutation(features.num_contexts)]
        found = mk.surplus(features, 3, states=states, max_rows=10**4)
        low, high = found.usable.interval
        assert low <= 0.002  # which mixtures may gain from a second set of coefficients
        assert high >= -0.002
        assert mk.surplus(features, 3, max_rows=10**4).usable.interval[0] > 0.5


class TestParts:
    @given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 2**32 - 1))
    def test_rounds_are_a_markov_chain(self, m: int, steps: int, seed: int) -> None:
        """Against all ways in which steps can be accepted, one stretch after the other."""
        rng = np.random.default_rng(seed)
        tokens = rng.random((m, steps)) * (rng.random((m, steps)) < 0.8)
        gaps = rng.random(m) < 0.2
        rows = np.cumsum(1 + gaps)
        expected = np.zeros(m)

        def begin(i: int, p: float, end: int) -> None:
            expected[i] += p
            for j in range(steps + 1):
                accepted = tokens[i, j] if j < steps else 0.0
                if i + j + 1 < end:
                    begin(i + j + 1, p * (1 - accepted), end)
                p *= accepted

        edges = [0, *np.flatnonzero(np.diff(rows) != 1) + 1, m]
        for first, end in itertools.pairwise(edges):
            begin(int(first), 1.0, int(end))
        np.testing.assert_allclose(_scores.round_starts(tokens, rows), expected, rtol=1e-12, atol=1e-15)

    @given(st.integers(0, 2**32 - 1))
    def test_ridge_regression_by_its_normal_equations(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        features = READY_MADE["mess3"].features(20, 8, seed=seed % 1000)
        features = dataclasses.replace(features, embedding=rng.standard_normal((3, 2)).astype(np.float32))
        starts = _drafting.Starts.of(features, 3, features.hidden)
        moments = _drafting.Moments(starts, 3)
        penalty = float(rng.choice(_drafting.PENALTIES))
        for k, uses_state in ((1, True), (2, True), (2, False)):
            assert features.embedding is not None
            seen = [starts.states()] if uses_state else []
            X = np.hstack([*seen, *(features.embedding[starts.tokens(k)[:, j]] for j in range(k))]).astype(np.float64)
            Y = starts.futures(k).astype(np.float64)
            centred, scale = X - X.mean(axis=0), X.std(axis=0)
            Z = centred / np.where(scale > 1e-6, scale, 1.0)
            G = Z.T @ Z / len(X) + penalty * np.eye(Z.shape[1])
            B = np.linalg.solve(G, Z.T @ (Y - Y.mean(axis=0)) / len(X))
            A = moments.with_means(k, uses_state, moments.solve(k, uses_state, penalty))
            fitted = A[0] + X @ A[1:]
            # Of a sum of products in float32, of inputs that lose digits when their mean is taken off.
            rounding = len(starts) * 2.0**-24 * (np.abs(X).max(axis=0) / np.where(scale > 1e-6, scale, 1.0)).max()
            sizes = np.abs(Y).max() + np.abs(B).sum(axis=0).max()  # (G + E)(B + dB) = C + e: dB = G⁻¹ (e − E B)
            bound = rounding * len(A) / penalty * sizes
            assert np.abs(fitted - (Y.mean(axis=0) + Z @ B)).max() <= bound

    @given(st.integers(0, 2**32 - 1), st.floats(-3, 3))
    def test_temperature_is_where_kl_is_least(self, seed: int, log_scale: float) -> None:
        rng = np.random.default_rng(seed)
        head = rng.standard_normal((7, 4))
        hidden = rng.standard_normal((20, 4))
        P = mk.SoftmaxKernel(hidden, head)
        Q = mk.SoftmaxKernel(np.exp(log_scale) * (hidden + 0.3 * rng.standard_normal((20, 4))), head)
        T = _drafting.fitted_temperature(P, Q, 1)

        def loss(temperature: float) -> float:
            return float(mk.divergence(P, _drafting.read_out(Q, Q.hidden, temperature), mk.KL()).mean())

        assert all(loss(T) <= loss(T * factor) + 1e-6 for factor in (0.9, 0.95, 1.05, 1.1))

    def test_temperature_of_a_scaled_head_is_its_scale(self) -> None:
        rng = np.random.default_rng(0)
        hidden, head = rng.standard_normal((50, 4)), rng.standard_normal((9, 4))
        for scale in (0.2, 1.0, 5.0):
            T = _drafting.fitted_temperature(mk.SoftmaxKernel(hidden, head), mk.SoftmaxKernel(scale * hidden, head), 1)
            assert abs(np.log(T / scale)) <= _drafting._PRECISION  # where brentq stops

    @pytest.mark.parametrize("order", [1, 2, 3])
    def test_counts_are_distributions(self, order: int) -> None:
        rng = np.random.default_rng(order)
        V = 5
        fitted = [rng.integers(0, V - 1, 60), rng.integers(0, V - 1, 2), rng.integers(0, V, 1)]
        contexts = np.repeat(rng.integers(0, V, (40, order)), V, axis=0)
        q = np.exp(-_ngrams.ngram_losses(fitted, contexts, np.tile(np.arange(V), 40), V)).reshape(40, V)
        np.testing.assert_allclose(q.sum(axis=1), 1.0, rtol=1e-12)
        assert q.min() > 0
        # By the definition, for one context of one token: N(c w) + T(c) q(w), over N(c) + T(c).
        pairs = [(a, b) for s in fitted for a, b in itertools.pairwise(s.tolist())]
        every = np.concatenate(fitted)
        distinct = len(set(every.tolist()))
        unigram = (np.bincount(every, minlength=V) + distinct / V) / (len(every) + distinct)
        after = np.bincount([b for a, b in pairs if a == 0], minlength=V)
        expected = (after + (after > 0).sum() * unigram) / (after.sum() + (after > 0).sum())
        got = np.exp(-_ngrams.ngram_losses(fitted, np.zeros((V, 1), np.int64), np.arange(V), V))
        np.testing.assert_allclose(got, expected, rtol=1e-12)

    def test_mixtures_are_no_worse_than_what_they_are_of(self) -> None:
        losses = np.random.default_rng(0).exponential(size=(200, 3)) + np.array([0.0, 0.1, 5.0])
        weights = _scores.mixture(losses)
        assert abs(weights.sum() - 1) <= 1e-12
        assert _scores.mixed(losses, weights).mean() <= losses.mean(axis=0).min() + 1e-9
        brute = [
            _scores.mixed(losses, np.array([a, b, 1 - a - b])).mean()
            for a in np.linspace(0, 1, 21)
            for b in np.linspace(0, 1 - a, 21)
        ]
        assert _scores.mixed(losses, weights).mean() <= min(brute) + 1e-4


class TestDraftHead:
    def test_laws_by_their_definition(self) -> None:
        rng = np.random.default_rng(0)
        V, d, e = 6, 3, 2
        head, embedding = rng.standard_normal((V, d)), rng.standard_normal((V, e)).astype(np.float32)
        maps = tuple(rng.standard_normal((1 + d + k * e, d)).astype(np.float32) for k in (1, 2))
        draft = mk.DraftHead(maps, (0.5, 2.0), embedding, mk.SoftmaxKernel(np.zeros((0, d)), head, softcap=3.0))
        hidden, tokens = rng.standard_normal((4, d)).astype(np.float32), rng.integers(0, V, (4, 2))
        assert draft.horizon == 3
        for k in (1, 2):
            x = np.hstack([np.ones((4, 1)), hidden, *(embedding[tokens[:, j]] for j in range(k))])
            z = 3.0 * np.tanh((x @ maps[k - 1]) @ head.T / 3.0) / draft.temperatures[k - 1]
            p = np.exp(z - z.max(axis=1, keepdims=True))
            got = draft.kernel(k, hidden, tokens[:, :k]).matrix
            np.testing.assert_allclose(got, p / p.sum(axis=1, keepdims=True), rtol=1e-5)
        with pytest.raises(ValueRangeError, match=r"step: expected an integer in \[1, 2\], got 3"):
            draft.kernel(3, hidden, tokens)
        with pytest.raises(ShapeError, match=r"tokens: expected shape \(4, 1\), 1 for each state, got \(4, 2\)"):
            draft.kernel(1, hidden, tokens)


class TestNetworks:
    @pytest.fixture(autouse=True)
    def torch(self) -> Any:
        return pytest.importorskip("torch", reason="trains the networks")

    def test_what_a_map_cannot_do(self) -> None:
        features = READY_MADE["even_process"].features(300, 9, seed=1)
        linear, network = (mk.surplus(features, 3, family=family, max_rows=10**4) for family in ("linear", "mlp"))
        assert network.kl.value[0] < 0.8 * linear.kl.value[0]
        assert network.acceptance.value[0] > linear.acceptance.value[0] + 0.01
        assert network.usable.value > linear.usable.value
        assert network.decision.startswith("A draft head with one hidden layer on the last layer")
        again = mk.surplus(features, 3, family="mlp", max_rows=10**4)
        assert again.summary() == network.summary()
        assert (linear.family, network.family) == ("linear", "mlp")

    def test_none_is_added_where_the_map_does_all(self) -> None:
        draft = mk.surplus(READY_MADE["cycle"].features(60, 9), 3, family="mlp").draft
        assert draft is not None
        assert all(residual is None or np.abs(residual.second).max() < 1e-3 for residual in draft.residuals)

    def test_a_residual_by_its_definition(self) -> None:
        rng = np.random.default_rng(0)
        center, scale, U, c, V = (rng.standard_normal(size).astype(np.float32) for size in (3, 3, (3, 5), 5, (5, 2)))
        X = rng.standard_normal((7, 3)).astype(np.float32)
        inner = ((X.astype(np.float64) - center) * scale) @ U + c
        expected = np.where(inner > 0, inner, 0) @ V
        np.testing.assert_allclose(_drafting.Residual(center, scale, U, c, V)(X), expected, atol=1e-5)

    def test_random_numbers_and_gradients_of_others_are_left_alone(self, torch: Any) -> None:
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        with torch.no_grad():
            mk.surplus(READY_MADE["mess3"].features(30, 9), 2, family="mlp")
        assert torch.equal(torch.rand(3), expected)


def with_layers(features: mk.Features, num_rows: int | None = None) -> mk.Features:
    """A first layer that knows nothing, and a second one that knows all."""
    n = features.num_contexts
    rows = np.arange(n) if num_rows is None else np.sort(np.random.default_rng(0).choice(n, num_rows, replace=False))
    noise = np.random.default_rng(1).standard_normal(features.hidden[rows].shape).astype(np.float32)
    states = np.stack([noise, features.hidden[rows]])
    return dataclasses.replace(features, layers=(0, 1), layer_rows=rows, layer_hidden=states, num_layers=2)


@pytest.mark.parametrize("num_rows", [None, 700])
def test_layers(num_rows: int | None) -> None:
    features = with_layers(READY_MADE["copy"].features(100, 12), num_rows)
    found = mk.surplus(features, 3, layer_rows=200)
    layers = found.layers
    assert layers is not None
    np.testing.assert_array_equal(layers.layer, [0, 1, 2])
    assert found.best_layer == 1
    np.testing.assert_allclose(layers.share[1:], 1.0, atol=1e-6)
    assert layers.share[0] < 0.2
    assert layers.acceptance.value[1] > 0.98 > 0.8 > layers.acceptance.value[0]
    assert "layer 1 already carries 90 %" in found.decision
    assert layers.num_rows[1] <= 200


def test_layers_are_left_out_where_there_are_too_few_contexts() -> None:
    found = mk.surplus(with_layers(READY_MADE["copy"].features(30, 12), 20), 3)
    assert found.layers is None
    assert found.best_layer is None
    assert "carries" not in found.decision


def test_tokens_per_pass_for_each_number_of_drafted_tokens() -> None:
    features = READY_MADE["mess3"].features(60, 8)
    found = mk.surplus(features, 4, max_rows=10**4)
    assert repr(found.lengths[2]) == repr(found.expected_accepted_length)
    assert np.all(np.diff(found.lengths.value) > 0)
    assert np.all(found.lengths.value > found.lengths_without.value)
    assert np.all(found.lengths.value <= [2, 3, 4])
    # One drafted token: as many as steps with a weight; by the definition, from the rows that are kept.
    assert found.draft is not None
    draft = dataclasses.replace(found.draft, maps=found.draft.maps[:1], temperatures=found.draft.temperatures[:1])
    scored = np.isin(features.sequence_ids, found.sequence_ids) & (features.positions < 6)
    part = dataclasses.replace(
        features,
        **{name: getattr(features, name)[scored] for name in ("hidden", "targets", "token_ids", "sequence_ids")},
        positions=features.positions[scored],
        text_ids=None,
    )
    alone = mk.expected_accepted_length(draft, part)
    assert abs(alone.value - found.lengths.value[0]) <= 1e-12


def test_a_single_sequence_gives_no_interval_and_none_is_written() -> None:
    found = mk.surplus(READY_MADE["mess3"].features(8, 12), 2, states=np.ones((96, 1), np.float32))
    assert "[" in found.decision
    assert "draft head on other states" in found.decision
    without = dataclasses.replace(
        found, expected_accepted_length=mk.Estimate(1.5, (np.nan, np.nan)), acceptance=mk.Estimates(*UNKNOWN)
    )
    assert "nan" not in without.decision
    assert "[" not in without.decision


UNKNOWN = np.array([0.5]), np.full((1, 2), np.nan)


def test_every_field_survives_a_file(tmp_path: Path) -> None:
    for features in (READY_MADE["mess3"].features(30, 8), with_layers(READY_MADE["copy"].features(30, 12))):
        found = mk.surplus(features, 3)
        found.save(tmp_path / "s.safetensors")
        again = mk.Surplus.load(tmp_path / "s.safetensors")
        assert again.draft is None
        assert again.summary() == found.summary()
        for name in ("rows", "sequence_ids", "row_acceptance", "row_starts"):
            np.testing.assert_array_equal(getattr(again, name), getattr(found, name))
        for f in dataclasses.fields(mk.Surplus):
            ours, theirs = getattr(again, f.name), getattr(found, f.name)
            if f.name != "draft" and not isinstance(theirs, np.ndarray):
                assert type(ours) is type(theirs), f.name
        assert (again.text, again.provenance) == (found.text, found.provenance)
    READY_MADE["mess3"].features(30, 8).save(tmp_path / "f.safetensors")
    with pytest.raises(FileFormatError, match="expected a surplus of schema 1, got a file of another kind"):
        mk.Surplus.load(tmp_path / "f.safetensors")


def test_the_same_for_any_number_of_threads() -> None:
    features = READY_MADE["mess3"].features(60, 8)
    one, two = (mk.surplus(features, 3, num_threads=threads) for threads in (1, 2))
    assert one.summary() == two.summary()
    assert mk.surplus(features, 3, seed=1).summary() != one.summary()


def test_progress_comes_to_an_end_and_can_stop() -> None:
    features = with_layers(READY_MADE["copy"].features(30, 12))
    seen: list[tuple[int, int]] = []
    mk.surplus(features, 3, progress=lambda done, total: seen.append((done, total)))
    done = [now for now, _ in seen]
    assert done == sorted(done)
    assert seen[-1][0] == seen[-1][1]
    assert len({total for _, total in seen}) == 1
    assert done[-2] >= seen[-1][1] - 1  # what was foreseen is what was done

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mk.surplus(features, 3, progress=stop)


@pytest.mark.filterwarnings("error::markovlm.errors.SampleWarning")
def test_small_samples_are_said_to_be_small() -> None:
    features = READY_MADE["mess3"].features(12, 40)
    with pytest.warns(SampleWarning, match="intervals rest on 4 sequences") as caught:
        found = mk.surplus(features, 3)
    assert [str(w.message) for w in caught] == list(found.warnings)
    assert Path(caught[0].filename) == Path(__file__)
    with pytest.warns(SampleWarning, match=r"maps of up to 13 inputs were fitted on 30 contexts; on more than 52"):
        mk.surplus(READY_MADE["mess3"].features(60, 3), 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mk.surplus(READY_MADE["mess3"].features(60, 9), 3).warnings == ()


def test_errors() -> None:
    features = READY_MADE["mess3"].features(20, 6)
    for changes, options, error, message in (
        ({"embedding": None}, {}, ValueRangeError, r"features: expected embeddings of the tokens.*dataclasses.replace"),
        ({}, {"horizon": 1}, ValueRangeError, r"horizon: expected an integer in \[2, "),
        ({}, {"horizon": 7}, ValueRangeError, r"horizon: expected at most 6, the contexts of the longest .* got 7"),
        ({}, {"states": np.zeros((5, 2))}, ShapeError, r"states: expected 120 rows, one for each context, got 5"),
        ({}, {"family": "cubic"}, ValueRangeError, r"family: expected one of 'linear', 'mlp', got 'cubic'"),
        ({}, {"horizon": 6000}, ValueRangeError, r"horizon: expected at most 6, "),
        ({"embedding": np.full((3, 2), np.nan, np.float32)}, {}, ValueRangeError, r"features.embedding: .* got nan"),
        ({"targets": np.full(120, 3)}, {}, ValueRangeError, r"targets: .*3"),
        (
            {"embedding": np.zeros((3, 9000), np.float32)},
            {"horizon": 3},
            ValueRangeError,
            r"horizon: 3 tokens make maps",
        ),
        ({}, {"max_rows": 0}, ValueRangeError, r"max_rows: expected an integer"),
        ({}, {"level": 1.5}, ValueRangeError, r"level: expected a number between 0 and 1"),
        ({}, {"seed": -1}, ValueRangeError, r"seed: expected"),
    ):
        with pytest.raises(error, match=message):
            mk.surplus(dataclasses.replace(features, **changes), **options)  # type: ignore[arg-type]
    with pytest.raises(ValueRangeError, match=r"features: expected at least 4 sequences of 4 contexts or more.*got 1"):
        mk.surplus(READY_MADE["mess3"].features(1, 500))
