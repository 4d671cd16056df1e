"""Products with a few columns against the explicit matrices, on every build of the core; and their laws."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from markovlm import (
    SoftmaxKernel,
    adjoint_product,
    mean_prediction,
    normal_product,
    panel_product,
    prototypes,
    softmax_stats,
)
from markovlm.typing import FloatArray
from reference import SUM, UNIT, Bounds, assert_within
from softmax_cases import Case, cases

pytestmark = pytest.mark.usefixtures("core")

TINY = np.exp(-87.0)  # probabilities to a power below this are zero in float32
POWERS = st.sampled_from([0.5, 1.0, 0.3, 2.0])
RUN = 96 + 8  # roundings of a sum in float32: of a run of products, and of some runs (panel.cpp)


def matrices(case: Case, power: float) -> tuple[FloatArray, FloatArray]:
    """``P^a`` in float64, and how far the pass may be from it, element by element.

    An element is ``e^{a (z - log Z)}``: off by a times the errors of z, of log Z and of their difference, and by the
    exponential's and a factor's.
    """
    z = reference.kernel_logits(case.P)
    bounds = Bounds(z, case.delta)
    log_p = reference.log_softmax(z)
    exact = np.exp(power * log_p)
    size = np.where(np.isneginf(log_p), 0.0, np.abs(log_p)) + np.abs(reference.log_normalizer(z))[:, None]
    relative = power * (bounds.nll[:, None] + 4 * UNIT * size) + 4 * SUM
    return exact, 2 * exact * relative + TINY


def product_bound(exact: FloatArray, error: FloatArray, columns: FloatArray) -> FloatArray:
    """Of ``exact @ columns``: the elements' errors, the roundings of columns and products, and those of a run."""
    return np.asarray((error + 2 * (RUN + 4) * UNIT * exact) @ np.abs(columns))


@given(case=cases(), power=POWERS, b=st.sampled_from([1, 2, 5, 16, 33]))
def test_all_three_products(case: Case, power: float, b: int) -> None:
    P, rng = case.P, case.rng
    n, V = P.shape
    F, error = matrices(case, power)
    X, Y, w = rng.standard_normal((V, b)), rng.standard_normal((n, b)), rng.random(n) + 0.1
    known = softmax_stats(P).log_normalizer
    applied = panel_product(P, X, power, log_normalizer=known, num_threads=2)
    bound = product_bound(F, error, X)
    assert_within("P X", applied, F @ X, bound)
    adjoint = adjoint_product(P, Y, power, num_threads=2)
    assert_within("P^T Y", adjoint, F.T @ Y, product_bound(F.T, error.T, Y))
    law = w / max(w.sum(), 1e-300)
    normal = normal_product(P, X, power, w, num_threads=2)
    inner = law[:, None] * (F @ X)
    slack = product_bound(F.T, error.T, inner) + (F + error).T @ (law[:, None] * (bound + UNIT * np.abs(F @ X)))
    assert_within("P^T D P X", normal, F.T @ inner, slack)


@given(case=cases())
def test_laws(case: Case) -> None:
    P, rng = case.P, case.rng
    n, V = P.shape
    F, error = matrices(case, 1.0)
    ones = panel_product(P, np.ones((V, 1)))
    assert_within("rows sum to 1", ones, np.ones((n, 1)), product_bound(F, error, np.ones((V, 1))))
    if n == 0:
        return
    mean = adjoint_product(P, np.full((n, 1), 1 / n))[:, 0]
    limit = product_bound(F.T, error.T, np.full((n, 1), 1 / n))[:, 0]
    assert_within("mean prediction", mean, mean_prediction(P), 2 * limit)
    X, Y = rng.standard_normal((V, 2)), rng.standard_normal((n, 2))
    slack = (np.abs(Y) * product_bound(F, error, X)).sum() + (np.abs(X) * product_bound(F.T, error.T, Y)).sum()
    assert abs((Y * panel_product(P, X)).sum() - (adjoint_product(P, Y) * X).sum()) <= slack
    half, half_error = matrices(case, 0.5)
    trace = normal_product(P, np.eye(V, min(V, 4)), 0.5)  # the diagonal of C is the mean prediction
    diagonal = np.diagonal(trace)
    limit = np.diagonal(product_bound(half.T, half_error.T, half[:, :4] / n) * 3 + 1e-30)
    assert_within("diagonal", diagonal, F.mean(axis=0)[: len(diagonal)], limit)


@given(case=cases(max_rows=30))
def test_prototypes(case: Case) -> None:
    P = case.P
    F, error = matrices(case, 1.0)
    G = P.head.astype(np.float64)
    assert_within("prototypes", prototypes(P), F @ G, product_bound(F, error, G))


def test_prototypes_are_gradients_of_the_normaliser() -> None:
    rng = np.random.default_rng(0)
    P = SoftmaxKernel(rng.standard_normal((6, 5)), rng.standard_normal((40, 5)))
    step, direction = 1e-3, rng.standard_normal((6, 5))
    z = [reference.logits(P.hidden + sign * step * direction, P.head) for sign in (1, -1)]
    slope = (reference.log_normalizer(z[0]) - reference.log_normalizer(z[1])) / (2 * step)
    np.testing.assert_allclose((prototypes(P) * direction).sum(axis=1), slope, rtol=1e-4)  # step² and rounding


def kernel(n: int, V: int, d: int, **options: Any) -> SoftmaxKernel:
    rng = np.random.default_rng(0)
    return SoftmaxKernel(rng.standard_normal((n, d)), rng.standard_normal((V, d)) / np.sqrt(d), **options)


@pytest.mark.parametrize(("n", "V", "d", "b"), [(1, 1, 1, 1), (700, 301, 40, 7), (1300, 97, 5, 130)])
def test_same_bits_for_any_number_of_threads(n: int, V: int, d: int, b: int) -> None:
    P, rng = kernel(n, V, d, softcap=3.0), np.random.default_rng(1)
    X, Y = rng.standard_normal((V, b)), rng.standard_normal((n, b))
    runs = [
        (panel_product(P, X, num_threads=t), adjoint_product(P, Y, num_threads=t), normal_product(P, X, num_threads=t))
        for t in (1, 2, 5)
    ]
    for run in runs[1:]:
        for one, other in zip(runs[0], run, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=str)
def test_halves_are_read_where_they_lie(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    P, X = kernel(20, 50, 6), rng.standard_normal((50, 9)).astype(dtype)[:, 1:7]
    Y = rng.standard_normal((20, 3)).astype(dtype)
    np.testing.assert_array_equal(panel_product(P, X), panel_product(P, X.astype(np.float32)))
    np.testing.assert_array_equal(adjoint_product(P, Y), adjoint_product(P, Y.astype(np.float32)))


def test_no_columns_and_no_contexts() -> None:
    P = kernel(4, 9, 3)
    assert panel_product(P, np.ones((9, 0))).shape == (4, 0)
    assert normal_product(P, np.ones((9, 0))).shape == (9, 0)
    assert panel_product(P[:0], np.ones((9, 2))).shape == (0, 2)
    np.testing.assert_array_equal(adjoint_product(P[:0], np.ones((0, 2))), np.zeros((9, 2)))
    np.testing.assert_array_equal(normal_product(P[:0], np.ones((9, 2))), np.zeros((9, 2)))


def test_tokens_that_are_removed_take_no_part() -> None:
    bias = np.array([0.0, -np.inf, 1.0, 0.0])
    P = SoftmaxKernel(np.ones((3, 2)), np.ones((4, 2)), bias)
    X = np.array([[1.0], [3e38], [1.0], [1.0]])
    assert_within("P X", panel_product(P, X), np.ones((3, 1)), np.full((3, 1), 2 * SUM))
    assert adjoint_product(P, np.ones((3, 1)))[1, 0] == 0
    assert normal_product(P, X, 0.5)[1, 0] == 0


def test_errors_do_not_grow_with_rows_or_tokens() -> None:
    P = SoftmaxKernel(np.ones((2, 1)), np.zeros((300_001, 1)))
    one = panel_product(P, np.ones((300_001, 1)))
    assert_within("many tokens", one, np.ones((2, 1)), np.full((2, 1), 2 * (RUN + 20) * UNIT))
    Q = SoftmaxKernel(np.ones((300_001, 1)), np.zeros((2, 1)))
    many = adjoint_product(Q, np.ones((300_001, 1)))
    assert_within("many rows", many, np.full((2, 1), 150_000.5), np.full((2, 1), 300_000 * (RUN + 20) * UNIT))
