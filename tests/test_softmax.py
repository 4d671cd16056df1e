"""The fused pass against explicit float64 logits, on every build of the core, within derived bounds; and its laws."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import mpmath  # type: ignore[import-untyped]
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from markovlm import JensenShannon, SoftmaxKernel, SoftmaxStats, softmax_stats
from markovlm.typing import IntArray
from reference import Bounds, assert_within
from softmax_cases import Case, cases

pytestmark = pytest.mark.usefixtures("core")

ORDERS = (-np.inf, -1000.0, -2.0, -0.25, 0.0, 0.25, 0.5, 0.9, 1.0, 1.5, 2.0, 7.0, np.inf)
NAMES = ("log_normalizer", "entropy", "jensen_shannon", "nll", "rank", "top_ids", "top_log_probs", "log_probs")


def some_targets(case: Case) -> IntArray:
    """Random tokens, masked ones among them, a tenth ignored."""
    n, V = case.P.shape
    return np.where(case.rng.random(n) < 0.1, -100, case.rng.integers(0, V, n)).astype(np.int64)


def everything(P: SoftmaxKernel, rng: np.random.Generator, **more: Any) -> SoftmaxStats:
    n, V = P.shape
    targets, token_ids = rng.integers(0, V, n), rng.integers(0, V, (n, 3))
    return softmax_stats(P, targets, ORDERS, min(V, 5), token_ids, jensen_shannon=True, **more)


def assert_same_bits(one: SoftmaxStats, other: SoftmaxStats, rows: IntArray | slice = slice(None)) -> None:
    """``one[rows]`` is ``other``."""
    for name in NAMES:
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_array_equal(a[rows], b, err_msg=name)
    for order, values in one.renyi.items():
        np.testing.assert_array_equal(values[rows], other.renyi[order], err_msg=f"renyi {order}")


@given(case=cases())
@settings(max_examples=120)
def test_every_statistic_is_within_its_bound(case: Case) -> None:
    P, z = case.P, reference.kernel_logits(case.P)
    (n, V), bounds = P.shape, Bounds(z, case.delta)
    targets, token_ids = some_targets(case), case.rng.integers(0, V, (n, 4))
    k = int(case.rng.integers(0, V + 1))
    s = softmax_stats(P, targets, ORDERS, k, token_ids, jensen_shannon=True, num_threads=2)

    assert_within("log_normalizer", s.log_normalizer, reference.log_normalizer(z), bounds.log_normalizer)
    assert_within("entropy", s.entropy, reference.entropy(z), bounds.entropy)
    for order in ORDERS:
        assert_within(f"renyi {order}", s.renyi[order], reference.renyi(z, order), bounds.renyi(order))
    assert s.jensen_shannon is not None
    assert_within("jensen_shannon", s.jensen_shannon, reference.jensen_shannon(z), bounds.jensen_shannon)

    known, safe = targets != -100, np.maximum(targets, 0)
    assert s.nll is not None
    assert s.rank is not None
    assert_within("nll", s.nll[known], reference.nll(z, safe)[known], bounds.nll[known])
    assert np.isnan(s.nll[~known]).all()
    assert (s.rank[~known] == -1).all()
    for sign in (-1, 1):  # logits that differ by more than their errors are told apart
        bar = reference.at(z, safe)[:, None] + sign * 2 * case.delta[:, None]
        count = (z > bar).sum(axis=1)[known]
        assert np.all(sign * count <= sign * s.rank[known])

    assert s.log_probs is not None
    exact = np.take_along_axis(reference.log_softmax(z), token_ids, axis=1)
    assert_within("log_probs", s.log_probs, exact, bounds.nll[:, None])
    if k:
        assert s.top_ids is not None
        assert s.top_log_probs is not None
        ids, log_probs = reference.top(z, k)
        assert_within("top_log_probs", s.top_log_probs, log_probs, bounds.nll[:, None])
        np.testing.assert_array_equal(s.top_ids == -1, ids == -1)
        at_ids = np.where(ids < 0, -np.inf, np.take_along_axis(z, np.maximum(s.top_ids, 0), axis=1))
        assert_within(
            "logits of top_ids", at_ids, reference.log_normalizer(z)[:, None] + log_probs, bounds.nll[:, None]
        )
        if not case.delta.any():
            np.testing.assert_array_equal(s.top_ids, ids)
    else:
        assert s.top_ids is None


@given(case=cases())
def test_laws(case: Case) -> None:
    P, rng = case.P, case.rng
    n, V = P.shape
    bounds = Bounds(reference.kernel_logits(P), case.delta)
    s = softmax_stats(P, orders=ORDERS, top_k=V, token_ids=np.arange(V), jensen_shannon=True)
    assert s.log_probs is not None
    assert s.jensen_shannon is not None
    assert s.top_ids is not None
    assert s.top_log_probs is not None
    support = (~np.isneginf(s.log_probs)).sum(axis=1)
    assert np.all(s.entropy >= 0)
    assert np.all(s.entropy <= np.log(support) + bounds.entropy)
    assert_within("total mass", np.exp(s.log_probs).sum(axis=1), np.ones(n), 2 * bounds.nll)
    np.testing.assert_array_equal(s.renyi[1.0], s.entropy)
    np.testing.assert_array_equal(s.renyi[0.0], np.log(support))
    np.testing.assert_array_equal(s.renyi[np.inf], -s.log_probs.max(axis=1))
    least = np.where(np.isneginf(s.log_probs), np.inf, s.log_probs).min(axis=1)
    np.testing.assert_array_equal(s.renyi[-np.inf], -least)
    for low, high in itertools.pairwise(ORDERS):  # falls with the order
        assert np.all(s.renyi[high] <= s.renyi[low] + bounds.renyi(low) + bounds.renyi(high))
    # Between the bounds that total variation, here 1 - sum p², sets to the Jensen-Shannon divergence (Lin 1991).
    distance = -np.expm1(-s.renyi[2.0])
    slack = bounds.jensen_shannon + bounds.renyi(2.0)
    assert np.all(s.jensen_shannon >= distance**2 / 2 - slack)
    assert np.all(s.jensen_shannon <= np.log(2) * distance + slack)
    top = np.where(s.top_ids < 0, -np.inf, np.take_along_axis(s.log_probs, np.maximum(s.top_ids, 0), axis=1))
    np.testing.assert_array_equal(s.top_log_probs, top)
    assert np.all(s.top_log_probs[:, :-1] >= s.top_log_probs[:, 1:])
    targets = rng.integers(0, V, n)
    t = softmax_stats(P, targets)
    assert t.nll is not None
    assert np.all(t.nll >= -bounds.nll)
    np.testing.assert_array_equal(-t.nll, reference.at(s.log_probs, targets))


@given(case=cases())
def test_order_of_tokens_does_not_matter(case: Case) -> None:
    P, permutation = case.P, case.rng.permutation(case.P.shape[1])
    bounds = Bounds(reference.kernel_logits(P), case.delta)
    bias = None if P.bias is None else P.bias[permutation]
    Q = SoftmaxKernel(P.hidden, P.head[permutation], bias, P.temperature, P.scale, P.softcap or None)
    a, b = (softmax_stats(K, orders=ORDERS, jensen_shannon=True) for K in (P, Q))
    assert a.jensen_shannon is not None
    assert b.jensen_shannon is not None
    assert_within("entropy", a.entropy, b.entropy, 2 * bounds.entropy)
    assert_within("jensen_shannon", a.jensen_shannon, b.jensen_shannon, 2 * bounds.jensen_shannon)
    for order in ORDERS:
        assert_within(f"renyi {order}", a.renyi[order], b.renyi[order], 2 * bounds.renyi(order))


@given(case=cases(), shift=st.sampled_from([-50.0, 0.125, 1000.0]))
def test_a_constant_added_to_all_logits_does_not_matter(case: Case, shift: float) -> None:
    P = case.P
    bias = np.zeros(P.shape[1]) if P.bias is None else P.bias
    moved = SoftmaxKernel(P.hidden, P.head, bias + shift, P.temperature, P.scale)
    still = SoftmaxKernel(P.hidden, P.head, bias, P.temperature, P.scale)
    a, b = softmax_stats(still), softmax_stats(moved)
    x, y = (Bounds(reference.kernel_logits(Q), reference.logit_error(Q)) for Q in (still, moved))
    assert_within("entropy", b.entropy, a.entropy, x.entropy + y.entropy)
    exact = a.log_normalizer + P.scale * shift / P.temperature
    assert_within("log_normalizer", b.log_normalizer, exact, x.log_normalizer + y.log_normalizer)


@given(case=cases())
def test_a_temperature_divides_the_states(case: Case) -> None:
    P = case.P  # powers of 2: not a bit changes
    hot = SoftmaxKernel(P.hidden, P.head, temperature=4.0, scale=0.5)
    seed = int(case.rng.integers(2**32))
    # float32 holds what float16 cannot; bfloat16 stays itself, because some builds multiply it in another order
    dtype = P.hidden.dtype if P.hidden.dtype == ml_dtypes.bfloat16 else np.float32
    scaled = SoftmaxKernel((P.hidden.astype(np.float32) / 8).astype(dtype), P.head)
    assert_same_bits(everything(hot, np.random.default_rng(seed)), everything(scaled, np.random.default_rng(seed)))


def kernel(n: int, V: int, d: int, seed: int = 0, **options: Any) -> SoftmaxKernel:
    rng = np.random.default_rng(seed)
    return SoftmaxKernel(rng.standard_normal((n, d)), rng.standard_normal((V, d)), **options)


@pytest.mark.parametrize(("n", "V", "d"), [(1, 1, 1), (5, 500, 7), (600, 131, 17), (1025, 97, 97)])
def test_same_bits_for_any_number_of_threads(n: int, V: int, d: int) -> None:
    P = kernel(n, V, d)
    runs = [everything(P, np.random.default_rng(0), num_threads=threads) for threads in (1, 2, 3, 7)]
    for run in runs[1:]:
        assert_same_bits(runs[0], run)


def test_a_row_depends_on_the_others_by_no_more_than_rounding() -> None:
    """All rows share an order of summation; nothing else of one reaches another."""
    P, rng = kernel(150, 301, 130, softcap=9.0), np.random.default_rng(0)
    bounds = Bounds(reference.kernel_logits(P), reference.logit_error(P))
    targets, ids = rng.integers(0, 301, 150), rng.integers(0, 301, (150, 2))
    every = softmax_stats(P, targets, ORDERS, 4, ids, jensen_shannon=True)
    for rows in ([0], [149], [3, 74, 9], rng.permutation(150), np.repeat([5, 6], 40)):
        part = softmax_stats(P[rows], targets[rows], ORDERS, 4, ids[rows], jensen_shannon=True)
        for name in ("log_normalizer", "entropy", "jensen_shannon", "nll"):
            limit = 2 * getattr(bounds, name)[rows]
            assert_within(name, getattr(part, name), getattr(every, name)[rows], limit)
        for order in ORDERS:
            limit = 2 * bounds.renyi(order)[rows]
            assert_within(f"renyi {order}", part.renyi[order], every.renyi[order][rows], limit)
    for rows in (rng.permutation(150), np.concatenate([np.arange(150), rng.integers(0, 150, 700)])):
        assert_same_bits(every, softmax_stats(P[rows], targets[rows], ORDERS, 4, ids[rows], jensen_shannon=True), rows)


def test_ignored_targets_and_shared_tokens() -> None:
    P = kernel(4, 9, 3)
    s = softmax_stats(P, [0, 7, 7, 8], ignore_index=7)
    assert s.nll is not None
    assert s.rank is not None
    np.testing.assert_array_equal(np.isnan(s.nll), [False, True, True, False])
    np.testing.assert_array_equal(s.rank < 0, [False, True, True, False])
    shared = softmax_stats(P, token_ids=np.arange(9)[::-1]).log_probs
    each = softmax_stats(P, token_ids=np.tile(np.arange(9)[::-1], (4, 1))).log_probs
    np.testing.assert_array_equal(shared, each)
    assert softmax_stats(P, token_ids=[]).log_probs.shape == (4, 0)  # type: ignore[union-attr]


def test_series_of_jensen_shannon_against_mpmath(core: Any) -> None:
    """On a grid of 1000 points extremes of a polynomial of degree 6 are met to some (6 / 1000)², relatively."""
    worst = 0.0
    with mpmath.workdps(40):
        for i in range(1001):
            p = mpmath.mpf(i) / 2000
            got = mpmath.fsum(c * p**k for k, c in enumerate(core.jensen_shannon_series))
            worst = max(worst, float(abs(got - (1 + p) * mpmath.log1p(p))))
        best = mpmath.chebyfit(lambda p: (1 + p) * mpmath.log1p(p), [0, 0.5], 7)[::-1]
    assert 0.9 * reference.JS_SERIES <= worst <= reference.JS_SERIES
    assert core.jensen_shannon_series == [float(c) for c in best]


def test_jensen_shannon_is_the_divergence_between_copying_before_and_after() -> None:
    """``D(Δ∘k ‖ (k ⊗ k)∘Δ)`` by its definition, on all V² pairs of tokens."""
    P = kernel(20, 13, 6, bias=np.where(np.arange(13) % 5 == 3, -np.inf, 0.0))
    z = reference.kernel_logits(P)
    log_p = reference.log_softmax(z)
    copied = np.where(np.eye(13, dtype=bool), log_p[:, :, None], -np.inf).reshape(20, -1)
    independent = (log_p[:, :, None] + log_p[:, None, :]).reshape(20, -1)
    exact = reference.divergence(JensenShannon(), copied, independent)
    bounds = Bounds(z, reference.logit_error(P))
    found = softmax_stats(P, jensen_shannon=True).jensen_shannon
    assert found is not None
    assert_within("pass", found, exact, bounds.jensen_shannon)
    assert_within("closed form", reference.jensen_shannon(z), exact, np.full(20, 2**-50))


def test_logits_of_a_kernel_are_the_definition() -> None:
    bias = np.array([0.5, -np.inf, 0.0])
    P = kernel(3, 3, 4, bias=bias, temperature=0.7, scale=0.3, softcap=0.9)
    np.testing.assert_allclose(P.logits(), reference.kernel_logits(P), rtol=2**-50)
