"""Rows made to hurt, against mpmath at 60 digits, on every build: flat, one-hot, huge, masked and tied ones."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import numpy as np
import pytest

import reference
from markovlm import KL, SoftmaxKernel, softmax_stats
from markovlm.errors import ValueRangeError
from markovlm.typing import FloatArray
from reference import Bounds, assert_within

pytestmark = pytest.mark.usefixtures("core")

INF = np.inf
BELOW_ZERO = (-INF, -1e39, -1000.0, -128.0, -1.0, -0.4, -1e-3, -1e-12)
ORDERS = (*BELOW_ZERO, 0.0, 1e-3, 0.4, 0.5, 1 - 1e-12, 1.0, 1 + 1e-12, 1.5, 1.6, 2.0, 130.0, 1e39, INF)


def with_holes(z: FloatArray, present: slice) -> FloatArray:
    out = np.full_like(z, -INF)
    out[present] = z[present]
    return out


def spiked(size: int, at: int, height: float) -> FloatArray:
    z = np.zeros(size)
    z[at] = height
    return z


RANDOM = np.random.default_rng(0).standard_normal(311)
ROWS: dict[str, FloatArray] = {
    "one token": np.array([3.25]),
    "constant": np.full(97, -7.5),
    "constant and huge": np.full(200, 1e30),
    "all but certain": spiked(193, 100, 60.0),
    "certain to float32 and not to float64": spiked(300, 5, 25.0),
    "certain": spiked(97, 96, 1e4),
    "nothing but a tail beyond float32": spiked(400, 0, 120.0),
    "two certain ones": np.where(np.arange(150) % 149 == 0, 1e4, -1e4),
    "rising by one": np.arange(-150.0, 150.0),
    "rising steeply": np.linspace(-1e4, 1e4, 301),
    "falling steeply": np.linspace(1e4, -1e4, 301),
    "a new maximum in every tile": np.repeat(np.arange(5.0) * 30, 96) + np.tile(RANDOM[:96], 5),
    "rising from chunk to chunk": np.repeat(np.arange(12.0) * 40, 96) + np.tile(RANDOM[:96], 12),
    "falling from chunk to chunk": np.repeat(np.arange(12.0) * -40, 96) + np.tile(RANDOM[:96], 12),
    "both extremes in the middle chunk": spiked(1152, 500, 2e3) - spiked(1152, 600, 3e3),
    "a chunk masked": with_holes(np.tile(300 * RANDOM[:96], 12), slice(400, 1000)),
    "two by two to the top": np.repeat(np.arange(600.0) / 64, 2),
    "half and half": np.where(np.arange(500) % 499 == 0, 20.0, 0.0),
    "wide": 40 * RANDOM,
    "narrow": 1e-4 * RANDOM,
    "equal up to the last place": np.where(np.arange(99) % 2, 1.0, 1.0 - 2.0**-24),
    "all but one masked": with_holes(RANDOM, slice(200, 201)),
    "first tiles masked": with_holes(RANDOM, slice(250, None)),
    "last tiles masked": with_holes(RANDOM, slice(0, 7)),
    "every other masked": with_holes(1e3 * RANDOM, slice(0, None, 2)),
    "ties at the top": np.array([0.0, 2.0, 1.0, 2.0, 2.0, -INF, 1.0]),
    "from end to end of float32": np.array([-1.0, 1.0, -1.0]) * np.finfo(np.float32).max,
    "lowest floats": np.array([np.finfo(np.float32).min, 0.0, np.finfo(np.float32).min]),
}


def kernel(z: FloatArray) -> SoftmaxKernel:
    """One row whose float32 logits are exactly these."""
    masked = np.isneginf(z)
    return SoftmaxKernel(np.ones((1, 1)), np.where(masked, 0.0, z)[:, None], np.where(masked, -INF, 0.0))


@functools.cache
def exact(name: str) -> tuple[FloatArray, reference.ExactRow]:
    z = ROWS[name].astype(np.float32).astype(np.float64)
    return z, reference.mp_row(z)


@pytest.mark.parametrize("name", ROWS)
def test_row_against_mpmath(name: str) -> None:
    z, row = exact(name)
    V = len(z)
    s = softmax_stats(kernel(z), orders=ORDERS, top_k=V, token_ids=np.arange(V), jensen_shannon=True)
    bounds = Bounds(z[None], np.zeros(1))
    log_z = float(row.log_normalizer)
    assert_within("log_normalizer", s.log_normalizer, np.array([log_z]), bounds.log_normalizer + 2**-50 * abs(log_z))
    assert_within("entropy", s.entropy, np.array([float(row.renyi(1.0))]), bounds.entropy)
    for order in ORDERS:
        assert_within(f"renyi {order}", s.renyi[order], np.array([float(row.renyi(order))]), bounds.renyi(order))
    assert s.jensen_shannon is not None
    js = np.array([float(row.jensen_shannon())])
    assert_within("jensen_shannon", s.jensen_shannon, js, bounds.jensen_shannon)
    assert_within("its reference", reference.jensen_shannon(z[None]), js, 2**-60 * len(z) + 2**-50 * js)
    log_p = np.full(V, -INF)
    log_p[z > -INF] = [float(x) for x in row.log_p]
    assert s.log_probs is not None
    assert_within("log_probs", s.log_probs[0], log_p, bounds.log_normalizer + 2**-50 * np.abs(log_p).clip(max=1e40))
    ids, _ = reference.top(z[None], V)
    np.testing.assert_array_equal(s.top_ids, ids)  # ties by rising id


@pytest.mark.parametrize("name", ROWS)
def test_loss_and_rank_of_every_token(name: str) -> None:
    z, _ = exact(name)
    V = len(z)
    P = kernel(z)
    many = SoftmaxKernel(np.ones((V, 1)), P.head, P.bias)
    s = softmax_stats(many, np.arange(V), token_ids=np.arange(V)[:, None])
    assert s.nll is not None
    assert s.log_probs is not None
    np.testing.assert_array_equal(s.rank, (z[None] > z[:, None]).sum(axis=1))
    np.testing.assert_array_equal(-s.nll, s.log_probs[:, 0])


@pytest.mark.parametrize("name", ROWS)
def test_renyi_is_continuous_at_order_one_and_falls(name: str) -> None:
    z, _ = exact(name)
    P, bounds = kernel(z), Bounds(z[None], np.zeros(1))
    orders = sorted({*ORDERS, *(1 + sign * step for sign in (-1, 1) for step in (1e-3, 1e-6, 1e-9, 1e-15))})
    renyi = softmax_stats(P, orders=orders).renyi
    for low, high in itertools.pairwise(orders):
        slack = bounds.renyi(low) + bounds.renyi(high)
        assert renyi[high] <= renyi[low] + slack, (low, high)
        if abs(low - 1) <= 1e-6 and abs(high - 1) <= 1e-6:
            # dH/da = -Var(log p) / 2 at 1, and Var(log p) <= E[gap^2]
            variance = float(reference.expectation(bounds.p, bounds.gap**2)[0])
            assert renyi[low] - renyi[high] <= slack + variance * (high - low)


def test_errors_do_not_grow_with_the_vocabulary() -> None:
    z = np.full((1, 300_001), -1.0)  # equal terms: a running sum would be rounded the same way again and again
    z[0, 0] = 0.0
    s = softmax_stats(kernel(z[0]), orders=(-1.0, 0.5, 1.5, 2.0), jensen_shannon=True)
    bounds = Bounds(z, np.zeros(1))
    assert s.jensen_shannon is not None
    assert_within("jensen_shannon", s.jensen_shannon, reference.jensen_shannon(z), bounds.jensen_shannon)
    assert_within("log_normalizer", s.log_normalizer, reference.log_normalizer(z), bounds.log_normalizer)
    assert_within("entropy", s.entropy, reference.entropy(z), bounds.entropy)
    for order, got in s.renyi.items():
        assert_within(f"renyi {order}", got, reference.renyi(z, order), bounds.renyi(order))


def test_orders_that_no_float32_holds() -> None:
    z = np.array([0.5, -INF, -1e4, 0.0])
    renyi = softmax_stats(kernel(z), orders=[sign * x for x in (1e-50, 1e-310, 1e50, 1e308) for sign in (-1, 1)]).renyi
    bounds = Bounds(z[None], np.zeros(1))
    for order, got in renyi.items():
        limit = 0.0 if abs(order) < 1 else np.copysign(INF, order)
        bound = bounds.log_normalizer + bounds.renyi(limit)
        assert_within(f"renyi {order}", got, reference.renyi(z[None], limit), bound)


@pytest.mark.parametrize("name", ROWS)
def test_renyi_is_continuous_at_order_zero(name: str) -> None:
    """``sum p^a <= N p_min^a`` and falling values put ``H_a - H_0`` into ``[0, |a| / (1 + |a|) (H_-inf - H_0)]``."""
    z, _ = exact(name)
    bounds, steps = Bounds(z[None], np.zeros(1)), (1e-3, 1e-6, 1e-12, 1e-50)
    renyi = softmax_stats(kernel(z), orders=(-INF, 0.0, *(-step for step in steps))).renyi
    for step in steps:
        rise, most = renyi[-step] - renyi[0.0], step / (1 + step) * (renyi[-INF] - renyi[0.0])
        slack = bounds.renyi(-step) + step * bounds.renyi(-INF)
        assert -slack <= rise <= most + slack


def test_what_is_below_the_range_of_float32_is_there_unless_it_is_masked() -> None:
    hidden, head = np.array([[1e30]]), np.array([[0.0], [-1e30], [0.0]])
    there, masked = (SoftmaxKernel(hidden, head, bias) for bias in (None, [0.0, -INF, 0.0]))
    orders = (-INF, -128.0, -1e-3, 0.0, 0.5)
    found = softmax_stats(there, orders=orders, jensen_shannon=True)
    assert found.jensen_shannon is not None
    for order, expected in zip(orders, (INF, INF, INF, np.log(3), np.log(2)), strict=True):
        assert_within(f"renyi {order}", found.renyi[order], np.array([expected]), np.array([2 * reference.SUM]))
    two = Bounds(np.zeros((1, 2)), np.zeros(1))
    assert_within("jensen_shannon", found.jensen_shannon, reference.jensen_shannon(two.z), two.jensen_shannon)
    for order, got in softmax_stats(masked, orders=orders).renyi.items():
        assert_within(f"renyi {order}, masked", got, np.full(1, np.log(2)), two.renyi(order))


OVERFLOWS: dict[str, Callable[[], object]] = {
    "hidden: .* overflow at row 1": lambda: softmax_stats(
        SoftmaxKernel(np.array([[1.0], [1e30]]), np.array([[1e30], [0.0]]))
    ),
    "hidden: .* overflow at row 0": lambda: softmax_stats(
        SoftmaxKernel(np.array([[1e30, 1e30]]), np.array([[1e30, -1e30]]))
    ),
    "reference: .* overflow at row 2": lambda: softmax_stats(
        SoftmaxKernel(np.zeros((6, 1)), np.ones((2, 1))),
        reference=SoftmaxKernel(np.array([[0.0], [1.0], [1e30]]), np.full((2, 1), 1e30)),
        divergences=[KL()],
    ),
}


@pytest.mark.parametrize("message", OVERFLOWS)
def test_overflow_names_the_row(message: str) -> None:
    with pytest.raises(ValueRangeError, match=message):
        OVERFLOWS[message]()


def test_no_states_of_width_zero_are_read() -> None:
    P = SoftmaxKernel(np.zeros((5, 0)), np.zeros((4, 0)))
    assert_within("entropy", softmax_stats(P).entropy, np.full(5, np.log(4)), np.full(5, 2 * reference.SUM))
    with_bias = SoftmaxKernel(np.zeros((2, 0)), np.zeros((3, 0)), bias=np.log([0.2, 0.3, 0.5]))
    assert_within("entropy", softmax_stats(with_bias).entropy, np.full(2, 1.0296530140645737), np.full(2, 1e-6))
