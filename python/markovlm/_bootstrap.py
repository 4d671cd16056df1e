"""Error bars: the bootstrap over sequences (tokens of one sequence are dependent; sequences are the sampling unit)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .errors import ValueRangeError
from .typing import FloatArray, IntArray

__all__ = ["Estimate", "Estimates", "bootstrap_mean", "require_level"]


@dataclass(frozen=True)
class Estimate:
    """A value and its confidence interval, in the unit of the quantity that it estimates.

    ``interval`` is ``(low, high)`` at ``level``; both ends are NaN where fewer than two groups leave nothing to
    resample, because a single sequence says nothing about the spread between sequences.
    """

    value: float
    interval: tuple[float, float]
    level: float = 0.95

    def __repr__(self) -> str:
        return format(self, ".4f")

    def __format__(self, spec: str) -> str:
        """The value and, where there is one, the interval."""
        spec, (low, high) = spec or ".4f", self.interval
        return f"{self.value:{spec}}" + ("" if math.isnan(low) else f" [{low:{spec}}, {high:{spec}}]")


@dataclass(frozen=True, eq=False)
class Estimates:
    """Several, one after the other: ``value`` (m,), ``interval`` (m, 2); each by itself is an `Estimate`."""

    value: FloatArray
    interval: FloatArray
    level: float = 0.95

    @classmethod
    def of(cls, parts: Sequence[Estimate]) -> Estimates:
        return cls(
            np.array([part.value for part in parts]),
            np.array([part.interval for part in parts]).reshape(len(parts), 2),
            parts[0].level if parts else 0.95,
        )

    def __len__(self) -> int:
        return len(self.value)

    def __getitem__(self, i: int) -> Estimate:
        low, high = self.interval[i].tolist()
        return Estimate(float(self.value[i]), (low, high), self.level)

    def __repr__(self) -> str:
        return f"[{', '.join(repr(self[i]) for i in range(len(self)))}]"


def bootstrap_mean(
    values: FloatArray,
    groups: IntArray,
    *,
    weights: FloatArray | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> list[Estimate]:
    r"""Token-weighted means of the columns of ``values``, with percentile intervals over resampled groups.

    A resample draws as many groups as there are, with replacement, and takes
    ``sum of all their values / sum of all their sizes``: the ratio estimator that pooled perplexity is.

    Parameters
    ----------
    values : (n, q) float64
        One column per quantity. All columns share each resample. A value may be ``inf``, and then so may the ends.
    groups : (n,) int64
        Sequence id of each row.
    weights : (n,) or (n, q) float64 >= 0, optional
        Of the rows, for all columns or for each: ``sum of weight times value / sum of weights``. 1 if None.
    level : float in (0, 1)
        Of the intervals.
    resamples, seed : int
        Number of resamples, and where their random numbers start.

    Returns
    -------
    list of Estimate
        One per column. Cost ``O(n q + resamples * groups * q)``.

    Raises
    ------
    ValueRangeError
        ``level`` is not inside (0, 1).
    """
    require_level(level)
    n, q = values.shape
    if n == 0:
        return [Estimate(float("nan"), (float("nan"), float("nan")), level) for _ in range(q)]
    _, index = np.unique(groups, return_inverse=True)
    count = int(index.max()) + 1
    parts = np.ones((n, 1)) if weights is None else weights.reshape(n, -1)
    size = _sums(index, parts, count)
    total = _sums(index, values if weights is None else np.where(parts > 0, parts * values, 0.0), count)
    with np.errstate(invalid="ignore"):  # no weight at all: NaN
        means = total.sum(axis=0) / size.sum(axis=0)
    if count < 2:
        return [Estimate(float(mean), (float("nan"), float("nan")), level) for mean in means]
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1.0 / count), size=resamples)
    infinite = np.isposinf(total)
    with np.errstate(invalid="ignore"):
        replicates = (draws @ np.where(infinite, 0.0, total)) / (draws @ size)
    replicates[draws @ infinite > 0] = np.inf  # where such a group was drawn: 0 * inf would be NaN
    replicates.sort(axis=0)  # order statistics, taken outwards: between two infinite ones nothing can be interpolated
    low = replicates[math.floor((1 - level) / 2 * (resamples - 1))]
    high = replicates[math.ceil((1 + level) / 2 * (resamples - 1))]
    return [Estimate(float(mean), (float(a), float(b)), level) for mean, a, b in zip(means, low, high, strict=True)]


def require_level(level: float) -> None:
    """Of intervals: in (0, 1)."""
    if not 0 < level < 1:
        raise ValueRangeError(f"level: expected a number between 0 and 1, got {level!r}")


def _sums(index: IntArray, columns: FloatArray, count: int) -> FloatArray:
    """(count, q): of each group."""
    return np.stack([np.bincount(index, weights=column, minlength=count) for column in columns.T], axis=1)
