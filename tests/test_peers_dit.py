"""Agreement with dit, and what its conventions are where they differ.

A difference of convention stands in the docstring of its test, and the test fails if it is not as described. Where a
peer loses digits, ours is held to mpmath instead, and the docstring says what the peer gives, which is not asserted.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from markov_entropy import divergences as me_divergences

import markovlm as mk
from markovlm.typing import FloatArray

with np.errstate():  # dit turns NumPy's warnings off for everyone who runs after it; here they stay on
    import dit  # type: ignore[import-untyped]
    import dit.channelorder  # type: ignore[import-untyped]
from peer_cases import (
    BIT,
    EPS,
    INF,
    ORDERS,
    P,
    Pair,
    assert_near,
    by_definition,
    channels,
    exact_law,
    joints,
    laws,
    logs,
    pairs,
    quiet,
    renyi_rounding,
    rounding,
)

# dit


def dit_law(p: FloatArray) -> Any:
    """Dit's distribution of an array, variable i for axis i: it keeps positive outcomes alone."""
    return dit.Distribution.from_ndarray(p)


@settings(max_examples=25)
@given(pair=pairs())
def test_dit_divergences(pair: Pair) -> None:
    """Dit works in bits where there is a logarithm; its Hellinger distance is the root of ours."""
    p, q = pair
    with quiet():
        first, second = dit_law(p), dit_law(q)
        kl = dit.divergences.kullback_leibler_divergence(first, second)
        of_arrays = dit.divergences.pmf.relative_entropy(p, q)
        variation = dit.divergences.variational_distance(first, second)
        hellinger = dit.divergences.hellinger_distance(first, second)
        overlap = dit.divergences.bhattacharyya_coefficient(first, second)
        js = dit.divergences.jensen_shannon_divergence([first, second])
    limit = rounding(p.size, logs(p, q))
    assert_near(mk.KL()(p, q) / BIT, kl, 2 * limit, "KL")
    assert_near(mk.KL()(p, q) / BIT, of_arrays, 2 * limit, "KL of arrays")
    assert_near(mk.TotalVariation()(p, q), variation, rounding(p.size), "TV")
    assert_near(mk.SquaredHellinger()(p, q), hellinger**2, rounding(p.size), "Hellinger")
    assert_near(1 - mk.SquaredHellinger()(p, q), overlap, rounding(p.size), "Bhattacharyya")
    assert_near(mk.JensenShannon()(p, q) / BIT, js, rounding(p.size, 4 * math.log2(8)), "Jensen–Shannon")


@settings(max_examples=25)
@given(pair=pairs())
def test_dit_renyi(pair: Pair) -> None:
    """In bits; orders 0 and 1 are its own cases as they are ours. It has no order ∞: that is NaN."""
    p, q = pair
    for order in ORDERS:
        with quiet():
            theirs = dit.divergences.renyi_divergence(dit_law(p), dit_law(q), alpha=order)
        assert_near(mk.Renyi(order)(p, q) / BIT, theirs, 2 * renyi_rounding(p, q, order), f"order {order}")


@settings(max_examples=25)
@given(pair=pairs())
def test_dit_powers_are_without_unit(pair: Pair) -> None:
    """``(Σ p^α q^{1−α} − 1)/(α − 1)``, Hellinger's and Tsallis' of order α: χ² for α = 2, twice our H² for α = ½.

    No logarithm, so no unit, but their case α = 1 is KL in bits: a jump by 1/log 2, for the limit is KL in nats.
    """
    p, q = pair
    with quiet():
        first, second = dit_law(p), dit_law(q)
        size = float(np.sum(p[q > 0] ** 2 / q[q > 0]))
        for of_order in (dit.divergences.hellinger_divergence, dit.divergences.tsallis_divergence):
            chi_squared, twice = of_order(first, second, alpha=2.0), of_order(first, second, alpha=0.5)
            kl = of_order(first, second, alpha=1.0)
            assert_near(mk.ChiSquared()(p, q), chi_squared, rounding(p.size, 3 * size), "χ²")
            assert_near(2 * mk.SquaredHellinger()(p, q), twice, 2 * rounding(p.size), "H²")
            assert_near(mk.KL()(p, q) / BIT, kl, 2 * rounding(p.size, logs(p, q)), "KL")


@given(pair=pairs(), order=st.sampled_from([-0.5, 0.0, 0.6]))
def test_dit_alpha_divergence(pair: Pair, order: float) -> None:
    """``4/(1 − a²) (1 − Σ p^{(1−a)/2} q^{(1+a)/2})``: its a is 1 − 2α of ours, and a = 0 is four times H².

    At a = 1 its own case is KL(p ‖ q) in bits, where the limit is KL(q ‖ p) in nats, and at −1 the other way round.
    """
    p, q = pair
    alpha, scale = (1 - order) / 2, 4 / (1 - order**2)
    D = mk.FDivergence(lambda t: scale * (1 - t**alpha), slope_at_infinity=0.0)
    with quiet():
        theirs = dit.divergences.alpha_divergence(dit_law(p), dit_law(q), alpha=order)
    assert_near(D(p, q), theirs, scale * rounding(p.size))
    by_renyi = -scale * np.expm1((alpha - 1) * mk.Renyi(alpha)(p, q))  # of no overlap: exp(-inf)
    assert_near(by_renyi, theirs, scale * renyi_rounding(p, q, alpha))


GENERATORS: dict[str, mk.FDivergence] = {
    "χ²": mk.FDivergence(lambda t: (t - 1) ** 2, slope_at_infinity=INF),
    "total variation": mk.FDivergence(lambda t: np.abs(t - 1) / 2, slope_at_infinity=0.5),
    "Le Cam": mk.FDivergence(lambda t: (1 - t) ** 2 / (2 * t + 2), slope_at_infinity=0.5),
    "hockey stick": mk.FDivergence(lambda t: np.maximum(t - 2, 0.0), slope_at_infinity=1.0),
    "KL": mk.FDivergence(lambda t: t * np.log(t), at_zero=0.0, slope_at_infinity=INF),
}


@pytest.mark.parametrize("name", GENERATORS)
@given(pair=pairs(zeros=False))
@settings(max_examples=15)
def test_dit_f_divergences(name: str, pair: Pair) -> None:
    """``Σ q f(p/q)`` as ours, in the unit of f: with a natural logarithm dit's f-divergence is in nats too.

    Of laws that are positive everywhere: dit looks at the outcomes of p alone.
    """
    (p, q), D = pair, GENERATORS[name]
    with quiet():
        theirs = dit.divergences.f_divergence(dit_law(p), dit_law(q), D.f)
    assert_near(D(p, q), theirs, rounding(p.size, logs(p, q) + 2 * float((p**2 / q).sum())))


def test_f_divergences_know_what_happens_off_the_support() -> None:
    """Ours against a calculation by hand: ``q f(0)`` where p is 0, and ``p f(t)/t`` for large t where q is.

    dit gives 1/4 and 1/8 for χ² both ways, where 1/2 and ∞ are right: the outcomes that p lacks are left out, and what
    is infinite is dropped by ``nansum``.
    """
    p, q = [0.5, 0.5, 0.0], [0.25, 0.5, 0.25]
    chi_squared = GENERATORS["χ²"]
    assert chi_squared(p, q) == mk.ChiSquared()(p, q) == 0.5
    assert chi_squared(q, p) == mk.ChiSquared()(q, p) == INF
    assert GENERATORS["total variation"](p, q) == GENERATORS["total variation"](q, p) == 0.25
    with quiet():
        by_power = dit.divergences.hellinger_divergence(dit_law(np.array(p)), dit_law(np.array(q)), alpha=2.0)
    assert_near(by_power, 0.5, 4 * EPS)  # dit's own other way to χ²


@pytest.mark.parametrize("distance", [1e-3, 1e-6, 1e-9, 1e-12, 2.0**-52])
@pytest.mark.parametrize("side", [-1, 1])
def test_renyi_next_to_order_one_keeps_its_digits(distance: float, side: int) -> None:
    """Ours against mpmath, at a limit that does not grow as the order nears 1.

    dit divides the logarithm of a rounded sum by α − 1: 4e-16/|α − 1|, four digits left at 1 − 1e-12. markov-entropy
    does so too down to |α − 1| = 1e-6, ten digits, and goes over to ``log1p`` and ``expm1`` there.
    """
    order = 1 + side * distance
    rng = np.random.default_rng(0)
    for size in (2, 5, 9):
        p, q = exact_law(rng, size), exact_law(rng, size)
        expected = by_definition(mk.Renyi(order), p, q)
        assert_near(mk.Renyi(order)(p, q), expected, rounding(size, 2 * logs(p, q) + 2 * logs(q, p)))
        assert abs(expected - by_definition(mk.KL(), p, q)) <= 50 * distance


@pytest.mark.parametrize("order", [0.0, 1e-20, 1e-12, 1e-6, 0.25, 0.75])
def test_renyi_next_to_order_zero(order: float) -> None:
    """Where q is half of p on the support of p, it is log 2 at every order below 1. Both peers give that."""
    for p, q in (([1.0, 0.0], [0.5, 0.5]), ([0.25, 0.75, 0.0], [0.125, 0.375, 0.5])):
        with quiet():
            of_dit = dit.divergences.renyi_divergence(dit_law(np.array(p)), dit_law(np.array(q)), alpha=order)
        assert_near(of_dit * BIT, math.log(2), rounding(3, 1.0), "dit")
        assert_near(me_divergences.Renyi(order)(p, q), math.log(2), rounding(3, 1.0), "markov-entropy")
        assert_near(mk.Renyi(order)(p, q), math.log(2), rounding(3, 1.0), "ours")


@pytest.mark.parametrize("order", [1e-12, 1e-3, 40.0, 1e4, INF])
def test_renyi_of_extreme_orders(order: float) -> None:
    """Ours against mpmath. dit's powers underflow before order 1000, where it gives −∞, and at ∞ it gives NaN."""
    rng = np.random.default_rng(1)
    for size in (2, 5, 9):
        p, q = exact_law(rng, size), exact_law(rng, size)
        largest = float(np.abs(np.log(p)).max() + np.abs(np.log(q)).max())
        assert_near(mk.Renyi(order)(p, q), by_definition(mk.Renyi(order), p, q), rounding(size, 2 * largest))


@settings(max_examples=25)
@given(p=st.integers(1, 8).flatmap(laws))
def test_dit_entropies(p: FloatArray) -> None:
    """Categorical entropies under dit's names. Rényi's divergence of order α has Rényi's entropy of order 2 − α.

    In bits, but for Tsallis', which has no unit; dit's order 0 counts the outcomes that it keeps, the positive ones.
    """
    with quiet():
        law = dit_law(p)
        shannon = dit.shannon.entropy(law)
        renyi = {order: dit.other.renyi_entropy(law, order) for order in (0, 0.5, 1, 1.3, 1.5, 2, INF)}
        tsallis = {order: dit.other.tsallis_entropy(law, order) for order in (1, 1.5, 2)}
    limit = rounding(p.size, 8 * math.log2(8))
    assert_near(mk.KL().entropy(p) / BIT, shannon, limit, "Shannon")
    for order in (0, 0.5, 1, 1.3, 1.5, 2):
        assert_near(mk.Renyi(2 - order).entropy(p) / BIT, renyi[order], limit, f"Rényi {order}")
    assert_near(mk.ChiSquared().entropy(p), 2 ** renyi[0] - 1, limit, "χ²")
    assert_near(mk.TotalVariation().entropy(p), tsallis[2], limit, "TV")
    assert_near(mk.SquaredHellinger().entropy(p), tsallis[1.5] / 2, limit, "H²")
    assert_near(mk.KL().entropy(p), tsallis[1], limit, "Tsallis of order 1 is Shannon's in nats")
    # The other way round, of the independent pair from the copied one, it is of order 1 + α: α/(1 − α) times that.
    assert_near(mk.Renyi(0.3, reverse=True).entropy(p) / BIT, 3 / 7 * renyi[1.3], limit, "Rényi, reverse")


@settings(max_examples=25)
@given(joint=joints(2))
def test_dit_mutual_information(joint: FloatArray) -> None:
    """Bits: ``H(X) + H(Y) − H(X, Y)``; other divergences from dit's product of the marginals."""
    m, bits = joint.size, 4 * math.log2(16)
    with quiet():
        law = dit_law(joint)
        product = dit.distconst.product_distribution(law, [[0], [1]])
        shannon = dit.shannon.mutual_information(law, [0], [1])
        variation = dit.divergences.variational_distance(law, product)
        hellinger = dit.divergences.hellinger_distance(law, product)
        chi_squared = dit.divergences.hellinger_divergence(law, product, alpha=2.0)
        renyi = dit.divergences.renyi_divergence(law, product, alpha=0.5)
        js = dit.divergences.jensen_shannon_divergence([law, product])
        given_first = dit.shannon.conditional_entropy(law, [1], [0])
    assert_near(mk.mutual_information(joint) / BIT, shannon, rounding(m, bits), "KL")
    assert_near(mk.mutual_information(joint, mk.TotalVariation()), variation, rounding(m), "TV")
    assert_near(mk.mutual_information(joint, mk.SquaredHellinger()), hellinger**2, rounding(m), "H²")
    assert_near(mk.mutual_information(joint, mk.ChiSquared()), chi_squared, rounding(m, 3 * min(joint.shape)), "χ²")
    assert_near(mk.mutual_information(joint, mk.Renyi(0.5)) / BIT, renyi, rounding(m, 2 * bits + 60), "Rényi")
    assert_near(mk.mutual_information(joint, mk.JensenShannon()) / BIT, js, rounding(m, bits), "Jensen–Shannon")
    rest = mk.state(joint).conditional(0, zero_evidence="uniform")
    average = mk.average_categorical_entropy(rest, mk.KL(), joint.sum(axis=1))
    assert_near(average / BIT, given_first, rounding(m, bits), "H(Y | X)")


@given(data=st.data(), shape=st.tuples(st.integers(1, 4), st.integers(1, 4)))
@settings(max_examples=25)
def test_dit_lautum_information(data: st.DataObject, shape: tuple[int, int]) -> None:
    """Palomar and Verdú's: KL reversed, in bits; infinite where a pair never happens and independence lets it."""
    weights = data.draw(st.lists(st.integers(0, 9), min_size=math.prod(shape), max_size=math.prod(shape)).filter(any))
    joint = np.reshape(weights, shape) / sum(weights)
    with quiet():
        theirs = dit.other.lautum_information(dit_law(joint), [[0], [1]])
    size = logs(np.outer(joint.sum(axis=1), joint.sum(axis=0)), joint)
    assert_near(mk.mutual_information(joint, mk.KL(reverse=True)) / BIT, theirs, 2 * rounding(joint.size, size))


def test_dit_lautum_information_of_a_pair_that_hardly_could_happen() -> None:
    """Still infinite where independence gives the pair no more than 1e-18: less than what 1 is rounded to."""
    joint = np.array([[1e-9, 1 - 2e-9], [0.0, 1e-9]])
    with quiet():
        assert dit.other.lautum_information(dit_law(joint), [[0], [1]]) == INF
    for D in (mk.KL(reverse=True), mk.ChiSquared(reverse=True), mk.Renyi(2, reverse=True)):
        assert mk.mutual_information(joint, D) == INF, D


def test_dit_mutual_information_is_in_bits() -> None:
    """Two coins that are one: a bit, and log 2 nats."""
    joint = np.diag(P)
    assert dit.shannon.mutual_information(dit_law(joint), [0], [1]) == 1.0
    assert_near(mk.mutual_information(joint), math.log(2), EPS)


@settings(max_examples=15)
@given(joint=joints(3, largest=3))
def test_dit_conditional_mutual_information(joint: FloatArray) -> None:
    """In bits; its co-information of two groups is their mutual information, given what it is conditioned on."""
    limit = rounding(joint.size, 4 * math.log2(27))
    with quiet():
        law = dit_law(joint)
        given_third = dit.multivariate.coinformation(law, [[0], [1]], [2])
        given_first = dit.multivariate.coinformation(law, [[1], [2]], [0])
        of_both = dit.multivariate.coinformation(law, [[0, 1], [2]])
        total = dit.multivariate.total_correlation(law)
    assert_near(mk.conditional_mutual_information(joint, 0, 1, given=2) / BIT, given_third, limit)
    assert_near(mk.conditional_mutual_information(joint, 1, 2, given=0) / BIT, given_first, limit)
    assert_near(mk.mutual_information(joint, between=((0, 1), 2)) / BIT, of_both, limit)
    by_chain = mk.mutual_information(joint, between=(0, 1)) + mk.mutual_information(joint, between=((0, 1), 2))
    assert_near(by_chain / BIT, total, limit)


@given(pair=pairs(), weight=st.floats(0.05, 0.95))
def test_dit_weighted_jensen_shannon_is_state_prediction_information(pair: Pair, weight: float) -> None:
    """``H(Σ w p) − Σ w H(p)``: with weights, and in bits. Equal weights give the divergence."""
    law = np.array([weight, 1 - weight])
    with quiet():
        theirs = dit.divergences.pmf.jensen_shannon_divergence(np.array(pair), law.copy())
    limit = rounding(pair[0].size, 2 * math.log2(8))
    assert_near(mk.state_prediction_information(mk.Kernel(np.array(pair)), law) / BIT, theirs, limit)
    assert_near(mk.mutual_information(law[:, None] * np.array(pair)) / BIT, theirs, limit)


@settings(max_examples=25)
@given(joint=joints(2))
def test_dit_conditionals(joint: FloatArray) -> None:
    """Dit gives rows for the conditions that happen, in order, and none for the others, where we are told what to do.

    A row is its own set there: the positive outcomes. Both ways: the conditional, and the Bayesian inverse of it.
    """
    state = mk.state(joint)
    for given_axis, other in ((0, 1), (1, 0)):
        with quiet():
            marginal, rows = dit_law(joint).condition_on([f"X{given_axis}"], rvs=[f"X{other}"])
        kernel = state.conditional(given_axis, zero_evidence="uniform")
        happens = np.flatnonzero(joint.sum(axis=other) > 0)
        assert_near(state.marginal(given_axis).matrix[0][happens], [marginal[int(x)] for x in happens], 8 * EPS)
        for x, row in zip(happens, rows, strict=True):
            theirs = np.zeros(joint.shape[other])
            theirs[list(row.outcomes)] = row.pmf
            assert_near(kernel.matrix[x], theirs, rounding(joint.size))
    forth = state.conditional(0, zero_evidence="uniform")
    back = forth.bayes(joint.sum(axis=1), zero_evidence="uniform")
    assert_near(back.matrix, state.conditional(1, zero_evidence="uniform").matrix, rounding(joint.size))


def test_dit_composes_from_the_right() -> None:
    """``compose_channels(post, pre)`` is *pre, then post*, of row-stochastic matrices as ours: ``pre >> post``."""
    pre, post = np.array([[0.9, 0.1, 0.0], [0.2, 0.3, 0.5]]), np.array([[0.5, 0.5], [0.0, 1.0], [0.25, 0.75]])
    theirs = dit.channelorder._utils.compose_channels(post, pre)
    assert_near((mk.Kernel(pre) >> mk.Kernel(post)).matrix, theirs, rounding(3))


def informations(k: FloatArray, p: FloatArray) -> FloatArray:
    """``KL(k_x ‖ p k)`` for each input, in nats: the least is below the capacity at any p, the largest above it."""
    return np.asarray(scipy.special.rel_entr(k, p @ k).sum(axis=1))


def test_dit_channel_capacity() -> None:
    """In bits, by plain steps of Blahut and Arimoto from the uniform law, until one changes the value by little.

    That is no bound on the error. So its input law is held to its own bounds, ``Σ r KL(k_x ‖ rk) ≤ C ≤ max KL``: what
    both know of C has to overlap, and dit's value, which is of the law before and after its last step, to lie below.
    """
    for seed in range(40):
        rng = np.random.default_rng(seed)
        n, m = rng.integers(1, 5, 2)
        k = rng.dirichlet(np.ones(m), n)
        k[rng.random((n, m)) < 0.25] = 0.0
        k[~k.any(axis=1), 0] = 1.0
        k /= k.sum(axis=1, keepdims=True)
        with quiet():
            theirs, law = dit.algorithms.channel_capacity(k, rtol=0.0, atol=1e-9)
        ours = mk.channel_capacity(mk.Kernel(k), tolerance=1e-9)
        values, at_ours = informations(k, law), informations(k, ours.input.matrix[0])
        lower, upper, limit = float(law @ values), float(values.max()), rounding(m, 2 * math.log(4))
        assert_near([ours.input.matrix[0] @ at_ours, at_ours.max()], [ours.lower, ours.upper], limit, f"{seed}: ours")
        assert max(ours.lower, lower) <= min(ours.upper, upper) + limit, f"{seed}: no overlap"
        assert theirs * BIT <= ours.upper + limit, f"{seed}: above the capacity"
        # Behind it by what its law leaves open, and by a last step, which gains no more than the one before it, 1e-9.
        assert theirs * BIT >= ours.lower - (upper - lower) - 2e-9 - limit, f"{seed}: far below the capacity"


@pytest.mark.parametrize(
    ("k", "bits"),
    [
        ([[0.9, 0.1], [0.1, 0.9]], 1 + 0.9 * math.log2(0.9) + 0.1 * math.log2(0.1)),  # symmetric
        ([[0.75, 0.25, 0.0], [0.0, 0.25, 0.75]], 0.75),  # erasure
        ([[1.0, 0.0], [0.5, 0.5]], math.log2(5 / 4)),  # Z
        ([[0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0.5, 0.5], [0.5, 0, 0, 0.5]], 1.0),  # noisy typewriter
        ([[0.9, 0.1], [0.1, 0.9], [0.5, 0.5]], 1 + 0.9 * math.log2(0.9) + 0.1 * math.log2(0.1)),  # an input to avoid
        ([[0.25, 0.75], [0.25, 0.75]], 0.0),  # says nothing
    ],
)
def test_dit_channel_capacity_of_the_textbooks(k: list[list[float]], bits: float) -> None:
    """Where the capacity is known, and dit's default stopping rule, 1e-7 of the value, leaves less than 1e-6."""
    with quiet():
        theirs, _ = dit.algorithms.channel_capacity(np.array(k))
    ours = mk.channel_capacity(mk.Kernel(k), tolerance=1e-12)
    assert_near(ours.value / BIT, bits, 1e-12 / BIT + rounding(4, 2.0))
    assert_near(theirs, bits, 1e-6)


@settings(max_examples=15)
@given(data=st.data(), n=st.integers(1, 3), m=st.integers(1, 3), size=st.integers(1, 3))
def test_dit_deficiency(data: st.DataObject, n: int, m: int, size: int) -> None:
    """Le Cam's with ``½ Σ |…|`` as ours: how badly the first, made worse, imitates the second. The same order.

    HiGHS keeps constraints to 1e-7 in dit, of which there are so many, each of which moves the optimum by as much.
    """
    f, g, worse = (data.draw(channels(*shape)) for shape in ((n, m), (n, size), (m, size)))
    limit = 1e-7 * (2 * n * size + n + m)
    ours = mk.garbling(mk.Kernel(f), mk.Kernel(g))
    assert_near(ours.deficiency, dit.channelorder.le_cam_deficiency(f, g), limit)
    assert mk.garbling(mk.Kernel(f), mk.Kernel(f) >> mk.Kernel(worse))
    assert dit.channelorder.is_output_degraded(f, f @ worse)


def test_dit_deficiency_has_the_same_direction() -> None:
    clear, noisy = np.array([[0.9, 0.1], [0.1, 0.9]]), np.array([[0.7, 0.3], [0.3, 0.7]])
    forth, back = dit.channelorder.le_cam_deficiency(clear, noisy), dit.channelorder.le_cam_deficiency(noisy, clear)
    assert_near([forth, back], [0.0, 0.2], 1e-7 * 12)
    assert_near(mk.garbling(mk.Kernel(clear), mk.Kernel(noisy)).deficiency, forth, 1e-7 * 12)
    assert_near(mk.garbling(mk.Kernel(noisy), mk.Kernel(clear)).deficiency, back, 1e-7 * 12)
