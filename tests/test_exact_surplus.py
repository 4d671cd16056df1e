"""Surplus of hidden Markov languages: term by term against words alone, in closed form, and of the ready-made ones."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import markovlm as mk
from markovlm import synthetic
from markovlm.synthetic import HiddenMarkovLanguage
from synthetic_cases import READY_MADE, entropy_rounding, every_language, languages, relative_rounding


def from_words_alone(language: HiddenMarkovLanguage, T: int, K: int) -> tuple[float, float, float]:
    """I(H; W_{t:t+K-1}), I(H; W_t), and H(F | W_t), from probabilities of words: H is a function of the past that
    leaves it nothing more to say of the future.
    """
    words, p = language.words(T + K)

    def entropy(first: int, last: int) -> float:  # H(W_{first+1:last})
        masses: dict[tuple[int, ...], float] = {}
        for word, mass in zip(words[:, first:last].tolist(), p.tolist(), strict=True):
            masses[tuple(word)] = masses.get(tuple(word), 0.0) + mass
        return -math.fsum(mass * math.log(mass) for mass in masses.values())

    past = entropy(0, T)
    joint = past + entropy(T, T + K) - entropy(0, T + K)
    next_token = past + entropy(T, T + 1) - entropy(0, T + 1)
    return joint, next_token, entropy(T, T + K) - entropy(T, T + 1)


def check_terms(language: HiddenMarkovLanguage, T: int, K: int) -> None:
    terms = language.surplus_terms(T, K)
    slack = entropy_rounding(language, T + K)
    assert slack <= 1e-10
    assert abs(terms.joint_information - terms.next_token_information - terms.surplus) <= slack  # Eq. 4.1
    assert abs(terms.future_entropy - terms.future_entropy_given_state - terms.surplus) <= slack
    assert language.exact_surplus(T, K) == terms.surplus
    most = (K - 1) * math.log(language.vocabulary_size)
    assert 0 <= terms.surplus <= terms.future_entropy + slack <= most + 2 * slack
    assert terms.next_token_information >= 0
    joint, next_token, future = from_words_alone(language, T, K)
    assert abs(terms.joint_information - joint) <= slack
    assert abs(terms.next_token_information - next_token) <= slack
    assert abs(terms.surplus - (joint - next_token)) <= slack
    assert abs(terms.future_entropy - future) <= slack


@given(languages(), st.integers(0, 3), st.integers(1, 3))
@settings(max_examples=80)
def test_terms_of_the_surplus(language: HiddenMarkovLanguage, context_length: int, horizon: int) -> None:
    check_terms(language, context_length, horizon)


@every_language
def test_terms_of_the_surplus_of_ready_made_languages(language: HiddenMarkovLanguage) -> None:
    check_terms(language, 4, 3)


def test_against_the_information_of_an_explicit_joint_state() -> None:
    language, T, K = synthetic.random_language(4, 3, seed=1, concentration=0.3), 3, 3
    words, p = language.words(T)
    V = language.vocabulary_size
    futures = np.array(list(itertools.product(range(V), repeat=K)), np.int64)
    both = np.hstack([np.repeat(words, len(futures), axis=0), np.tile(futures, (len(words), 1))])
    joint = language.word_probabilities(both).reshape(len(words), V, V ** (K - 1))
    terms = language.surplus_terms(T, K)
    slack = entropy_rounding(language, T + K)
    assert abs(terms.surplus - mk.conditional_mutual_information(joint, 0, 2, given=1)) <= slack
    assert abs(terms.joint_information - mk.mutual_information(joint, between=(0, (1, 2)))) <= slack
    assert abs(terms.next_token_information - mk.mutual_information(joint, between=(0, 1))) <= slack
    kernel = language.next_token_kernel(words)
    assert abs(terms.next_token_information - mk.state_prediction_information(kernel, p)) <= slack


@pytest.mark.parametrize("name", ["memoryless", "cycle", "markov_chain", "golden_mean"])
def test_no_surplus_where_the_next_token_tells_all(name: str) -> None:
    language = READY_MADE[name]
    for T, K in itertools.product(range(4), range(1, 4)):
        assert abs(language.exact_surplus(T, K)) <= entropy_rounding(language, T + K)


def test_a_cycle_tells_its_place_by_the_next_token() -> None:
    for n in (1, 2, 5):
        language = synthetic.cycle(n)
        terms = language.surplus_terms(1, 3)
        slack = entropy_rounding(language, 4)
        assert abs(terms.next_token_information - math.log(n)) <= slack
        assert abs(terms.joint_information - math.log(n)) <= slack
        assert abs(terms.future_entropy) <= slack
        assert abs(language.entropy(7) - math.log(n)) <= slack
        assert language.surplus_terms(0, 3).joint_information <= slack  # before any token nothing is known


@pytest.mark.parametrize("word", [[0, 0, 1], [0, 1, 0, 2, 0, 0], [1, 1, 0, 1, 2]])
def test_a_periodic_word_keeps_its_place_back(word: list[int]) -> None:
    language, n = synthetic.periodic(word), len(word)
    counts = np.bincount(word)
    expected = math.fsum(count / n * math.log(count) for count in counts if count)
    assert abs(language.exact_surplus(n, n) - expected) <= entropy_rounding(language, 2 * n)
    assert language.exact_surplus(n, n) > 0.4


@pytest.mark.parametrize(("length", "alphabet"), [(1, 2), (2, 3), (3, 2), (4, 2)])
def test_a_copy_holds_the_whole_word_back(length: int, alphabet: int) -> None:
    language = synthetic.copy_language(length, alphabet)
    for K in range(1, length + 2):
        terms = language.surplus_terms(length, K)
        slack = entropy_rounding(language, length + K)
        held = min(K, length)
        assert abs(terms.surplus - (held - 1) * math.log(alphabet)) <= slack
        assert abs(terms.joint_information - held * math.log(alphabet)) <= slack
        assert abs(terms.future_entropy - (K - 1) * math.log(alphabet)) <= slack
    slack = entropy_rounding(language, 3 * length)
    assert abs(language.entropy(2 * length) - length * math.log(alphabet)) <= slack  # the copy adds nothing
    assert abs(language.entropy(3 * length) - 2 * length * math.log(alphabet)) <= slack
    words, _ = language.words(2 * length)
    assert np.array_equal(words[:, :length], words[:, length:])


@pytest.mark.parametrize("noise", [0.0, 0.1, 1.0])
def test_an_echo(noise: float) -> None:
    delay, alphabet = 2, 3
    language = synthetic.echo(delay, alphabet, noise)
    repeated = np.full(alphabet, noise / alphabet)
    repeated[0] += 1 - noise
    rate = -math.fsum(p * math.log(p) for p in repeated if p > 0)
    for T in range(delay):
        assert abs(language.conditional_entropy(T) - math.log(alphabet)) <= entropy_rounding(language, T + 1)
    for T in range(delay, 5):
        slack = entropy_rounding(language, T + delay)
        assert abs(language.conditional_entropy(T) - rate) <= slack
        assert abs(language.exact_surplus(T, delay) - (delay - 1) * (math.log(alphabet) - rate)) <= slack


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_entropy_rates_that_are_known(p: float) -> None:
    h = -p * math.log(p) - (1 - p) * math.log(1 - p)
    golden, even = synthetic.golden_mean(p), synthetic.even_process(p)
    slack = entropy_rounding(even, 8)
    for bound in golden.entropy_rate_bounds(2):
        assert abs(bound - h / (1 + p)) <= slack
    low, high = even.entropy_rate_bounds(6)
    assert low - slack <= h / (1 + p) <= high + slack
    assert high - low < 0.1
    assert abs(synthetic.memoryless([p, 1 - p]).entropy(5) - 5 * h) <= slack
    words, _ = golden.words(5)
    assert not np.any(words[:, 1:] & words[:, :-1])
    assert len(words) == 13  # Fibonacci's
    words, _ = even.words(5)
    inside = [len(run) for word in words.tolist() for run in "".join(map(str, word)).strip("1").split("0")]
    assert set(inside) == {0, 2}  # runs that begin and end within the word; longest is 2 of 5


def test_mess3_is_the_published_one() -> None:
    """Marzen and Crutchfield's labelled transitions, P(w, s' | s) = P(s' | s) P(w | s'), from the uniform law."""
    x, a = 0.15, 0.6
    language = synthetic.mess3(x, a)
    moves = np.full((3, 3), x) + np.eye(3) * (1 - 3 * x)
    emits = np.full((3, 3), (1 - a) / 2) + np.eye(3) * (a - (1 - a) / 2)
    words, probabilities = language.words(3)
    expected = []
    for word in words:
        law = np.full(3, 1 / 3)
        for w in word:
            law = law @ (moves * emits[:, w])
        expected.append(law.sum())
    assert np.all(np.abs(probabilities - expected) <= relative_rounding(language, 3) * probabilities)


def test_random_languages_are_seeded_and_stationary() -> None:
    one, same, other = (synthetic.random_language(5, 7, seed) for seed in (3, 3, 4))
    assert np.array_equal(one.emission, same.emission)
    assert not np.array_equal(one.emission, other.emission)
    assert np.abs(one.initial @ one.transition - one.initial).max() <= relative_rounding(one, 64)
    surplus = [synthetic.random_language(4, 5, 0, c).exact_surplus(4, 3) for c in (10.0, 1.0, 0.1)]
    assert sorted(surplus) == surplus
    assert surplus[0] < 1e-3 < 0.1 < surplus[2]
