"""Sums over rows of probabilities that keep their digits where rows are close, sparse, or nearly deterministic.

Terms are of one sign, so that a sum is as exact as its terms; what is infinite is inf, and 0 log 0 = 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.special import entr, xlogy

from .typing import BoolArray, FloatArray, IntArray

__all__ = [
    "FullRows",
    "Layout",
    "RaggedRows",
    "chi_squared",
    "collision_complement",
    "cross_entropy",
    "f_divergence",
    "f_entropy",
    "jensen_shannon",
    "jensen_shannon_entropy",
    "kl",
    "renyi",
    "renyi_entropy",
    "root_complement",
    "shannon",
    "squared_hellinger",
    "support_size",
]


class Layout:
    """How entries lie in rows."""

    def total(self, terms: FloatArray) -> FloatArray:
        """Sums of rows: (n,)."""
        raise NotImplementedError

    def largest(self, terms: FloatArray) -> FloatArray:
        """Maxima of rows: (n,)."""
        raise NotImplementedError

    def spread(self, values: FloatArray) -> FloatArray:
        """A value of each row, for each of its entries."""
        raise NotImplementedError


class FullRows(Layout):
    """Entries as (n, m) arrays."""

    def total(self, terms: FloatArray) -> FloatArray:
        return np.asarray(terms.sum(axis=1))

    def largest(self, terms: FloatArray) -> FloatArray:
        return np.asarray(terms.max(axis=1))

    def spread(self, values: FloatArray) -> FloatArray:
        return values[:, None]


class RaggedRows(Layout):
    """Entries one row after another, at least one in each."""

    def __init__(self, counts: IntArray) -> None:
        self.counts = counts
        self.starts = np.cumsum(counts) - counts

    def total(self, terms: FloatArray) -> FloatArray:
        return np.asarray(np.add.reduceat(terms, self.starts)) if len(self.starts) else np.zeros(0)

    def largest(self, terms: FloatArray) -> FloatArray:
        return np.asarray(np.maximum.reduceat(terms, self.starts)) if len(self.starts) else np.zeros(0)

    def spread(self, values: FloatArray) -> FloatArray:
        return np.repeat(values, self.counts)


def log_of(p: FloatArray) -> FloatArray:
    """Logarithms, 0 where p is 0: to be multiplied by what is 0 there."""
    return np.log(np.where(p > 0, p, 1.0))


def log_ratio(p: FloatArray, q: FloatArray, both: BoolArray) -> FloatArray:
    """``log(q/p)`` where both are positive, else 0; to rounding also where they are close."""
    safe = np.where(both, p, 1.0)
    with np.errstate(over="ignore"):  # of a quotient by a subnormal number
        relative = np.where(both, q - p, 0.0) / safe  # of an exact difference for close numbers (Sterbenz)
    near = np.abs(relative) <= 0.5
    return np.where(near, np.log1p(np.where(near, relative, 0.0)), log_of(np.where(both, q, 1.0)) - np.log(safe))


def expm1_minus(x: FloatArray) -> FloatArray:
    """``e^x − 1 − x``, to a few roundings of itself."""
    small = np.abs(x) <= 0.5
    y = np.where(small, x, 0.0)
    series = np.full_like(y, 1.0 / math.factorial(16))  # the next term is below 2^-53 of the first
    for k in range(15, 1, -1):
        series = series * y + 1.0 / math.factorial(k)
    with np.errstate(over="ignore"):
        return np.where(small, series * y * y, np.expm1(x) - x)


def _kl_terms(p: FloatArray, q: FloatArray) -> FloatArray:
    """``p log(p/q) − p + q >= 0``: their sum is KL for rows of equal sums, and 0 for equal ones alone."""
    both = (p > 0) & (q > 0)
    delta = log_ratio(p, q, both)
    near = np.abs(delta) <= 1
    terms = np.where(near, p * expm1_minus(np.where(near, delta, 0.0)), q - p - p * delta)
    return np.where(both, terms, np.where(p > 0, np.inf, q))


def kl(layout: Layout, p: FloatArray, q: FloatArray) -> FloatArray:
    """``Σ p log(p/q)``."""
    return layout.total(_kl_terms(p, q))


def cross_entropy(layout: Layout, p: FloatArray, q: FloatArray) -> FloatArray:
    """``−Σ p log q``, straight from its definition; infinite where p has what q lacks."""
    return layout.total(-xlogy(p, q))


def jensen_shannon(layout: Layout, p: FloatArray, q: FloatArray) -> FloatArray:
    """``½ KL(p ‖ m) + ½ KL(q ‖ m)``."""
    m = p / 2 + q / 2
    return layout.total((_kl_terms(p, m) + _kl_terms(q, m)) / 2)


def squared_hellinger(layout: Layout, p: FloatArray, q: FloatArray) -> FloatArray:
    """``1 − Σ √(pq) = ½ Σ (√p − √q)²``."""
    roots = np.sqrt(p) + np.sqrt(q)
    return layout.total(((p - q) / np.where(roots > 0, roots, 1.0)) ** 2 / 2)


def chi_squared(layout: Layout, p: FloatArray, q: FloatArray) -> FloatArray:
    """``Σ (p − q)² / q``."""
    difference = p - q
    with np.errstate(over="ignore"):  # of a quotient by a subnormal number
        terms = difference / np.where(q > 0, q, 1.0) * difference
    return layout.total(np.where(q > 0, terms, np.where(p > 0, np.inf, 0.0)))


def renyi(layout: Layout, p: FloatArray, q: FloatArray, order: float) -> FloatArray:
    """``log(Σ p^α q^{1−α}) / (α − 1)`` and its limits at 0, 1 and infinity."""
    in_p, in_q = p > 0, q > 0
    both = in_p & in_q
    if order == 1:
        return kl(layout, p, q)
    if order == 0:
        outside, inside = (layout.total(np.where(mask, q, 0.0)) for mask in (~in_p, in_p))
        with np.errstate(divide="ignore"):
            return np.where(outside < 0.5, -np.log1p(-np.minimum(outside, 0.5)), -np.log(inside)) + 0.0
    if math.isinf(order):
        ratios = np.where(both, -log_ratio(p, q, both), np.where(in_p, np.inf, -np.inf))
        return np.maximum(layout.largest(ratios), 0.0)
    log_sum = _log_power_sum(layout, p, q, 1 - order) if order >= 0.5 else _log_power_sum(layout, q, p, order)
    with np.errstate(over="ignore"):
        value = np.maximum(log_sum / (order - 1), 0.0)
    if order > 1:
        value = np.where(layout.total((in_p & ~in_q).astype(np.float64)) > 0, np.inf, value)
    return value


def _log_power_sum(layout: Layout, p: FloatArray, q: FloatArray, b: float) -> FloatArray:
    """``log Σ p^{1−b} q^b`` over common support, for b of at most 1/2 but 0: exact where it is small.

    ``Σ p^{1−b} q^b − 1`` is a sum of terms of one sign, ``p [(e^{bδ} − 1 − bδ) − b (e^δ − 1 − δ)]`` with δ = log q/p;
    where it is not near 0, the sum is made of exponents.
    """
    both = (p > 0) & (q > 0)
    delta = log_ratio(p, q, both)
    exponents = np.where(both, log_of(p) + b * delta, -np.inf)
    top = layout.largest(exponents)
    shift = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        log_sum = shift + np.log(layout.total(np.exp(exponents - layout.spread(shift))))
    near = both & (np.abs(delta) <= 1) & (np.abs(b * delta) <= 1)
    d = np.where(near, delta, 0.0)
    by_series = p * (expm1_minus(b * d) - b * expm1_minus(d))
    powers = np.where(both, p * np.expm1(np.minimum(b * delta, 700.0)), -p)  # larger ones are no matter of sums near 1
    by_parts = powers - b * (q - p)
    excess = layout.total(np.where(near, by_series, by_parts))
    close = np.abs(log_sum) <= 0.5
    return np.where(close, np.log1p(np.where(close, excess, 0.0)), log_sum)


def f_divergence(
    layout: Layout, p: FloatArray, q: FloatArray, f: Callable[[FloatArray], FloatArray], at_zero: float, slope: float
) -> FloatArray:
    """``Σ q f(p/q)``; ``at_zero`` is f(0), ``slope`` the limit of f(t)/t; NaN: not known, and so is what needs it."""
    in_p, in_q = p > 0, q > 0
    both = in_p & in_q
    with np.errstate(over="ignore"):
        ratio = np.where(both, p, 1.0) / np.where(both, q, 1.0)
    finite = both & np.isfinite(ratio)  # an infinite ratio is where q is nothing next to p
    inner = np.where(finite, q, 0.0) * f(np.where(finite, ratio, 1.0))
    with np.errstate(invalid="ignore"):
        outer = np.where(in_p & ~finite, p * slope, 0.0) + np.where(in_q & ~in_p, q * at_zero, 0.0)
    needed = (in_p & ~finite) | (in_q & ~in_p)
    return layout.total(np.where(finite, inner, np.where(needed, outer, 0.0)))


# Categorical entropies, from the row alone


def shannon(layout: Layout, p: FloatArray) -> FloatArray:
    """``−Σ p log p``."""
    return layout.total(entr(p))


def support_size(layout: Layout, p: FloatArray) -> FloatArray:
    """How many entries are positive."""
    return layout.total((p > 0).astype(np.float64))


def collision_complement(layout: Layout, p: FloatArray) -> FloatArray:
    """``1 − Σ p²``."""
    return layout.total(p * (1 - p))


def root_complement(layout: Layout, p: FloatArray) -> FloatArray:
    """``1 − Σ p^{3/2}``."""
    return layout.total(p * (1 - p) / (1 + np.sqrt(p)))


def renyi_entropy(layout: Layout, p: FloatArray, order: float) -> FloatArray:
    """``log(Σ p^a) / (1 − a)`` over the support, for any order from −inf to inf."""
    if order == 1:
        return shannon(layout, p)
    if order == 0:
        return np.log(support_size(layout, p))
    positive = p > 0
    log_p = log_of(p)
    if math.isinf(order):
        sign = -1.0 if order > 0 else 1.0
        return np.maximum(sign * layout.largest(np.where(positive, -sign * log_p, -np.inf)), 0.0)
    exponents = np.where(positive, order * log_p, -np.inf)
    top = layout.largest(exponents)
    log_sum = top + np.log(layout.total(np.exp(exponents - layout.spread(top))))
    with np.errstate(over="ignore"):
        excess = layout.total(np.where(positive, p * np.expm1((order - 1) * log_p), 0.0))  # Σ p^a − 1, of one sign
    close = np.abs(log_sum) <= 0.5
    return np.maximum(np.where(close, np.log1p(np.where(close, excess, 0.0)), log_sum) / (1 - order), 0.0)


def jensen_shannon_entropy(layout: Layout, p: FloatArray) -> FloatArray:
    """``½ Σ p [2 log 2 − (1+p) log(1+p) + p log p]``, with ``1 − p`` for p beyond a half so that small values last."""
    beyond = p > 0.5
    rest = np.where(beyond, 1 - p, 0.5)
    near_one = (
        rest * math.log(2) - (2 - rest) * np.log1p(-rest / 2) + (1 - rest) * np.log1p(np.where(rest < 1, -rest, 0.0))
    )
    elsewhere = 2 * math.log(2) - (1 + p) * np.log1p(p) + p * log_of(p)
    return layout.total(p * np.where(beyond, near_one, elsewhere)) / 2


def f_entropy(layout: Layout, p: FloatArray, f: Callable[[FloatArray], FloatArray], at_zero: float) -> FloatArray:
    """``Σ p² f(1/p) + (1 − Σ p²) f(0)``; NaN where f(0) is not known and needed."""
    positive = p > 0
    safe = np.where(positive, p, 1.0)
    with np.errstate(over="ignore"):
        diagonal = layout.total(
            np.where(positive, safe * safe * f(np.minimum(1 / safe, np.finfo(np.float64).max)), 0.0)
        )
    off = collision_complement(layout, p)
    with np.errstate(invalid="ignore"):
        return diagonal + np.where(off > 0, off * at_zero, 0.0)
