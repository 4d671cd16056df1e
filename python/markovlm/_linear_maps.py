"""Linear maps between two representations of the same contexts, from their covariances alone (theory §11)."""

from __future__ import annotations

import numpy as np

from ._enclosing_ball import row_blocks
from .typing import FloatArray, IntArray, ModelArray

__all__ = [
    "Gathered",
    "covariance",
    "eigenvalues",
    "generalized",
    "mean_of",
    "rank_of",
    "rounding_of",
    "total_variance",
]

EPS = float(np.finfo(np.float64).eps)


class Gathered:
    """Some rows of a matrix in some order, each copied as it is looked at."""

    def __init__(self, matrix: ModelArray | Gathered, rows: IntArray) -> None:
        self.matrix: ModelArray = matrix.matrix if isinstance(matrix, Gathered) else matrix
        self.rows: IntArray = matrix.rows[rows] if isinstance(matrix, Gathered) else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, block: slice) -> ModelArray:
        return np.asarray(self.matrix[self.rows[block]])


def mean_of(x: ModelArray | Gathered) -> FloatArray:
    """(d,) in float64, by blocks of rows."""
    sums = [x[block].sum(axis=0, dtype=np.float64) for block in row_blocks(len(x))]
    return np.asarray(np.sum(sums, axis=0) / len(x))


def covariance(x: ModelArray | Gathered, y: ModelArray | Gathered) -> FloatArray:
    """(d, e) in float64, by blocks of rows; divided by n. ``2 n d e`` flops."""
    x_mean, y_mean = mean_of(x), mean_of(y)
    found = np.zeros((len(x_mean), len(y_mean)))
    for block in row_blocks(len(x)):
        found += (x[block].astype(np.float64) - x_mean).T @ (y[block].astype(np.float64) - y_mean)
    return found / len(x)


def total_variance(x: ModelArray | Gathered) -> float:
    """The trace of the covariance, without forming it."""
    mean = mean_of(x)
    return sum(float(((x[block].astype(np.float64) - mean) ** 2).sum()) for block in row_blocks(len(x))) / len(x)


def eigenvalues(C: FloatArray) -> FloatArray:
    """(d,) of a symmetric matrix, falling."""
    return np.asarray(np.linalg.eigvalsh(C)[::-1], np.float64)


def rank_of(C: FloatArray) -> int:
    """Eigenvalues of a covariance that are not rounding."""
    variances = eigenvalues(C)
    return int((variances > rounding_of(variances)).sum())


def generalized(C_hg: FloatArray, C_hh: FloatArray) -> tuple[FloatArray, FloatArray]:
    r"""Generalised eigenpairs :math:`C_{hg} C_{gh} v = \theta C_{hh} v`, largest first.

    With ``φ = C_hh^{-1/2} (h − E h)`` these are the squared singular values of ``C_φg``: what a linear function
    ``⟨v, h⟩`` of unit variance has in common with g, ``θ = ‖Cov(⟨v, h⟩, g)‖²``. Computed by that singular value
    decomposition, so that θ keeps its digits down to ε² of the largest.

    Parameters
    ----------
    C_hg : (d, e) float64
        Covariance of h and g.
    C_hh : (d, d) float64, symmetric, positive semidefinite
        Directions of h whose variance is below rounding (`rounding_of`) are left out.

    Returns
    -------
    values : (k,) float64 >= 0, falling
        ``k = min(rank of C_hh, e)``; further eigenvalues are 0.
    directions : (d, k) float64
        ``Vᵀ C_hh V = I``; signs are arbitrary. ``O(d³)``.

    Examples
    --------
    >>> import numpy as np
    >>> values, directions = generalized(np.array([[6.0], [0.0]]), np.diag([4.0, 0.0]))
    >>> values, abs(directions.T)
    (array([9.]), array([[0.5, 0. ]]))
    """
    variances, axes = np.linalg.eigh(C_hh / 2 + C_hh.T / 2)
    kept = variances > rounding_of(variances)
    whitening = axes[:, kept] / np.sqrt(variances[kept])
    left, singular, _ = np.linalg.svd(whitening.T @ C_hg, full_matrices=False)
    return np.asarray(singular**2), np.asarray(whitening @ left)


def rounding_of(variances: FloatArray) -> float:
    """What may be left of a zero among eigenvalues of a covariance: of its sums and their decomposition in float64, and
    of entries that were rounded to float32, ``2^-24`` of each.
    """
    return float(len(variances) * EPS * variances.max(initial=0.0) + 2.0**-48 * variances.clip(0.0).sum())
