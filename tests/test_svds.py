"""svds against NumPy's dense singular values: both faces orthonormal, both equations, bounds that hold."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import aslinearoperator

import markovlm as mk
from markovlm._similarity import ENTRYWISE, KINDS
from markovlm.errors import ConvergenceError, DTypeError, ShapeError, ValueRangeError
from test_spectral import EPS

pytestmark = pytest.mark.usefixtures("core")

Array = NDArray[np.float64]


def with_values(seed: int, n: int, m: int, values: Array) -> Array:
    rng = np.random.default_rng(seed)
    U, V = (np.linalg.qr(rng.standard_normal((size, len(values))))[0] for size in (n, m))
    return np.asarray((U * values) @ V.T)


def assert_right(s: mk.SingularSpectrum, F: Array, k: int, tol: float = 1e-6, unit: float = EPS) -> None:
    """Squares are off by ``tol ‖F‖²`` and rounding; roots by ``min(√δ, δ / σ)``. ``unit``: that of products."""
    n, m = F.shape
    exact, norm = np.linalg.svd(F, compute_uv=False)[:k], float(np.linalg.norm(F, 2))
    rounding = (4 * max(n, m) + 16 * math.sqrt(max(n, m))) * unit * norm  # of F X
    delta = ((math.sqrt(k) + 2) * tol * norm + 2 * rounding) * norm
    assert s.converged
    assert (s.left.shape, s.right.shape) == ((n, k), (m, k))
    assert s.values.shape == s.lower.shape == s.upper.shape == (k,)
    assert s.residual_norms.shape == (k, 2)
    assert np.all(np.diff(s.values) <= 0)
    off = np.minimum(math.sqrt(delta), delta / np.maximum(exact, 1e-300)) + rounding
    assert np.all(np.abs(s.values - exact) <= off)
    slack = np.minimum(math.sqrt(2 * rounding * norm), 2 * rounding * norm / np.maximum(exact, 1e-300)) + rounding
    assert np.all(s.lower - slack <= exact)
    assert np.all(exact <= s.upper + slack)
    for face in (s.left, s.right):
        assert np.linalg.norm(face.T @ face - np.eye(k), 2) <= 32 * EPS * math.sqrt(k * max(n, m))
    true = np.stack(
        [
            np.linalg.norm(F @ s.right - s.values * s.left, axis=0),
            np.linalg.norm(F.T @ s.left - s.values * s.right, axis=0),
        ],
        axis=1,
    )
    np.testing.assert_allclose(s.residual_norms, true, rtol=0, atol=2 * rounding)
    # ‖F Fᵀ u − σ² u‖ <= √k tol ‖F‖² after a rotation of k; F v σ is F Fᵀ u, so that F v is off by that over σ
    assert np.all(np.minimum(*true.T) <= 2 * rounding)
    assert np.all(np.maximum(*true.T) <= off + delta / np.maximum(s.values, max(math.sqrt(delta), 1e-300)) + rounding)


CASES: dict[str, tuple[int, int, Array, int]] = {
    "tall": (200, 90, np.linspace(1, 0.1, 90), 6),
    "wide": (90, 200, np.linspace(1, 0.1, 90), 6),
    "square": (100, 100, 0.8 ** np.arange(100.0), 12),
    "all": (80, 120, np.linspace(2, 0.5, 80), 80),
    "all but one": (120, 80, np.linspace(2, 0.5, 80), 79),
    "multiple": (150, 130, np.repeat([3.0, 2.0, 1.0], [30, 30, 70]), 45),
    "rank below k": (150, 100, np.array([5.0, 4.0, 3.0]), 9),
    "rank one": (100, 150, np.array([1.0]), 3),
    "tiny ones": (100, 100, 10.0 ** -np.arange(0.0, 20.0, 0.5), 20),
    "small": (5, 3, np.array([2.0, 2.0, 1.0]), 3),
    "a row": (1, 70, np.array([2.0]), 1),
    "a column": (70, 1, np.array([2.0]), 1),
    "a number": (1, 1, np.array([2.0]), 1),
    "huge": (80, 90, 1e140 * np.linspace(1, 0.1, 80), 4),
    "minute": (80, 90, 1e-140 * np.linspace(1, 0.1, 80), 4),
}


@pytest.mark.parametrize("tol", [1e-6, 1e-12])
@pytest.mark.parametrize("name", CASES)
def test_against_a_dense_solver(name: str, tol: float) -> None:
    n, m, values, k = CASES[name]
    F = with_values(0, n, m, values)
    assert_right(mk.svds(F, k, tol), F, k, tol)


@pytest.mark.parametrize("shape", [(30, 20), (100, 120), (120, 100)])
def test_the_zero_matrix_has_orthonormal_faces(shape: tuple[int, int]) -> None:
    s = mk.svds(np.zeros(shape), 4)
    assert_right(s, np.zeros(shape), 4)
    np.testing.assert_array_equal(s.values, 0.0)


def test_the_helper_sees_what_is_wrong() -> None:
    F = with_values(1, 80, 90, np.linspace(1, 0.1, 80))
    with pytest.raises(AssertionError):
        assert_right(mk.svds(F * (1 + 1e-4), 3), F, 3)


@pytest.mark.parametrize("kind", ["csr_array", "coo_matrix", "LinearOperator", "torch", "float32"])
@pytest.mark.parametrize("shape", [(90, 140), (140, 90)])
def test_kinds_of_inputs(kind: str, shape: tuple[int, int]) -> None:
    F = with_values(2, *shape, np.linspace(1, 0.1, 90))
    if kind == "torch":
        assert_right(mk.svds(pytest.importorskip("torch", reason="multiplies a tensor").from_numpy(F), 5), F, 5)
    elif kind == "float32":
        narrow = F.astype(np.float32)
        assert_right(mk.svds(narrow, 5), narrow.astype(np.float64), 5)  # multiplied in float64
    else:
        make = {"csr_array": sparse.csr_array, "coo_matrix": sparse.coo_matrix, "LinearOperator": aslinearoperator}
        assert_right(mk.svds(make[kind](F), 5), F, 5)


def test_the_same_seed_gives_the_same() -> None:
    F = with_values(3, 100, 80, np.linspace(1, 0.1, 80))
    first, again = mk.svds(F, 4, seed=9), mk.svds(F, 4, seed=9)
    np.testing.assert_array_equal(first.left, again.left)
    np.testing.assert_array_equal(first.right, again.right)


def kernel() -> mk.SoftmaxKernel:
    rng = np.random.default_rng(4)
    return mk.SoftmaxKernel(
        rng.standard_normal((80, 5)).astype(np.float32), rng.standard_normal((110, 5)).astype(np.float32)
    )


@pytest.mark.parametrize("side", ["contexts", "tokens"])
@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ENTRYWISE])
def test_similarities_from_both_sides(kind: str, centered: bool, side: str) -> None:
    P = kernel()
    weights = np.random.default_rng(5).random(80)
    M = mk.similarity_operator(P, kind, side=side, centered=centered, weights=weights)
    law = weights / weights.sum()
    p = P.matrix
    F = {"bhattacharyya": np.sqrt(p), "expected_likelihood": p, "prototype": p @ P.head.astype(np.float64)}[kind]
    A = np.sqrt(law)[:, None] * (F - law @ F if centered else F)
    # a product with F is off by some 1e-6 of |F| |X| (float32 logits and sums), against what (4 m + …) ε takes it for
    k = min(4, *A.shape)
    s = mk.svds(M, k, 1e-5)
    size = max(A.shape)
    unit = 2e-6 * float(np.linalg.norm(np.abs(F), 2) / np.linalg.norm(A, 2)) / (4 * size + 16 * math.sqrt(size))
    assert_right(s, A, k, 1e-5, unit)
    assert s.spectrum.eigenvectors.shape == (M.shape[0], k)


def test_a_kernel_without_softmax() -> None:
    p = np.random.default_rng(6).dirichlet(np.ones(12), 9)
    s = mk.svds(mk.similarity_operator(mk.Kernel(p), "bhattacharyya"), 3)
    assert_right(s, np.sqrt(p / 9), 3)
    assert s.values[0] <= 1


@pytest.mark.parametrize("shape", [(200, 150), (150, 200)])
def test_a_partial_result(shape: tuple[int, int]) -> None:
    """Its residuals are those of the equations that they are named after: one is large, the other rounding."""
    F = with_values(7, *shape, np.linspace(1, 0.9, 150))
    with pytest.raises(ConvergenceError, match="svds: not converged: max_applies = 64 spent") as caught:
        mk.svds(F, 9, max_applies=64)
    partial = caught.value.partial
    assert isinstance(partial, mk.SingularSpectrum)
    assert not partial.converged
    size = len(partial.values)
    U, V, values = partial.left, partial.right, partial.values
    assert (U.shape, V.shape) == ((shape[0], size), (shape[1], size))
    true = [np.linalg.norm(F @ V - values * U, axis=0), np.linalg.norm(F.T @ U - values * V, axis=0)]
    np.testing.assert_allclose(partial.residual_norms.T, true, rtol=0, atol=16 * 200 * EPS)
    assert true[0 if shape[0] < shape[1] else 1].max() > 1e-4


class NoTranspose:
    shape = (3, 4)

    def __matmul__(self, X: Array) -> Array:
        return np.ones((3, X.shape[1]))


class WrongShape(NoTranspose):
    T = NoTranspose()


@pytest.mark.parametrize(
    ("F", "k", "error", "message"),
    [
        (np.ones(3), 1, ShapeError, r"F: expected something with .shape == \(n, m\), .* of shape \(3,\)"),
        (np.ones((0, 3)), 1, ShapeError, r"F: .* n, m >= 1, got ndarray of shape \(0, 3\)"),
        ("text", 1, ShapeError, r"F: .* got str without .shape"),
        (NoTranspose(), 1, DTypeError, r"F: expected something with @ and .T, got NoTranspose"),
        (WrongShape(), 1, ShapeError, r"F: expected F.T @ X of shape \(4, 3\) for X of shape \(3, 3\), got \(3, 3\)"),
        (1j * np.eye(3), 1, DTypeError, r"F: expected real numbers, got complex128"),
        (np.where(np.eye(3) > 0, np.nan, 1), 1, ValueRangeError, r"F: expected finite products, got nan at row 0"),
        (np.full((3, 3), 1e200), 1, ValueRangeError, r"F: expected finite products, got inf .* scale it"),
        (np.eye(3), 4, ValueRangeError, r"k: expected an integer in \[1, 3\]"),
        (np.eye(3), 0, ValueRangeError, r"k: expected an integer in \[1, 3\]"),
    ],
)
def test_errors(F: Any, k: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mk.svds(F, k)


def test_similarities_without_a_factor_are_named() -> None:
    P = kernel()
    entrywise, both = (mk.similarity_operator(P, kind) for kind in ("hellinger_gaussian", "bhattacharyya"))
    for M in (entrywise, both + both):
        with pytest.raises(ValueRangeError, match="F: expected a similarity operator with a factor, got"):
            mk.svds(M, 2)


def test_repr() -> None:
    assert repr(mk.svds(np.eye(3), 2)).startswith("SingularSpectrum(2 singular values, 1 … 1, residuals <= ")
