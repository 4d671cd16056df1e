"""Agreement with markov-entropy, and what its conventions are where they differ.

A difference of convention stands in the docstring of its test, and the test fails if it is not as described. Where a
peer loses digits, ours is held to mpmath instead, and the docstring says what the peer gives, which is not asserted.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import markov_entropy as me  # type: ignore[import-untyped]
import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from markov_entropy import divergences as me_divergences
from markov_entropy import stoch as me_stoch

import markovlm as mk
from markovlm._divergences import Divergence
from markovlm.typing import FloatArray
from peer_cases import (
    EPS,
    INF,
    ORDERS,
    P,
    Pair,
    assert_near,
    channels,
    joints,
    laws,
    logs,
    pairs,
    quiet,
    renyi_rounding,
    rounding,
)

# markov-entropy: the constructions of Perrone's paper, by the definitions, in nats

ME: tuple[tuple[Divergence, Any], ...] = (
    (mk.KL(), me_divergences.KL()),
    (mk.TotalVariation(), me_divergences.TotalVariation()),
    *((mk.Renyi(order), me_divergences.Renyi(order)) for order in (*ORDERS, INF)),
)


def space(*sizes: int) -> Any:
    """A finite set, or a product of several."""
    factors = [me.FiniteSpace((i, j) for j in range(size)) for i, size in enumerate(sizes)]
    product = factors[0]
    for factor in factors[1:]:
        product = product @ factor
    return product


def me_law(p: FloatArray) -> Any:
    return me.Distribution(space(*p.shape), p.reshape(-1))


def me_channel(k: FloatArray, *codomain: int) -> Any:
    """Its channels are column-stochastic: the transpose of ours."""
    return me.Channel(space(len(k)), space(*(codomain or k.shape[1:])), k.T)


@given(pair=pairs())
def test_markov_entropy_divergences(pair: Pair) -> None:
    """The same in all: nats, infinite where the support condition fails, order ∞ too. Nothing to convert."""
    p, q = pair
    for D, theirs in ME:
        order = D.alpha if isinstance(D, mk.Renyi) else 1.0
        limit = renyi_rounding(p, q, order) + (logs(p, q) + 60) * EPS * math.isinf(order)
        assert_near(D(p, q), me_divergences.distribution_divergence(me_law(p), me_law(q), theirs), limit, repr(D))


def pair_rounding(k: FloatArray, order: float) -> float:
    """`renyi_rounding` of the copied and the independent pair: probabilities p and p², the smallest 1e-21 or so."""
    return rounding(k.shape[-1] ** 2, 4 * math.log(1e12) * (1 + order) / abs(order - 1 or 1) if order < INF else 60)


@settings(max_examples=15)
@given(data=st.data(), n=st.integers(1, 4), m=st.integers(1, 4))
def test_markov_entropy_entropies(data: st.DataObject, n: int, m: int) -> None:
    """By the definition, on ``m²`` pairs, against our closed forms. A channel's is the supremum over inputs."""
    k, p = data.draw(channels(n, m)), data.draw(laws(n))
    kernel, channel = mk.Kernel(k), me_channel(k)
    for D, theirs in ME:
        limit = pair_rounding(k, D.alpha if isinstance(D, mk.Renyi) else 1.0)
        by_row = [me.entropy(me_law(row), theirs) for row in k]
        assert_near(mk.categorical_entropy(kernel, D), by_row, limit, repr(D))
        assert_near(mk.supremum_categorical_entropy(kernel, D), me.entropy(channel, theirs), limit, repr(D))
        # Conditional entropy there is one divergence of joint states: for KL and TV the average of rows, for Rényi's of
        # order α a mean of exponentials, log Σ p e^{(α−1) D} / (α − 1); the largest over the support for ∞.
        conditional = me.conditional_entropy(channel, me_law(p), theirs)
        values = mk.categorical_entropy(kernel, D)[p > 0]
        assert_near(joined(D, p[p > 0], values), conditional, limit, repr(D))
        if not isinstance(D, mk.Renyi):
            assert_near(mk.average_categorical_entropy(kernel, D, p), conditional, limit, repr(D))


def joined(D: Divergence, p: FloatArray, values: FloatArray) -> float:
    """The divergence of joint states with one first marginal p, from those of the rows."""
    if not isinstance(D, mk.Renyi) or D.alpha == 1:
        return float(p @ values)
    if math.isinf(D.alpha):
        return float(values.max())
    return float(scipy.special.logsumexp((D.alpha - 1) * values, b=p) / (D.alpha - 1))


def test_markov_entropy_averages_renyi_otherwise() -> None:
    """Half a fair coin, half a known one: order 2 gives log 3/2 there and half of log 2 here."""
    k = np.array([[0.5, 0.5], [1.0, 0.0]])
    theirs = me.conditional_entropy(me_channel(k), me_law(P), me_divergences.Renyi(2.0))
    assert_near(theirs, math.log(1.5), rounding(4))
    assert_near(mk.average_categorical_entropy(mk.Kernel(k), mk.Renyi(2.0), P), math.log(2) / 2, rounding(4))


@given(p=st.integers(1, 8).flatmap(laws))
def test_markov_entropy_of_laws(p: FloatArray) -> None:
    """``renyi_entropy(p, a)`` is of order a; as a categorical entropy that is the divergence of order 2 − a."""
    law, limit = me_law(p), rounding(p.size, 8 * math.log(8))
    assert_near(mk.KL().entropy(p), me.shannon_entropy(law), limit)
    assert_near(mk.TotalVariation().entropy(p), me.gini_simpson(law), limit)
    for order in (0.0, 0.5, 1.0, 1.4, 2.0):
        assert_near(mk.Renyi(2 - order).entropy(p), me.renyi_entropy(law, order), limit, f"order {order}")
    assert_near(mk.ChiSquared().entropy(p), math.exp(me.renyi_entropy(law, 0.0)) - 1, limit)


@settings(max_examples=25)
@given(joint=joints(2))
def test_markov_entropy_mutual_information(joint: FloatArray) -> None:
    p, q = joint.reshape(-1), np.outer(joint.sum(axis=1), joint.sum(axis=0)).reshape(-1)
    for D, theirs in ME:
        limit = 2 * renyi_rounding(p, q, D.alpha if isinstance(D, mk.Renyi) else 1.0) + 60 * EPS
        assert_near(mk.mutual_information(joint, D), me.mutual_information(me_law(joint), theirs), limit, repr(D))


@settings(max_examples=15)
@given(joint=joints(3, largest=3))
def test_markov_entropy_conditional_mutual_information(joint: FloatArray) -> None:
    """Of a channel to two factors at a law. For Rényi's not the average again, but the divergence of joint states."""
    (size, x, y), law = joint.shape, joint.sum(axis=(1, 2))
    kernel = mk.state(joint).conditional(0, zero_evidence="uniform")
    channel = me_channel(kernel.matrix, x, y)
    for D, theirs in ME:
        order = D.alpha if isinstance(D, mk.Renyi) else 1.0
        limit = 4 * pair_rounding(np.zeros((size, x * y)), order)
        found = me.conditional_mutual_information(channel, me_law(law), theirs)
        rows = [mk.mutual_information(row.reshape(x, y), D) for row in kernel.matrix[law > 0]]
        assert_near(joined(D, law[law > 0], np.array(rows)), found, limit, repr(D))
        if order == 1:
            assert_near(mk.conditional_mutual_information(joint, 1, 2, given=0, D=D), found, limit, repr(D))
        every = [mk.mutual_information(row.reshape(x, y), D) for row in kernel.matrix]
        assert_near(max(every), me.mutual_information(channel, theirs), limit, repr(D))


@settings(max_examples=25)
@given(data=st.data(), n=st.integers(1, 4), m=st.integers(1, 4))
def test_markov_entropy_divergences_of_channels(data: st.DataObject, n: int, m: int) -> None:
    """A supremum over inputs; averaged at a law where it is conditional (for KL and TV)."""
    f, g, p = data.draw(channels(n, m)), data.draw(channels(n, m)), data.draw(laws(n))
    first, second = mk.Kernel(f), mk.Kernel(g)
    for D, theirs in ME:
        order = D.alpha if isinstance(D, mk.Renyi) else 1.0
        limit = max(renyi_rounding(a, b, order) for a, b in zip(f, g, strict=True)) + 120 * EPS
        found = me_divergences.channel_divergence(me_channel(f), me_channel(g), theirs)
        assert_near(mk.supremum_divergence(first, second, D), found, limit, repr(D))
        if not isinstance(D, mk.Renyi):
            averaged = me.information.conditional_divergence(me_channel(f), me_channel(g), me_law(p), theirs)
            assert_near(mk.average_divergence(first, second, D, p), averaged, 4 * limit, repr(D))


@settings(max_examples=25)
@given(data=st.data(), sizes=st.tuples(*[st.integers(1, 3)] * 4))
def test_markov_entropy_category(data: st.DataObject, sizes: tuple[int, ...]) -> None:
    """Columns instead of rows, and ``g.compose(f)`` for our ``f >> g``; the last factor counts fastest in both."""
    a, b, c, d = sizes
    f, g, h = (data.draw(channels(*shape)) for shape in ((a, b), (b, c), (c, d)))
    p = data.draw(laws(a))
    F, G, H = (mk.Kernel(k) for k in (f, g, h))
    first, second, third = (me_channel(k) for k in (f, g, h))
    second = me.Channel(first.codomain, second.codomain, g.T)
    limit = rounding(9)
    assert_near((F >> G).matrix, second.compose(first).matrix.T, limit)
    assert_near(F.tensor(H).matrix, (first @ third).matrix.T, limit)
    assert_near((mk.state(p) >> F).matrix[0], first.apply(me_law(p)).probabilities, limit)
    assert_near(mk.joint(p, F).matrix[0], me.joint(me_law(p), first).probabilities, limit)
    assert_near(mk.copy(a).matrix, me.copy(space(a)).matrix.T, 0.0)
    assert_near(mk.discard(a).matrix, me.discard(space(a)).matrix.T, 0.0)
    assert_near(mk.identity(a).matrix, me.identity(space(a)).matrix.T, 0.0)
    both, theirs = F.tensor(H), first @ third
    for kept in ((0,), (1,), (1, 0)):
        assert_near(both.marginal(*kept).matrix, theirs.marginal(kept).matrix.T, limit, str(kept))
    for k, channel in ((F, first), (mk.copy(a), me.copy(space(a)))):
        assert k.is_deterministic(1e-12) == channel.is_deterministic()


@given(pair=pairs())
@settings(max_examples=25)
def test_markov_entropy_densities_on_a_finite_set(pair: Pair) -> None:
    """Densities with respect to counting, whose integral is a sum: logarithms in, nats out."""
    p, q = pair
    with quiet():
        first, second = (me_stoch.DensityDistribution(np.log(law).__getitem__) for law in pair)
        found = [
            density(first, second, lambda f: sum(map(f, range(p.size))))
            for density in (me_stoch.density_kl, me_stoch.density_total_variation)
        ]
        renyi = me_stoch.density_renyi(first, second, 0.5, lambda f: sum(map(f, range(p.size))))
    limit = 2 * rounding(p.size, logs(p, q))
    assert_near(mk.KL()(p, q), found[0], limit)
    assert_near(mk.TotalVariation()(p, q), found[1], limit)
    assert_near(mk.Renyi(0.5)(p, q), renyi, 2 * renyi_rounding(p, q, 0.5))


@pytest.mark.parametrize("seed", range(3))
def test_markov_entropy_partitions(seed: int) -> None:
    """Finer and finer classes, by coarse graining here: lower bounds that rise, as data processing has it."""
    rng = np.random.default_rng(seed)
    P_, Q_ = (mk.state(rng.dirichlet(np.ones(16))) for _ in range(2))
    levels = [mk.coarse_grain([i >> shift for i in range(16)]) for shift in (3, 2, 1, 0)]
    laws_ = [((P_ >> level).matrix[0], (Q_ >> level).matrix[0]) for level in levels]
    for D, theirs in ME[:3]:
        found = me_stoch.partition_lower_bounds(laws_, theirs, require_monotone=True)
        ours = [float(mk.divergence(P_ >> level, Q_ >> level, D)[0]) for level in levels]
        assert_near(ours, found.values, rounding(16, 20.0), repr(D))
        assert all(low <= high + rounding(16, 20.0) for low, high in itertools.pairwise(ours))
