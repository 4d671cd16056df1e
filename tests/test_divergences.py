"""Divergences of two softmax kernels against their definitions in long double, on every build; and their laws."""

from __future__ import annotations

import itertools
import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from markovlm import (
    KL,
    ChiSquared,
    JensenShannon,
    Renyi,
    SoftmaxKernel,
    SquaredHellinger,
    TotalVariation,
    divergence,
    softmax_stats,
)
from markovlm._divergences import Divergence
from markovlm.typing import FloatArray
from reference import UNIT, assert_within
from softmax_cases import Case, cases

pytestmark = pytest.mark.usefixtures("core")

INF = math.inf
ORDERS = (0.0, 1e-3, 0.3, 0.5, 0.7, 1 - 1e-6, 1.0, 1 + 1e-6, 1.5, 2.0, 5.0, INF)
ALL: tuple[Divergence, ...] = (
    *(kind(reverse) for kind in (KL, ChiSquared) for reverse in (False, True)),
    *(Renyi(order, reverse) for order in ORDERS for reverse in (False, True)),
    TotalVariation(),
    SquaredHellinger(),
    JensenShannon(),
)


def check(P: SoftmaxKernel, Q: SoftmaxKernel, eta: FloatArray, delta: FloatArray, repeat: int = 1) -> None:
    """Every divergence of ``P``'s rows, repeated, from those of Q, within its bound."""
    zp, zq = np.tile(reference.kernel_logits(P), (repeat, 1)), reference.kernel_logits(Q)
    found = softmax_stats(Q, reference=P, divergences=ALL, num_threads=2).divergences
    size = max((float(np.abs(z[np.isfinite(z)]).max(initial=0)) for z in (zp, zq)), default=0.0)
    for D in ALL:
        exact = reference.divergence(D, zp, zq)
        # of the reference: 64 roundings of logarithms of that size
        own = 64 * float(np.finfo(np.longdouble).eps) * (10 + size) / min(abs(1 - getattr(D, "alpha", 0.0)) or 1.0, 1.0)
        assert_within(str(D), found[D], exact, reference.divergence_bound(D, zp, zq, eta, delta) + own)
        assert np.all(found[D] >= 0)


def log_ratio_rounding(zp: FloatArray, zq: FloatArray) -> FloatArray:
    """Of the difference of two logits, that of their normalisers, and the result: (n,)."""
    if not zp.size:
        return np.zeros(len(zp))
    both = np.isfinite(zp) & np.isfinite(zq)
    apart = np.abs(np.where(both, zq - np.where(both, zp, 0), 0)).max(axis=1)
    with np.errstate(invalid="ignore"):
        normalisers = np.abs(reference.log_normalizer(zq) - reference.log_normalizer(zp))
    return np.asarray(3 * UNIT * (apart + normalisers))


@given(first=cases(max_rows=20), second=cases(max_rows=20), repeat=st.integers(1, 4))
@settings(max_examples=100)
def test_two_heads(first: Case, second: Case, repeat: int) -> None:
    V = min(first.P.shape[1], second.P.shape[1])
    m = min(first.P.shape[0], second.P.shape[0] // repeat)
    P, Q = (
        SoftmaxKernel(
            K.hidden[:rows], K.head[:V], bias, temperature=K.temperature, scale=K.scale, softcap=K.softcap or None
        )
        for K, rows, bias in ((first.P, m, first.P.bias), (second.P, m * repeat, second.P.bias))
        for bias in [None if bias is None or not np.isfinite(bias[:V]).any() else bias[:V]]
    )
    delta = np.tile(first.delta[:m], repeat)
    eta = delta + second.delta[: m * repeat]
    zp, zq = np.tile(reference.kernel_logits(P), (repeat, 1)), reference.kernel_logits(Q)
    check(P, Q, eta + log_ratio_rounding(zp, zq), delta, repeat)


def neighbour(P: SoftmaxKernel, distance: float, rng: np.random.Generator) -> tuple[SoftmaxKernel, FloatArray]:
    """A kernel with the same head and states nearby, and a bound on the error of a log-ratio, (n,)."""
    hidden = P.hidden.astype(np.float32)
    moved = hidden + np.float32(distance) * rng.standard_normal(hidden.shape).astype(np.float32)
    Q = SoftmaxKernel(moved, P.head, P.bias, P.temperature, P.scale)
    # As for a logit, with the difference of the states for the state; it is rounded once more.
    between = SoftmaxKernel(
        moved.astype(np.float64) - hidden, P.head.astype(np.float64), temperature=P.temperature, scale=P.scale
    )
    zp, zq = reference.kernel_logits(P), reference.kernel_logits(Q)
    return Q, 1.1 * reference.logit_error(between) + log_ratio_rounding(zp, zq)


@given(case=cases(max_rows=40), exponent=st.integers(-7, 1))
@settings(max_examples=100)
def test_one_head(case: Case, exponent: int) -> None:
    P = SoftmaxKernel(case.P.hidden, case.P.head, case.P.bias, case.P.temperature, case.P.scale)
    Q, eta = neighbour(P, 10.0**exponent, case.rng)
    check(P, Q, eta, reference.logit_error(P))


@given(case=cases(max_rows=20), exponent=st.integers(-3, 1))
def test_laws(case: Case, exponent: int) -> None:
    P = SoftmaxKernel(case.P.hidden, case.P.head, case.P.bias, case.P.temperature, case.P.scale)
    Q, eta = neighbour(P, 10.0**exponent, case.rng)
    n, delta = P.shape[0], reference.logit_error(P)
    zp, zq = reference.kernel_logits(P), reference.kernel_logits(Q)
    found = softmax_stats(Q, reference=P, divergences=ALL).divergences
    back = softmax_stats(P, reference=Q, divergences=ALL).divergences
    slack = {D: reference.divergence_bound(D, zp, zq, eta, delta) for D in ALL}
    kl, tv, hellinger = found[KL()], found[TotalVariation()], found[SquaredHellinger()]
    jensen_shannon = found[JensenShannon()]
    at = {D: slack[D] + 2**-45 for D in ALL}
    assert np.all(tv**2 <= kl / 2 + at[KL()] + 2 * at[TotalVariation()])  # Pinsker
    assert np.all(hellinger <= kl / 2 + at[KL()] + at[SquaredHellinger()])
    assert np.all(hellinger <= tv + at[TotalVariation()] + at[SquaredHellinger()])
    assert np.all(tv <= 1 + at[TotalVariation()])
    assert np.all(hellinger <= 1)
    assert np.all(jensen_shannon <= math.log(2) * tv + at[JensenShannon()] + at[TotalVariation()])
    with np.errstate(invalid="ignore"):
        assert np.all(kl <= np.log1p(found[ChiSquared()]) + at[KL()] + at[ChiSquared()])
    for low, high in itertools.pairwise(ORDERS):  # rises with the order
        assert np.all(found[Renyi(low)] <= found[Renyi(high)] + at[Renyi(low)] + at[Renyi(high)])
    for symmetric in (TotalVariation(), SquaredHellinger(), JensenShannon(), Renyi(0.5)):
        assert_within("symmetry", back[symmetric], found[symmetric], 2 * at[symmetric])
    for D in ALL:
        if getattr(D, "reverse", False):
            forth = type(D)(*(getattr(D, name) for name in ("alpha",) if hasattr(D, name)))
            assert_within(f"{D} and back", back[forth], found[D], 2 * at[D])
    for order in (0.3, 0.7):  # skew symmetry
        expected = order / (1 - order) * found[Renyi(1 - order)] if Renyi(1 - order) in found else None
        if expected is not None:
            limit = at[Renyi(order, True)] + order / (1 - order) * at[Renyi(1 - order)]
            assert_within("skew symmetry", found[Renyi(order, True)], expected, limit)
    assert n == len(kl)


@given(case=cases(max_rows=20))
def test_no_row_is_far_from_itself(case: Case) -> None:
    """With one head not at all; with two heads that are the same to the bit neither."""
    P, n = case.P, case.P.shape[0]
    Q = SoftmaxKernel(P.hidden, P.head.copy(), P.bias, P.temperature, P.scale, P.softcap or None)
    for other in (P, Q):
        for D, values in softmax_stats(other, reference=P, divergences=ALL).divergences.items():
            np.testing.assert_array_equal(values, np.zeros(n), err_msg=str(D))


# Rows of logits, -inf for a token that is removed.
PAIRS: dict[str, tuple[list[float], list[float]]] = {
    "p leaves q": ([0.0, 0.0], [0.0, -INF]),
    "q leaves p": ([0.0, -INF], [0.0, 5.0]),
    "disjoint": ([0.0, -INF, -INF], [-INF, 1.0, 2.0]),
    "partly": ([0.0, 1.0, -INF], [-INF, 1.0, 2.0]),
    "a weight that no float32 holds": ([0.0, -120.0], [0.0, -INF]),
    "p leaves q before its maximum": ([0.0] * 150 + [2000.0], [-INF] + [0.0] * 150),
    "both lack one": ([1.0, -INF, 2.0], [2.0, -INF, 1.0]),
    "one-hot against far": ([0.0, -120.0], [0.0, 1e4]),
    "opposite": ([1e4, -1e4, 3.0], [-1e4, 1e4, 3.0]),
    "huge and shifted": ([1e4, 1e4 - 1], [-1e4, -1e4 - 2]),
    "one token": ([3.0], [-7.0]),
    "uniform": ([0.0] * 300, [5.0] * 300),
    "falling and rising": (np.linspace(9, -9, 301).tolist(), np.linspace(-9, 9, 301).tolist()),
    "peaks beyond float32": ([0.0, -200.0], [-90.0, 0.0]),
    "almost the same": ([0.0, 0.25, 1.0], [2.0**-20, 0.25, 1.0]),
}


def kernel(z: list[float]) -> SoftmaxKernel:
    masked = np.isneginf(z)
    return SoftmaxKernel(np.ones((1, 1)), np.where(masked, 0.0, z)[:, None], np.where(masked, -INF, 0.0))


@pytest.mark.parametrize("name", PAIRS)
def test_hard_pairs(name: str) -> None:
    P, Q = map(kernel, PAIRS[name])
    zp, zq = (np.array([z]) for z in PAIRS[name])
    check(P, Q, log_ratio_rounding(zp, zq), np.zeros(1))


@pytest.mark.parametrize("distance", [1e-12, 1e-9, 1e-4])
def test_orders_next_to_one(distance: float) -> None:
    """Smooth through KL: the difference is of the order of the distance, not of the rounding divided by it."""
    rng = np.random.default_rng(0)
    P = SoftmaxKernel(rng.standard_normal((8, 20)), rng.standard_normal((90, 20)))
    Q = SoftmaxKernel(P.hidden + 0.1, P.head)
    found = softmax_stats(Q, reference=P, divergences=[KL(), Renyi(1 - distance), Renyi(1 + distance)]).divergences
    zp, zq = reference.kernel_logits(P), reference.kernel_logits(Q)
    d = reference.log_softmax(zq) - reference.log_softmax(zp)
    p = np.exp(reference.log_softmax(zp))
    slope = ((p * d**2).sum(axis=1) - (p * d).sum(axis=1) ** 2) / 2  # of the Rényi divergence at order 1
    for order in (1 - distance, 1 + distance):
        limit = 1.5 * distance * slope + 60 * UNIT * found[KL()]
        assert_within(str(order), found[Renyi(order)], found[KL()], limit)


@pytest.mark.parametrize("shared", [True, False])
def test_rows_in_groups_and_any_number_of_threads(shared: bool) -> None:
    rng = np.random.default_rng(0)
    head = rng.standard_normal((420, 5))
    R = SoftmaxKernel(rng.standard_normal((530, 5)), head)
    P = SoftmaxKernel(rng.standard_normal((1590, 5)), R.head if shared else R.head.copy())
    wanted = (KL(), TotalVariation(), Renyi(2.0))
    runs = [softmax_stats(P, reference=R, divergences=wanted, num_threads=threads) for threads in (1, 2, 5)]
    plain = softmax_stats(P)
    bounds = reference.Bounds(reference.kernel_logits(P), 3 * reference.logit_error(P) + 1e-6)
    assert_within("entropy", runs[0].entropy, plain.entropy, bounds.entropy)
    for D in wanted:
        for run in runs[1:]:
            np.testing.assert_array_equal(run.divergences[D], runs[0].divergences[D])
        for j in range(3):
            rows = slice(530 * j, 530 * j + 530)
            np.testing.assert_allclose(divergence(R, P[rows], D), runs[0].divergences[D][rows], rtol=1e-4)


def test_stats_of_rows_that_are_compared_are_those_of_rows_that_are_not() -> None:
    """Where one head serves both, a row's logits are those of the reference plus a difference."""
    rng = np.random.default_rng(0)
    P = SoftmaxKernel(rng.standard_normal((40, 30)), rng.standard_normal((500, 30)), rng.standard_normal(500))
    Q = SoftmaxKernel(P.hidden + rng.standard_normal((40, 30)), P.head, P.bias)
    targets, ids = rng.integers(0, 500, 40), rng.integers(0, 500, (40, 3))
    plain, compared = (
        softmax_stats(Q, targets, (0.5, 2.0), 4, ids, **more) for more in ({}, {"reference": P, "divergences": [KL()]})
    )
    bounds = reference.Bounds(reference.kernel_logits(Q), 3 * reference.logit_error(Q) + reference.logit_error(P))
    for name in ("log_normalizer", "entropy", "nll"):
        assert_within(name, getattr(compared, name), getattr(plain, name), 2 * getattr(bounds, name))
    assert_within("log_probs", compared.log_probs, plain.log_probs, 2 * bounds.nll[:, None])  # type: ignore[arg-type]
    np.testing.assert_array_equal(compared.rank, plain.rank)
    np.testing.assert_array_equal(compared.top_ids, plain.top_ids)


def test_kernels_of_different_width_and_type() -> None:
    rng = np.random.default_rng(0)
    P = SoftmaxKernel(
        rng.standard_normal((9, 12)).astype("f2"), rng.standard_normal((70, 12)).astype("f2"), softcap=5.0
    )
    Q = SoftmaxKernel(rng.standard_normal((9, 33)), rng.standard_normal((70, 33)) / 5, scale=0.5)
    zp, zq = reference.kernel_logits(P), reference.kernel_logits(Q)
    check(
        P, Q, reference.logit_error(P) + reference.logit_error(Q) + log_ratio_rounding(zp, zq), reference.logit_error(P)
    )


def test_kl_keeps_two_digits_down_to_1e_10() -> None:
    rng = np.random.default_rng(0)
    P = SoftmaxKernel(rng.standard_normal((64, 576)), rng.standard_normal((3000, 576)) / 8)
    seen: list[float] = []
    for distance in np.geomspace(1e-6, 1e-1, 11):
        Q = SoftmaxKernel(P.hidden + distance * rng.standard_normal(P.hidden.shape).astype(np.float32), P.head)
        exact = reference.divergence(KL(), reference.kernel_logits(P), reference.kernel_logits(Q))
        found = divergence(P, Q, KL())
        large = exact >= 1e-10
        seen += exact[large].tolist()
        assert np.all(np.abs(found - exact)[large] <= 1e-2 * exact[large])
    assert min(seen) < 1e-9


def test_what_divergences_say_of_themselves() -> None:
    assert repr(Renyi(2)) == "Renyi(2)"
    assert Renyi(2) == Renyi(2.0) != Renyi(2.0, reverse=True)
    assert len({KL(), KL(reverse=True), KL(False)}) == 2
    assert (KL.unit, TotalVariation.unit) == ("nats", "")
    P = kernel([0.0, 1.0])
    np.testing.assert_array_equal(divergence(P, P, KL), [0.0])  # type: ignore[arg-type]
    assert "divergences [KL()]" in repr(softmax_stats(P, reference=P, divergences=[KL()]))


@pytest.mark.parametrize("close_rows", [0, 1, 40])
def test_bfloat16_states_of_one_head_keep_the_digits_of_small_divergences(close_rows: int) -> None:
    """Those that lie close go by differences, on every build; also where one row alone is close."""
    rng = np.random.default_rng(0)
    n, V, d = 40, 500, 64
    hidden = rng.standard_normal((n, d)).astype(ml_dtypes.bfloat16)
    other = rng.standard_normal((n, d)).astype(ml_dtypes.bfloat16)
    other[:close_rows] = hidden[:close_rows]
    other[:close_rows, 3] = (other[:close_rows, 3].astype(np.float32) * (1 + 1 / 128)).astype(ml_dtypes.bfloat16)
    head = rng.standard_normal((V, d)).astype(ml_dtypes.bfloat16)
    P, Q = SoftmaxKernel(hidden, head), SoftmaxKernel(other, head)
    exact = reference.divergence(KL(), reference.kernel_logits(P), reference.kernel_logits(Q))
    assert (exact[:close_rows] < 1e-3).all()
    np.testing.assert_allclose(divergence(P, Q, KL()), exact, rtol=1e-4)
