"""Categorical entropies: closed forms against the definition on pairs, published values, one pass over softmax."""

from __future__ import annotations

import itertools
import math
import tracemalloc

import mpmath
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

import exact
import markovlm as mk
from kernel_cases import kernels, random_rows, rounding
from markovlm._divergences import Divergence
from markovlm.errors import DTypeError, ValueRangeError
from markovlm.typing import FloatArray

INF = math.inf
ORDERS = (0.0, 1e-12, 0.3, 0.5, 1 - 1e-12, 1.0, 1 + 1e-12, 1.5, 2.0, 3.0, 130.0, INF)
PLAIN: tuple[Divergence, ...] = (
    mk.KL(),
    mk.TotalVariation(),
    mk.SquaredHellinger(),
    mk.ChiSquared(),
    mk.JensenShannon(),
    *(mk.Renyi(order) for order in ORDERS),
)
REVERSED: tuple[Divergence, ...] = (
    mk.KL(reverse=True),
    mk.ChiSquared(reverse=True),
    *(mk.Renyi(order, reverse=True) for order in ORDERS),
)
GENERATED: tuple[Divergence, ...] = (*PLAIN[:5], mk.KL(reverse=True), mk.ChiSquared(reverse=True))


def by_generator(D: Divergence) -> mk.FDivergence:
    """The same divergence from its generator alone."""
    return mk.FDivergence(D.generator, at_zero=D.at_zero, slope_at_infinity=D.slope_at_infinity)


@pytest.mark.parametrize(
    ("D", "published"),
    [
        (mk.KL(), 0.5623351446),
        (mk.TotalVariation(), 0.375),
        (mk.Renyi(0.5), 0.5110260385),
        (mk.Renyi(2.0), math.log(2)),
        (mk.SquaredHellinger(), 0.2254809472),
    ],
    ids=str,
)
def test_published_values(D: Divergence, published: float) -> None:
    assert D.entropy([0.25, 0.75]) == pytest.approx(published, rel=0, abs=5e-11)  # ten digits are printed


@given(st.integers(1, 6), st.integers(0, 2**32 - 1), st.sampled_from((*PLAIN, *REVERSED)))
def test_closed_form_is_the_definition(m: int, seed: int, D: Divergence) -> None:
    """To 1e-12 of itself; where it is small, it is the rounding of rows that sum to 1 only so far."""
    p = random_rows(np.random.default_rng(seed), 1, m)[0]
    with mpmath.workdps(exact.DIGITS):
        total = mpmath.fsum(exact.numbers(p))
        defined = exact.entropy(D, [x / total for x in exact.numbers(p)])
        found = mpmath.mpf(float(D.entropy(p)))
        if mpmath.isinf(defined):
            assert found == defined
            return
        # p is off by up to 2^-53 each; d entropy / d log p is at most about 1 + log of the largest ratio
        allowed = mpmath.mpf("1e-12") * defined + 2**-52 * (4 + m) * (1 + abs(math.log(p[p > 0].min())))
        assert abs(found - defined) <= allowed


@pytest.mark.parametrize("D", PLAIN, ids=str)
@pytest.mark.parametrize("k", [1, 10, 30, 50])
def test_small_entropies_keep_twelve_digits(D: Divergence, k: int) -> None:
    p = np.array([1 - 2.0**-k, 2.0 ** -(k + 1), 2.0 ** -(k + 2), 2.0 ** -(k + 2), 0.0])  # sums to 1 exactly
    with mpmath.workdps(exact.DIGITS):
        defined = exact.entropy(D, exact.numbers(p))
        # the digits that are promised; terms carry some eight roundings
        assert abs(mpmath.mpf(float(D.entropy(p))) / defined - 1) <= mpmath.mpf("1e-12")


@pytest.mark.parametrize("D", [*PLAIN, *REVERSED], ids=str)
def test_functions_alone_have_none(D: Divergence) -> None:
    assert D.entropy([0.0, 1.0, 0.0]) == 0.0
    assert D.entropy([1.0]) == 0.0
    for k in (mk.copy(3), mk.deterministic([0, 2], 3), mk.Kernel(sp.eye_array(3)), mk.identity(2).tensor(mk.copy(2))):
        assert np.array_equal(mk.categorical_entropy(k, D), np.zeros(k.shape[0]))


@pytest.mark.parametrize("D", GENERATED, ids=str)
@given(seed=st.integers(0, 2**32 - 1))
def test_generators_say_the_same(D: Divergence, seed: int) -> None:
    p = random_rows(np.random.default_rng(seed), 20, 5)
    p = p[((p == 0) | (p > 1e-30)).all(axis=1)]
    if not len(p):
        return
    ours, theirs = D.entropy(p), by_generator(D).entropy(p)
    finite = np.isfinite(ours)
    assert np.array_equal(finite, np.isfinite(theirs))
    # terms of the generator cancel: Σ p² |f(1/p)| is what rounding is of
    size = (p**2 * np.abs(D.generator(1 / np.where(p > 0, p, 1)))).sum(axis=1)[finite] + 1
    assert np.all(np.abs(ours[finite] - theirs[finite]) <= 64 * 2**-52 * size)


@given(kernels(), st.sampled_from((*PLAIN, *REVERSED)))
def test_every_representation_gives_the_same(k: mk.Kernel, D: Divergence) -> None:
    found = mk.categorical_entropy(k, D)
    matrix = k.matrix
    plain = np.array([D.entropy(row) for row in matrix])
    assert found.shape == (k.shape[0],)
    finite = np.isfinite(plain)
    assert np.array_equal(finite, np.isfinite(found))
    smallest = np.array([row[row > 0].min() for row in matrix])
    order = D._entropy_order
    slope = 1 + (0.0 if order is None or math.isnan(order) else min(abs(order), 200.0))
    size = np.exp(np.minimum(plain, 700)) if isinstance(D, mk.ChiSquared) else 1 - np.log(smallest)
    bound = 8 * rounding(k) * slope * (size + np.where(finite, plain, 0))
    assert np.all(np.abs(found[finite] - plain[finite]) <= bound[finite])


@given(kernels())
def test_bounds(k: mk.Kernel) -> None:
    m = k.shape[1]
    slack = rounding(k) * (1 + math.log(m))
    largest = {
        mk.KL(): math.log(m),
        mk.TotalVariation(): 1 - 1 / m,
        mk.SquaredHellinger(): 1 - m**-0.5,
        mk.ChiSquared(): m - 1.0,
        mk.JensenShannon(): math.log(2),
        mk.Renyi(0.5): math.log(m),
    }
    for D, values in mk.categorical_entropies(k, list(largest)).items():
        assert np.all((values >= 0) & (values <= largest[D] + slack))
    spectrum = mk.categorical_entropies(k, [mk.Renyi(order) for order in (0.0, 0.5, 1.5, 2.0, 3.0, INF)])
    values = list(spectrum.values())
    for lower, higher in itertools.pairwise(values):  # of order 2 − α, which falls
        assert np.all(lower <= higher + 200 * slack * (1 + np.abs(higher)))


def test_averaged_and_supremum_forms_are_different_things() -> None:
    k = mk.Kernel([[0.5, 0.5], [0.0, 1.0]])
    assert mk.average_categorical_entropy(k, mk.TotalVariation(), [0.25, 0.75]) == 0.125
    assert mk.average_categorical_entropy(k, mk.TotalVariation()) == 0.25
    assert mk.supremum_categorical_entropy(k, mk.TotalVariation()) == 0.5
    assert mk.average_categorical_entropy(k, mk.KL(reverse=True), [0.0, 1.0]) == 0.0  # infinite where no mass is
    assert mk.supremum_categorical_entropy(k, mk.KL(reverse=True)) == INF


def test_entropy_of_a_composite_grows_by_what_the_second_stage_adds() -> None:
    """H(Z | X) >= H(Z | Y) for a chain X → Y → Z."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        f, g = mk.Kernel(random_rows(rng, 3, 4)), mk.Kernel(random_rows(rng, 4, 5))
        p = rng.dirichlet(np.ones(3))
        after = mk.average_categorical_entropy(f >> g, mk.KL(), p)
        assert after >= mk.average_categorical_entropy(g, mk.KL(), mk.state(p) >> f) - rounding(f, g)


# A softmax kernel: one pass


ALL_AT_ONCE = (*PLAIN, *REVERSED)


def test_all_of_a_softmax_kernel_come_from_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    from markovlm import _rowwise

    calls: list[int] = []
    original = _rowwise.softmax_stats
    monkeypatch.setattr(
        _rowwise, "softmax_stats", lambda *args, **options: calls.append(1) or original(*args, **options)
    )
    rng = np.random.default_rng(0)
    P = mk.SoftmaxKernel(rng.normal(size=(33, 8)), rng.normal(size=(1000, 8)))
    found = mk.categorical_entropies(P, ALL_AT_ONCE)
    assert calls == [1]
    rows = P.matrix
    for D, values in found.items():
        plain: FloatArray = D.entropy(rows)
        finite = np.isfinite(plain)
        assert np.array_equal(np.isfinite(values), finite)
        order = D._entropy_order
        slope = 1 + (0.0 if order is None or math.isnan(order) else min(abs(order), 200.0))
        # logits are off by some 2^-24 (|z| <= 20, d = 8), and log p is the slope of most entropies
        assert np.all(np.abs(values[finite] - plain[finite]) <= 1e-5 * slope * (1 + plain[finite])), D


def test_the_pass_takes_the_memory_it_is_allowed() -> None:
    rng = np.random.default_rng(0)
    P = mk.SoftmaxKernel(rng.normal(size=(64, 4)), rng.normal(size=(200_000, 4)))
    tracemalloc.start()
    mk.categorical_entropies(P, ALL_AT_ONCE, max_memory=2**24)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20  # NumPy's arrays; of the core's own tests/test_resources.py knows
    with pytest.raises(ValueRangeError, match="max_memory"):
        mk.categorical_entropies(P, ALL_AT_ONCE, max_memory=1)


def test_own_divergences_of_a_softmax_kernel() -> None:
    rng = np.random.default_rng(0)
    P = mk.SoftmaxKernel(rng.normal(size=(9, 4)), rng.normal(size=(300, 4)))
    seen: list[tuple[int, int]] = []
    D = by_generator(mk.JensenShannon())
    found = mk.categorical_entropy(P, D, progress=lambda done, total: seen.append((done, total)))
    assert np.abs(found - mk.JensenShannon().entropy(P.matrix)).max() <= 300 * 2**-52
    assert seen[-1] == (9, 9)


# The user's own


def test_f_divergence_refuses_what_is_none() -> None:
    with pytest.raises(ValueRangeError, match=r"f\(1\) = 0, got 1"):
        mk.FDivergence(lambda t: t**2)
    with pytest.raises(ValueRangeError, match="convex"):
        mk.FDivergence(lambda t: np.log(t))
    with pytest.raises(ValueRangeError, match="finite"):
        mk.FDivergence(lambda t: 1 / (t - 1))
    with pytest.raises(DTypeError, match="f: expected a function"):
        mk.FDivergence(3.0)  # type: ignore[arg-type]
    reverse_kl = mk.FDivergence(lambda t: -np.log(t))
    assert reverse_kl.at_zero == INF
    assert reverse_kl.entropy([0.5, 0.5]) == INF
    with pytest.raises(ValueRangeError, match="slope_at_infinity"):
        mk.FDivergence(lambda t: (t - 1) ** 2)([0.5, 0.5], [1.0, 0.0])
    with pytest.raises(ValueRangeError, match="at_zero"):
        mk.FDivergence(lambda t: t * np.log(t)).entropy([0.5, 0.5])  # 0 log 0 is nan for NumPy
    assert mk.FDivergence(lambda t: t * np.log(t), at_zero=0.0).entropy([0.5, 0.5]) == pytest.approx(math.log(2))


def test_divergences_know_what_they_are() -> None:
    for D in (*PLAIN, *REVERSED):
        assert D.name
        assert D.formula
        assert D.entropy_formula
        assert D.unit in ("nats", "")
        low, high = D.range
        assert low == 0 < high
    assert repr(mk.Renyi(0.5, reverse=True)) == "Renyi(0.5, reverse=True)"
    assert str(mk.KL()) == "KL()"
    with pytest.raises(DTypeError, match="no f-divergence"):
        mk.Renyi(2.0).generator(np.ones(1))
    with pytest.raises(DTypeError, match="no f-divergence"):
        _ = mk.Renyi(2.0).at_zero


@pytest.mark.parametrize("D", GENERATED, ids=str)
def test_limits_of_generators(D: Divergence) -> None:
    small, large = D.generator(np.array([1e-150])), D.generator(np.array([1e150])) / 1e150
    assert D.generator(np.ones(1)) == 0
    at_zero = small if np.isfinite(D.at_zero) else np.where(small > 100, INF, small)  # a logarithm grows slowly
    at_infinity = large if np.isfinite(D.slope_at_infinity) else np.where(large > 100, INF, large)
    rest = 1e3 * 1e-150  # t log t, or log t / t, where the limit is 0
    assert at_zero == pytest.approx(D.at_zero, rel=2**-50, abs=max(rest, 2**-52))
    assert at_infinity == pytest.approx(D.slope_at_infinity, rel=2**-50, abs=max(rest, 2**-52))
