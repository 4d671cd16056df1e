"""Row-stochastic matrices in several representations."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import scipy.sparse as sp

from .errors import ValueRangeError
from .typing import FloatArray, IntArray

__all__ = ["DOUBLE", "Dense", "Function", "Rows", "Sparse", "Tensor", "Wiring", "canonical", "require_room", "tidied"]

DOUBLE, SINGLE = (float(np.finfo(dtype).eps) for dtype in (np.float64, np.float32))
MOST_ENTRIES = 2**31  # that are formed because a result needs them: 16 GiB of float64
BLOCK_BYTES = 2**25  # of rows that are formed a block at a time


class Rows(ABC):
    """``n`` probability vectors on ``m`` elements."""

    kind: ClassVar[str]
    shape: tuple[int, int]
    eps: float = DOUBLE
    """Relative rounding of the entries: that of the type that they came in, or are computed in."""

    @property
    def rounding(self) -> float:
        """How far sums over a row may be off, for each unit of them: as for rows that are checked when they come."""
        return self.eps * (64 + 4 * math.sqrt(self.shape[1]))

    @abstractmethod
    def take(self, index: IntArray) -> Rows:
        """The rows of these numbers."""

    def part(self, rows: slice) -> Rows:
        """Some rows that follow each other."""
        return self.take(np.arange(rows.start, rows.stop, dtype=np.int64))

    @abstractmethod
    def dense(self) -> FloatArray:
        """All entries, (n, m)."""

    @property
    @abstractmethod
    def per_row(self) -> float:
        """Stored entries of a row, on average."""

    def sparse(self) -> sp.csr_array:
        """Positive entries alone; sorted, each once."""
        return canonical(sp.csr_array(self.dense()))

    def blocks(self, max_memory: int | None = None) -> Iterator[tuple[slice, FloatArray]]:
        """Rows block by block, formed: (which, (rows, m)). A block takes 32 MiB, or half of ``max_memory``."""
        n, m = self.shape
        allowed = BLOCK_BYTES if max_memory is None else max_memory // 2
        step = max(1, allowed // (8 * max(m, 1)))
        for first in range(0, n, step):
            rows = slice(first, min(first + step, n))
            yield rows, self.part(rows).dense()


@dataclass(frozen=True, eq=False)
class Dense(Rows):
    """All entries."""

    kind = "dense"
    matrix: FloatArray  # (n, m), not writable
    eps: float = DOUBLE

    def __post_init__(self) -> None:
        """See to it that nobody writes."""
        self.matrix.flags.writeable = False

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return self.matrix.shape[0], self.matrix.shape[1]

    @property
    def per_row(self) -> float:
        return float(self.shape[1])

    def take(self, index: IntArray) -> Dense:
        return Dense(self.matrix[index], self.eps)

    def part(self, rows: slice) -> Dense:
        return Dense(self.matrix[rows], self.eps)

    def dense(self) -> FloatArray:
        return self.matrix


@dataclass(frozen=True, eq=False)
class Sparse(Rows):
    """Positive entries, by rows."""

    kind = "sparse"
    csr: sp.csr_array  # (n, m), canonical, its arrays not writable
    eps: float = DOUBLE

    def __post_init__(self) -> None:
        """See to it that nobody writes."""
        for array in (self.csr.data, self.csr.indices, self.csr.indptr):
            array.flags.writeable = False

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return int(self.csr.shape[0]), int(self.csr.shape[1])

    @property
    def per_row(self) -> float:
        return float(self.csr.nnz) / max(self.shape[0], 1)

    def take(self, index: IntArray) -> Sparse:
        return Sparse(self.csr[index], self.eps)

    def dense(self) -> FloatArray:
        return np.asarray(self.csr.toarray())

    def sparse(self) -> sp.csr_array:
        return self.csr


@dataclass(frozen=True, eq=False)
class Function(Rows):
    """Point masses: row ``x`` is all at ``index[x]``."""

    kind = "deterministic"
    index: IntArray  # (n,)
    size: int

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return len(self.index), self.size

    @property
    def per_row(self) -> float:
        return 1.0

    def take(self, index: IntArray) -> Function:
        return Function(self.index[index], self.size)

    def dense(self) -> FloatArray:
        out = np.zeros(self.shape)
        out[np.arange(len(self.index)), self.index] = 1.0
        return out

    def sparse(self) -> sp.csr_array:
        n = len(self.index)
        return sp.csr_array((np.ones(n), self.index, np.arange(n + 1)), shape=self.shape)


@dataclass(frozen=True, eq=False)
class Wiring(Rows):
    """A function that only rearranges factors: factor ``i`` of the result is factor ``wires[i]`` of the argument.

    Identities, swaps, copies, discards and projections, without an array: a vocabulary is copied for nothing.
    """

    kind = "deterministic"
    sizes: tuple[int, ...]  # of the factors of the domain
    wires: tuple[int, ...]

    @property
    def codomain_sizes(self) -> tuple[int, ...]:
        return tuple(self.sizes[w] for w in self.wires)

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return math.prod(self.sizes), math.prod(self.codomain_sizes)

    @property
    def per_row(self) -> float:
        return 1.0

    @property
    def is_identity(self) -> bool:
        return self.wires == tuple(range(len(self.sizes)))

    def applied(self, index: IntArray) -> IntArray:
        """The function itself on numbers of elements."""
        out = np.zeros_like(index)
        if self.shape[1] > np.iinfo(np.int64).max:
            raise ValueRangeError(f"kernel: expected at most 2**63 elements to number, got {self.shape[1]}")
        strides = [math.prod(self.sizes[i + 1 :]) for i in range(len(self.sizes))]
        for w in self.wires:
            out = out * self.sizes[w] + index // strides[w] % max(self.sizes[w], 1)
        return out

    def take(self, index: IntArray) -> Function:
        return Function(self.applied(index), self.shape[1])

    def function(self) -> Function:
        return self.take(_every(self.shape[0]))

    def dense(self) -> FloatArray:
        return self.function().dense()

    def sparse(self) -> sp.csr_array:
        return self.function().sparse()


@dataclass(frozen=True, eq=False)
class Tensor(Rows):
    """Independent kernels side by side, not multiplied out."""

    kind: str = field(init=False)  # type: ignore[misc]
    factors: tuple[Rows, ...]
    eps: float = field(init=False)

    def __post_init__(self) -> None:
        """A function where all factors are; the widest rounding of them."""
        functions = all(factor.kind == "deterministic" for factor in self.factors)
        object.__setattr__(self, "kind", "deterministic" if functions else "tensor")
        object.__setattr__(self, "eps", max(factor.eps for factor in self.factors))

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return math.prod(f.shape[0] for f in self.factors), math.prod(f.shape[1] for f in self.factors)

    @property
    def per_row(self) -> float:
        return math.prod(factor.per_row for factor in self.factors)

    def take(self, index: IntArray) -> Rows:
        domain = Wiring(tuple(f.shape[0] for f in self.factors), ())
        parts = [
            factor.take(Wiring(domain.sizes, (i,)).applied(index)) for i, factor in enumerate(self.factors)
        ]  # factor i of each element
        out = parts[0]
        for part in parts[1:]:
            out = _side_by_side(out, part)
        return out

    def formed(self) -> Rows:
        return self.take(_every(self.shape[0]))

    def dense(self) -> FloatArray:
        return self.formed().dense()

    def sparse(self) -> sp.csr_array:
        return self.formed().sparse()


def _every(n: int) -> IntArray:
    if n > MOST_ENTRIES:
        raise ValueRangeError(f"kernel: expected at most {MOST_ENTRIES} rows to form, got {n}; take the rows you need")
    return np.arange(n, dtype=np.int64)


def canonical(csr: sp.csr_array) -> sp.csr_array:
    csr.sum_duplicates()  # sorts
    csr.eliminate_zeros()
    return csr


def _side_by_side(a: Rows, b: Rows) -> Rows:
    """Row by row the product measure, on pairs: (n, m_a m_b)."""
    n, (m_a, m_b) = a.shape[0], (a.shape[1], b.shape[1])
    if isinstance(a, Function) and isinstance(b, Function):
        _numbered(m_a * m_b)
        return Function(a.index * m_b + b.index, m_a * m_b)
    require_room(n * int(a.per_row * b.per_row))
    eps = max(a.eps, b.eps)
    if isinstance(a, Dense) and isinstance(b, Dense):
        return Dense((a.matrix[:, :, None] * b.matrix[:, None, :]).reshape(n, m_a * m_b), eps)
    _numbered(m_a * m_b)
    left, right = a.sparse(), b.sparse()
    in_row = np.diff(right.indptr)[np.repeat(np.arange(n), np.diff(left.indptr))]  # entries of b for an entry of a
    repeated = np.repeat(np.arange(left.nnz), in_row)
    ends = np.cumsum(in_row)
    within = np.arange(len(repeated)) - np.repeat(ends - in_row, in_row)
    row_of = np.repeat(np.arange(n), np.diff(left.indptr))
    other = right.indptr[row_of[repeated]] + within
    columns = left.indices[repeated].astype(np.int64) * m_b + right.indices[other]
    starts = np.concatenate([[0], np.cumsum(np.diff(left.indptr).astype(np.int64) * np.diff(right.indptr))])
    csr = sp.csr_array((left.data[repeated] * right.data[other], columns, starts), shape=(n, m_a * m_b))
    return tidied(Sparse(canonical(csr), eps))


def _numbered(size: int) -> None:
    if size > np.iinfo(np.int64).max:
        raise ValueRangeError(f"kernel: expected at most 2**63 elements to number, got {size}")


def require_room(entries: int) -> None:
    if entries > MOST_ENTRIES:
        raise ValueRangeError(
            f"kernel: its matrix would have {entries:.2g} entries; compose it with what you need of it first (a "
            "coarse-graining, a marginal), or take some of its rows"
        )


def tidied(rows: Rows) -> Rows:
    """Dense where that takes less memory than the entries and their places."""
    n, m = rows.shape
    if isinstance(rows, Sparse) and 3 * rows.csr.nnz > 2 * n * m:
        return Dense(rows.dense(), rows.eps)
    return rows
