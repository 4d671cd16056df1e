"""Divergences between probability vectors p and q, by name: what each one means, and how the core computes it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np

from . import _checks
from .errors import DTypeError
from .typing import FloatArray

__all__ = ["KL", "ChiSquared", "Divergence", "JensenShannon", "Renyi", "SquaredHellinger", "TotalVariation"]

Request: TypeAlias = tuple[str, float, bool]
"""What the core is asked for: its name of a sum, the order, and whether p and q are exchanged."""


@dataclass(frozen=True)
class Divergence:
    """Base of all divergences; objects that compare and hash by what they are."""

    unit: ClassVar[str] = "nats"

    def _request(self) -> Request:
        raise NotImplementedError

    def _value(self, found: FloatArray) -> FloatArray:
        return found


@dataclass(frozen=True)
class KL(Divergence):
    r"""Kullback–Leibler divergence :math:`\sum p \log(p/q)`, in ``[0, inf]`` nats; ``reverse`` exchanges p and q.

    Infinite where p has tokens that q lacks.
    """

    reverse: bool = False

    def _request(self) -> Request:
        return "kl", 1.0, self.reverse


@dataclass(frozen=True)
class TotalVariation(Divergence):
    r"""Total variation distance :math:`\frac12 \sum |p - q|`, in ``[0, 1]``."""

    unit: ClassVar[str] = ""

    def _request(self) -> Request:
        return "variation", 1.0, False


@dataclass(frozen=True)
class SquaredHellinger(Divergence):
    r"""Squared Hellinger distance :math:`1 - \sum \sqrt{p q}`, in ``[0, 1]``."""

    unit: ClassVar[str] = ""

    def _request(self) -> Request:
        return "power", 0.5, False

    def _value(self, found: FloatArray) -> FloatArray:
        return np.clip(-np.expm1(found), 0.0, 1.0)


@dataclass(frozen=True)
class ChiSquared(Divergence):
    r"""Pearson's :math:`\chi^2 = \sum (p - q)^2 / q`, in ``[0, inf]``; ``reverse`` exchanges p and q.

    Infinite where p has tokens that q lacks.
    """

    reverse: bool = False
    unit: ClassVar[str] = ""

    def _request(self) -> Request:
        return "power", 2.0, self.reverse

    def _value(self, found: FloatArray) -> FloatArray:
        with np.errstate(over="ignore"):
            return np.maximum(np.expm1(found), 0.0)


@dataclass(frozen=True)
class JensenShannon(Divergence):
    r"""Jensen–Shannon divergence :math:`\frac12 KL(p \| m) + \frac12 KL(q \| m)`, :math:`m = (p + q)/2`.

    In ``[0, log 2]`` nats.
    """

    def _request(self) -> Request:
        return "jensen_shannon", 1.0, False


@dataclass(frozen=True)
class Renyi(Divergence):
    r"""Rényi divergence of order α, :math:`\log(\sum p^α q^{1-α}) / (α - 1)`, in ``[0, inf]`` nats.

    Limits are exact: order 1 is KL, 0 is :math:`-\log q(\mathrm{supp}\, p)`, infinity is
    :math:`\max \log(p/q)`. Infinite where p has tokens that q lacks and α ≥ 1, and where they share none.
    """

    alpha: float
    reverse: bool = False

    def __post_init__(self) -> None:
        """Check the order."""
        (alpha,) = _checks.renyi_orders("alpha", [self.alpha], 0.0)
        object.__setattr__(self, "alpha", alpha)

    def _request(self) -> Request:
        special = {0.0: "kept_mass", 1.0: "kl", math.inf: "largest_ratio"}
        return special.get(self.alpha, "power"), self.alpha, self.reverse

    def _value(self, found: FloatArray) -> FloatArray:
        if self.alpha in (1.0, math.inf):
            return np.maximum(found, 0.0)
        return np.maximum(found / (self.alpha - 1.0), 0.0)


def as_divergence(value: object) -> Divergence:
    """``value``, if it is a divergence, or one made from a class of them that needs no arguments."""
    if isinstance(value, type) and issubclass(value, Divergence) and value is not Divergence:
        try:
            return value()
        except TypeError:
            raise DTypeError(f"D: {value.__name__} needs its arguments, such as mk.Renyi(2.0)") from None
    if isinstance(value, Divergence):
        return value
    raise DTypeError(f"D: expected a divergence such as mk.KL() or mk.Renyi(2.0), got {value!r}")
