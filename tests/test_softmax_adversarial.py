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
ORDERS = (0.0, 1e-3, 0.4, 0.5, 1 - 1e-12, 1.0, 1 + 1e-12, 1.5, 1.6, 2.0, 130.0, 1e39, INF)


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
    "wide": 40 * RANDOM,
    "narrow": 1e-4 * RANDOM,
    "equal up to the last place": np.where(np.arange(99) % 2, 1.0, 1.0 - 2.0**-24),
    "all but one masked": with_holes(RANDOM, slice(200, 201)),
    "first tiles masked": with_holes(RANDOM, slice(250, None)),
    "last tiles masked": with_holes(RANDOM, slice(0, 7)),
    "every other masked": with_holes(1e3 * RANDOM, slice(0, None, 2)),
    "ties at the top": np.array([0.0, 2.0, 1.0, 2.0, 2.0, -INF, 1.0]),
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
    s = softmax_stats(kernel(z), orders=ORDERS, top_k=V, token_ids=np.arange(V))
    bounds = Bounds(z[None], np.zeros(1))
    log_z = float(row.log_normalizer)
    assert_within("log_normalizer", s.log_normalizer, np.array([log_z]), bounds.log_normalizer + 2**-50 * abs(log_z))
    assert_within("entropy", s.entropy, np.array([float(row.renyi(1.0))]), bounds.entropy)
    for order in ORDERS:
        assert_within(f"renyi {order}", s.renyi[order], np.array([float(row.renyi(order))]), bounds.renyi(order))
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
    s, bounds = softmax_stats(kernel(z[0]), orders=(0.5, 1.5, 2.0)), Bounds(z, np.zeros(1))
    assert_within("log_normalizer", s.log_normalizer, reference.log_normalizer(z), bounds.log_normalizer)
    assert_within("entropy", s.entropy, reference.entropy(z), bounds.entropy)
    for order, got in s.renyi.items():
        assert_within(f"renyi {order}", got, reference.renyi(z, order), bounds.renyi(order))


def test_orders_that_no_float32_holds() -> None:
    z = np.array([0.5, -INF, -1e4, 0.0])
    renyi = softmax_stats(kernel(z), orders=[1e-50, 1e-310, 1e50, 1e308]).renyi
    bounds = Bounds(z[None], np.zeros(1))
    for order, got in renyi.items():
        limit = 0.0 if order < 1 else INF
        assert_within(f"renyi {order}", got, reference.renyi(z[None], limit), bounds.log_normalizer)


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
