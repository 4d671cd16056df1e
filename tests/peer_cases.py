"""What comparisons with independent packages share: random laws, and how far two evaluations may be apart."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import mpmath  # type: ignore[import-untyped]
import numpy as np
from hypothesis import strategies as st

import exact
from markovlm._divergences import Divergence
from markovlm.typing import FloatArray

BIT = math.log(2)
EPS = 2.0**-52
INF = math.inf
ORDERS = (0.0, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.5)

P, Q = np.array([0.5, 0.5]), np.array([0.25, 0.75])  # where conventions are shown

Pair: TypeAlias = tuple[FloatArray, FloatArray]


@contextmanager
def quiet() -> Iterator[None]:
    """For peers that take the logarithm of 0 and mean it."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def rounding(terms: int, *sizes: float) -> float:
    r"""How far two float64 evaluations of one closed form may be apart.

    A sum of m terms, each made with up to 8 roundings, is exact to ``(m + 8) u Σ|term|``, u = ε/2. A law sums to 1 up
    to ``m u``; peers divide by the sum and we do not, which moves a result by that times 1 and its terms. Two sides,
    and two of both: ``4 (m + 8) ε (1 + Σ|term|)``, where ``sizes`` bound the sums of absolute terms that either forms.
    """
    return 4 * (terms + 8) * EPS * (1 + sum(sizes))


def logs(p: FloatArray, q: FloatArray) -> float:
    """``Σ p (|log p| + |log q|)`` over the common support: the terms of an entropy and a cross-entropy, nats."""
    both = (p > 0) & (q > 0)
    return float((p[both] * (np.abs(np.log(p[both])) + np.abs(np.log(q[both])))).sum())


def renyi_rounding(p: FloatArray, q: FloatArray, order: float) -> float:
    """Of ``log(Σ p^α q^{1−α}) / (α − 1)``: an exponent is rounded to its own size, and the quotient divides it."""
    both = (p > 0) & (q > 0)
    if order in (0, 1, INF) or not both.any():
        return rounding(p.size, logs(p, q))
    largest = np.abs(np.log(p[both])).max() + np.abs(np.log(q[both])).max()
    return rounding(p.size, (1 + order) * (1 + largest) / abs(order - 1))


def assert_near(found: Any, expected: Any, limit: float | FloatArray, what: str = "") -> None:
    """Equal, infinite values too, up to an absolute limit."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape, f"{what}: {found.shape} is not {expected.shape}"
    with np.errstate(invalid="ignore"):
        near = (found == expected) | (np.abs(found - expected) <= limit)
    assert near.all(), f"{what}: {found} is not {expected}, within {limit}"


# Random laws, with zeros


@st.composite
def laws(draw: st.DrawFn, size: int, *, zeros: bool = True) -> FloatArray:
    """Probabilities of moderate and of quite different sizes, down to 1e-10."""
    kinds = [st.integers(1, 40).map(float), st.floats(-10, 0).map(lambda x: 10.0**x)]
    weights = draw(st.lists(st.one_of(*kinds, *([st.just(0.0)] * zeros)), min_size=size, max_size=size))
    if not any(weights):
        weights[draw(st.integers(0, size - 1))] = 1.0
    return np.asarray(np.array(weights) / sum(weights))


@st.composite
def pairs(draw: st.DrawFn, *, zeros: bool = True) -> Pair:
    size = draw(st.integers(1, 8))
    return draw(laws(size, zeros=zeros)), draw(laws(size, zeros=zeros))


@st.composite
def joints(draw: st.DrawFn, ndim: int, largest: int = 4) -> FloatArray:
    shape = tuple(draw(st.integers(1, largest)) for _ in range(ndim))
    return draw(laws(math.prod(shape))).reshape(shape)


@st.composite
def channels(draw: st.DrawFn, n: int, m: int) -> FloatArray:
    return np.array([draw(laws(m)) for _ in range(n)])


def exact_law(rng: np.random.Generator, size: int) -> FloatArray:
    """Multiples of 2^-30 that sum to 1 without rounding."""
    return np.asarray(1 + rng.multinomial(2**30 - size, rng.dirichlet(np.ones(size)))) / 2.0**30


def by_definition(D: Divergence, p: FloatArray, q: FloatArray) -> float:
    """To 60 digits, of laws that sum to 1 without rounding."""
    with mpmath.workdps(exact.DIGITS):
        return float(exact.divergence(D, exact.numbers(p), exact.numbers(q)))
