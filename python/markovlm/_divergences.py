"""Divergences between probability vectors p and q, by name: what each is, and what is known of it (theory §2, §3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from typing import Any, ClassVar, TypeAlias

import numpy as np

from . import _checks
from . import _formulas as formulas
from ._formulas import FullRows, Layout
from .errors import DTypeError, ShapeError
from .typing import ArrayInput, FloatArray

__all__ = [
    "KL",
    "ChiSquared",
    "Divergence",
    "JensenShannon",
    "Renyi",
    "SquaredHellinger",
    "TotalVariation",
    "as_divergence",
]

Request: TypeAlias = tuple[str, float, bool]
"""What the core is asked for: its name of a sum, the order, and whether p and q are exchanged."""


@dataclass(frozen=True, repr=False)
class Divergence:
    """Base of all divergences; objects that compare and hash by what they are, and know what is known of them.

    ``D(p, q)`` is the value for two vectors, or row by row for two matrices. `divergence` takes kernels of any kind.

    Examples
    --------
    >>> import markovlm as mk
    >>> D = mk.TotalVariation()
    >>> float(D([0.25, 0.75], [0.5, 0.5])), D.range, D.formula
    (0.25, (0.0, 1.0), '½ Σ |p − q|')
    """

    name: ClassVar[str] = "divergence"
    formula: ClassVar[str] = ""
    entropy_formula: ClassVar[str] = ""
    unit: ClassVar[str] = "nats"
    largest: ClassVar[float] = math.inf  # what no value exceeds

    @property
    def range(self) -> tuple[float, float]:
        """Least and largest value."""
        return 0.0, self.largest

    @property
    def at_zero(self) -> float:
        """The generator's limit at 0: what mass of q outside the support of p costs."""
        raise DTypeError(f"{self}: is no f-divergence, and has no generator")

    @property
    def slope_at_infinity(self) -> float:
        """The limit of f(t)/t: what mass of p outside the support of q costs."""
        raise DTypeError(f"{self}: is no f-divergence, and has no generator")

    def generator(self, t: FloatArray) -> FloatArray:
        r"""The convex f with f(1) = 0 of which it is :math:`\sum q\, f(p/q)`, on positive numbers."""
        raise DTypeError(f"{self}: is no f-divergence, and has no generator")

    def __call__(self, p: ArrayInput, q: ArrayInput) -> Any:
        """Of two probability vectors, a float; of rows of two matrices, (n,)."""
        left, right = (_checks.as_numpy(name, value) for name, value in (("p", p), ("q", q)))
        ndim = max(left.ndim, right.ndim)
        rows = [
            np.atleast_2d(_checks.stochastic(name, array, ndim=min(array.ndim, 2) or 1)[0])
            for name, array in (("p", left), ("q", right))
        ]
        counts = {len(one) for one in rows} - {1}
        if rows[0].shape[1] != rows[1].shape[1] or len(counts) > 1:
            raise ShapeError(f"q: expected rows on the same set as p, {left.shape}, got {right.shape}")
        found = self._between(FullRows(), *np.broadcast_arrays(*rows))
        return found if ndim == 2 else float(found[0])

    def entropy(self, p: ArrayInput) -> Any:
        """Categorical entropy of a probability vector, or of each row: 0 for point masses alone (theory §3)."""
        array = _checks.as_numpy("p", p)
        rows, _ = _checks.stochastic("p", array, ndim=min(array.ndim, 2) or 1)
        found = self._entropy(FullRows(), np.atleast_2d(rows))
        return found if array.ndim == 2 else float(found[0])

    def __repr__(self) -> str:
        given = [(field, getattr(self, field.name)) for field in fields(self)]
        return f"{type(self).__name__}({', '.join(_shown(f, value) for f, value in given if value != f.default)})"

    # By representation: from entries, and from what one pass over a softmax kernel gives

    def _between(self, layout: Layout, p: FloatArray, q: FloatArray) -> FloatArray:
        raise NotImplementedError

    def _entropy(self, layout: Layout, p: FloatArray) -> FloatArray:
        raise NotImplementedError

    def _request(self) -> Request | None:
        """What a pass over two softmax kernels is asked for; None: nothing that it can give."""
        return None

    def _value(self, found: FloatArray) -> FloatArray:
        return found

    _entropy_order: ClassVar[float | None] = None
    """The Rényi order that a pass is asked for; NaN for its Jensen–Shannon entropy, None for nothing it can give."""

    def _entropy_value(self, found: FloatArray) -> FloatArray:
        """The categorical entropy from what the pass gave."""
        return found


def _shown(field: Field[Any], value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else f"{field.name}={getattr(value, '__name__', value)}"


def _unless_deterministic(support_log: FloatArray) -> FloatArray:
    """Infinite, but 0 for point masses; from the logarithm of the size of the support."""
    return np.where(support_log > 0, np.inf, 0.0)


@dataclass(frozen=True, repr=False)
class KL(Divergence):
    r"""Kullback–Leibler divergence :math:`\sum p \log(p/q)`, in ``[0, inf]`` nats; ``reverse`` exchanges p and q.

    Infinite where p has elements that q lacks. Its categorical entropy is Shannon's.
    """

    reverse: bool = False
    name: ClassVar[str] = "Kullback–Leibler"
    formula: ClassVar[str] = "Σ p log(p/q)"
    entropy_formula: ClassVar[str] = "−Σ p log p"

    @property
    def at_zero(self) -> float:
        return math.inf if self.reverse else 0.0

    @property
    def slope_at_infinity(self) -> float:
        return 0.0 if self.reverse else math.inf

    def generator(self, t: FloatArray) -> FloatArray:
        return -np.log(t) if self.reverse else t * np.log(t)

    def _between(self, layout: Layout, p: FloatArray, q: FloatArray) -> FloatArray:
        return formulas.kl(layout, q, p) if self.reverse else formulas.kl(layout, p, q)

    def _entropy(self, layout: Layout, p: FloatArray) -> FloatArray:
        return _entropy_as_order(self, layout, p)

    def _request(self) -> Request:
        return "kl", 1.0, self.reverse

    @property
    def _entropy_order(self) -> float:  # type: ignore[override]
        return 0.0 if self.reverse else 1.0

    def _entropy_value(self, found: FloatArray) -> FloatArray:
        return _unless_deterministic(found) if self.reverse else found


@dataclass(frozen=True, repr=False)
class TotalVariation(Divergence):
    r"""Total variation distance :math:`\frac12 \sum |p - q|`, in ``[0, 1]``.

    Its categorical entropy is that of Gini and Simpson.
    """

    name: ClassVar[str] = "total variation"
    formula: ClassVar[str] = "½ Σ |p − q|"
    entropy_formula: ClassVar[str] = "1 − Σ p²"
    unit: ClassVar[str] = ""
    largest: ClassVar[float] = 1.0
    at_zero: ClassVar[float] = 0.5
    slope_at_infinity: ClassVar[float] = 0.5
    _entropy_order: ClassVar[float | None] = 2.0

    def generator(self, t: FloatArray) -> FloatArray:
        return np.abs(t - 1) / 2

    def _between(self, layout: Layout, p: FloatArray, q: FloatArray) -> FloatArray:
        return layout.total(np.abs(p - q)) / 2

    def _entropy(self, layout: Layout, p: FloatArray) -> FloatArray:
        return formulas.collision_complement(layout, p)

    def _request(self) -> Request:
        return "variation", 1.0, False

    def _entropy_value(self, found: FloatArray) -> FloatArray:
        return -np.expm1(-found)


@dataclass(frozen=True, repr=False)
class SquaredHellinger(Divergence):
    r"""Squared Hellinger distance :math:`1 - \sum \sqrt{p q}`, in ``[0, 1]``."""

    name: ClassVar[str] = "squared Hellinger"
    formula: ClassVar[str] = "1 − Σ √(p q)"
    entropy_formula: ClassVar[str] = "1 − Σ p^{3/2}"
    unit: ClassVar[str] = ""
    largest: ClassVar[float] = 1.0
    at_zero: ClassVar[float] = 1.0
    slope_at_infinity: ClassVar[float] = 0.0
    _entropy_order: ClassVar[float | None] = 1.5

    def generator(self, t: FloatArray) -> FloatArray:
        return 1 - np.sqrt(t)

    def _between(self, layout: Layout, p: FloatArray, q: FloatArray) -> FloatArray:
        return formulas.squared_hellinger(layout, p, q)

    def _entropy(self, layout: Layout, p: FloatArray) -> FloatArray:
        return formulas.root_complement(layout, p)

    def _request(self) -> Request:
        return "power", 0.5, False

    def _value(self, found: FloatArray) -> FloatArray:
        return np.clip(-np.expm1(found), 0.0, 1.0)

    def _entropy_value(self, found: FloatArray) -> FloatArray:
        return -np.expm1(-found / 2)


@dataclass(frozen=True, repr=False)
class ChiSquared(Divergence):
    r"""Pearson's :math:`\chi^2 = \sum (p - q)^2 / q`, in ``[0, inf]``; ``reverse`` exchanges p and q.

    Infinite where p has elements that q lacks. Its categorical entropy counts the support, all but one.
    """

    reverse: bool = False
    name: ClassVar[str] = "χ²"
    formula: ClassVar[str] = "Σ (p − q)² / q"
    entropy_formula: ClassVar[str] = "|supp p| − 1"
    unit: ClassVar[str] = ""
    _entropy_order: ClassVar[float | None] = 0.0

    @property
    def at_zero(self) -> float:
        return math.inf if self.reverse else 1.0

    @property
    def slope_at_infinity(self) -> float:
        return 1.0 if self.reverse else math.inf

    def generator(self, t: FloatArray) -> FloatArray:
        squared = (t - 1) ** 2
        return squared / t if self.reverse else squared

    def _between(self, layout: Layout, p: FloatArray, q: FloatArray) -> FloatArray:
        return formulas.chi_squared(layout, q, p) if self.reverse else formulas.chi_squared(layout, p, q)

    def _entropy(self, layout: Layout, p: FloatArray) -> FloatArray:
        return _entropy_as_order(self, layout, p)

    def _request(self) -> Request:
        return "power", 2.0, self.reverse

    def _value(self, found: FloatArray) -> FloatArray:
        with np.errstate(over="ignore"):
            return np.maximum(np.expm1(found), 0.0)

    def _entropy_value(self, found: FloatArray) -> FloatArray:
        return _unless_deterministic(found) if self.reverse else np.rint(np.exp(found)) - 1  # a count


@dataclass(frozen=True, repr=False)
class JensenShannon(Divergence):
    r"""Jensen–Shannon divergence :math:`\frac12 KL(p \| m) + \frac12 KL(q \| m)`, :math:`m = (p + q)/2`.

    In ``[0, log 2]`` nats.
    """

    name: ClassVar[str] = "Jensen–Shannon"
    formula: ClassVar[str] = "½ KL(p‖m) + ½ KL(q‖m), m = (p+q)/2"
    entropy_formula: ClassVar[str] = "½ Σ p log(2/(1+p)) + ½ Σ p² log(2p/(1+p)) + ½ (1 − Σ p²) log 2"
    largest: ClassVar[float] = math.log(2)
    at_zero: ClassVar[float] = math.log(2) / 2
    slope_at_infinity: ClassVar[float] = math.log(2) / 2
    _entropy_order: ClassVar[float | None] = math.nan

    def generator(self, t: FloatArray) -> FloatArray:
        return (t * np.log(2 * t / (1 + t)) + np.log(2 / (1 + t))) / 2

    def _between(self, layout: Layout, p: FloatArray, q: FloatArray) -> FloatArray:
        return formulas.jensen_shannon(layout, p, q)

    def _entropy(self, layout: Layout, p: FloatArray) -> FloatArray:
        return formulas.jensen_shannon_entropy(layout, p)

    def _request(self) -> Request:
        return "jensen_shannon", 1.0, False


@dataclass(frozen=True, repr=False)
class Renyi(Divergence):
    r"""Rényi divergence of order α, :math:`\log(\sum p^α q^{1-α}) / (α - 1)`, in ``[0, inf]`` nats.

    Limits are exact: order 1 is KL, 0 is :math:`-\log q(\mathrm{supp}\, p)`, infinity is
    :math:`\max \log(p/q)`. Infinite where p has elements that q lacks and α ≥ 1, and where they share none.
    Its categorical entropy is Rényi's of order 2 − α, over the support.
    """

    alpha: float
    reverse: bool = False
    name: ClassVar[str] = "Rényi"
    formula: ClassVar[str] = "log(Σ p^α q^{1−α}) / (α − 1)"
    entropy_formula: ClassVar[str] = "log(Σ p^{2−α}) / (α − 1)"

    def __post_init__(self) -> None:
        """Check the order."""
        (alpha,) = _checks.renyi_orders("alpha", [self.alpha], 0.0)
        object.__setattr__(self, "alpha", alpha)

    def _between(self, layout: Layout, p: FloatArray, q: FloatArray) -> FloatArray:
        return formulas.renyi(layout, q, p, self.alpha) if self.reverse else formulas.renyi(layout, p, q, self.alpha)

    def _entropy(self, layout: Layout, p: FloatArray) -> FloatArray:
        return _entropy_as_order(self, layout, p)

    def _request(self) -> Request:
        special = {0.0: "kept_mass", 1.0: "kl", math.inf: "largest_ratio"}
        return special.get(self.alpha, "power"), self.alpha, self.reverse

    def _value(self, found: FloatArray) -> FloatArray:
        if self.alpha in (1.0, math.inf):
            return np.maximum(found, 0.0)
        return np.maximum(found / (self.alpha - 1.0), 0.0)

    # D_α of the independent pair from the copied one is log(Σ p^{1+α}) / (α − 1) for α < 1, and infinite beyond.

    @property
    def _entropy_order(self) -> float:  # type: ignore[override]
        if not self.reverse:
            return 2.0 - self.alpha
        return 1.0 + self.alpha if self.alpha < 1 else 0.0

    def _entropy_value(self, found: FloatArray) -> FloatArray:
        if not self.reverse:
            return found
        return found * (self.alpha / (1.0 - self.alpha)) if self.alpha < 1 else _unless_deterministic(found)


def _entropy_as_order(D: Divergence, layout: Layout, p: FloatArray) -> FloatArray:
    assert D._entropy_order is not None  # for the type checker
    return D._entropy_value(formulas.renyi_entropy(layout, p, D._entropy_order))


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


def entropies_of_pass(
    wanted: Mapping[Divergence, float], renyi: Mapping[float, FloatArray], jensen_shannon: FloatArray | None
) -> dict[Divergence, FloatArray]:
    """Categorical entropies from the orders that a pass gave."""
    found = {}
    for D, order in wanted.items():
        given = jensen_shannon if math.isnan(order) else renyi[order]
        assert given is not None  # for the type checker
        found[D] = D._entropy_value(given)
    return found
