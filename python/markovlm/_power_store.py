"""What many products with ``P^a`` of a softmax kernel need in memory: made by one pass, normalisers and all."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from . import _checks
from ._ext import core
from ._softmax import SoftmaxKernel, softmax_stats
from ._softmax_products import guessed_normalizers
from .typing import FloatArray, Progress, SinglePrecisionArray

__all__ = ["PowerGram", "PowerStore"]

_ROWS = 512  # of a matrix that are completed at a time
_FURTHEST = 1e15  # that a sum may be from what was guessed, as a factor: its square is a float32


class Powers(ABC):
    """``P^a`` for a of 1/2 or 1, made in float32.

    Rows are made relative to a guess of their normalisers, and summed as they are made: one pass instead of two.
    """

    log_normalizer: FloatArray  # (n,)
    scale: FloatArray  # (n, 1): of the rows that were made
    squares: FloatArray  # (n,): sums of squares of the rows of P^a

    def __init__(self, P: SoftmaxKernel, power: float, num_threads: int | None, progress: Progress | None) -> None:
        self.P, self.power, self.num_threads = P, power, _checks.threads(num_threads)
        guess, far = guessed_normalizers(P), np.arange(P.shape[0])
        while far.size:  # once, but for predictions of which the guess saw next to nothing
            moments = self._make(guess, progress)
            total = moments[:, 1 if power == 0.5 else 0]  # of e^(z - guess)
            far = np.flatnonzero(~((total > 1 / _FURTHEST) & (total < _FURTHEST)))
            if far.size:
                guess[far] = softmax_stats(P[far], num_threads=num_threads).log_normalizer
        self.log_normalizer = guess + np.log(total)
        self.scale = total[:, None] ** -power
        self.squares = moments[:, 1] * self.scale[:, 0] ** 2

    @abstractmethod
    def _make(self, log_normalizer: FloatArray, progress: Progress | None) -> FloatArray:
        """Rows of these normalisers; returns their sums and sums of squares, (n, 2)."""


class PowerStore(Powers):
    """The rows themselves: ``P^a = scale · array``, laid out as the passes make it."""

    def __init__(
        self, P: SoftmaxKernel, power: float, max_memory: int, num_threads: int | None, progress: Progress | None
    ) -> None:
        size = core.store_size(*P.shape)
        unaligned: SinglePrecisionArray = np.empty(size + 16, np.float32)
        first = -unaligned.ctypes.data % 64 // 4
        self.array, self.max_memory = unaligned[first : first + size], max_memory
        super().__init__(P, power, num_threads, progress)

    @staticmethod
    def bytes(P: SoftmaxKernel) -> int:
        """Memory that it takes."""
        return 4 * core.store_size(*P.shape)

    def _make(self, log_normalizer: FloatArray, progress: Progress | None) -> FloatArray:
        P, memory = self.P, self.max_memory
        return core.fill_store(
            P.hidden,
            P._head_arguments(),
            log_normalizer,
            self.power,
            self.array,
            memory,
            self.num_threads,
            progress,
        )


class PowerGram(Powers):
    """``P^a (P^a)ᵀ``: (n, n) in float64."""

    def __init__(self, P: SoftmaxKernel, power: float, num_threads: int | None, progress: Progress | None) -> None:
        self.matrix: FloatArray = np.empty((P.shape[0], P.shape[0]))
        super().__init__(P, power, num_threads, progress)
        scale = self.scale
        for first in range(0, len(scale), _ROWS):
            rows = slice(first, first + _ROWS)
            part = self.matrix[rows, first:]
            part *= scale[rows]
            part *= scale[first:].T
            square = part[:, : len(part)]
            square += np.triu(square, 1).T
            self.matrix[rows.stop :, rows] = self.matrix[rows, rows.stop :].T

    @staticmethod
    def bytes(P: SoftmaxKernel) -> int:
        """Memory that it takes, with what its making takes."""
        n, d = P.hidden.shape
        return int(8 * n * n + core.gram_bytes(n, d))

    def _make(self, log_normalizer: FloatArray, progress: Progress | None) -> FloatArray:
        P = self.P
        return core.power_gram(
            P.hidden, P._head_arguments(), log_normalizer, self.power, self.matrix, self.num_threads, progress
        )
