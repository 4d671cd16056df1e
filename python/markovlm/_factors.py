"""Factors F of similarities ``K = F Fᵀ``: element-wise powers of a kernel, kept or made anew, and prototypes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._ext import core
from ._kernels import Kernel
from ._operators import STORED_OVERHEAD, share
from ._panels import product, prototypes
from ._power_store import PowerGram, PowerStore
from ._rows import BLOCK_BYTES, require_room
from ._softmax import SoftmaxKernel, softmax_of, softmax_stats
from .errors import DTypeError
from .typing import FloatArray, IntArray, Progress, SinglePrecisionArray

__all__ = ["Factor", "exact_factor", "most_columns", "power_factor", "prototype_factor", "slices"]


_READING = 4.0  # columns that take as long as the reading of a store
_MOST_CONTEXTS = 8  # for each component of a state: then a Gram matrix takes as long as four products without it


def most_columns(max_memory: int) -> int:
    """Of a panel in one pass, whose smallest block has 32 rows with up to 32 sums in float64 for each column."""
    return int(np.clip(max_memory // 2**14, 1, 256))


class Factor(ABC):
    """(n, m); applied to columns from either side."""

    shape: tuple[int, int]
    storage: str
    squares: FloatArray
    """(n,): ``K(x, x)``, the sums of squares of the rows."""
    overhead: float = STORED_OVERHEAD
    """Of a round trip: so many columns take as long to multiply as all the rest takes."""

    @abstractmethod
    def right(self, X: FloatArray, progress: Progress | None = None) -> FloatArray:
        """``F X``: (n, b)."""

    @abstractmethod
    def left(self, Y: FloatArray, progress: Progress | None = None) -> FloatArray:
        """``Fᵀ Y``: (m, b)."""

    def round_trip(self, Y: FloatArray, progress: Progress | None = None) -> FloatArray:
        """``F Fᵀ Y``: (n, b)."""
        return self.right(self.left(Y))

    def normal(self, X: FloatArray, law: FloatArray, progress: Progress | None = None) -> FloatArray:
        """``Fᵀ D_μ F X``: (m, b)."""
        return self.left(law[:, None] * self.right(X))

    @abstractmethod
    def mean_squares(self, law: FloatArray) -> FloatArray:
        """(m,): the mean under a law of the squares of each column."""

    @abstractmethod
    def rows(self, which: slice) -> FloatArray:
        """Some rows in float64."""

    def similarities(self, which: slice) -> FloatArray:
        """Columns of K on and below the diagonal: ``K[which.start:, which]``."""
        return self.right(np.ascontiguousarray(self.rows(which).T))[which.start :]


class SoftmaxFactor(Factor):
    """``P^a`` of a softmax kernel.

    Its rows are kept in float32 where there is room; else their inner products, where those are what is wanted; else
    they are made anew for each product.
    """

    def __init__(
        self,
        P: SoftmaxKernel,
        power: float,
        max_memory: int,
        num_threads: int | None,
        progress: Progress | None,
        pairs: bool = False,
    ) -> None:
        self.P, self.power, self.shape = P, power, P.shape
        self.max_memory, self.num_threads = max_memory, num_threads
        self._store: PowerStore | None = None
        self._gram: PowerGram | None = None
        n, d = P.hidden.shape
        if PowerStore.bytes(P) <= max_memory:
            kept = self._store = PowerStore(P, power, max_memory, num_threads, progress)
            self.storage, self.overhead = "stored", _READING
            self.log_normalizer, self.squares = kept.log_normalizer, kept.squares
            return
        if pairs and n <= _MOST_CONTEXTS * d and PowerGram.bytes(P) <= max_memory:
            self._gram = gram = PowerGram(P, power, num_threads, progress)
            self.storage = "pairs stored"
            self.log_normalizer, self.squares = gram.log_normalizer, gram.squares
            return
        orders = [] if power == 0.5 else [2.0]
        stats = softmax_stats(P, orders=orders, max_memory=max_memory, num_threads=num_threads, progress=progress)
        self.squares = np.exp(-stats.renyi[2.0]) if orders else np.ones(P.shape[0])  # Σ p² = exp(−H₂), and Σ p = 1
        self.log_normalizer = stats.log_normalizer
        self.storage, self.overhead = "recomputed", d / 2

    def _multiply(
        self,
        X: FloatArray,
        progress: Progress | None,
        side: str,
        *,
        power: float = 1.0,
        first: int = 0,
        weights: FloatArray | None = None,
        want_rows: bool = False,
    ) -> FloatArray:
        """The product that is wanted, of a power of the rows from ``first`` on, with columns scaled for float32."""
        store = self._store if (power, first) == (1.0, 0) else None
        if store is not None and side == "Y":
            X = store.scale * X
        if store is not None and weights is not None:
            weights = weights * store.scale[:, 0] ** 2
        columns, exponents = _single(X)
        panel: dict[str, Any] = {side: columns}
        found = product(
            self.P if first == 0 else self.P[first:],
            self.power * power,
            self.log_normalizer[first:],
            self.max_memory,
            self.num_threads,
            progress,
            weights=weights,
            want_rows=want_rows,
            want_tokens=not want_rows,
            store=None if store is None else store.array,
            **panel,
        )
        (result,) = (part for part in found if part is not None)
        if store is not None and want_rows:
            result *= store.scale
        return np.ldexp(result, exponents)

    def right(self, X: FloatArray, progress: Progress | None = None) -> FloatArray:
        return self._multiply(X, progress, "X", want_rows=True)

    def left(self, Y: FloatArray, progress: Progress | None = None) -> FloatArray:
        return self._multiply(Y, progress, "Y")

    def round_trip(self, Y: FloatArray, progress: Progress | None = None) -> FloatArray:
        if self._gram is not None:
            return self._gram.matrix @ Y
        (n, vocabulary), width = self.shape, self.P.hidden.shape[1]
        if core.round_trip_bytes(n, width, vocabulary, Y.shape[1]) <= self.max_memory:
            return self._multiply(Y, progress, "Y", want_rows=True)
        return self.right(self.left(Y, share(progress, 0, 2)), share(progress, 1, 2))

    def normal(self, X: FloatArray, law: FloatArray, progress: Progress | None = None) -> FloatArray:
        return self._multiply(X, progress, "X", weights=law)

    def mean_squares(self, law: FloatArray) -> FloatArray:
        return self._multiply(law[:, None], None, "Y", power=2.0)[:, 0]

    def similarities(self, which: slice) -> FloatArray:
        if self._store is not None:
            return super().similarities(which)
        return self._multiply(np.ascontiguousarray(self.rows(which).T), None, "X", first=which.start, want_rows=True)

    def rows(self, which: slice) -> FloatArray:
        return _power(self.P[which].matrix, self.power)


@dataclass(frozen=True, eq=False)
class MatrixFactor(Factor):
    """A matrix in float64, dense or sparse."""

    matrix: Any  # (n, m)
    squares: FloatArray
    storage = "stored"

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return self.matrix.shape[0], self.matrix.shape[1]

    def right(self, X: FloatArray, progress: Progress | None = None) -> FloatArray:
        return np.asarray(self.matrix @ X)

    def left(self, Y: FloatArray, progress: Progress | None = None) -> FloatArray:
        return np.asarray(self.matrix.T @ Y)

    def mean_squares(self, law: FloatArray) -> FloatArray:
        out = np.zeros(self.shape[1])
        for which in slices(self.shape[0], max(1, BLOCK_BYTES // (8 * max(self.shape[1], 1)))):
            out += law[which] @ self.rows(which) ** 2
        return out

    def rows(self, which: slice) -> FloatArray:
        part = self.matrix[which]
        return np.asarray(part if isinstance(part, np.ndarray) else part.toarray(), np.float64)


def power_factor(
    P: Kernel, power: float, max_memory: int, num_threads: int | None, progress: Progress | None, pairs: bool = False
) -> Factor:
    """``P^a`` for a of 1/2 or 1: of a softmax kernel in float32, of others in float64. ``pairs``: for ``F Fᵀ``."""
    softmax = softmax_of(P)
    if softmax is not None:
        return SoftmaxFactor(softmax, power, max_memory, num_threads, progress, pairs)
    rows = P._rows
    if rows.kind in ("sparse", "deterministic"):
        matrix = rows.sparse().copy()
        matrix.data = _power(matrix.data, power)
        return MatrixFactor(matrix, np.asarray((matrix * matrix).sum(axis=1)).reshape(-1))
    dense = _power(rows.dense(), power)
    return MatrixFactor(dense, np.einsum("xw,xw->x", dense, dense))


def prototype_factor(P: Kernel, max_memory: int, num_threads: int | None, progress: Progress | None) -> Factor:
    """``P W``, kept in float64."""
    softmax = softmax_of(P)
    if softmax is None:
        raise DTypeError(
            "P: expected a softmax kernel, whose head gives each token a vector, for the prototype similarity; got "
            f"{P!r}"
        )
    means = prototypes(softmax, max_memory=max_memory, num_threads=num_threads, progress=progress)
    return MatrixFactor(means, np.einsum("xi,xi->x", means, means))


def exact_factor(P: Kernel, kind: str) -> FloatArray:
    """(n, m) float64, by definition."""
    require_room(P.shape[0] * P.shape[1])
    p = P.matrix
    if kind == "prototype":
        softmax = softmax_of(P)
        assert softmax is not None  # for the type checker: the factor was made of it
        return np.asarray(p @ softmax.head.astype(np.float64))
    return np.sqrt(p) if kind == "bhattacharyya" else p


def slices(end: int, step: int, start: int = 0) -> Iterator[slice]:
    """``[start, end)`` in pieces."""
    for first in range(start, end, step):
        yield slice(first, min(first + step, end))


def _power(p: FloatArray, power: float) -> FloatArray:
    return np.sqrt(p) if power == 0.5 else p


def _single(X: FloatArray) -> tuple[SinglePrecisionArray, IntArray]:
    """Columns in float32, each divided by a power of 2 so that none leaves its range; the exponents of these powers."""
    exponents = np.frexp(np.abs(X).max(axis=0, initial=0.0))[1]
    return np.ldexp(X, -exponents).astype(np.float32), exponents
