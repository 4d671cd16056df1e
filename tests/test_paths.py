"""Fisher–Rao distances and lengths of straight paths: against quadrature in float64, and Cor. 7.2 as a law."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

import markovlm as mk
import reference
from geometry_cases import exponent_error, slope_error, weight_error
from markovlm import SoftmaxKernel
from markovlm.errors import DTypeError, ShapeError, ValueRangeError
from markovlm.typing import FloatArray
from reference import UNIT, assert_within
from softmax_cases import Case, cases

TOL = 1e-5


def with_states(P: SoftmaxKernel, hidden: FloatArray) -> SoftmaxKernel:
    return SoftmaxKernel(hidden.astype(P.hidden.dtype), P.head, P.bias, P.temperature, P.scale, P.softcap or None)


def speed(P: SoftmaxKernel, Q: SoftmaxKernel, x: int, s: float) -> float:
    """``√g*(δ, δ)`` at ``h + s δ``, in float64."""
    start, end = (R.hidden[[x]].astype(np.float64) for R in (P, Q))
    options: dict[str, Any] = {"temperature": P.temperature, "scale": P.scale, "softcap": P.softcap or None}
    raw = reference.logits(start + s * (end - start), P.head, P.bias, scale=P.scale)[0]
    z = reference.logits(start + s * (end - start), P.head, P.bias, **options)
    q = np.exp(-2 * np.abs(raw / P.softcap)) if P.softcap else np.ones_like(raw)
    u = P.scale / P.temperature * 4 * q / (1 + q) ** 2 * (P.head.astype(np.float64) @ (end - start)[0])
    p = np.exp(reference.log_softmax(z))[0]
    u = u - u[np.argmax(p)]
    return float(np.sqrt(max(p @ u**2 - (p @ u) ** 2, 0.0)))


def speed_error(P: SoftmaxKernel, Q: SoftmaxKernel) -> FloatArray:
    """(n,) absolute: errors of weights are relative; those of ``D g · δ``, of the size of the largest, add to its root.

    Between the ends logits are sums of both, each rounded.
    """
    ends = np.maximum(weight_error(P), weight_error(Q)) * 3
    move = np.abs((Q.hidden.astype(np.float64) - P.hidden.astype(np.float64)) @ P.head.astype(np.float64).T).max(axis=1)
    move = move * P.scale / P.temperature
    rounding = (P.hidden.shape[1] + 16) * UNIT + np.maximum(slope_error(P), slope_error(Q))
    return np.asarray(move * (ends + 4 * rounding))


def distance_error(P: SoftmaxKernel, Q: SoftmaxKernel) -> FloatArray:
    """(n,): logits that are off by δ move a prediction by δ at most, in this distance; sums are relative."""
    return np.asarray(exponent_error(P) + exponent_error(Q) + 64 * UNIT * np.pi)


@pytest.mark.usefixtures("core")
@settings(max_examples=10)
@given(case=cases(max_rows=6), step=st.sampled_from([0.0, 1e-3, 0.3, 2.0]))
def test_no_path_is_shorter_than_the_distance(case: Case, step: float) -> None:
    P = case.P
    n, d = P.hidden.shape
    if n == 0 or d == 0:
        return
    Q = with_states(P, P.hidden.astype(np.float64) + step * case.rng.standard_normal((n, d)))
    found = mk.path_length(P, Q, tol=TOL)
    error = speed_error(P, Q)
    assert np.all(found.length + found.error + error + distance_error(P, Q) >= found.distance)
    assert np.all(found.error <= TOL * found.length * 2**13 + error)
    for x in range(min(n, 2)):
        exact = quad(lambda s, x=x: speed(P, Q, x, s), 0, 1, limit=200, epsabs=1e-9, epsrel=1e-7)[0]
        assert_within("length", found.length[x], np.array(exact), found.error[x] + 20 * TOL * exact + error[x] + 1e-8)
    if step == 0.0:
        assert not found.length.any()


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=10)
def test_of_two_tokens_every_path_is_a_shortest_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    W = rng.standard_normal((2, 5)).astype(np.float32)
    P, Q = (SoftmaxKernel(rng.standard_normal((4, 5)).astype(np.float32), W) for _ in range(2))
    found = mk.path_length(P, Q)
    slack = found.error + TOL * found.length + speed_error(P, Q) + distance_error(P, Q)
    assert_within("length", found.length, found.distance, slack)


def test_short_paths_are_as_long_as_the_metric_says() -> None:
    """Length and distance both tend to ``√g*(δ, δ)``; their ratio differs from 1 by O(|δ|²)."""
    rng = np.random.default_rng(1)
    P = SoftmaxKernel(rng.standard_normal((5, 6)), rng.standard_normal((40, 6)))
    v = rng.standard_normal((5, 6))
    gaps = []
    for step in (0.5, 0.25, 0.125):
        found = mk.path_length(P, with_states(P, P.hidden + step * v), tol=1e-7)
        gaps.append(np.mean(found.length / found.distance - 1))
    order = np.polyfit(np.log([0.5, 0.25, 0.125]), np.log(gaps), 1)[0]
    assert abs(order - 2) < 0.2
    near = with_states(P, P.hidden + 1e-3 * v)
    delta = near.hidden - P.hidden
    forms = mk.sensitivity(P, delta, per_context=True)
    np.testing.assert_allclose(mk.fisher_rao_distance(P, near), np.sqrt(forms), rtol=5e-3)


def test_distances_of_any_kernels_are_those_of_the_sphere() -> None:
    rng = np.random.default_rng(2)
    p, q = rng.dirichlet(np.ones(6), 20), rng.dirichlet(np.ones(6), 20)
    found = mk.fisher_rao_distance(mk.Kernel(p), mk.Kernel(q))
    exact = 2 * np.arccos(np.clip(np.sqrt(p * q).sum(axis=1), 0, 1))
    np.testing.assert_allclose(found, exact, atol=1e-12)
    assert not mk.fisher_rao_distance(mk.Kernel(p), mk.Kernel(p)).any()
    near = p * (1 + 1e-9 * rng.standard_normal(p.shape))  # where 1 − Σ√pq is below the rounding of Σ√pq
    near /= near.sum(axis=1, keepdims=True)
    expected = np.sqrt(((near - p) ** 2 / p).sum(axis=1))
    np.testing.assert_allclose(mk.fisher_rao_distance(mk.Kernel(p), mk.Kernel(near)), expected, rtol=1e-5)


P3, Q3 = (SoftmaxKernel(np.full((2, 3), x), np.eye(4, 3)) for x in (1.0, 2.0))


@pytest.mark.parametrize(
    ("work", "error", "text"),
    [
        (lambda: mk.path_length(P3, Q3, tol=2), ValueRangeError, r"tol: expected a number in \(0, 1\)"),
        (
            lambda: mk.path_length(P3, Q3[[0]]),
            ShapeError,
            r"Q: expected the contexts, tokens and width of P, \(2, 4, 3\)",
        ),
        (lambda: mk.path_length(P3, mk.Kernel(np.eye(2))), DTypeError, "expected a SoftmaxKernel"),  # type: ignore[arg-type]
        (
            lambda: mk.path_length(P3, SoftmaxKernel(Q3.hidden, 2 * Q3.head)),
            ValueRangeError,
            "Q: expected the head of P",
        ),
        (
            lambda: mk.path_length(P3, SoftmaxKernel(Q3.hidden, Q3.head, temperature=2)),
            ValueRangeError,
            "the head of P",
        ),
    ],
)
def test_errors_say_what_to_do(work: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        work()


def test_no_paths_at_all() -> None:
    found = mk.path_length(P3[[]], Q3[[]])
    assert found.length.shape == found.distance.shape == (0,)
    assert repr(found) == "PathLength(0 paths)"
    assert "2 paths: mean length" in repr(mk.path_length(P3, Q3))
