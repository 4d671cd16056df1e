"""eigsh of pencils ``A v = λ B v`` against SciPy's dense solver: all in the sense of B."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import linalg, sparse
from scipy.sparse.linalg import aslinearoperator

import markovlm as mk
from markovlm.errors import ConvergenceError, DTypeError, ShapeError, ValueRangeError
from test_spectral import EPS, LINE, with_spectrum

pytestmark = pytest.mark.usefixtures("core")

Array = NDArray[np.float64]

n = 150


def pencil(seed: int, condition: float) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return with_spectrum(rng, rng.standard_normal(n)), with_spectrum(rng, np.geomspace(0.1, 0.1 * condition, n))


def assert_right(s: mk.Spectrum, A: Array, B: Array, tol: float) -> None:
    """``C = L⁻¹ A L⁻ᵀ`` is off by rounding of two triangular solves and of L: ``O(n) ε cond(B) ‖C‖``."""
    k = len(s.eigenvalues)
    root = np.linalg.cholesky(B)
    C = linalg.solve_triangular(root, linalg.solve_triangular(root, A, lower=True).T, lower=True)
    exact, norm = linalg.eigvalsh(A, B)[::-1], float(np.linalg.norm(C, 2))
    slack = 8 * n * EPS * float(np.linalg.cond(B)) * norm
    assert s.converged
    np.testing.assert_allclose(s.eigenvalues, exact[:k], rtol=0, atol=(math.sqrt(k) + 2) * tol * norm + slack)
    assert np.all(s.lower - slack <= exact[:k])
    assert np.all(exact[:k] <= s.upper + slack)
    V = s.eigenvectors
    assert np.abs(V.T @ B @ V - np.eye(k)).max() <= 8 * n * EPS * float(np.linalg.cond(B))
    residual = linalg.solve_triangular(root, A @ V - s.eigenvalues * (B @ V), lower=True)
    np.testing.assert_allclose(s.residual_norms, np.linalg.norm(residual, axis=0), rtol=0, atol=slack)
    assert np.all(s.residual_norms <= tol * norm + slack)


@pytest.mark.parametrize("condition", [1.0, 1e2, 1e6])
@pytest.mark.parametrize("k", [1, 6, 100])
def test_against_a_dense_solver(k: int, condition: float) -> None:
    A, B = pencil(k, condition)
    assert_right(mk.eigsh(A, k, 1e-8, B=B), A, B, 1e-8)


@pytest.mark.parametrize("size", [1, 2, 40])
def test_small_pencils(size: int) -> None:
    A, B = (M[:size, :size] for M in pencil(size, 10))
    assert_right(mk.eigsh(A, size, B=B), A, B, 1e-6)


@pytest.mark.parametrize("kind", ["sparse", "LinearOperator", "apply", "torch"])
def test_kinds_of_operators(kind: str) -> None:
    A, B = pencil(2, 50)
    operators: dict[str, Any] = {
        "sparse": sparse.csr_array(A),
        "LinearOperator": aslinearoperator(A),
        "apply": type("Applied", (), {"shape": A.shape, "apply": lambda self, X: A @ X})(),
    }
    if kind == "torch":
        torch = pytest.importorskip("torch", reason="multiplies a tensor")
        assert_right(mk.eigsh(torch.from_numpy(A), 5, B=torch.from_numpy(B)), A, B, 1e-6)
    else:
        assert_right(mk.eigsh(operators[kind], 5, B=B), A, B, 1e-6)


def test_multiple_eigenvalues_are_all_found() -> None:
    """``A = B Σ λ v vᵀ B`` has the eigenvalues λ with B-orthonormal v: here 20 of each."""
    B = pencil(3, 20)[1]
    root = np.linalg.cholesky(B)
    A = root @ with_spectrum(np.random.default_rng(3), np.repeat([2.0, 1.0, -1.0], [20, 20, 110])) @ root.T
    assert_right(mk.eigsh((A + A.T) / 2, 30, block_size=4, B=B), A, B, 1e-6)


def test_the_identity_changes_nothing() -> None:
    A = with_spectrum(np.random.default_rng(4), LINE)
    plain, same = mk.eigsh(A, 5), mk.eigsh(A, 5, B=np.eye(n))
    np.testing.assert_array_equal(plain.eigenvalues, same.eigenvalues)
    np.testing.assert_array_equal(plain.eigenvectors, same.eigenvectors)


def test_a_partial_result_is_in_the_sense_of_b_too() -> None:
    A, B = pencil(5, 10)
    with pytest.raises(ConvergenceError) as caught:
        mk.eigsh(A, 20, 1e-12, B=B, max_applies=60)
    V = caught.value.partial.eigenvectors  # type: ignore[attr-defined]
    assert V.shape[1]
    assert np.abs(V.T @ B @ V - np.eye(V.shape[1])).max() <= 8 * n * EPS * 10


def test_a_similarity_against_the_covariance_of_states() -> None:
    """Theory §11: the pencil of ``Hᵀ M H`` and ``Hᵀ H`` has the Ritz values of M on functions linear in states."""
    rng = np.random.default_rng(6)
    H, W = rng.standard_normal((90, 7)), rng.standard_normal((40, 7))
    M = mk.similarity_operator(mk.SoftmaxKernel(H.astype(np.float32), W.astype(np.float32)), "bhattacharyya")
    A = H.T @ (M @ H)
    found = mk.eigsh((A + A.T) / 2, 7, B=H.T @ H)
    U = np.linalg.qr(H)[0]
    ritz = np.linalg.eigvalsh(U.T @ (M @ U))[::-1]
    cond = float(np.linalg.cond(H)) ** 2
    np.testing.assert_allclose(found.eigenvalues, ritz, rtol=0, atol=2e-6 * cond)  # entries of M X are off by 1e-6


B4 = np.diag([1.0, 2.0, 3.0, 4.0])


@pytest.mark.parametrize(
    ("B", "error", "message"),
    [
        (np.eye(3), ShapeError, r"B: expected a dense matrix of shape \(4, 4\), as M has, got \(3, 3\)"),
        (np.ones(4), ShapeError, r"B: expected a dense matrix of shape \(4, 4\)"),
        (sparse.eye_array(4), DTypeError, r"B: expected an array of numbers, got dia_array"),
        (B4 * 1j, DTypeError, r"B: expected real numbers, got complex128"),
        (B4 > 0, DTypeError, r"B: expected real numbers, got bool"),
        (np.where(B4 == 3, np.nan, B4), ValueRangeError, r"B: expected finite values, got nan at row 2, column 2"),
        (np.where(B4 == 3, np.inf, B4), ValueRangeError, r"B: expected finite values, got inf at row 2, column 2"),
        (B4 + np.eye(4, k=1), ValueRangeError, r"B: expected a symmetric matrix, .* by 1.0e\+00, .* is 4.0e\+00"),
        (B4 - 2 * np.eye(4), ValueRangeError, r"B: .* positive definite .* smallest eigenvalue is -1; add"),
        (np.zeros((4, 4)), ValueRangeError, r"B: .* positive definite .* smallest eigenvalue is 0;"),
        (np.diag([1, 1, 1, 1e-11]), ValueRangeError, r"B: .* below tol / ε = 4.5e\+09, got 1.0e\+11"),
    ],
)
def test_errors(B: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mk.eigsh(np.eye(4), 2, B=B)


def test_a_looser_tolerance_allows_a_worse_condition() -> None:
    assert mk.eigsh(np.eye(4), 1, 1e-3, B=np.diag([1, 1, 1, 1e-11])).eigenvalues[0] == pytest.approx(1e11)


def test_single_precision_and_integers_are_symmetric_enough() -> None:
    A, B = pencil(7, 10)
    G = np.linalg.cholesky(B).astype(np.float32)
    narrow = (G @ G.T).astype(np.float32)
    assert_right(mk.eigsh(A, 4, B=narrow), A, (narrow.astype(np.float64) + narrow.T.astype(np.float64)) / 2, 1e-6)
    assert mk.eigsh(np.eye(2), 1, B=[[2, 0], [0, 4]]).eigenvalues[0] == pytest.approx(0.5, rel=8 * EPS)
