"""Rows of conditionals and Bayesian inverses; what no evidence speaks of is never a row of zeros."""

from __future__ import annotations

import math

import numpy as np
import scipy.sparse as sp

from ._axes import Space, element_of, spelled
from ._rows import Dense, Rows, Sparse, require_room, tidied
from .errors import ValueRangeError
from .typing import FloatArray, IntArray

__all__ = ["conditional_rows", "posterior_rows"]


def conditional_rows(joint: Rows, conditions: int, rest: int, substitute: FloatArray | None, space: Space) -> Rows:
    """(n, conditions * rest) → (n * conditions, rest), each row divided by its sum."""
    n = joint.shape[0]
    if isinstance(joint, Dense):
        return _normalised(joint.matrix.reshape(n * conditions, rest), substitute, space, joint.eps)
    csr = joint.sparse().tocoo()
    row, column = (places.astype(np.int64) for places in csr.coords)
    places = (row * conditions + column // max(rest, 1), column % max(rest, 1))
    matrix = sp.coo_array((csr.data, places), shape=(n * conditions, rest))
    return _normalised_sparse(sp.csr_array(matrix), substitute, space, joint.eps)


def posterior_rows(rows: Rows, prior: FloatArray, substitute: FloatArray | None, space: Space) -> Rows:
    """(n, m) → (m, n): the joint with the prior, read the other way, each row divided by its sum."""
    require_room(rows.shape[1] if rows.kind in ("sparse", "deterministic") else math.prod(rows.shape))
    if rows.kind in ("sparse", "deterministic"):
        joint = sp.csr_array((rows.sparse() * prior[:, None]).T)
        joint.eliminate_zeros()
        joint.sort_indices()
        return _normalised_sparse(joint, substitute, space, rows.eps)
    return _normalised(np.ascontiguousarray((rows.dense() * prior[:, None]).T), substitute, space, rows.eps)


def _evidence(total: FloatArray, substitute: FloatArray | None, space: Space) -> IntArray:
    """Rows that have none."""
    missing = np.flatnonzero(total == 0.0)
    if missing.size and substitute is None:
        raise ValueRangeError(
            f"zero_evidence: {missing.size} of {total.size} rows on {spelled(space)} have probability 0, the first is "
            f'{element_of(space, int(missing[0]))}; there is no posterior: pass zero_evidence="uniform" or a state to '
            "say what they get"
        )
    return missing


def _normalised(joint: FloatArray, substitute: FloatArray | None, space: Space, eps: float) -> Rows:
    largest = joint.max(axis=1, initial=0.0)
    missing = _evidence(largest, substitute, space)
    with np.errstate(invalid="ignore", over="ignore"):
        out = joint / np.where(largest > 0, largest, 1.0)[:, None]  # first: a sum of subnormal numbers has few digits
    out /= np.where(largest > 0, out.sum(axis=1), 1.0)[:, None]
    if missing.size:
        assert substitute is not None  # for the type checker
        out[missing] = substitute
    return Dense(out, eps)


def _normalised_sparse(joint: sp.csr_array, substitute: FloatArray | None, space: Space, eps: float) -> Rows:
    counts = np.diff(joint.indptr)
    largest = np.asarray(joint.max(axis=1).todense()).reshape(-1) if joint.nnz else np.zeros(joint.shape[0])
    missing = _evidence(largest, substitute, space)
    data = joint.data / np.repeat(largest, counts)
    row = np.repeat(np.arange(joint.shape[0]), counts)
    data = data / np.bincount(row, data, minlength=joint.shape[0])[row]
    out = sp.csr_array((data, joint.indices, joint.indptr), shape=joint.shape)
    if missing.size:
        assert substitute is not None  # for the type checker
        at = sp.coo_array((np.ones(missing.size), (missing, np.zeros_like(missing))), shape=(joint.shape[0], 1))
        out = sp.csr_array(out + sp.csr_array(at) @ sp.csr_array(substitute[None, :]))
    out.sort_indices()
    return tidied(Sparse(out, eps))
