"""Speculative decoding: the law of its output is the model's, exactly; and it accepts what the theory predicts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import markovlm as mk
from decoding_cases import along, chain_draft, chain_model, fitted_draft, laws, outcomes, start_probabilities
from markovlm import _speculative
from markovlm._bootstrap import bootstrap_mean
from markovlm._drafting import DraftHead
from markovlm._head import Head
from markovlm._speculative import acceptance, residual
from markovlm._verifier import Verifier
from markovlm.errors import DTypeError, ShapeError, UnsupportedModelError, ValueRangeError
from markovlm.typing import FloatArray, SinglePrecisionArray
from tiny_models import SENTENCES, mini_tokenizer, some_ids, tiny

EPS = float(np.finfo(np.float64).eps)
STICKY = np.kron([[0.96, 0.04], [0.04, 0.96]], np.ones((3, 3)))
STICKY *= np.random.default_rng(0).dirichlet(np.full(3, 3.0), (6, 2)).reshape(6, 6)
"""(6, 6): two kinds of tokens, which change rarely."""


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny("llama", vocab_size=6, num_hidden_layers=1, max_position_embeddings=256)


@pytest.fixture(scope="module")
def draft(model: Any) -> DraftHead:
    return fitted_draft(model, 4)


def random_law(weights: Sequence[int]) -> FloatArray:
    law = np.array([*weights], np.float64)
    return law / law.sum()


LAWS = st.lists(st.integers(0, 9), min_size=5, max_size=5).filter(any).map(random_law)


@given(LAWS, LAWS)
def test_one_step_has_the_law_of_the_model(p: FloatArray, q: FloatArray) -> None:
    accept, replacement = acceptance(p, q), residual(p, q)
    assert ((accept >= 0) & (accept <= 1)).all()
    rejected = 1 - q @ accept
    np.testing.assert_allclose(q * accept + rejected * replacement, p, rtol=0, atol=8 * EPS)
    assert abs(rejected - np.abs(p - q).sum() / 2) <= 8 * EPS
    assert abs(replacement.sum() - 1) <= 8 * EPS


class TableModel:
    """States that are random, but the same for the same ids; stands in for a ``Verifier``."""

    def __init__(self, head: Head, seed: int) -> None:
        self.head, self.seed, self.ids = head, seed, list[int]()

    def begin(self) -> None:
        self.ids = []

    def feed(self, tokens: list[int]) -> SinglePrecisionArray:
        first = len(self.ids)
        self.ids += tokens
        return np.stack([self.state(self.ids[: first + i + 1]) for i in range(len(tokens))])

    def state(self, ids: list[int]) -> SinglePrecisionArray:
        return np.random.default_rng([self.seed, *ids]).normal(size=self.head.weight.shape[1]).astype(np.float32)

    def take_back(self, count: int) -> None:
        self.ids = self.ids[: len(self.ids) - count]


def table_case(seed: int, temperature: float) -> tuple[TableModel, DraftHead, dict[tuple[int, ...], FloatArray]]:
    """A model and a draft that each rule out a token, and the model's laws after the prompt and some tokens."""
    V, d, K = 3, 2, 3
    rng = np.random.default_rng(seed)
    W, E = (rng.normal(size=(V, d)).astype(np.float32) for _ in range(2))
    ruled_out = np.where(np.arange(V) == rng.integers(V, size=(2, 1)), -np.inf, 0.0).astype(np.float32)
    table = TableModel(Head(2 * W, ruled_out[0], softcap=5.0), seed)
    maps = tuple(rng.normal(size=(1 + d + k * d, d)).astype(np.float32) for k in range(1, K))
    q = mk.SoftmaxKernel(np.zeros((1, d), np.float32), W, ruled_out[1], temperature=0.8)
    states = {ids: table.state([7, *ids]) for n in range(3) for ids in np.ndindex(*[V] * n)}
    kernel = mk.SoftmaxKernel(np.stack([*states.values()]), 2 * W, ruled_out[0], softcap=5.0)
    return table, DraftHead(maps, (1.0, 0.7), E, q), dict(zip(states, laws(kernel, temperature), strict=True))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("seed", range(3))
def test_all_outcomes_together_have_the_law_of_the_model(seed: int, temperature: float) -> None:
    table, draft, p = table_case(seed, temperature)
    drafter = _speculative._Drafter(draft, table.head, temperature)

    def run(chance: Any) -> tuple[tuple[int, ...], int]:
        decoder = _speculative._Decoder(table, drafter, temperature, chance)  # type: ignore[arg-type]
        decoder.begin([7])
        while len(decoder.tokens) < 3:
            decoder.play_round()
        return tuple(decoder.tokens[:3]), decoder.lengths[0]

    law: dict[tuple[int, ...], float] = defaultdict(float)
    with_length: dict[tuple[tuple[int, ...], int], float] = defaultdict(float)
    count = 0
    for (tokens, length), probability in outcomes(run):
        law[tokens] += probability
        with_length[tokens, length] += probability
        count += 1
    assert count > 100
    h = table.state([7])[None]
    # Logits are sums of 2 products of float32 in both, and up to 5 large; three tokens have three of them.
    tolerance = 3 * 2 * 5 * float(np.finfo(np.float32).eps) / temperature
    expected_length = 0.0
    for ids in np.ndindex(3, 3, 3):
        w, u, v = ids
        text = p[()][w] * p[w,][u] * p[w, u][v]
        assert abs(law[ids] - text) <= tolerance
        # Given the text, the drafts of a round are accepted independently.
        q = [laws(draft.kernel(k, h, [[w, u][:k]]), temperature)[0] for k in (1, 2)]
        a = [min(1.0, q[0][u] / p[w,][u]) if p[w,][u] > 0 else 0.0, min(1.0, q[1][v] / p[w, u][v]) if text > 0 else 0.0]
        for length, share in ((1, 1 - a[0]), (2, a[0] * (1 - a[1])), (3, a[0] * a[1])):
            assert abs(with_length[ids, length] - text * share) <= tolerance
        expected_length += text * (1 + np.minimum(p[w,], q[0]).sum() + a[0] * np.minimum(p[w, u], q[1]).sum())
    measured = sum(length * probability for (_, length), probability in with_length.items())
    assert abs(measured - expected_length) <= 27 * tolerance


def bigrams(decoded: mk.Decoded, V: int) -> FloatArray:
    """(prompts, V²) counts."""
    return np.stack([np.bincount(t[:-1] * V + t[1:], minlength=V * V) for t in decoded.tokens]).astype(np.float64)


def same_law(a: FloatArray, b: FloatArray, resamples: int = 2000) -> float:
    """p-value of a chi-square of two samples; prompts are exchanged, since the tokens after one are dependent."""
    both = np.concatenate([a, b])
    total = both.sum(axis=0)
    expected = total / len(both)
    some = total > 0
    first = np.zeros((resamples + 1, len(both)))
    first[0, : len(a)] = 1
    rng = np.random.default_rng(1)
    for row in first[1:]:
        row[rng.permutation(len(both))[: len(a)]] = 1
    excess = (first @ both)[:, some] - len(a) * expected[some]
    statistic = (excess**2 / expected[some]).sum(axis=1)
    return float((statistic >= statistic[0] * (1 - 1e-12)).mean())


@pytest.fixture(scope="module")
def plain(model: Any) -> mk.Decoded:
    return mk.speculative_decode(model, None, [[3]] * 200, num_tokens=50, seed=1)


@pytest.fixture(scope="module")
def overconfident(draft: DraftHead) -> DraftHead:
    """So that much is rejected, and what a broken decoder does with it shows."""
    return replace(draft, temperatures=(0.3, 0.3, 0.3))


def test_samples_cannot_be_told_from_plain_ones(model: Any, overconfident: DraftHead, plain: mk.Decoded) -> None:
    assert set(np.concatenate(plain.accepted_lengths)) == {1}
    decoded = mk.speculative_decode(model, overconfident, [[3]] * 200, num_tokens=50, seed=2)
    assert 1.5 < decoded.accepted_length.value < 2.5
    assert same_law(bigrams(decoded, 6), bigrams(plain, 6)) > 0.02  # a right one fails for one seed of 50


@pytest.mark.parametrize(
    ("name", "mutant"),
    [("residual", lambda p, q: p), ("acceptance", lambda p, q: np.minimum(1.0, 2 * acceptance(p, q)))],
)
def test_a_broken_decoder_is_told_from_plain_samples(
    model: Any, overconfident: DraftHead, plain: mk.Decoded, name: str, mutant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_speculative, name, mutant)
    decoded = mk.speculative_decode(model, overconfident, [[3]] * 200, num_tokens=50, seed=2)
    assert same_law(bigrams(decoded, 6), bigrams(plain, 6)) < 0.001


@pytest.mark.parametrize("temperature", [0, 0.0])
def test_greedy_is_greedy(model: Any, draft: DraftHead, temperature: float) -> None:
    prompts = [some_ids(5, seed) % 6 for seed in range(8)]
    expected = mk.speculative_decode(model, None, prompts, num_tokens=40, temperature=temperature)
    decoded = mk.speculative_decode(model, draft, prompts, num_tokens=40, temperature=temperature, seed=3)
    for prompt, a, b in zip(prompts, decoded.tokens, expected.tokens, strict=True):
        np.testing.assert_array_equal(a, b)
        with torch.no_grad():
            logits = model(torch.from_numpy(np.concatenate([prompt, a]))[None]).logits[0]
        assert logits.argmax(dim=1)[len(prompt) - 1 : -1].tolist() == a.tolist()
    assert decoded.num_rounds < expected.num_rounds


def test_a_perfect_draft_is_always_accepted() -> None:
    model = chain_model(STICKY)
    decoded = mk.speculative_decode(model, chain_draft(model, 5), [[0], [3, 1, 4]], num_tokens=25)
    assert decoded.accepted_length == mk.Estimate(5.0, (5.0, 5.0))
    assert [steps.value for steps in decoded.acceptance_by_step] == [1.0] * 4
    assert decoded.num_rounds == 10
    assert decoded.num_forwards == 12
    cold = mk.speculative_decode(model, chain_draft(model, 5), [[0]], num_tokens=25, temperature=0.3)
    assert cold.accepted_length.value == 5.0


def test_a_useless_draft_costs_nothing_but_time() -> None:
    model = chain_model(STICKY)
    wrong = np.where(np.arange(6) == STICKY.argmin(axis=1)[:, None], 1 - 5e-9, 1e-9)
    draft = chain_draft(model, 3, wrong)
    greedy = mk.speculative_decode(model, draft, [[0], [4]], num_tokens=20, temperature=0)
    assert greedy.accepted_length.value == 1.0
    plain = mk.speculative_decode(model, None, [[0], [4]], num_tokens=20, temperature=0)
    np.testing.assert_array_equal(greedy.tokens, plain.tokens)


def test_what_is_said_of_the_rounds(model: Any, draft: DraftHead) -> None:
    decoded = mk.speculative_decode(model, draft, [[1], [2, 3], [4]], num_tokens=30, seed=5)
    assert [len(tokens) for tokens in decoded.tokens] == [30, 30, 30]
    for lengths in decoded.accepted_lengths:
        assert set(lengths) <= {1, 2, 3, 4}
        assert lengths[:-1].sum() < 30 <= lengths.sum()
    counts = np.concatenate(decoded.accepted_lengths)
    assert decoded.accepted_length.value == counts.mean()
    assert [step.value for step in decoded.acceptance_by_step] == [(counts > k).mean() for k in (1, 2, 3)]
    assert decoded.num_forwards == 3 + decoded.num_rounds
    assert decoded.cached
    low, high = decoded.accepted_length.interval
    assert repr(decoded) == (
        f"Decoded(90 tokens after 3 prompts, {len(counts)} rounds: {counts.mean():.2f} [{low:.2f}, {high:.2f}] "
        "accepted of 4 in a round)"
    )
    one = mk.speculative_decode(model, draft, [[1], [2, 3], [4]], num_tokens=30, num_rounds=1, seed=5)
    for part, whole, lengths in zip(one.tokens, decoded.tokens, one.accepted_lengths, strict=True):
        assert part.tolist() == whole[: lengths.sum()].tolist()


def test_a_prompt_has_random_numbers_of_its_own(model: Any, draft: DraftHead) -> None:
    both = mk.speculative_decode(model, draft, [[1], [2, 3]], num_tokens=30, seed=5)
    again = mk.speculative_decode(model, draft, [[1], np.array([2, 3])], num_tokens=30, seed=5)
    alone = mk.speculative_decode(model, draft, [[1]], num_tokens=30, seed=5)
    np.testing.assert_array_equal(both.tokens, again.tokens)
    np.testing.assert_array_equal(both.tokens[0], alone.tokens[0])
    other = mk.speculative_decode(model, draft, [[1]], num_tokens=30, seed=6)
    assert (alone.tokens[0] != other.tokens[0]).any()
    same = mk.speculative_decode(model, draft, [[1], [1]], num_tokens=30)
    assert (same.tokens[0] != same.tokens[1]).any()


@pytest.mark.parametrize(
    ("family", "cached"),
    [
        *((name, True) for name in ("llama", "mistral", "gemma2", "gpt2", "opt-projected", "cohere", "mpt", "gpt-oss")),
        *((name, False) for name in ("mamba", "recurrent-gemma", "openai-gpt")),
    ],
)
def test_cached_states_change_nothing(family: str, cached: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(family)
    draft, prompts = fitted_draft(model, 3), [some_ids(20), some_ids(1)]
    decoded = mk.speculative_decode(model, draft, prompts, num_tokens=25)  # beyond windows of 16
    assert decoded.cached == cached
    assert 1 < decoded.accepted_length.value < 3  # something was taken back, and something not
    if cached:
        monkeypatch.setattr(Verifier, "_can_cache", lambda *_: False)
        again = mk.speculative_decode(model, draft, prompts, num_tokens=25)
        assert not again.cached
        np.testing.assert_array_equal(decoded.tokens, again.tokens)


def test_a_cache_that_takes_nothing_back_is_not_used(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.DynamicCache.crop", lambda *_: None)
    assert not mk.speculative_decode(model, None, [[1, 2]], num_tokens=3).cached


def test_tokens_that_a_draft_does_not_know(model: Any) -> None:
    whole = fitted_draft(model, 3)
    known = mk.SoftmaxKernel(whole.model.hidden, whole.model.head[:5])
    draft = DraftHead(whole.maps, whole.temperatures, whole.embedding[:5], known)
    decoded = mk.speculative_decode(model, draft, [[3]] * 5, num_tokens=40)
    assert any((tokens == 5).any() for tokens in decoded.tokens)
    for tokens, lengths in zip(decoded.tokens, decoded.accepted_lengths, strict=True):
        starts = np.cumsum(lengths) - lengths
        assert (lengths[tokens[starts] == 5] == 1).all()
        drafted = np.setdiff1d(np.arange(len(tokens)), starts)
        assert (tokens[drafted] < 5).all()


def differ(values: Sequence[FloatArray]) -> mk.Estimate:
    """Mean of one array per prompt."""
    groups = np.repeat(np.arange(len(values)), [len(part) for part in values])
    return bootstrap_mean(np.concatenate(values)[:, None], groups, level=0.99)[0]


def test_one_round_from_each_context_accepts_what_is_predicted(model: Any, draft: DraftHead, plain: mk.Decoded) -> None:
    texts = [[3, *tokens] for tokens in plain.tokens[:20]]
    features = mk.extract(model, texts=texts, layers=None)
    found = along(features, draft)
    expected = np.full(len(features.hidden), np.nan)
    expected[found.rows] = found.expected_length
    starts = range(4, 44, 2)
    prompts = [text[: start + 1] for text in texts for start in starts]
    measured = mk.speculative_decode(model, draft, prompts, num_tokens=4, num_rounds=1, seed=7)
    lengths = np.concatenate(measured.accepted_lengths).reshape(len(texts), -1)
    predicted = expected.reshape(len(texts), -1)[:, list(starts)]  # the text goes on as the model would
    low, high = differ(list(lengths - predicted)).interval
    assert low < 0 < high
    assert high - low < 0.4


@pytest.fixture(scope="module", params=["even", "uneven"])
def run(request: pytest.FixtureRequest, model: Any, draft: DraftHead) -> tuple[str, Any, DraftHead, mk.Decoded]:
    """Decoded 40 tokens and a round more; uneven drafts are the model's law after three tokens, useless after three."""
    if request.param == "uneven":
        model, wrong = chain_model(STICKY), STICKY.copy()
        wrong[3:] = np.where(np.arange(6) == STICKY[3:].argmin(axis=1)[:, None], 1 - 5e-6, 1e-6)
        draft = chain_draft(model, 4, wrong)
    decoded = mk.speculative_decode(model, draft, [[i % 6] for i in range(60)], num_tokens=40 + draft.horizon, seed=11)
    return request.param, model, draft, decoded


def features_of(model: Any, decoded: mk.Decoded) -> mk.Features:
    texts = [[number % 6, *tokens] for number, tokens in enumerate(decoded.tokens)]
    return mk.extract(model, texts=texts, layers=None, max_tokens=10**5)


def test_a_run_accepts_what_is_predicted_where_its_rounds_start(run: tuple[str, Any, DraftHead, mk.Decoded]) -> None:
    _, model, draft, decoded = run
    features = features_of(model, decoded)
    found = along(features, draft)
    expected = np.full(len(features.hidden), np.nan)
    expected[found.rows] = found.expected_length
    surprise = []
    for number, lengths in enumerate(decoded.accepted_lengths):
        starts = np.cumsum(lengths) - lengths
        inside = starts < 40
        # Whatever the law of the starts is, from each of them the text goes on as the model would.
        surprise.append(lengths[inside] - expected[number * (40 + draft.horizon) + starts[inside]])
    low, high = differ(surprise).interval
    assert low < 0 < high
    assert high - low < 0.25


def test_a_text_tells_where_rounds_start_and_what_they_accept(run: tuple[str, Any, DraftHead, mk.Decoded]) -> None:
    name, model, draft, decoded = run
    lengths = [part[np.cumsum(part) - part < 40].astype(np.float64) for part in decoded.accepted_lengths]
    low, high = differ(lengths).interval
    features = features_of(model, decoded)
    found = along(features, draft)
    weights = start_probabilities(found, np.flatnonzero(features.positions == 0))
    of_all = np.average(found.expected_length, weights=weights)
    assert abs(mk.expected_accepted_length(draft, features).value - of_all) <= 1e-4  # of float32 logits
    inside = features.positions[found.rows] < 40
    assert low < np.average(found.expected_length[inside], weights=weights[inside]) < high
    if name == "uneven":  # where rounds are short there are more of them: the mean over all positions is another
        assert found.expected_length[inside].mean() > high + 0.3


def hooks_of(model: Any) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_an_interrupt_leaves_no_hooks(model: Any, draft: DraftHead) -> None:
    calls = []

    def stop(done: int, total: int) -> None:
        calls.append((done, total))
        if done > 10:
            raise KeyboardInterrupt

    model.train()
    try:
        with pytest.raises(KeyboardInterrupt):
            mk.speculative_decode(model, draft, [[1], [2]], num_tokens=20, progress=stop)
        assert all(module.training for module in model.modules())
    finally:
        model.eval()
    assert hooks_of(model) == 0
    assert all(total == 40 for _, total in calls)
    done: list[int] = []
    for rounds in (1, None):
        done.clear()
        mk.speculative_decode(
            model, draft, [[1], [2]], num_tokens=20, num_rounds=rounds, progress=lambda n, _: done.append(n)
        )
        assert done == sorted(done)
        assert done[-1] == 40


def test_prompts_as_text() -> None:
    model, tokenizer = tiny("llama", vocab_size=328), mini_tokenizer(begins=True)
    ids = [tokenizer(text[:9])["input_ids"] for text in SENTENCES]
    assert ids[0][0] == 1
    decoded = mk.speculative_decode(model, None, [text[:9] for text in SENTENCES], num_tokens=5, tokenizer=tokenizer)
    np.testing.assert_array_equal(decoded.tokens, mk.speculative_decode(model, None, ids, num_tokens=5).tokens)
    one = mk.speculative_decode(model, None, SENTENCES[0][:9], num_tokens=5, tokenizer=tokenizer)
    np.testing.assert_array_equal(one.tokens[0], decoded.tokens[0])


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"prompts": []}, ValueRangeError, "prompts: expected a list of strings or of sequences"),
        ({"prompts": 3}, ValueRangeError, "prompts: expected a list of strings or of sequences"),
        ({"prompts": [[1], []]}, ShapeError, r"prompts\[1\]: expected one axis of at least one token id"),
        ({"prompts": [1, 2]}, ShapeError, r"prompts\[0\]: expected one axis"),
        ({"prompts": [[1.5]]}, DTypeError, r"prompts\[0\]: expected integers"),
        ({"prompts": [[1], [6]]}, ValueRangeError, r"prompts\[1\]: token ids must lie in 0 \.\.\. 5, got 6"),
        ({"prompts": "The sea"}, ValueRangeError, "tokenizer: a loaded model needs one"),
        ({"prompts": [[1], "The sea"]}, DTypeError, r"prompts\[1\]: expected token ids"),
        ({"num_tokens": 0}, ValueRangeError, "num_tokens"),
        ({"num_rounds": 0}, ValueRangeError, "num_rounds"),
        ({"num_tokens": 2.0}, DTypeError, "num_tokens"),
        ({"seed": -1}, ValueRangeError, "seed"),
        ({"temperature": -1.0}, ValueRangeError, "temperature"),
        ({"temperature": float("nan")}, ValueRangeError, "temperature"),
        ({"temperature": "hot"}, DTypeError, "temperature"),
        ({"draft": "none"}, DTypeError, "draft: expected a DraftHead"),
        (
            {"num_tokens": 253},
            ValueRangeError,
            "1 tokens, 253 after it and 3 that a last round .* make 257, llama .* 256",
        ),
        ({"model": "no/such/model/here"}, FileNotFoundError, "model"),
        ({"model": torch.nn.Linear(2, 2)}, UnsupportedModelError, "expected a Transformers model"),
    ],
)
def test_errors(model: Any, draft: DraftHead, arguments: dict[str, Any], error: type[Exception], match: str) -> None:
    given = {"model": model, "draft": draft, "prompts": [[1]], "num_tokens": 4, **arguments}
    with pytest.raises(error, match=match):
        mk.speculative_decode(**given)


def test_the_longest_that_fits(model: Any, draft: DraftHead) -> None:
    decoded = mk.speculative_decode(model, draft, [[1] * 230], num_tokens=23)
    assert len(decoded.tokens[0]) == 23
    assert len(mk.speculative_decode(model, draft, [[1] * 249], num_tokens=99, num_rounds=1).accepted_lengths[0]) == 1


def test_models_and_drafts_that_do_not_fit(model: Any, draft: DraftHead) -> None:
    other = tiny("llama", vocab_size=6, hidden_size=16, head_dim=4, max_position_embeddings=256)
    with pytest.raises(ShapeError, match=r"draft: expected states of width 16 .*got 32"):
        mk.speculative_decode(other, draft, [[1]])
    with pytest.raises(ShapeError, match=r"at most 5 tokens"):
        mk.speculative_decode(tiny("llama", vocab_size=5, max_position_embeddings=256), draft, [[1]])
    with pytest.raises(DTypeError, match="float32"):
        mk.speculative_decode(tiny("llama").half(), None, [[1]])
    broken = tiny("llama")
    with torch.no_grad():
        broken.model.norm.weight[0] = float("nan")
    with pytest.raises(ValueRangeError, match=r"NaN or infinity in its weight model\.norm\.weight"):
        mk.speculative_decode(broken, None, [[1]], num_tokens=4)
    with pytest.raises(UnsupportedModelError, match="depend on later tokens"):
        mk.speculative_decode(tiny("bert-decoder", is_decoder=False), None, [[5, 6, 7, 8]], num_tokens=4)


def test_the_last_token_is_never_past_the_end() -> None:
    chance = _speculative.Chance(0, 0)
    chance._random = SimpleNamespace(random=lambda: 1 - 2.0**-53)  # type: ignore[assignment]
    for V in (1, 7, 50_000):
        law = np.random.default_rng(V).dirichlet(np.ones(V))
        assert chance.choose(np.append(law, 0.0)) < V
