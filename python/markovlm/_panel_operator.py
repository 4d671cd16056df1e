"""Anything that multiplies panels of columns, as the eigensolver calls it; what it returns is checked."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from . import _checks
from ._operators import SimilarityOperator
from .errors import DTypeError, ShapeError, ValueRangeError
from .typing import FloatArray, Progress

__all__ = ["CheckedProduct", "PanelOperator", "product_of"]

_ASYMMETRY = {1: 0.05, 2: 0.05, 4: 1e-3}  # that rounding may bring, by bytes of a number; otherwise:
_LEAST_ASYMMETRY = 1e-5  # float64, perhaps made from sums in float32


class CheckedProduct:
    """``X -> M @ X`` (or ``M.apply(X)``), which has to be finite, real and of as many rows as are expected."""

    def __init__(self, argument: str, formula: str, product: Callable[[FloatArray], Any], rows: int) -> None:
        self.argument, self.formula, self.product, self.rows = argument, formula, product, rows
        self.calls = 0

    def __call__(self, X: FloatArray) -> FloatArray:
        self.calls += 1
        with np.errstate(all="ignore"):  # infinities are named below
            Y = _checks.as_numpy(self.formula, self.product(X))
        shape = self.rows, X.shape[1]
        if Y.shape != shape:
            raise ShapeError(
                f"{self.argument}: expected {self.formula} of shape {shape} for X of shape {X.shape}, got {Y.shape}"
            )
        if Y.dtype.kind == "c":
            raise DTypeError(f"{self.argument}: expected real products, got {Y.dtype}")
        Y = np.ascontiguousarray(Y, dtype=np.float64)
        if not np.isfinite(Y).all():
            row, column = (int(i) for i in np.argwhere(~np.isfinite(Y))[0])
            raise ValueRangeError(
                f"{self.argument}: expected finite products, got {Y[row, column]} at row {row}, column {column} of "
                f"{self.formula}, call {self.calls}, with X finite {X.shape}; look for NaN and infinity in "
                f"{self.argument}, and scale it if products overflow"
            )
        return Y


class PanelOperator:
    """A square one, with what it says of itself and a report of what was done."""

    def __init__(self, M: Any, progress: Progress | None = None) -> None:
        shape = tuple(getattr(M, "shape", ()))
        if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 1:
            raise ShapeError(
                f"M: expected a symmetric operator with .shape == (n, n), n >= 1, got {type(M).__name__} "
                + (f"of shape {shape}" if hasattr(M, "shape") else "without .shape")
            )
        self.n = int(shape[0])
        self.columns, self.estimate, self.progress = 0, 0, progress
        dtype = getattr(M, "dtype", None)
        if "complex" in str(dtype) or str(dtype) == "object":
            raise DTypeError(f"M: expected real numbers, got {dtype}")
        width = getattr(dtype, "itemsize", 8) if "float" in str(dtype) else 8
        self.largest_asymmetry = _ASYMMETRY.get(width, _LEAST_ASYMMETRY)
        self.overhead = M._overhead if isinstance(M, SimilarityOperator) else None
        reports = isinstance(M, SimilarityOperator) and progress is not None
        self.product = CheckedProduct("M", "M @ X", self._reporting(M) if reports else product_of("M", M), self.n)

    def __call__(self, X: FloatArray) -> FloatArray:
        return self.product(X)

    @property
    def calls(self) -> int:
        """Panels that were multiplied."""
        return self.product.calls

    def report(self, columns: int, estimate: int) -> None:
        """Columns that were multiplied so far, and that will be."""
        self.columns, self.estimate = columns, estimate
        if self.progress is not None:
            self.progress(columns, estimate)

    def _reporting(self, M: SimilarityOperator) -> Callable[[FloatArray], Any]:
        """Products that report while they go on."""
        return lambda X: M.apply(X, progress=lambda done, total: self._report_part(X.shape[1] * done // total))

    def _report_part(self, columns: int) -> None:
        assert self.progress is not None  # for the type checker
        self.progress(self.columns + columns, max(self.estimate, self.columns + columns))


def product_of(argument: str, M: Any) -> Callable[[FloatArray], Any]:
    if hasattr(M, "detach") and hasattr(M, "cpu"):  # a PyTorch tensor, on any device
        wide, from_numpy = M.detach().double(), sys.modules["torch"].from_numpy
        return lambda X: (wide @ from_numpy(X).to(wide.device)).cpu().numpy()
    if isinstance(M, np.ndarray):
        matrix = np.asarray(M, dtype=np.float64)
        return lambda X: matrix @ X
    if hasattr(M, "__matmul__"):
        return lambda X: M @ X
    if hasattr(M, "apply"):
        return lambda X: M.apply(X)
    raise DTypeError(f"{argument}: expected something with @ or .apply, got {type(M).__name__}")
