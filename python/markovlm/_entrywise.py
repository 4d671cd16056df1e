"""Similarities that are functions of pairs of rows, and have no factor (theory §9)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator

import numpy as np

from . import _checks
from ._ext import core
from ._factors import exact_factor, most_columns, power_factor, slices
from ._formulas import FullRows, jensen_shannon
from ._kernels import Kernel
from ._operators import ContextOperator
from ._power_store import PowerGram
from ._softmax import softmax_of
from .typing import FloatArray, Progress, SinglePrecisionArray

__all__ = ["HellingerOperator", "JensenShannonOperator"]

TILE_ROWS = 256  # that are made at a time, at most
KEPT_ROWS = 1024  # that others are compared with, at most
ROW_BYTES = 48  # that making a row takes for each of its entries


class EntrywiseOperator(ContextOperator):
    """K from functions of pairs of rows, tile by tile; kept where there is room."""

    def __init__(
        self,
        P: Kernel,
        kind: str,
        law: FloatArray,
        centered: bool,
        beta: float,
        max_memory: int,
        num_threads: int | None,
        progress: Progress | None,
    ) -> None:
        super().__init__(P, kind, law, centered)
        self.beta, self.num_threads = beta, _checks.threads(num_threads)
        rows = min(max_memory // (ROW_BYTES * max(P.shape[1], 1)), most_columns(max_memory), TILE_ROWS)
        self._tile_rows = max(1, rows)
        self._kept: FloatArray | None = None
        self.storage = "stored" if 16 * self._size**2 <= max_memory else "recomputed"
        self._prepare(max_memory, progress)

    @abstractmethod
    def _prepare(self, max_memory: int, progress: Progress | None) -> None:
        """What creation takes."""

    @abstractmethod
    def _tile(self, which: slice, report: Callable[[int], None]) -> FloatArray:
        """``K[which.start:, which]``, on and below the diagonal; ``report(pairs made)`` where it takes long."""

    def _release(self) -> None:
        """Lets go of what is not needed once K is kept."""

    def _tiles(self, progress: Progress | None) -> Iterator[tuple[slice, FloatArray]]:
        """On and below the diagonal, which is 1; blocks on it are made symmetric."""
        n, done = self._size, 0
        for which in slices(n, self._tile_rows):

            def report(pairs: int, before: int = done) -> None:
                if progress is not None:
                    progress(before + pairs, n * (n + 1) // 2)

            tile = self._tile(which, report)
            size = tile.shape[1]
            below = np.tril(tile[:size], -1)
            tile[:size] = below + below.T + np.eye(size)
            yield which, tile
            report(_entries_below(len(tile), size))
            done += _entries_below(len(tile), size)

    def _similar(self, X: FloatArray, progress: Progress | None = None) -> FloatArray:
        if self.storage == "stored":
            if self._kept is None:
                kept = np.empty(self.shape)
                for which, tile in self._tiles(progress):
                    kept[which.start :, which] = tile
                    kept[which, which.start :] = tile.T
                self._kept = kept
                self._release()
            return np.asarray(self._kept @ X)
        out = np.zeros_like(X)
        for which, tile in self._tiles(progress):
            out[which.start :] += tile @ X[which]
            out[which] += tile[tile.shape[1] :].T @ X[which.stop :]
        return out

    @property
    def _own(self) -> FloatArray:
        return np.ones(self._size)

    def _details(self) -> list[str]:
        return [f"beta={self.beta:g}", *super()._details()]


class HellingerOperator(EntrywiseOperator):
    """A Gaussian of the distance of square roots, ``‖√p − √q‖² = 2 (1 − BC)``."""

    def _prepare(self, max_memory: int, progress: Progress | None) -> None:
        softmax = softmax_of(self.P)
        if softmax is not None and self.storage == "stored" and PowerGram.bytes(softmax) <= max_memory:
            kept = self._kept = PowerGram(softmax, 0.5, self.num_threads, progress).matrix
            self._of_overlap(kept, out=kept)
            np.fill_diagonal(kept, 1.0)
            return
        half = max(1, max_memory // 2)  # the other one is for K
        self.factor = power_factor(self.P, 0.5, half, self.num_threads, progress)

    def _tile(self, which: slice, report: Callable[[int], None]) -> FloatArray:
        return self._of_overlap(self.factor.similarities(which))

    def _release(self) -> None:
        del self.factor

    def _of_overlap(self, overlap: FloatArray, out: FloatArray | None = None) -> FloatArray:
        found = np.subtract(np.minimum(overlap, 1.0, out=out), 1.0, out=out)
        found *= 2 * self.beta
        return np.asarray(np.exp(found, out=found))

    def _formed(self) -> FloatArray:
        F = exact_factor(self.P, "bhattacharyya")
        return self._of_overlap(F @ F.T)


class JensenShannonOperator(EntrywiseOperator):
    """An exponential of the divergence, ``JS = H((p + q) / 2) − (H(p) + H(q)) / 2``, of rows in float32."""

    def _prepare(self, max_memory: int, progress: Progress | None) -> None:
        # Half for rows that are kept and their part of K, half for rows that are being made.
        self._slice_rows = max(1, self._tile_rows // 2)
        kept = max_memory // (2 * (4 * self.P.shape[1] + 8 * self._size))
        self._tile_rows = max(self._slice_rows, min(kept, KEPT_ROWS))

    def _tile(self, which: slice, report: Callable[[int], None]) -> FloatArray:
        vocabulary, kept = self.P.shape[1], which.stop - which.start
        q: SinglePrecisionArray = np.empty((kept, vocabulary), np.float32)
        tile = np.empty((self._size - which.start, kept))
        for some in slices(len(tile), self._slice_rows):
            p = self.P._rows.part(slice(which.start + some.start, which.start + some.stop)).dense().astype(np.float32)
            q[some] = p[: max(kept - some.start, 0)]
            first = q[: some.stop]
            divergence = core.jensen_shannon_pairs(p, first, self.num_threads)
            tile[some, : some.stop] = np.exp(-self.beta * np.maximum(divergence, 0.0))
            report(_entries_below(some.stop, kept))
        return tile

    def _formed(self) -> FloatArray:
        p = self.P.matrix
        rows = [jensen_shannon(FullRows(), np.broadcast_to(row, p.shape), p) for row in p]
        return np.asarray(np.exp(-self.beta * np.array(rows)))


def _entries_below(rows: int, columns: int) -> int:
    """On and below the diagonal, in so many rows and columns of a tile that begins on it."""
    square = min(rows, columns)
    return square * (square + 1) // 2 + (rows - square) * columns
