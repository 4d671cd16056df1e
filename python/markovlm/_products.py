"""Products of two representations: each pair has its own cheap way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp

from . import _checks
from ._ext import core
from ._rows import Dense, Function, Rows, Sparse, Tensor, Wiring, canonical, tidied
from .typing import IntArray, Progress

__all__ = ["Work", "multiplication", "of_used_rows", "product"]


@dataclass(frozen=True)
class Work:
    """How products may be made."""

    max_memory: int | None = None
    num_threads: int | None = None
    progress: Progress | None = None


Product: TypeAlias = Callable[[Any, Any, Work], Rows]
_PRODUCTS: dict[tuple[type[Rows], type[Rows]], Product] = {}


def multiplication(left: type[Any], right: type[Any]) -> Callable[[Product], Product]:
    """Registers the product of two representations; the most special one for the left factor is taken."""

    def register(function: Product) -> Product:
        _PRODUCTS[left, right] = function
        return function

    return register


def product(a: Rows, b: Rows, work: Work) -> Rows:
    """``a`` then ``b``."""
    for left in type(a).__mro__:
        for right in type(b).__mro__:
            found = _PRODUCTS.get((left, right))
            if found is not None:
                return found(a, b, work)
    raise TypeError(f"no product of {type(a).__name__} and {type(b).__name__}")


@multiplication(Wiring, Wiring)
def _rewire(a: Wiring, b: Wiring, work: Work) -> Rows:
    groups = _groups(a.codomain_sizes, b.sizes)
    if groups is None:
        return product(a, b.function(), work)
    return Wiring(a.sizes, tuple(a.wires[i] for w in b.wires for i in groups[w]))


def _groups(fine: tuple[int, ...], coarse: tuple[int, ...]) -> list[range] | None:
    """Which factors of ``fine``, one after another, make up each of ``coarse``; None where they do not."""
    groups, i = [], 0
    for size in coarse:
        first, product_ = i, 1
        while i < len(fine) and (product_ < size or i == first or fine[i] == 1) and product_ * fine[i] <= size:
            product_ *= fine[i]
            i += 1
        if product_ != size:
            return None
        groups.append(range(first, i))
    return groups if i == len(fine) else None


@multiplication(Wiring, Rows)
def _rearranged_then(a: Wiring, b: Rows, work: Work) -> Rows:
    return b if a.is_identity else b.take(a.function().index)


@multiplication(Function, Rows)
def _function_then(a: Function, b: Rows, work: Work) -> Rows:
    return b.take(a.index)


@multiplication(Rows, Wiring)
def _then_rearranged(a: Rows, b: Wiring, work: Work) -> Rows:
    if b.is_identity:
        return a
    if not b.wires:  # normalisation: what is discarded leaves nothing
        return Wiring((a.shape[0],), ())
    return product(a, b.function(), work)


@multiplication(Function, Wiring)
def _function_then_rearranged(a: Function, b: Wiring, work: Work) -> Rows:
    return b.take(a.index)


@multiplication(Tensor, Wiring)
def _tensor_then_rearranged(a: Tensor, b: Wiring, work: Work) -> Rows:
    groups = _groups(b.sizes, tuple(f.shape[1] for f in a.factors))
    if groups is not None and b.wires == tuple(sorted(set(b.wires))):  # each factor is projected for itself
        parts = []
        for factor, group in zip(a.factors, groups, strict=True):
            sizes = tuple(b.sizes[i] for i in group)
            kept = tuple(w - group.start for w in b.wires if w in group)
            parts.append(product(factor, Wiring(sizes, kept), work))
        return Tensor(tuple(parts))
    return product(a.formed(), b, work)


@multiplication(Tensor, Tensor)
def _interchange(a: Tensor, b: Tensor, work: Work) -> Rows:
    if [f.shape[1] for f in a.factors] == [f.shape[0] for f in b.factors]:
        return Tensor(tuple(product(f, g, work) for f, g in zip(a.factors, b.factors, strict=True)))
    return product(a.formed(), b.formed(), work)


@multiplication(Tensor, Rows)
def _formed_then(a: Tensor, b: Rows, work: Work) -> Rows:
    return product(a.formed(), b, work)


@multiplication(Rows, Tensor)
def _then_formed(a: Rows, b: Tensor, work: Work) -> Rows:
    return product(a, b.formed(), work)


@multiplication(Dense, Dense)
def _dense_dense(a: Dense, b: Dense, work: Work) -> Rows:
    return Dense(a.matrix @ b.matrix, max(a.eps, b.eps))


@multiplication(Dense, Sparse)
def _dense_sparse(a: Dense, b: Sparse, work: Work) -> Rows:
    if 3 * b.csr.nnz < b.shape[1]:  # most columns of the result are empty
        return product(Sparse(a.sparse(), a.eps), b, work)
    return Dense(np.ascontiguousarray(a.matrix @ b.csr), max(a.eps, b.eps))


@multiplication(Sparse, Dense)
def _sparse_dense(a: Sparse, b: Dense, work: Work) -> Rows:
    return Dense(np.ascontiguousarray(a.csr @ b.matrix), max(a.eps, b.eps))


@multiplication(Sparse, Sparse)
def _sparse_sparse(a: Sparse, b: Sparse, work: Work) -> Rows:
    n, m = a.shape[0], b.shape[1]
    left, right = a.csr, b.csr
    indptr, indices, data = core.sparse_product(
        left.indptr,
        left.indices,
        left.data,
        right.indptr,
        right.indices,
        right.data,
        m,
        _checks.threads(work.num_threads),
        work.progress,
    )
    return tidied(Sparse(sp.csr_array((data, indices, indptr), shape=(n, m)), max(a.eps, b.eps)))


@multiplication(Dense, Function)
def _dense_function(a: Dense, b: Function, work: Work) -> Rows:
    if b.size > 2 * a.shape[1]:  # most columns of the result are empty
        return product(Sparse(a.sparse(), a.eps), b, work)
    return product(a, Sparse(b.sparse()), work)


@multiplication(Sparse, Function)
def _sparse_function(a: Sparse, b: Function, work: Work) -> Rows:
    return _relabelled(a, b.index[a.csr.indices], b.size)


@multiplication(Sparse, Wiring)
def _sparse_rearranged(a: Sparse, b: Wiring, work: Work) -> Rows:
    if b.is_identity or not b.wires:
        return _then_rearranged(a, b, work)
    return _relabelled(a, b.applied(a.csr.indices.astype(np.int64)), b.shape[1])


def _relabelled(a: Sparse, columns: IntArray, size: int) -> Rows:
    """Entries sent to other columns, where some may meet."""
    csr = sp.csr_array((a.csr.data.copy(), columns, a.csr.indptr.copy()), shape=(a.shape[0], size))
    return tidied(Sparse(canonical(csr), a.eps))


@multiplication(Sparse, Tensor)
def _sparse_tensor(a: Sparse, b: Tensor, work: Work) -> Rows:
    return product(*of_used_rows(a, b), work)


def of_used_rows(a: Sparse, b: Rows) -> tuple[Sparse, Rows]:
    """The same product, without the rows of ``b`` that nothing comes to: there may be far more than could be formed."""
    used, columns = np.unique(a.csr.indices, return_inverse=True)
    csr = sp.csr_array((a.csr.data, columns, a.csr.indptr), shape=(a.shape[0], len(used)))
    return Sparse(csr, a.eps), b.take(used.astype(np.int64))
