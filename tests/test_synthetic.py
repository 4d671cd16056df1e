"""Hidden Markov languages: against sums over hidden paths and over words written out, and in the laws of samples."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pickle
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

import markovlm as mk
from markovlm import synthetic
from markovlm.errors import DTypeError, MarkovLMError, NotStochasticError, ShapeError, ValueRangeError
from markovlm.synthetic import HiddenMarkovLanguage
from markovlm.typing import IntArray
from synthetic_cases import EPS, READY_MADE, entropy_rounding, every_language, languages, over_paths, relative_rounding


@given(languages(), st.integers(0, 3))
@settings(max_examples=60)
def test_words_and_beliefs_are_sums_over_hidden_paths(language: HiddenMarkovLanguage, length: int) -> None:
    every = list(itertools.product(range(language.vocabulary_size), repeat=length))
    joint = {word: over_paths(language, word) for word in every}
    possible = [word for word in every if joint[word].sum() > 0]
    words, probabilities = language.words(length)
    assert words.dtype == np.int64
    assert words.shape == (len(possible), length)
    assert list(map(tuple, words.tolist())) == possible  # in lexicographic order
    slack = relative_rounding(language, length)
    exact = np.array([joint[word].sum() for word in possible])
    assert np.all(np.abs(probabilities - exact) <= slack * exact)
    assert abs(probabilities.sum() - 1) <= slack
    beliefs = language.beliefs(words)
    assert beliefs.shape == (len(possible), length + 1, language.num_states)
    for t in range(length + 1):
        prefix = np.array([over_paths(language, word[:t]) for word in possible])
        assert np.abs(beliefs[:, t] - prefix / prefix.sum(axis=1, keepdims=True)).max() <= slack
    found = language.word_probabilities(np.array(every, np.int64).reshape(len(every), length))
    exact = np.array([joint[word].sum() for word in every])
    assert np.all(np.abs(found - exact) <= slack * exact)


@given(languages(), st.integers(0, 3))
def test_the_next_token_has_the_ratio_of_word_probabilities(language: HiddenMarkovLanguage, length: int) -> None:
    words, probabilities = language.words(length)
    V = language.vocabulary_size
    longer = np.column_stack([np.repeat(words, V, axis=0), np.tile(np.arange(V), len(words))])
    ratio = language.word_probabilities(longer).reshape(-1, V) / probabilities[:, None]
    slack = 3 * relative_rounding(language, length + 1)
    law = language.next_token(language.beliefs(words)[:, -1])
    kernel = language.next_token_kernel(words)
    assert np.abs(law - ratio).max() <= slack
    assert np.array_equal(kernel.matrix, law)
    assert kernel.shape == (len(words), V)


@given(languages(), st.integers(0, 3))
def test_entropies_by_their_definitions(language: HiddenMarkovLanguage, length: int) -> None:
    slack = entropy_rounding(language, length + 1)

    def block(n: int) -> float:
        words = itertools.product(range(language.vocabulary_size), repeat=n)
        masses = [float(over_paths(language, word).sum()) for word in words]
        return -math.fsum(p * math.log(p) for p in masses if p > 0)

    assert abs(language.entropy(length) - block(length)) <= slack
    assert abs(language.conditional_entropy(length) - (block(length + 1) - block(length))) <= slack


@given(languages())
def test_the_entropy_rate_lies_between_bounds_that_close(language: HiddenMarkovLanguage) -> None:
    bounds = [language.entropy_rate_bounds(length) for length in range(4)]
    slack = entropy_rounding(language, 5)
    lower, upper = zip(*bounds, strict=True)
    assert all(a <= b + slack for a, b in itertools.pairwise(lower))
    assert all(a >= b - slack for a, b in itertools.pairwise(upper))
    assert lower[-1] <= upper[-1] + slack


@given(languages())
def test_the_stationary_law_is_the_average_over_all_times(language: HiddenMarkovLanguage) -> None:
    running = language.stationary()
    slack = relative_rounding(language, 64)  # so many squarings
    assert np.abs(running.initial @ running.transition - running.initial).max() <= slack
    # The averages of P, P², … tend to the projection onto what P leaves as it is, along what it takes away.
    taken = np.eye(language.num_states) - language.transition
    right, left = scipy.linalg.null_space(taken), scipy.linalg.null_space(taken.T)
    average = language.initial @ right @ np.linalg.solve(left.T @ right, left.T)
    sizes = scipy.linalg.svdvals(taken)
    gap = sizes[len(sizes) - right.shape[1] - 1] if right.shape[1] < len(sizes) else 1.0
    between = scipy.linalg.svdvals(left.T @ right).min()
    assert np.abs(running.initial - average).max() <= slack + 100 * EPS / (gap * between**2)


# Text


def surprise(tokens: IntArray, language: HiddenMarkovLanguage) -> float:
    """Probability, under the language, of frequencies of words as unlikely as those of ``tokens`` (Pearson's χ²)."""
    words, p = language.words(tokens.shape[1])
    V = language.vocabulary_size
    code = V ** np.arange(tokens.shape[1])[::-1]
    where = {int(word @ code): i for i, word in enumerate(words)}
    seen = [where.get(int(word @ code), -1) for word in tokens]
    if min(seen) < 0:
        return 0.0
    expected = len(tokens) * p
    found = np.bincount(seen, minlength=len(p))
    rare = expected < 10  # χ² needs some in every class
    if rare.any():
        found = np.append(found[~rare], found[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    return float(chi2.sf(((found - expected) ** 2 / expected).sum(), max(len(expected) - 1, 1)))


@every_language
def test_samples_have_the_frequencies_of_words(language: HiddenMarkovLanguage) -> None:
    tokens = language.sample(20_000, 3, seed=7)
    assert tokens.dtype == np.int64
    assert surprise(tokens, language) > 1e-4  # eleven languages, a fixed seed


def test_frequencies_would_tell_another_language() -> None:
    tokens = synthetic.mess3(0.05, 0.85).sample(20_000, 3, seed=7)
    assert surprise(tokens, synthetic.mess3(0.07, 0.85)) < 1e-6
    assert surprise(tokens, synthetic.golden_mean()) == 0


def test_samples_are_seeded() -> None:
    language = READY_MADE["mess3"]
    assert np.array_equal(language.sample(10, 20, seed=1), language.sample(10, 20, seed=1))
    assert not np.array_equal(language.sample(10, 20, seed=1), language.sample(10, 20, seed=2))
    assert language.sample(0, 5).shape == (0, 5)
    assert language.sample(5, 0).shape == (5, 0)


def test_what_has_no_mass_is_never_drawn() -> None:
    language = HiddenMarkovLanguage([0.0, 1.0, 0.0], np.eye(3), [[1, 0, 0, 0], [0, 0.1 + 0.2, 0, 0.7], [0, 0, 1, 0]])
    assert set(language.sample(2000, 2).ravel().tolist()) == {1, 3}


@every_language
def test_features_give_the_exact_law_through_softmax(language: HiddenMarkovLanguage) -> None:
    n, T = 30, 12
    features = language.features(n, T, seed=5)
    S, V = language.num_states, language.vocabulary_size
    tokens = language.sample(n, T + 1, seed=5)
    data = language.next_token_kernel(tokens[:, :-1], every_prefix=True)
    P = features.softmax_kernel()
    assert P.shape == data.shape == (n * T, V)
    z = P.logits()
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    # A logarithm is off by 2^-24 of at most 60 in float32, and so is each term of the sum; e^-60 stands for 0.
    relative = math.expm1(2 * 2.0**-24 * 60) + V * math.exp(-60) + relative_rounding(language, T)
    assert np.all(np.abs(p - data.matrix) <= relative * data.matrix + math.exp(-60))
    beliefs = language.beliefs(tokens[:, :-1])[:, 1:].reshape(-1, S)
    assert np.abs(features.hidden[:, V:] - beliefs).max() <= 2.0**-24
    assert np.array_equal(features.targets.reshape(n, T), tokens[:, 1:])
    assert np.array_equal(features.token_ids.reshape(n, T), tokens[:, :-1])
    assert np.array_equal(features.sequence_ids.reshape(n, T), np.arange(n)[:, None] + np.zeros((1, T)))
    assert np.array_equal(features.positions.reshape(n, T), np.zeros((n, 1)) + np.arange(T))
    assert [features.hidden.dtype, features.head.dtype, features.targets.dtype] == [np.float32, np.float32, np.int64]


def test_features_are_calibrated_and_know_the_entropy_rate() -> None:
    language = synthetic.mess3()
    result = mk.nll(language.features(200, 40, seed=1), level=0.999)
    low, high = language.entropy_rate_bounds(6)
    assert result.calibration.interval[0] <= 0 <= result.calibration.interval[1]
    # the first contexts are short, and their entropy higher: by no more than the bits that all of them lack together
    excess = math.fsum(language.conditional_entropy(t) - low for t in range(1, 7)) / 40 + (high - low)
    assert low - 0.02 <= result.entropy.value <= high + excess + 0.02  # 8,000 contexts


# What is refused


def test_a_language_cannot_be_changed() -> None:
    language = synthetic.mess3()
    with pytest.raises(dataclasses.FrozenInstanceError):
        language.initial = np.ones(1)  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        language.transition[0, 0] = 1.0
    given = np.eye(2)
    copied = HiddenMarkovLanguage([0.5, 0.5], given, given)
    given[0] = [0.0, 1.0]
    assert copied.emission[0, 0] == 1.0
    again = pickle.loads(pickle.dumps(copied))
    assert repr(again) == repr(copied) == "HiddenMarkovLanguage(2 states, 2 tokens)"
    assert np.array_equal(again.transition, copied.transition)


def test_float32_rows_lose_their_rounding() -> None:
    rows = np.random.default_rng(0).dirichlet(np.ones(5), 5).astype(np.float32)
    language = HiddenMarkovLanguage(rows[0], rows, rows)
    assert np.abs(language.transition.sum(axis=1) - 1).max() <= 5 * EPS
    assert abs(language.words(4)[1].sum() - 1) <= relative_rounding(language, 4)


def test_shapes_and_starts() -> None:
    language = READY_MADE["even_process"]
    word = [1, 1, 0]
    assert np.array_equal(language.beliefs(word), language.beliefs([word, word])[1])
    assert np.array_equal(language.beliefs([]), language.initial[None])
    start = [0.0, 0.0, 1.0]
    other = HiddenMarkovLanguage(start, language.transition, language.emission)
    assert np.array_equal(language.beliefs([1, 0], initial=start), other.beliefs([1, 0]))
    assert np.array_equal(language.next_token(start), language.emission[2])
    assert language.next_token_kernel(np.zeros((4, 0), np.int64)).shape == (4, 2)
    assert language.next_token_kernel(np.zeros((4, 3), np.int64), every_prefix=True).shape == (12, 2)
    assert language.next_token_kernel([0, 0]).shape == (1, 2)


new: Any = HiddenMarkovLanguage
even: Any = READY_MADE["even_process"]
made: Any = synthetic
wide: Any = synthetic.memoryless(np.full(1025, 1 / 1025))
HALF = [0.5, 0.5]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: new([0.5, 0.6], np.eye(2), np.eye(2)), NotStochasticError, "initial: .*sum to 1.1"),
        (lambda: new(HALF, [[1, 0], [0.5, 0.4]], np.eye(2)), NotStochasticError, "transition: .*row 1 sums to 0.9"),
        (
            lambda: new(HALF, np.eye(2), [[1, 0], [2, -1]]),
            NotStochasticError,
            r"emission: .*got -1.0 at row 1, column 1",
        ),
        (lambda: new(HALF, np.eye(3), np.eye(2)), ShapeError, r"transition: expected shape \(2, 2\).*got \(3, 3\)"),
        (lambda: new(HALF, np.eye(2), np.eye(3)), ShapeError, r"emission: expected shape \(2, V\).*got \(3, 3\)"),
        (lambda: new(np.eye(2), np.eye(2), np.eye(2)), ShapeError, "initial: "),
        (lambda: new(HALF, HALF, np.eye(2)), ShapeError, "transition: "),
        (lambda: new([], np.eye(0), np.eye(0)), (ShapeError, NotStochasticError), "initial: "),
        (lambda: new(["a"], np.eye(1), np.eye(1)), DTypeError, "initial: "),
        (lambda: even.beliefs([0, 1, 0]), ValueRangeError, r"tokens: .*token 0 at index \(2,\) cannot"),
        (lambda: even.beliefs([[0, 0, 0], [0, 1, 0]]), ValueRangeError, r"tokens: .*token 0 at index \(1, 2\) cannot"),
        (lambda: even.next_token_kernel([[0, 1, 0]]), ValueRangeError, r"words: .*at index \(0, 2\)"),
        (
            lambda: even.beliefs([0, 2]),
            ValueRangeError,
            r"tokens: expected token ids in \[0, 2\), got 2 at index \(1,\)",
        ),
        (lambda: even.word_probabilities([[-1]]), ValueRangeError, r"words: expected token ids in \[0, 2\)"),
        (lambda: even.beliefs([0.0, 1.0]), DTypeError, "tokens: expected integers"),
        (lambda: even.beliefs(np.zeros((1, 1, 1), int)), ShapeError, r"tokens: expected token ids of shape \(T,\) or"),
        (lambda: even.beliefs([0], initial=HALF), ShapeError, r"initial: expected shape \(3,\)"),
        (lambda: even.next_token(HALF), ShapeError, "beliefs: expected 3 columns"),
        (lambda: even.words(-1), ValueRangeError, "length: expected an integer"),
        (lambda: wide.words(3), ValueRangeError, "length: expected at most 1048576 words, but there are 1050625 of 2"),
        (lambda: wide.conditional_entropy(2), ValueRangeError, "context_length: expected at most"),
        (lambda: even.exact_surplus(2, 0), ValueRangeError, "horizon: expected an integer in"),
        (lambda: even.exact_surplus(2, 40), ValueRangeError, r"horizon: 2\*\*40 continuations"),
        (lambda: even.exact_surplus(20, 20), ValueRangeError, r"context_length: .*words times 2\*\*20"),
        (lambda: even.features(0, 5), ValueRangeError, "num_sequences: expected an integer in"),
        (lambda: even.features(5, 0), ValueRangeError, "length: expected an integer in"),
        (lambda: even.sample(-1, 5), ValueRangeError, "num_sequences: expected an integer in"),
        (lambda: made.memoryless([0.5]), NotStochasticError, "p: "),
        (lambda: made.cycle(0), ValueRangeError, "num_tokens: "),
        (lambda: made.periodic([]), ValueRangeError, "word"),
        (lambda: made.periodic([0, -1]), ValueRangeError, "word: expected numbers >= 0"),
        (lambda: made.golden_mean(1.5), ValueRangeError, r"p: expected a number in \[0, 1\], got 1.5"),
        (lambda: made.mess3(0.6), ValueRangeError, r"x: expected a number in \[0, 0.5\]"),
        (lambda: made.echo(3, 100), ValueRangeError, r"delay: 100\*\*3 states are more than 4096"),
        (lambda: made.echo(2, 2, math.nan), ValueRangeError, "noise: "),
        (lambda: made.copy_language(12, 2), ValueRangeError, r"length: 2\*\*12 words need more than 4096 states"),
        (lambda: made.random_language(2, 2, 0, 0.0), ValueRangeError, "concentration: "),
    ],
)
def test_what_is_refused(call: Any, error: type[MarkovLMError], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
