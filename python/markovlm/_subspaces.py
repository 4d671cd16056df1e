"""Linear functions of states as subspaces of functions on contexts, and what an operator is on them (theory §11)."""

from __future__ import annotations

import numpy as np
from scipy.linalg import eigh, solve_triangular

from .typing import FloatArray

__all__ = ["canonical_pairs", "normalizing", "orthonormal", "ritz", "whitening"]

_ROUNDING = 1e-7  # of states in float32: directions whose spread is below it, next to the largest one, are none
_NEARLY_SINGULAR = 1e-2  # of the diagonal of a Cholesky factor: below, directions are looked at one by one
_ORTHONORMAL = 1e-5  # how far products may be from 1 and 0
_PROBES = 16


def whitening(covariance: FloatArray, rounding: float = _ROUNDING) -> FloatArray:
    """(d, q): T with ``Tᵀ C T = I``, on the directions in which something varies; largest variance first."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > max(values[-1], 0.0) * rounding**2
    return np.asarray((vectors[:, kept] / np.sqrt(values[kept]))[:, ::-1])


def orthonormal(states: FloatArray) -> FloatArray:
    """(n, q) float64, ``q <= d``: an orthonormal basis of the linear functions of states, each of mean 0."""
    mean = states.mean(axis=0)
    centered = states - mean
    gram = centered.T @ centered
    length = np.sqrt(gram.diagonal())
    used = length > _ROUNDING * np.hypot(length, np.sqrt(len(states)) * np.abs(mean))
    if not used.any():
        return np.zeros((len(states), 0))
    if not used.all():
        centered, gram, length = centered[:, used], gram[np.ix_(used, used)], length[used]
    gram /= np.outer(length, length)  # columns of any size
    basis = _by_cholesky(centered, length, gram)
    if basis is None:
        basis = centered @ (whitening(gram) / length[:, None])
        basis = basis @ whitening(basis.T @ basis)  # rounding of the first is that of the Gram matrix' condition
    return np.asarray(basis)


def _by_cholesky(columns: FloatArray, length: FloatArray, gram: FloatArray) -> FloatArray | None:
    """An orthonormal basis in half the time, where the columns are far enough from dependent."""
    try:
        root = length[:, None] * np.linalg.cholesky(gram)
    except np.linalg.LinAlgError:
        return None
    basis: FloatArray = solve_triangular(root, columns.T, lower=True, check_finite=False).T
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (basis.shape[1], _PROBES))  # see each row of BᵀB − I as large
    return basis if np.abs(basis.T @ (basis @ signs) - signs).max() < _ORTHONORMAL else None


def normalizing(gram: FloatArray) -> FloatArray:
    """(q, p): some T with ``Tᵀ B T = I``; triangular where B is far from singular, else as `whitening`."""
    try:
        root = np.linalg.cholesky(gram)
    except np.linalg.LinAlgError:
        return whitening(gram)
    scale = np.diagonal(root)
    if scale.min() < _NEARLY_SINGULAR * scale.max():
        return whitening(gram)
    return np.asarray(solve_triangular(root, np.eye(len(gram)), lower=True).T)


def ritz(
    projected: FloatArray, k: int, normalizer: FloatArray | None = None, *, single: bool = False
) -> tuple[FloatArray, FloatArray]:
    r"""The k largest θ, falling, and V with ``A V = B V diag(θ)``, ``Vᵀ B V = I``: of an operator on a subspace.

    ``A`` (q, q) is the operator's form on some functions, and ``Tᵀ B T = I`` for the normalizer T and the functions'
    inner products B, which are the identity without. ``single``: solved in float32, in half the time.
    """
    A = projected if normalizer is None else normalizer.T @ projected @ normalizer
    values, vectors = _leading((A + A.T) / 2, k, single)
    return values, vectors if normalizer is None else np.asarray(normalizer @ vectors)


def canonical_pairs(
    cross: FloatArray, first: FloatArray, second: FloatArray, k: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Leading canonical correlations, falling, and the maps to the canonical variables: (k,), (q, k), (p, k).

    ``cross`` (q, p) are inner products of two sets of functions, ``first`` and ``second`` what makes each orthonormal.
    """
    C = first.T @ cross @ second
    squares, left = _leading(C @ C.T, k, single=True)
    correlations = np.sqrt(np.clip(squares, 0.0, 1.0))
    right = C.T @ left
    length = np.linalg.norm(right, axis=0)
    right = np.divide(right, length, out=np.zeros_like(right), where=length > 0)
    return correlations, first @ left, second @ right


def _leading(A: FloatArray, k: int, single: bool) -> tuple[FloatArray, FloatArray]:
    """The k largest eigenvalues, falling, or as many as there are, and their vectors."""
    q = len(A)
    if q == 0:
        return np.zeros(0), np.zeros((0, 0))
    values, vectors = eigh(
        A.astype(np.float32) if single else A, subset_by_index=(max(q - k, 0), q - 1), check_finite=False
    )
    return values[::-1].astype(np.float64), vectors[:, ::-1].astype(np.float64)
