"""Divergences in mpmath, straight from their definitions: the yardstick of the fast ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import mpmath
import numpy as np

import markovlm as mk
from markovlm._divergences import Divergence

DIGITS = 60
Exact = Sequence[mpmath.mpf]


def numbers(p: object) -> list[mpmath.mpf]:
    return [mpmath.mpf(float(x)) for x in np.asarray(p).reshape(-1)]


def divergence(D: Divergence, p: Exact, q: Exact) -> mpmath.mpf:
    """``D(p ‖ q)`` of theory §2; mass of one is compared with mass of the other as if both were 1 in all."""
    if getattr(D, "reverse", False):
        p, q = q, p
    pairs = [(a, b) for a, b in zip(p, q, strict=True) if a > 0 or b > 0]
    lacking = any(a > 0 and b == 0 for a, b in pairs)  # p has what q lacks
    both = [(a, b) for a, b in pairs if a > 0 and b > 0]
    if isinstance(D, mk.TotalVariation):
        return mpmath.fsum(abs(a - b) for a, b in pairs) / 2
    if isinstance(D, mk.SquaredHellinger):
        return 1 - mpmath.fsum(mpmath.sqrt(a * b) for a, b in both)
    if isinstance(D, mk.ChiSquared):
        return mpmath.inf if lacking else mpmath.fsum((a - b) ** 2 / b for a, b in pairs)
    if isinstance(D, mk.JensenShannon):
        return mpmath.fsum(
            sum((x * mpmath.log(2 * x / (a + b)) for x in (a, b) if x > 0), mpmath.mpf(0)) / 2 for a, b in pairs
        )
    order = D.alpha if isinstance(D, mk.Renyi) else 1.0
    if order >= 1 and lacking:
        return mpmath.inf
    if order == 1:
        return mpmath.fsum(a * mpmath.log(a / b) for a, b in both)
    if not both:
        return mpmath.inf
    if math.isinf(order):
        return max(mpmath.log(a / b) for a, b in both)
    a_ = mpmath.mpf(order)
    return mpmath.log(mpmath.fsum(a**a_ * b ** (1 - a_) for a, b in both)) / (a_ - 1)


def entropy(D: Divergence, p: Exact) -> mpmath.mpf:
    """``D(copied ‖ run twice)`` on all V² pairs (Def. 2.5)."""
    copied = [a if i == j else mpmath.mpf(0) for i, a in enumerate(p) for j in range(len(p))]
    twice = [a * b for a in p for b in p]
    return divergence(D, copied, twice)
