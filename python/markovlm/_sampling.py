"""Draws from finite laws, many at once, and tokens of a hidden Markov language."""

from __future__ import annotations

import numpy as np

from .typing import FloatArray, IntArray

__all__ = ["cumulative", "draw", "draw_tokens"]


def cumulative(laws: FloatArray) -> FloatArray:
    """Distribution functions of the rows, for `draw`."""
    sums = laws.cumsum(axis=1)
    return np.asarray(sums / sums[:, -1:])  # 1 from the last positive entry on: what has no mass is never drawn


def draw(rng: np.random.Generator, distributions: FloatArray, rows: IntArray) -> IntArray:
    """(n,) elements, each drawn from the law in its row."""
    u = rng.random(len(rows))
    return np.asarray((distributions[rows] <= u[:, None]).sum(axis=1), np.int64)


def draw_tokens(
    rng: np.random.Generator, initial: FloatArray, transition: FloatArray, emission: FloatArray, n: int, length: int
) -> IntArray:
    """(n, length) tokens of independent sequences."""
    moves, emits = cumulative(transition), cumulative(emission)
    state = draw(rng, cumulative(initial[None, :]), np.zeros(n, np.int64))
    tokens = np.empty((n, length), np.int64)
    for t in range(length):
        tokens[:, t] = draw(rng, emits, state)
        state = draw(rng, moves, state)
    return tokens
