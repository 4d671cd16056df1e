"""The pencil ``A v = λ B v`` with a small dense B, as a symmetric operator: ``L⁻¹ A L⁻ᵀ`` where ``B = L Lᵀ``."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import solve_triangular

from . import _checks
from .errors import DTypeError, ShapeError, ValueRangeError
from .typing import ArrayInput, FloatArray

__all__ = ["Pencil"]

EPS = float(np.finfo(np.float64).eps)


class Pencil:
    """An operator and B; what is found of it is of unit length and orthogonal in the norm of B."""

    def __init__(self, A: Any, B: ArrayInput, tol: float) -> None:
        self.A = A
        self.root = np.linalg.cholesky(_metric(B, A.n, tol))  # L

    def __call__(self, X: FloatArray) -> FloatArray:
        return self._solved(self.A(self.vectors(X)), "N")

    def vectors(self, U: FloatArray) -> FloatArray:
        """``L⁻ᵀ U``."""
        return self._solved(U, "T")

    def _solved(self, X: FloatArray, trans: str) -> FloatArray:
        solution = solve_triangular(self.root, X, lower=True, trans=trans, check_finite=False)
        return np.ascontiguousarray(solution, dtype=np.float64)


def _metric(B: ArrayInput, n: int, tol: float) -> FloatArray:
    """(n, n) float64, symmetric and positive definite enough."""
    matrix = _checks.as_numpy("B", B)
    if matrix.shape != (n, n):
        raise ShapeError(f"B: expected a dense matrix of shape ({n}, {n}), as M has, got {matrix.shape}")
    if matrix.dtype.kind not in "iuf" and matrix.dtype.name != "bfloat16":
        raise DTypeError(f"B: expected real numbers, got {matrix.dtype}")
    given = matrix.dtype
    matrix = matrix.astype(np.float64)
    bad = np.argwhere(~np.isfinite(matrix))
    if bad.size:
        row, column = (int(i) for i in bad[0])
        raise ValueRangeError(f"B: expected finite values, got {matrix[row, column]} at row {row}, column {column}")
    eps = EPS if given.itemsize == 8 or given.kind in "iu" else float(np.finfo(np.float32).eps)
    size = float(np.abs(matrix).max())
    asymmetry = float(np.abs(matrix - matrix.T).max())
    if asymmetry > 16 * n * eps * size:  # of a product that rounds each half in its own way
        raise ValueRangeError(
            f"B: expected a symmetric matrix, got entries that differ from their mirror images by {asymmetry:.1e}, "
            f"where the largest is {size:.1e}; symmetrise it, (B + Bᵀ) / 2"
        )
    matrix = matrix / 2 + matrix.T / 2
    eigenvalues = np.linalg.eigvalsh(matrix)
    least, largest = float(eigenvalues[0]), float(eigenvalues[-1])
    if not least > 0:
        raise ValueRangeError(
            f"B: expected a positive definite matrix, got one whose smallest eigenvalue is {least:.3g}; add a multiple "
            "of the identity, or leave out the directions on which it vanishes"
        )
    if largest * EPS > tol * least:
        raise ValueRangeError(
            f"B: expected a condition number below tol / ε = {tol / EPS:.1e}, got {largest / least:.1e}: rounding "
            "would exceed tol; raise tol, add a multiple of the identity, or leave out directions of small eigenvalues"
        )
    return matrix
