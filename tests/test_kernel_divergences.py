"""Divergences on every representation: against mpmath, at the edges, and the inequalities of theory §2."""

from __future__ import annotations

import itertools
import math

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import exact
import markovlm as mk
from kernel_cases import kernels, random_rows, rounding, sizes, states
from markovlm._divergences import Divergence
from markovlm.errors import DTypeError, NotStochasticError, ShapeError, ValueRangeError
from test_categorical_entropy import GENERATED, ORDERS, PLAIN, REVERSED, by_generator

INF = math.inf
ALL = (*PLAIN, *REVERSED)


@given(st.integers(1, 6), st.integers(0, 2**32 - 1), st.sampled_from(ALL))
def test_against_mpmath(m: int, seed: int, D: Divergence) -> None:
    rng = np.random.default_rng(seed)
    p, q = random_rows(rng, 2, m)
    with mpmath.workdps(exact.DIGITS):
        a, b = ([x / mpmath.fsum(exact.numbers(row)) for x in exact.numbers(row)] for row in (p, q))
        defined, found = exact.divergence(D, a, b), mpmath.mpf(float(D(p, q)))
        if mpmath.isinf(defined) or defined > 1e300:
            assert found == mpmath.inf or defined > 1e290
            return
        both = (p > 0) & (q > 0)
        largest = float(np.abs(np.log(p[both] / q[both])).max(initial=0.0))
        factor = {0.0: 1.0, INF: 1.0}.get(getattr(D, "alpha", 1.0), 1.0)
        # p and q are off by up to 2^-53 of their sums: the sum of terms moves by that, and χ² by its slope p/q
        slack = 2**-52 * (4 + m) * (2 + largest) * factor
        if isinstance(D, mk.ChiSquared):
            slack *= 1 + math.exp(min(largest, 600))
        assert abs(found - defined) <= mpmath.mpf("1e-12") * defined + slack


def dyadic(k: int, m: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Two laws a step of 2^-k apart, that sum to 1 exactly."""
    p = np.full(m, 1 / m)
    q = p.copy()
    q[0] += 2.0**-k
    q[1] -= 2.0**-k
    return p, q


@pytest.mark.parametrize("D", [D for D in ALL if getattr(D, "alpha", 1.0) > 0], ids=str)
@pytest.mark.parametrize("k", [4, 12, 24, 40])
def test_close_laws_keep_eleven_digits(D: Divergence, k: int) -> None:
    p, q = dyadic(k)
    with mpmath.workdps(exact.DIGITS):
        defined = exact.divergence(D, exact.numbers(p), exact.numbers(q))
        found = mpmath.mpf(float(D(p, q)))
        assert defined > 0
        # the differences p − q are exact here; terms carry some ten roundings, a curvature near order 0 a few hundred
        assert abs(found / defined - 1) <= mpmath.mpf("1e-11")


@pytest.mark.parametrize("step", [1e-12, -1e-12, 1e-15, -1e-15, 1e-6])
def test_renyi_is_smooth_at_one(step: float) -> None:
    rng = np.random.default_rng(0)
    for p, q in zip(rng.dirichlet(np.ones(5), 10), rng.dirichlet(np.ones(5), 10), strict=True):
        with mpmath.workdps(exact.DIGITS):
            defined = exact.divergence(mk.Renyi(1 + step), exact.numbers(p), exact.numbers(q))
            # rows that sum to 1 within 2^-52 shift log Σ p^α q^{1−α} by as much, which is divided by the step:
            # so the definition is taken of rows that sum to 1 exactly
            a, b = ([x / mpmath.fsum(exact.numbers(row)) for x in exact.numbers(row)] for row in (p, q))
            defined = exact.divergence(mk.Renyi(1 + step), a, b)
            assert abs(mpmath.mpf(float(mk.Renyi(1 + step)(p, q))) / defined - 1) <= mpmath.mpf("1e-12")


def test_large_orders_do_not_overflow() -> None:
    p, q = np.array([0.5, 0.5 - 1e-9, 1e-9]), np.array([1e-9, 0.5 - 1e-9, 0.5])
    with mpmath.workdps(exact.DIGITS):
        for order in (130.0, 1e4, 1e8):
            defined = exact.divergence(mk.Renyi(order), exact.numbers(p), exact.numbers(q))
            assert float(mk.Renyi(order)(p, q)) == pytest.approx(float(defined), rel=1e-12)


def test_edges() -> None:
    p, q = [0.5, 0.5, 0.0], [0.0, 0.5, 0.5]
    for D in (mk.KL(), mk.KL(reverse=True), mk.ChiSquared(), mk.Renyi(1.0), mk.Renyi(2.0), mk.Renyi(INF)):
        assert D(p, q) == INF
    assert mk.Renyi(0.0)(p, q) == pytest.approx(math.log(2))
    assert mk.Renyi(0.5)(p, q) == pytest.approx(math.log(4))
    a, b = [1.0, 0.0], [0.0, 1.0]  # nothing in common
    assert [D(a, b) for D in (mk.TotalVariation(), mk.SquaredHellinger())] == [1.0, 1.0]
    assert mk.JensenShannon()(a, b) == math.log(2)
    assert [mk.Renyi(order)(a, b) for order in ORDERS] == [INF] * len(ORDERS)
    for D in ALL:
        assert D(p, p) == 0.0
        assert D(a, a) == 0.0
    tiny = [1 - 1e-300, 1e-300]
    assert mk.KL()(tiny, [1.0, 0.0]) == INF
    assert mk.KL()([0.5, 0.5], tiny) == pytest.approx(0.5 * 300 * math.log(10) - math.log(2))


@given(sizes, sizes, st.data(), st.sampled_from(ALL))
def test_every_pair_of_representations_gives_the_same(n: int, m: int, data: st.DataObject, D: Divergence) -> None:
    f, g = data.draw(kernels(n, m)), data.draw(kernels(n, m))
    found = mk.divergence(f, g, D)
    p, q = f.matrix, g.matrix
    plain = D(p, q)
    finite = np.isfinite(plain)
    assert np.array_equal(np.isfinite(found), finite)
    both = (p > 0) & (q > 0)
    ratio = np.abs(np.log(np.where(both, p, 1) / np.where(both, q, 1))).max(axis=1)
    size = (1 + ratio) * (1 + np.where(finite, plain, 0))
    bound = 64 * rounding(f, g) * size
    assert np.all(np.abs(found[finite] - plain[finite]) <= bound[finite])


@pytest.mark.parametrize("D", GENERATED, ids=str)
@given(seed=st.integers(0, 2**32 - 1))
def test_generators_say_the_same(D: Divergence, seed: int) -> None:
    rng = np.random.default_rng(seed)
    p, q = random_rows(rng, 20, 5), random_rows(rng, 20, 5)
    kept = ((p == 0) | (p > 1e-10)).all(axis=1) & ((q == 0) | (q > 1e-10)).all(axis=1)
    if not kept.any():
        return
    p, q = p[kept], q[kept]
    ours, theirs = D(p, q), by_generator(D)(p, q)
    finite = np.isfinite(ours)
    assert np.array_equal(finite, np.isfinite(theirs))
    both = (p > 0) & (q > 0)
    size = 1 + (q * np.abs(D.generator(np.where(both, p, 1) / np.where(both, q, 1)))).sum(axis=1)[finite]
    assert np.all(np.abs(ours[finite] - theirs[finite]) <= 64 * 2**-52 * size)


# Inequalities


def excess(small: np.ndarray, large: np.ndarray) -> np.ndarray:
    return np.where(np.isinf(large), 0.0, small - np.where(np.isinf(large), 0.0, large))


@given(sizes, st.data(), st.sampled_from(ALL))
def test_data_processing(n: int, data: st.DataObject, D: Divergence) -> None:
    k = data.draw(kernels(n))
    p, q = data.draw(states(n)), data.draw(states(n))
    before, after = mk.divergence(p, q, D), mk.divergence(p >> k, q >> k, D)
    # entries of the images are off by their rounding, relatively
    slack = (
        64
        * rounding(k, p, q)
        * (1 + np.where(np.isfinite(before), before, 0))
        * (1 + 2000 * isinstance(D, mk.ChiSquared))
    )
    assert np.all(excess(after, before) <= slack)


@given(sizes, st.data())
def test_data_processing_in_the_other_argument(n: int, data: st.DataObject) -> None:
    """Convexity: divergences of mixtures are at most mixtures of divergences."""
    f, g, p = data.draw(kernels(n, 4)), data.draw(kernels(n, 4)), data.draw(states(n))
    for D in (mk.KL(), mk.TotalVariation(), mk.SquaredHellinger(), mk.JensenShannon()):
        mixed = mk.divergence(p >> f, p >> g, D)[0]
        average = mk.average_divergence(f, g, D, p)
        if np.isfinite(average):
            assert mixed <= average + 64 * rounding(f, g, p) * (1 + average)


@given(sizes, sizes, st.data())
def test_inequalities_between_divergences(n: int, m: int, data: st.DataObject) -> None:
    f, g = data.draw(kernels(n, m)), data.draw(kernels(n, m))
    kinds = [mk.KL(), mk.TotalVariation(), mk.SquaredHellinger(), mk.ChiSquared(), mk.JensenShannon()]
    kl, tv, h2, chi2, js = mk.divergences(f, g, kinds).values()
    bound = 64 * rounding(f, g) * (1 + np.where(np.isfinite(kl), kl, 0))
    for small, large in (
        (tv**2, kl / 2),  # Pinsker
        (h2, kl / 2),
        (h2, tv),
        (tv**2, h2 * (2 - h2)),
        (js, tv * math.log(2)),
        (kl, np.log1p(chi2)),
        (tv, np.ones(n)),
    ):
        assert np.all(excess(small, large) <= bound)
    spectrum = list(mk.divergences(f, g, [mk.Renyi(order) for order in (0.0, 0.5, 1.0, 2.0, INF)]).values())
    for lower, higher in itertools.pairwise(spectrum):
        assert np.all(excess(lower, higher) <= bound * (1 + np.where(np.isfinite(higher), higher, 0)))


@given(sizes, sizes, st.data())
def test_symmetries(n: int, m: int, data: st.DataObject) -> None:
    f, g = data.draw(kernels(n, m)), data.draw(kernels(n, m))
    for D in (mk.TotalVariation(), mk.SquaredHellinger(), mk.JensenShannon(), mk.Renyi(0.5)):
        one, other = mk.divergence(f, g, D), mk.divergence(g, f, D)
        finite = np.isfinite(one)
        assert np.array_equal(finite, np.isfinite(other))
        assert np.all(np.abs(one[finite] - other[finite]) <= 64 * rounding(f, g) * (1 + one[finite]))
    for D, turned in ((mk.KL(), mk.KL(reverse=True)), (mk.Renyi(0.3), mk.Renyi(0.3, reverse=True))):
        one, other = mk.divergence(f, g, D), mk.divergence(g, f, turned)
        assert np.array_equal(np.isfinite(one), np.isfinite(other))
        finite = np.isfinite(one)
        assert np.all(np.abs(one[finite] - other[finite]) <= 64 * rounding(f, g) * (1 + one[finite]))


# Averages, input


def test_averaged_and_supremum_forms() -> None:
    f, g = mk.Kernel([[0.5, 0.5], [1.0, 0.0]]), mk.Kernel([[0.5, 0.5], [0.0, 1.0]])
    assert mk.average_divergence(f, g, mk.KL(), [1.0, 0.0]) == 0.0  # infinite where no mass is
    assert mk.average_divergence(f, g, mk.KL()) == INF
    assert mk.average_divergence(f, g, mk.TotalVariation()) == 0.5
    assert mk.supremum_divergence(f, g, mk.TotalVariation()) == 1.0


def test_vectors_and_matrices() -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(3), 4)
    assert mk.KL()(p, p[0]).shape == (4,)
    assert mk.KL()(p[0], p).shape == (4,)
    assert np.ndim(mk.KL()(p[0], p[1])) == 0
    with pytest.raises(ShapeError, match=r"q: expected rows on the same set"):
        mk.KL()([0.5, 0.5], [1.0])
    with pytest.raises(ShapeError, match=r"q: expected rows on the same set"):
        mk.KL()(p, p[:3])
    with pytest.raises(NotStochasticError, match=r"q: .*they sum to 0\.9"):
        mk.KL()([0.5, 0.5], [0.5, 0.4])


def test_kernels_that_do_not_match_are_named() -> None:
    f = mk.Kernel(np.eye(2), codomain={"sky": ["sun", "rain"]})
    with pytest.raises(ShapeError, match=r"Q: codomain.*'sky' on the left and 'day' on the right"):
        mk.divergence(f, f.renamed(codomain={"day": 2}), mk.KL())
    with pytest.raises(ShapeError, match="Q: domain"):
        mk.divergence(f, mk.Kernel(np.eye(2)[:1]), mk.KL())
    with pytest.raises(DTypeError, match="D: expected a divergence"):
        mk.divergence(f, f, "KL")  # type: ignore[arg-type]
    assert np.array_equal(mk.divergence(f, f, mk.KL), np.zeros(2))  # type: ignore[arg-type]


def test_a_pass_says_what_it_cannot_do() -> None:
    P = mk.SoftmaxKernel(np.zeros((2, 1)), np.zeros((3, 1)))
    own = by_generator(mk.JensenShannon())
    assert np.array_equal(mk.divergence(P, P, own), np.zeros(2))
    with pytest.raises(ValueRangeError, match=r"divergences:.*mk\.divergence"):
        mk.softmax_stats(P, reference=P, divergences=[own])


def test_wide_sparse_kernels_are_compared_by_their_entries() -> None:
    import scipy.sparse as sp

    m = 2**40
    left = mk.Kernel(sp.csr_array((np.array([0.5, 0.5, 1.0]), np.array([3, m - 1, 7]), np.array([0, 2, 3])), (2, m)))
    right = mk.Kernel(sp.csr_array((np.array([0.5, 0.5, 1.0]), np.array([3, 5, 7]), np.array([0, 2, 3])), (2, m)))
    assert np.array_equal(mk.divergence(left, right, mk.TotalVariation()), [0.5, 0.0])
    assert np.array_equal(mk.divergence(left, right, mk.KL()), [INF, 0.0])
    assert np.array_equal(mk.divergence(left, mk.deterministic([3, 7], m), mk.TotalVariation()), [0.5, 0.0])
    assert np.array_equal(mk.categorical_entropy(left, mk.ChiSquared()), [1.0, 0.0])
