"""``P^a`` of a softmax kernel in memory, for many products: made by one pass, normalisers and all."""

from __future__ import annotations

import numpy as np

from . import _checks
from ._ext import core
from ._softmax import SoftmaxKernel, softmax_stats
from ._softmax_products import guessed_normalizers
from .typing import Progress, SinglePrecisionArray

__all__ = ["PowerStore"]

_FURTHEST = 1e20  # that a sum may be from what was guessed, as a factor: float32 has room for it, and for as much again


class PowerStore:
    """``P^a`` for a of 1/2 or 1, in float32: ``P^a = scale · array``, laid out as the passes make it.

    A row is made relative to a guess of its normaliser, and summed as it is made: one pass instead of two.
    """

    def __init__(
        self, P: SoftmaxKernel, power: float, max_memory: int, num_threads: int | None, progress: Progress | None
    ) -> None:
        size = self.size(P)
        unaligned: SinglePrecisionArray = np.empty(size + 16, np.float32)
        first = -unaligned.ctypes.data % 64 // 4
        self.array = unaligned[first : first + size]
        guess, far = guessed_normalizers(P), np.arange(P.shape[0])
        while far.size:  # once, but for predictions of which the guess saw next to nothing
            moments = core.fill_store(
                P.hidden,
                P._head_arguments(),
                guess,
                power,
                self.array,
                max_memory,
                _checks.threads(num_threads),
                progress,
            )
            total = moments[:, 1 if power == 0.5 else 0]  # of e^(z - guess)
            far = np.flatnonzero(~((total > 1 / _FURTHEST) & (total < _FURTHEST)))
            if far.size:
                guess[far] = softmax_stats(P[far], num_threads=num_threads).log_normalizer
        self.log_normalizer = guess + np.log(total)
        self.scale = total[:, None] ** -power  # (n, 1)
        self.squares = moments[:, 1] * self.scale[:, 0] ** 2
        """(n,): the sums of squares of the rows of ``P^a``."""

    @staticmethod
    def size(P: SoftmaxKernel) -> int:
        """Number of floats."""
        return core.store_size(*P.shape)
