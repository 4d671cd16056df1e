"""Whether two halves of a text agree on its modes (theory §9)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from .typing import FloatArray, IntArray

__all__ = ["agreement", "halves_of"]


def halves_of(sequence_ids: IntArray, seed: Sequence[int]) -> tuple[IntArray, ...]:
    """Rows of two random halves of the sequences, as many contexts but for one sequence's; () for a single one."""
    _, index, sizes = np.unique(sequence_ids, return_inverse=True, return_counts=True)
    if len(sizes) < 2:
        return ()
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(sizes))
    by_size = shuffled[np.argsort(-sizes[shuffled], kind="stable")]
    second = np.zeros(len(sizes), dtype=bool)
    for i in range(0, len(sizes), 2):  # of two sequences that follow each other by size, one goes to either half
        pair = by_size[i : i + 2]
        second[pair[rng.integers(2)] if len(pair) == 2 else pair[: rng.integers(2)]] = True
    return np.flatnonzero(~second[index]), np.flatnonzero(second[index])


def agreement(faces: FloatArray, first: FloatArray, second: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(k,) each: the overlap of the matches of each face in two sets, and what the spans of k of both leave of it."""
    known, k = faces.any(axis=0), faces.shape[1]
    first, second = (some[:, some.any(axis=0)] for some in (first, second))
    a, b = (_matches(faces, some) for some in (first, second))
    of_first, of_second = (np.linalg.qr(some[:, :k])[0] for some in (first, second))
    overlap = np.abs(np.einsum("wi,wi->i", a, b))
    between = of_second.T @ of_first
    left = [between @ (of_first.T @ faces), between.T @ (of_second.T @ faces)]
    captured = (np.linalg.norm(left[0], axis=0) + np.linalg.norm(left[1], axis=0)) / 2
    stable, spanned = (np.where(known, np.minimum(values, 1.0), np.nan) for values in (overlap, captured))
    return stable, spanned


def _matches(faces: FloatArray, others: FloatArray) -> FloatArray:
    """(V, k): for each face another one of ``others``, such that squared overlaps sum to most; NaN where none is left.

    One for each: the closest one of a face that has no counterpart would often be that of a leading mode.
    """
    matched = np.full_like(faces, np.nan)
    of, to = linear_sum_assignment((faces.T @ others) ** 2, maximize=True)
    matched[:, of] = others[:, to]
    return matched
