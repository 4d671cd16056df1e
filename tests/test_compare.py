"""Comparisons: differences are those of the tokens, their laws hold, and what cannot be compared is refused."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import markovlm as mk
from comparison_fixture import another, checkpoints, recut, with_tokens
from markovlm._bootstrap import Estimates, bootstrap_mean
from markovlm._comparison import Comparison, at_most
from markovlm._profile import Profile
from markovlm.errors import DTypeError, SampleWarning, ShapeError, ValueRangeError
from markovlm.typing import FloatArray
from profile_fixture import fake_modes, fake_profile, infinite
from surplus_fixture import fake_surplus

EPS = float(np.finfo(np.float64).eps)
NAN = float("nan")
ABOUT_TOKENS = ("nll", "entropy", "calibration", "accuracy")


@pytest.fixture(scope="module")
def first() -> Profile:
    return fake_profile(600, 6)


@pytest.fixture(scope="module")
def found(first: Profile) -> Comparison:
    return mk.compare([first, another(first)])


def small(losses: FloatArray, sequences: int = 8, name: str = "a model") -> Profile:
    """A profile of given losses, for laws that nothing else enters."""
    base = fake_profile(len(losses), sequences, with_layers=False, hostile=False)
    return with_tokens(base, losses, 0.5 * losses, name)


def test_differences_are_those_of_the_tokens(first: Profile, found: Comparison) -> None:
    """The slow way: one loop over tokens for each mean, and the bootstrap of each column by itself."""
    other = found.profiles[1]
    each = {
        "nll": [b - a for a, b in zip(first.tokens.nll, other.tokens.nll, strict=True)],
        "entropy": [b - a for a, b in zip(first.tokens.entropy, other.tokens.entropy, strict=True)],
        "calibration": [b - a for a, b in zip(first.tokens.surprise, other.tokens.surprise, strict=True)],
        "accuracy": [int(b == 0) - int(a == 0) for a, b in zip(first.tokens.rank, other.tokens.rank, strict=True)],
    }
    atol = 40 * EPS * first.num_tokens  # sums of n numbers below 40 nats, in other orders
    for name, values in each.items():
        quantity = found.quantities[name]
        difference, before, after = quantity.differences[1], quantity.estimates[0], quantity.estimates[1]
        assert quantity.differences[0] is None
        assert difference is not None
        assert before is not None
        assert after is not None
        assert abs(difference.value - sum(values) / len(values)) <= atol
        assert abs(difference.value - (after.value - before.value)) <= atol
        (alone,) = bootstrap_mean(np.array(values, float)[:, None], first.tokens.sequence_id)
        np.testing.assert_allclose(difference.interval, alone.interval, rtol=0, atol=atol)
    np.testing.assert_array_equal(found.token_differences(1), other.tokens.nll - first.tokens.nll)


def test_estimates_are_those_of_the_profiles(found: Comparison) -> None:
    for i, profile in enumerate(found.profiles):
        for name in ABOUT_TOKENS:
            assert found.quantities[name].estimates[i] == getattr(profile, name)
        information = found.quantities["information"].estimates[i]
        assert information is not None
        assert information.value == profile.information
        assert math.isnan(information.interval[0])
        assert found.quantities["renyi_2"].estimates[i] == profile.renyi[profile.renyi_orders.index(2.0)]


def test_what_is_hard_for_both_drops_out() -> None:
    """Losses that vary by nats between sequences, a difference that is the same everywhere."""
    rng = np.random.default_rng(0)
    losses = 3.0 + rng.uniform(0, 3, 8)[np.arange(400) * 8 // 400] + rng.uniform(0, 1, 400)
    found = mk.compare([small(losses), small(losses - 0.01, name="better")])
    quantity = found.quantities["nll"]
    difference, loss = quantity.differences[1], quantity.estimates[0]
    assert difference is not None
    assert loss is not None
    np.testing.assert_allclose((difference.value, *difference.interval), -0.01, rtol=0, atol=400 * 8 * EPS)
    assert loss.interval[1] - loss.interval[0] > 0.5
    assert found.sentences[0] == "better loses 0.010 [0.010, 0.010] nats per token less than a model: outside noise."


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.integers(2, 9))
def test_laws_of_differences(seed: int, sequences: int) -> None:
    """0 to itself; the other way round with the other sign; from A to C as from A to B and from B to C."""
    rng = np.random.default_rng(seed)
    A, B, C = (small(rng.gamma(2.0, 1.0, 60), sequences, name) for name in "ABC")
    from_a, from_b = mk.compare([A, B, C, replace(A)], names=["A", "B", "C", "D"]), mk.compare([A, B, C], baseline=1)
    for name in ABOUT_TOKENS:
        ab, ac, aa = from_a.quantities[name].differences[1:]
        ba, _, bc = from_b.quantities[name].differences
        assert ab is not None
        assert ac is not None
        assert aa is not None
        assert ba is not None
        assert bc is not None
        assert (aa.value, aa.interval) == (0.0, (0.0, 0.0))
        assert (ba.value, *ba.interval) == (-ab.value, -ab.interval[1], -ab.interval[0])
        largest = max(float(np.abs(p.tokens.nll).max()) for p in (A, B, C))
        assert abs(ac.value - (ab.value + bc.value)) <= 8 * 60 * EPS * largest  # sums of 60 numbers, three times


def test_intervals_cover_what_they_claim() -> None:
    """100 texts of 40 sequences, a true difference of 0.1 with noise that sequences share."""
    rng, covered, told = np.random.default_rng(1), 0, 0
    losses, groups = np.full(120, 3.0), np.arange(120) * 40 // 120
    first = small(losses, 40)
    for _ in range(100):
        noise = 0.2 * rng.standard_normal(40)[groups] + 0.2 * rng.standard_normal(120)
        difference = mk.compare([first, with_tokens(first, losses + 0.1 + noise, losses, "B")]).quantities["nll"]
        (estimate,) = difference.differences[1:]
        assert estimate is not None
        low, high = estimate.interval
        covered += low <= 0.1 <= high
        told += low > 0
    # of 40 sequences some 94 in 100 are covered, with a deviation of 2.4. The standard error of a difference is
    # √((0.2² + 0.2² / 3) / 40) = 0.037, and P(N > 1.96 − 0.1 / 0.037) = 0.78, with a deviation of 4.1 in 100
    assert covered >= 94 - 3.5 * 2.4
    assert told >= 78 - 3.5 * 4.1


def test_another_tokenizer_is_compared_by_characters(first: Profile) -> None:
    """Two cuts of one text with the same loss of it: the same number, and no token has a partner."""
    with pytest.warns(SampleWarning, match="the tokens of 'made-up/pairs' are not those of 'made-up/harbour-12'"):
        found = mk.compare([first, recut(first)])
    assert found.paired == (True, False)
    assert found.quantities["nll"].differences == (None, None)
    a, b = found.quantities["nll_per_character"].estimates
    assert a is not None
    assert b is not None
    characters = sum(len(text) for text in first.tokens.text)
    atol = 8 * first.num_tokens * EPS * a.value
    assert abs(a.value - float(sum(first.tokens.nll)) / characters) <= atol
    np.testing.assert_allclose((b.value, *b.interval), (a.value, *a.interval), rtol=0, atol=atol)
    assert "loses as much per character as" in found.sentences[0]
    with pytest.raises(ValueRangeError, match="cuts the text into others"):
        found.token_differences(1)
    with pytest.warns(SampleWarning):
        both = mk.compare([first, another(first), recut(first)])  # two that can be paired, one that cannot
    assert both.paired == (True, True, False)
    assert both.quantities["nll"].differences[1] is not None
    assert both.quantities["nll"].differences[2] is None


def test_only_the_text_that_all_scored_counts_per_character(first: Profile) -> None:
    """The other stops earlier: what lies beyond is left out of the first as well."""
    end = 400
    short = replace(first.tokens, **{n: v[:end] for n, v in vars(first.tokens).items()})
    other = replace(first, num_tokens=end, tokens=short)
    with pytest.warns(SampleWarning, match="at most log n, and n differs"):
        found = mk.compare([first, other], names=["long", "short"])
    a, b = found.quantities["nll_per_character"].estimates
    assert a == b
    assert a is not None
    characters = sum(map(len, first.tokens.text[:end]))
    assert abs(a.value - float(first.tokens.nll[:end].sum()) / characters) <= 8 * end * EPS * a.value


def test_texts_without_words_have_no_loss_per_character(first: Profile) -> None:
    bare = replace(recut(first), tokens=replace(recut(first).tokens, text=("",) * 300))
    with pytest.warns(SampleWarning):
        found = mk.compare([first, bare])
    assert found.quantities["nll_per_character"].estimates[1] is None
    assert "their losses cannot be compared" in found.sentences[0]


def test_infinite_losses_are_left_out_and_said(first: Profile) -> None:
    other = infinite(first)
    with pytest.warns(SampleWarning, match="1 token had probability 0"):
        found = mk.compare([first, other], names=["A", "B"])
    difference = found.quantities["nll"].differences[1]
    assert difference is not None
    assert (difference.value, difference.interval) == (0.0, (0.0, 0.0))
    assert found.token_differences(1)[3] == np.inf
    assert found.top_contexts(1, sign=1).tolist() == [3]


def test_top_contexts_are_the_largest_differences(first: Profile, found: Comparison) -> None:
    difference = found.token_differences(1)
    np.testing.assert_array_equal(difference[found.top_contexts(1, 7)], np.sort(difference)[:7])
    np.testing.assert_array_equal(difference[found.top_contexts(1, 7, sign=1)], np.sort(difference)[::-1][:7])
    assert (difference[found.top_contexts(1, 600)] < 0).all()
    with pytest.raises(ValueRangeError, match="sign: expected 1 or -1"):
        found.top_contexts(1, sign=0)
    with pytest.raises(ValueRangeError, match="model: expected an integer"):
        found.top_contexts(2)


def test_unknown_targets(first: Profile) -> None:
    nothing = fake_profile(600, 6, known_targets=False, with_layers=False)
    found = mk.compare([nothing, nothing], names=["A", "B"])
    difference = found.quantities["nll"].differences[1]
    assert difference is not None
    assert math.isnan(difference.value)
    assert "cannot be said" in found.sentences[0]


def test_one_sequence_has_a_difference_and_no_verdict() -> None:
    single = fake_profile(200, 1, with_layers=False)
    found = mk.compare([single, another(single)])
    assert "nothing tells whether that is noise" in found.sentences[0]
    assert "*" not in str(found)


def test_names_and_steps(first: Profile) -> None:
    line = checkpoints(3, with_layers=False)
    assert mk.compare(line, steps=[0, 10, 100]).names == ("step 0", "step 10", "step 100")
    assert mk.compare([first, another(first)], steps=[1, 2]).names == ("made-up/harbour-12", "made-up/harbour-24")
    assert mk.compare(line).names[2] == "made-up/harbour-12 (3)"
    found = mk.compare(line, names=["A", "B", "C"], steps=np.array([1.0, 2.0, 3.0], dtype=np.float32), baseline=2)
    assert found.others == (0, 1)
    assert found.steps is not None
    assert found.steps.tolist() == [1.0, 2.0, 3.0]


def layer_estimates(values: list[float]) -> Estimates:
    column = np.array(values)
    return Estimates(column, np.column_stack([column - 0.1, column + 0.1]))


def fake_alignment(provenance: dict[str, Any], layers: list[int], rank: int = 16) -> Any:
    """The fields that a comparison reads, and no others."""
    count = len(layers)
    return SimpleNamespace(
        ranks=(rank,),
        layers=np.array(layers),
        captured={rank: layer_estimates(np.linspace(0.2, 0.8, count).tolist())},
        held_out={rank: layer_estimates(np.linspace(0.1, 0.7, count).tolist())},
        similarity="bhattacharyya",
        provenance=provenance,
    )


def test_results_beside_the_profiles(first: Profile) -> None:
    other = another(first)
    averages = dict(zip(("trace", "anisotropy", "effective_rank"), layer_estimates([0.5, 0.2, 30.0]), strict=True))
    drafts, modes = fake_surplus(with_layers=False), fake_modes(first)
    found = mk.compare(
        [first, other],
        surplus=[drafts, None],
        alignment=[fake_alignment(first.provenance, [0, 6, 12]), fake_alignment(first.provenance, [0, 24])],
        modes=[replace(modes, effective_rank=averages["effective_rank"]), None],
        geometry=[None, SimpleNamespace(averages=lambda: averages, provenance={})],
    )
    assert found.warnings == ()
    given = {name: quantity.estimates for name, quantity in found.quantities.items()}
    assert given["tokens_per_pass"] == (drafts.expected_accepted_length, None)
    assert given["usable"] == (drafts.usable, None)
    assert given["acceptance"] == (drafts.acceptance[0], None)
    assert given["modes_rank"] == (averages["effective_rank"], None)
    assert given["metric_trace"] == (None, averages["trace"])
    assert given["metric_anisotropy"] == (None, averages["anisotropy"])
    assert given["metric_rank"] == (None, averages["effective_rank"])
    assert [e and e.value for e in given["captured_16"]] == [0.8, 0.8]  # of the final layers
    assert [e and e.value for e in given["held_out_16"]] == [0.7, 0.7]
    curve = found.curves["captured_16"]
    assert curve.depth(0).tolist() == [0.0, 0.5, 1.0]
    assert curve.depth(1).tolist() == [0.0, 1.0]
    assert found.curves["nll"].depth(1).tolist() == [i / 24 for i in range(25)]
    assert "tokens per pass with drafts" in str(found)
    json.dumps(found.summary(), allow_nan=False)


def test_settings_that_differ_are_said(first: Profile) -> None:
    drafts = fake_surplus(with_layers=False)
    with pytest.warns(SampleWarning, match=r"surplus is not comparable, horizon differs: 'A' 4, 'B' 5"):
        found = mk.compare([first, first], names=["A", "B"], surplus=[drafts, replace(drafts, horizon=5)])
    assert len(found.warnings) == 1
    with pytest.warns(SampleWarning, match="intervals of differences are at 80 %, those of the profiles not"):
        mk.compare([first, another(first)], level=0.8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mk.compare([first, another(first)], surplus=[drafts, drafts])


def of_other_text(profile: Profile) -> Profile:
    texts = [{"name": "inland.txt", "sha256": "ab" * 32, "characters": 7}]
    return replace(profile, provenance={**profile.provenance, "model": "inland", "texts": texts})


def of_no_text(profile: Profile) -> Profile:
    return replace(profile, provenance={"model": "bare"})


BAD: dict[str, tuple[type[Exception], str, Any]] = {
    "one profile": (ShapeError, "profiles: expected two or more, got 1", lambda p: mk.compare([p])),
    "no profile": (DTypeError, r"profiles\[1\]: expected a Profile, got int", lambda p: mk.compare([p, 3])),
    "other texts": (
        ValueRangeError,
        r"profiles\[1\] \('inland'\): expected the text .*, harbour.txt \(sha256 9f2c9f2c9f2c…\), got inland.txt",
        lambda p: mk.compare([p, of_other_text(p)]),
    ),
    "texts of which nothing is known": (
        ValueRangeError,
        r"profiles\[1\] \('bare'\): expected the tokens of profiles\[0\]",
        lambda p: mk.compare([p, of_no_text(recut(p))]),
    ),
    "a result of other texts": (
        ValueRangeError,
        r"surplus\[1\]: expected a result of the text of profiles\[1\]",
        lambda p: mk.compare(
            [p, another(p)], surplus=[None, replace(fake_surplus(), provenance=of_other_text(p).provenance)]
        ),
    ),
    "too few results": (ShapeError, "modes: expected 2", lambda p: mk.compare([p, another(p)], modes=[None])),
    "too few names": (ShapeError, "names: expected 2", lambda p: mk.compare([p, another(p)], names=["A"])),
    "names twice": (ValueRangeError, "all different", lambda p: mk.compare([p, another(p)], names=["A", "A"])),
    "too few steps": (ShapeError, r"steps: expected shape \(2,\)", lambda p: mk.compare([p, another(p)], steps=[1])),
    "steps that fall": (ValueRangeError, "numbers that rise", lambda p: mk.compare([p, another(p)], steps=[2, 1])),
    "steps that are NaN": (ValueRangeError, "that rise", lambda p: mk.compare([p, another(p)], steps=[0, NAN])),
    "steps that are words": (ValueRangeError, "that rise", lambda p: mk.compare([p, another(p)], steps=["a", "b"])),
    "baseline": (ValueRangeError, "baseline: expected an integer", lambda p: mk.compare([p, another(p)], baseline=2)),
    "level": (ValueRangeError, "level: expected a number", lambda p: mk.compare([p, another(p)], level=95)),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_compared_is_refused(first: Profile, case: str) -> None:
    error, words, call = BAD[case]
    with pytest.raises(error, match=words):
        call(first)


def test_the_same_tokens_of_an_unnamed_text_are_paired(first: Profile) -> None:
    assert mk.compare([of_no_text(first), another(first)]).paired == (True, True)


def test_summary_and_repr(found: Comparison) -> None:
    plain = json.loads(json.dumps(found.summary(), allow_nan=False))
    assert plain["names"] == ["made-up/harbour-12", "made-up/harbour-24"]
    difference = found.quantities["nll"].differences[1]
    assert difference is not None
    assert plain["quantities"]["nll"]["differences"][1]["value"] == difference.value
    assert plain["quantities"]["information"]["estimates"][0]["interval"] == [None, None]
    assert plain["layers"]["nll"]["depth"][0][-1] == 1.0
    assert repr(found).startswith("Comparison(2 models, nll {'made-up/harbour-12': ")


@pytest.mark.parametrize("count", [1, 5, 6, 7, 30])
def test_at_most(count: int) -> None:
    chosen = at_most(range(count), 6, always=[count // 2])
    assert len(chosen) == min(count, 6)
    assert {0, count // 2, count - 1} <= set(chosen)
    assert chosen == sorted(set(chosen))


def test_a_sharper_head_is_surer_and_ranks_the_same() -> None:
    """Real profiles: the entropy falls at every context as logits grow, and the rank of no token changes."""
    rng, n = np.random.default_rng(2), np.arange(60)
    features = mk.Features(
        rng.standard_normal((60, 8)).astype(np.float32),
        rng.standard_normal((50, 8)).astype(np.float32),
        rng.integers(0, 50, 60),
        0 * n,
        n // 10,
        n % 10,
        provenance={"model": "plain"},
    )
    sharper = replace(features, scale=1.5, provenance={"model": "sharper"})
    found = mk.compare([mk.profile(features), mk.profile(sharper)])
    entropy, accuracy = found.quantities["entropy"].differences[1], found.quantities["accuracy"].differences[1]
    assert entropy is not None
    assert accuracy is not None
    assert (found.profiles[1].tokens.entropy < found.profiles[0].tokens.entropy).all()
    assert entropy.interval[1] < 0
    assert (accuracy.value, accuracy.interval) == (0.0, (0.0, 0.0))
