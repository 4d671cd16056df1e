"""Error bars: the bootstrap over sequences (tokens of one sequence are dependent; sequences are the sampling unit)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .typing import FloatArray, IntArray

__all__ = ["Estimate", "bootstrap_mean"]


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
        low, high = self.interval
        return f"{self.value:.4f} [{low:.4f}, {high:.4f}]"

    def __format__(self, spec: str) -> str:
        if not spec:
            return repr(self)
        low, high = self.interval
        return f"{self.value:{spec}} [{low:{spec}}, {high:{spec}}]"


def bootstrap_mean(
    values: FloatArray, groups: IntArray, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> list[Estimate]:
    r"""Token-weighted means of the columns of ``values``, with percentile intervals over resampled groups.

    A resample draws as many groups as there are, with replacement, and takes
    ``sum of all their values / sum of all their sizes``: the ratio estimator that pooled perplexity is.

    Parameters
    ----------
    values : (n, q) float64
        One column per quantity. All columns share each resample.
    groups : (n,) int64
        Sequence id of each row.
    level : float in (0, 1)
        Of the intervals.
    resamples, seed : int
        Number of resamples, and where their random numbers start.

    Returns
    -------
    list of Estimate
        One per column. Cost ``O(n q + resamples * groups * q)``.
    """
    n, q = values.shape
    if n == 0:
        return [Estimate(float("nan"), (float("nan"), float("nan")), level) for _ in range(q)]
    _, index = np.unique(groups, return_inverse=True)
    count = int(index.max()) + 1
    size = np.bincount(index, minlength=count).astype(np.float64)
    total = np.stack([np.bincount(index, weights=column, minlength=count) for column in values.T], axis=1)
    means = total.sum(axis=0) / n
    if count < 2:
        return [Estimate(float(mean), (float("nan"), float("nan")), level) for mean in means]
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1.0 / count), size=resamples)
    replicates = (draws @ total) / (draws @ size)[:, None]
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return [Estimate(float(mean), (float(a), float(b)), level) for mean, a, b in zip(means, low, high, strict=True)]
