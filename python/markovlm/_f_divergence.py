"""The divergence of a convex function that the user brings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import _formulas as formulas
from ._divergences import Divergence
from ._formulas import Layout
from .errors import DTypeError, ValueRangeError
from .typing import FloatArray

__all__ = ["FDivergence"]


@dataclass(frozen=True, repr=False)
class FDivergence(Divergence):
    r"""The divergence :math:`\sum q\, f(p/q)` of your own convex f with f(1) = 0, in ``[0, f(0) + f'(\infty)]``.

    Parameters
    ----------
    f : callable
        Of a float64 array of positive numbers, element by element.
    at_zero : float, optional
        The limit of f at 0; by default ``f(0)``, if that is a number.
    slope_at_infinity : float, optional
        The limit of ``f(t)/t``. Needed only where p has elements that q lacks.

    Raises
    ------
    ValueRangeError
        Where f(1) is not 0, or f is not convex on a grid from 1e-6 to 1e6: then it is no divergence.

    Examples
    --------
    >>> import numpy as np, markovlm as mk
    >>> le_cam = mk.FDivergence(lambda t: (1 - t) ** 2 / (2 * t + 2), slope_at_infinity=0.5)
    >>> round(float(le_cam([0.25, 0.75], [0.5, 0.5])), 6), le_cam.range
    (0.066667, (0.0, 1.0))
    """

    f: Callable[[FloatArray], FloatArray]
    at_zero: float = math.nan
    slope_at_infinity: float = math.nan
    unit: ClassVar[str] = ""
    name: ClassVar[str] = "f-divergence"
    formula: ClassVar[str] = "Σ q f(p/q)"
    entropy_formula: ClassVar[str] = "Σ p² f(1/p) + (1 − Σ p²) f(0)"

    def __post_init__(self) -> None:
        """See that f can be one."""
        if not callable(self.f):
            raise DTypeError(f"f: expected a function of an array, got {self.f!r}")
        t = np.logspace(-6, 6, 121)
        with np.errstate(all="ignore"):
            at_one, values = float(np.asarray(self.f(np.ones(1)))[0]), np.asarray(self.f(t), np.float64)
        if values.shape != t.shape or not np.all(np.isfinite(values)):
            raise ValueRangeError("f: expected a finite value for each element of an array of positive numbers")
        if not abs(at_one) <= 1e-9:  # the rounding of f itself, which is the user's
            raise ValueRangeError(f"f: expected f(1) = 0, got {at_one}; subtract it")
        slopes = np.diff(values) / np.diff(t)
        slack = 1e-9 * (np.abs(values[1:-1]) / np.diff(t)[:-1] + np.abs(slopes[:-1]))
        falls = np.flatnonzero(np.diff(slopes) < -slack)
        if falls.size:
            raise ValueRangeError(f"f: expected a convex function, but its slope falls near t = {t[falls[0] + 1]:.3g}")
        if math.isnan(self.at_zero):
            with np.errstate(all="ignore"):
                object.__setattr__(self, "at_zero", float(np.asarray(self.f(np.zeros(1)))[0]))

    @property
    def range(self) -> tuple[float, float]:
        return 0.0, self.at_zero + self.slope_at_infinity

    def generator(self, t: FloatArray) -> FloatArray:
        return np.asarray(self.f(t), np.float64)

    def _between(self, layout: Layout, p: FloatArray, q: FloatArray) -> FloatArray:
        found = formulas.f_divergence(layout, p, q, self.generator, self.at_zero, self.slope_at_infinity)
        return self._known(found, "slope_at_infinity, the limit of f(t)/t, or at_zero, that of f(t) at 0")

    def _entropy(self, layout: Layout, p: FloatArray) -> FloatArray:
        return self._known(formulas.f_entropy(layout, p, self.generator, self.at_zero), "at_zero, the limit of f at 0")

    def _known(self, found: FloatArray, missing: str) -> FloatArray:
        bad = np.flatnonzero(np.isnan(found))
        if bad.size:
            raise ValueRangeError(f"f: its limit is needed at row {bad[0]} and not known; pass {missing}")
        return found
