"""Hidden Markov languages to test with, what rounding may do to their quantities, and words as sums over paths."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import strategies as st

from markovlm import synthetic
from markovlm.synthetic import HiddenMarkovLanguage
from markovlm.typing import FloatArray

EPS = float(np.finfo(np.float64).eps)

READY_MADE = synthetic.ready_made()
every_language = pytest.mark.parametrize("language", READY_MADE.values(), ids=READY_MADE.keys())


@st.composite
def laws(draw: st.DrawFn, rows: int, size: int) -> FloatArray:
    """Rows of small whole numbers by their sums: zeros and equal rows are common."""
    weights = draw(st.lists(st.integers(0, 4), min_size=rows * size, max_size=rows * size))
    array = np.array(weights, np.float64).reshape(rows, size)
    array[array.sum(axis=1) == 0] = 1.0
    return np.asarray(array / array.sum(axis=1, keepdims=True))


@st.composite
def languages(draw: st.DrawFn) -> HiddenMarkovLanguage:
    S, V = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    return HiddenMarkovLanguage(draw(laws(1, S))[0], draw(laws(S, S)), draw(laws(S, V)))


def relative_rounding(language: HiddenMarkovLanguage, length: int) -> float:
    """Of a word's probability, or a belief after it: per token two products, a quotient, and sums over states."""
    return (4 * language.num_states + 8) * (length + 1) * EPS


def entropy_rounding(language: HiddenMarkovLanguage, length: int) -> float:
    """Of an entropy or divergence of laws of ``length`` tokens: -p log p moves by (1 - log p) of p's relative error."""
    V = language.vocabulary_size
    return 4 * relative_rounding(language, length) * (2 + length * math.log(max(V, 2)))


def over_paths(language: HiddenMarkovLanguage, word: tuple[int, ...]) -> FloatArray:
    """(S,) P(word, next state): the sum over all hidden paths."""
    found = np.zeros(language.num_states)
    for path in itertools.product(range(language.num_states), repeat=len(word) + 1):
        p = language.initial[path[0]]
        for t, token in enumerate(word):
            p *= language.emission[path[t], token] * language.transition[path[t], path[t + 1]]
        found[path[-1]] += p
    return found
