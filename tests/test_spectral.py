"""eigsh against NumPy's dense solver: nothing wrong and nothing missing under "converged", bounds that hold."""

from __future__ import annotations

import math
import os
import signal
import threading
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, aslinearoperator

import markovlm as mk
from markovlm.errors import ConvergenceError, DTypeError, ShapeError, ValueRangeError

pytestmark = pytest.mark.usefixtures("core")

EPS = 2.0**-52
RANDOM_SPECTRA = int(os.environ.get("MARKOVLM_RANDOM_SPECTRA", "400"))  # over all builds
Array = NDArray[np.float64]


def with_spectrum(rng: np.random.Generator, eigenvalues: Array) -> Array:
    """A dense symmetric matrix."""
    Q = np.linalg.qr(rng.standard_normal((len(eigenvalues), len(eigenvalues))))[0]
    M: Array = (Q * eigenvalues) @ Q.T
    return (M + M.T) / 2


def rounding(M: Array) -> float:
    """Of a dense eigenvalue, a residual, or a product with M: n terms, and what eigsh allows for itself."""
    return (4 * len(M) + 16 * math.sqrt(len(M))) * EPS * float(np.linalg.norm(M, 2))


def assert_right(s: mk.Spectrum, M: Array, k: int, tol: float = 1e-6) -> None:
    exact = np.linalg.eigvalsh(M)[::-1]
    norm, slack = float(np.max(np.abs(exact))), rounding(M)
    U, values = s.eigenvectors, s.eigenvalues
    assert s.converged
    assert U.shape == (len(M), k)
    assert values.shape == s.residual_norms.shape == s.lower.shape == s.upper.shape == (k,)
    assert np.all(np.diff(values) <= 0)
    # ‖R‖ <= √k tol ‖M‖ (Weyl), and as much again as the check may leave above the least of them, twice
    np.testing.assert_allclose(values, exact[:k], rtol=0, atol=(np.sqrt(k) + 2) * tol * norm + 2 * slack)
    assert np.all(s.lower - slack <= exact[:k])
    assert np.all(exact[:k] <= s.upper + slack)
    assert np.all(s.upper - s.lower <= 2 * ((np.sqrt(k) + 2) * tol * norm + slack))
    assert np.all(s.residual_norms <= tol * norm + slack)
    scale = norm or 1.0  # squares neither overflow nor vanish
    true = scale * np.linalg.norm((M @ U - U * values) / scale, axis=0)
    np.testing.assert_allclose(s.residual_norms, true, rtol=0, atol=slack)
    # one reorthogonalisation, and a rotation by the eigenvectors of a k by k matrix, orthonormal to a multiple of k ε
    assert np.linalg.norm(U.T @ U - np.eye(k), 2) <= 16 * EPS * np.sqrt(k) + 2 * k * EPS
    if k < len(M):
        assert exact[k] <= s.rest + slack
    assert 0 < s.norm <= norm + slack or norm <= slack


n = 150
LINE = np.linspace(-1.0, 1.0, n)
HARD: dict[str, tuple[Array, int, dict[str, Any]]] = {
    "line": (LINE, 8, {}),
    "multiplicity above the block": (np.repeat([2.0, 1.0, 0.5, -3.0], [25, 25, 50, 50]), 40, {}),
    "multiplicity far above a narrow block": (np.repeat([2.0, 1.9, 0.0], [20, 20, 110]), 30, {"block_size": 2}),
    "all the same": (np.full(n, -0.7), 5, {}),
    "cluster": (np.concatenate([1 + 1e-8 * np.arange(12), np.linspace(0, 0.9, n - 12)]), 9, {}),
    "cluster, resolved": (np.concatenate([1 + 1e-8 * np.arange(12), np.linspace(0, 0.9, n - 12)]), 12, {"tol": 1e-12}),
    "cut through a cluster": (np.concatenate([1 + 1e-4 * np.arange(20), LINE[: n - 20]]), 10, {"block_size": 3}),
    "rank below k": (np.concatenate([[5.0, 4.0, 3.0], np.zeros(n - 3)]), 9, {}),
    "zero": (np.zeros(n), 4, {}),
    "one dominant": (np.concatenate([[1e8], LINE[1:]]), 6, {"tol": 1e-11}),
    "dominant and negative": (np.concatenate([[-1e4], LINE[1:]]), 6, {"tol": 1e-9}),
    "all negative": (-1.0 / np.arange(1, n + 1), 6, {}),
    "half of them": (LINE, n // 2, {}),
    "more than half": (LINE, n // 2 + 1, {}),
    "all": (LINE, n, {}),
    "one": (LINE, 1, {"block_size": 1}),
    "block of all": (LINE, 3, {"block_size": n}),
    "small": (np.array([2.0, 2.0, 1.0, -1.0]), 3, {}),
    "smaller than a block": (np.array([1.0, -5.0]), 1, {}),
    "one by one": (np.array([-4.0]), 1, {}),
    "huge": (1e200 * LINE, 5, {}),
    "tiny": (1e-200 * LINE, 5, {}),
    "geometric": (0.5 ** np.arange(n, dtype=np.float64), 12, {"tol": 1e-10}),
}


@pytest.mark.parametrize("name", HARD)
def test_hard_spectra(name: str) -> None:
    eigenvalues, k, options = HARD[name]
    M = with_spectrum(np.random.default_rng(0), eigenvalues)
    assert_right(mk.eigsh(M, k, **options), M, k, options.get("tol", 1e-6))


def random_spectrum(rng: np.random.Generator) -> tuple[Array, int, int, float]:
    """Eigenvalues with clusters, multiplicities, gaps and negative parts; k, block size, tol."""
    size = int(rng.integers(65, 140)) if rng.random() < 0.9 else int(rng.integers(300, 900))
    k = int(rng.integers(1, size // 2 + 1)) if rng.random() < 0.3 else int(rng.integers(1, 16))
    kind = rng.integers(6)
    if kind == 0:
        values = rng.standard_normal(size)
    elif kind == 1:  # few different ones
        values = rng.choice(rng.standard_normal(int(rng.integers(1, 9))), size)
    elif kind == 2:  # clusters of all widths
        values = rng.choice(rng.standard_normal(12), size) + 10.0 ** rng.uniform(-12, -2) * rng.standard_normal(size)
    elif kind == 3:  # decay, as of similarities
        values = np.arange(1.0, size + 1) ** -rng.uniform(0.3, 4)
    elif kind == 4:  # many zeros
        values = np.where(rng.random(size) < 0.8, 0.0, rng.standard_normal(size))
    else:  # some far out, on either side
        values = rng.standard_normal(size)
        values[: int(rng.integers(1, 5))] *= 10.0 ** rng.uniform(0, 4)
    if rng.random() < 0.2:  # a multiple eigenvalue at the top
        values[: int(rng.integers(2, 40))] = values.max() + abs(rng.standard_normal()) * rng.choice([1e-3, 1.0])
    return values, k, int(rng.integers(1, 13)), float(10.0 ** rng.uniform(-12, -3))


@pytest.mark.parametrize("part", range(4))
def test_random_spectra(core: Any, part: int) -> None:
    builds = mk.build_info()["available"]  # each has spectra of its own
    place, parts = 4 * builds.index(core.__name__.rpartition("_core_")[2]) + part, 4 * len(builds)
    for seed in range(place * RANDOM_SPECTRA // parts, (place + 1) * RANDOM_SPECTRA // parts):
        rng = np.random.default_rng(seed)
        values, k, block_size, tol = random_spectrum(rng)
        M = with_spectrum(rng, values)
        try:
            assert_right(mk.eigsh(M, k, tol, block_size, seed=seed), M, k, tol)
        except (AssertionError, ConvergenceError) as error:
            pytest.fail(f"spectrum of seed {seed} (k={k}, block_size={block_size}, tol={tol:.1e}): {error}")


def test_the_check_finds_what_was_missed() -> None:
    """A block of two sees two of each; every other is found by a fresh block, and is there in the end."""
    M = sparse.diags_array(np.repeat([3.0, 2.0, 1.0], [9, 9, 400]))
    s = mk.eigsh(M, 18, block_size=2)
    assert s.num_missed > 0
    np.testing.assert_allclose(s.eigenvalues, np.repeat([3.0, 2.0], 9), rtol=0, atol=1e-12)
    assert s.missed_check.startswith("passed")
    assert s.rest == pytest.approx(1.0, abs=0.1)


def dense_case(size: int = 120) -> Array:
    rng = np.random.default_rng(5)
    return with_spectrum(rng, rng.standard_normal(size))


class OnlyApply:
    def __init__(self, matrix: Array) -> None:
        self.shape, self.matrix = matrix.shape, matrix

    def apply(self, X: Array) -> Array:
        return self.matrix @ X


@pytest.mark.parametrize(
    "kind", ["numpy", "float32", "sparse", "matrix", "operator", "matvec", "apply", "torch", "torch float32"]
)
def test_operators_of_all_kinds(kind: str) -> None:
    M = dense_case()
    given: Any = M
    if kind == "float32":
        given = M.astype(np.float32)
        M = given.astype(float)
    elif kind == "sparse":
        given = sparse.csr_array(M)
    elif kind == "matrix":
        given = sparse.csc_matrix(M)
    elif kind == "operator":
        given = aslinearoperator(M)
    elif kind == "matvec":
        given = LinearOperator(M.shape, matvec=lambda x: M @ x, dtype=M.dtype)
    elif kind == "apply":
        given = OnlyApply(M)
    elif kind.startswith("torch"):
        torch = pytest.importorskip("torch", reason="multiplies a tensor")
        given = torch.from_numpy(M)
        if kind.endswith("32"):
            given = given.float()
            M = given.double().numpy()
    assert_right(mk.eigsh(given, 4), M, 4)


def test_products_in_float32() -> None:
    """Their noise is no asymmetry, and tolerances above it are reached."""
    M = dense_case().astype(np.float32)

    class Operator:
        shape, dtype = M.shape, M.dtype

        def __matmul__(self, X: Array) -> Any:
            return M @ X.astype(np.float32)

    s = mk.eigsh(Operator(), 4, 1e-5)
    exact = np.linalg.eigvalsh(M.astype(float))[::-1][:4]
    noise = 2.0**-24 * np.linalg.norm(M, "fro") * np.sqrt(len(M))
    assert np.all(np.abs(s.eigenvalues - exact) <= s.upper - s.eigenvalues + noise)
    with pytest.raises(ConvergenceError, match="rounding of M may not allow") as caught:
        mk.eigsh(Operator(), 4, 1e-12)
    partial = caught.value.partial
    assert isinstance(partial, mk.Spectrum)
    assert partial.residual_norms.max() < noise


def test_residuals_are_those_of_the_operator() -> None:
    """It is another one in the end: when it is applied to the three wanted vectors."""
    M = dense_case()

    class Operator:
        shape = M.shape

        def __matmul__(self, X: Array) -> Array:
            return M @ X + (1e-3 * np.roll(X, 1, axis=0) if X.shape[1] == 3 else 0.0)

    with pytest.raises(ConvergenceError, match="residuals stay") as caught:
        mk.eigsh(Operator(), 3, block_size=8)
    partial = caught.value.partial
    assert isinstance(partial, mk.Spectrum)
    assert partial.residual_norms.max() > 1e-4


def test_the_same_bits_for_a_seed() -> None:
    M = sparse.diags_array(np.append(np.linspace(-1, 1, 9995), [1.6, 1.8, 2.0, 2.0, 3.0]))  # some blocks of rows
    M = M + sparse.diags_array([np.full(9999, 1e-3), np.full(9999, 1e-3)], offsets=[-1, 1])
    one = mk.eigsh(M, 5, 1e-3, num_threads=1, seed=3)
    for num_threads in (1, 2, 5):
        other = mk.eigsh(M, 5, 1e-3, num_threads=num_threads, seed=3)
        assert one.eigenvectors.tobytes() == other.eigenvectors.tobytes()
        assert one.num_applies == other.num_applies
    different = mk.eigsh(M, 5, 1e-3, num_threads=1, seed=4)
    assert one.eigenvectors.tobytes() != different.eigenvectors.tobytes()
    np.testing.assert_allclose(one.eigenvalues, different.eigenvalues, rtol=0, atol=3e-3)


def test_applies_are_counted() -> None:
    M, seen = dense_case(), list[int]()

    class Operator:
        shape = M.shape

        def __matmul__(self, X: Array) -> Array:
            assert X.flags.c_contiguous
            assert X.flags.writeable
            seen.append(X.shape[1])
            Y = M @ X
            X[:] = np.nan  # the operator's own copy
            return Y

    s = mk.eigsh(Operator(), 3, block_size=5)
    assert_right(s, M, 3)
    assert (s.num_panels, s.num_applies, s.block_size) == (len(seen), sum(seen), 5)
    assert max(seen) <= 5


@pytest.mark.parametrize("size", [40, 200])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_named(bad: float, size: int) -> None:
    class Operator:
        shape = (size, size)
        calls = 0

        def __matmul__(self, X: Array) -> Array:
            self.calls += 1
            Y = np.arange(size)[:, None] * X
            if self.calls == 3:
                Y[7, 2] = bad
            return Y

    operator = Operator()
    with pytest.raises(ValueRangeError, match=rf"M: .* got {bad} at row 7, column 2 of M @ X, call 3"):
        mk.eigsh(operator, 3)
    assert operator.calls == 3


@pytest.mark.parametrize("size", [40, 200])
def test_wrong_shapes(size: int) -> None:
    class Operator:
        shape = (size, size)

        def __matmul__(self, X: Array) -> Array:
            return X[:, 0]

    with pytest.raises(ShapeError, match=rf"M: expected M @ X of shape \({size}, 8\).* got \({size},\)"):
        mk.eigsh(Operator(), 3)
    with pytest.raises(ShapeError, match=r"M: .*got ndarray of shape \(3, 4\)"):
        mk.eigsh(np.ones((3, 4)), 1)
    with pytest.raises(ShapeError, match=r"without \.shape"):
        mk.eigsh([[1.0]], 1)


def test_wrong_types() -> None:
    class Complex:
        shape = (90, 90)

        def __matmul__(self, X: Array) -> Any:
            return 1j * X

    class Nothing:
        shape = (3, 3)

    with pytest.raises(DTypeError, match="real products, got complex128"):
        mk.eigsh(Complex(), 1)
    with pytest.raises(DTypeError, match="real numbers, got complex128"):
        mk.eigsh(np.eye(3, dtype=complex), 1)
    with pytest.raises(DTypeError, match=r"@ or \.apply, got Nothing"):
        mk.eigsh(Nothing(), 1)


@pytest.mark.parametrize("block_size", [1, 8])
@pytest.mark.parametrize("size", [40, 300])
def test_asymmetry_is_measured(size: int, block_size: int) -> None:
    rng = np.random.default_rng(0)
    G = rng.standard_normal((size, size))
    with pytest.raises(ValueRangeError, match=r"‖M − Mᵀ‖ / ‖M‖ of about (1\.[2-9]|[2-9])") as caught:
        mk.eigsh(G, 3, block_size=8)
    assert "symmetrise" in str(caught.value)
    slightly = (G + G.T) / 2 + 1e-2 * G
    with pytest.raises(ValueRangeError, match="symmetric operator"):
        mk.eigsh(slightly, 3, block_size=block_size)
    mk.eigsh((G + G.T) / 2 + 1e-9 * G, 3, block_size=block_size)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"k": 0}, ValueRangeError, "k: "),
        ({"k": 91}, ValueRangeError, r"k: expected an integer in \[1, 90\]"),
        ({"k": 1.0}, DTypeError, "k: "),
        ({"tol": 0.0}, ValueRangeError, "tol: "),
        ({"tol": 1.0}, ValueRangeError, "tol: "),
        ({"tol": float("nan")}, ValueRangeError, "tol: "),
        ({"block_size": 0}, ValueRangeError, "block_size: "),
        ({"block_size": 91}, ValueRangeError, "block_size: "),
        ({"max_applies": 0}, ValueRangeError, "max_applies: "),
        ({"seed": -1}, ValueRangeError, "seed: "),
        ({"num_threads": 0}, ValueRangeError, "num_threads: "),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        mk.eigsh(np.eye(90), **{"k": 2, **arguments})


@pytest.mark.parametrize("max_applies", [1, 8, 60, 150])
def test_applies_that_are_spent_leave_a_partial_result(max_applies: int) -> None:
    M = sparse.diags_array(np.linspace(0, 1, 5000) ** 0.5)
    with pytest.raises(ConvergenceError, match=f"not converged: max_applies = {max_applies} spent") as caught:
        mk.eigsh(M, 10, 1e-10, max_applies=max_applies)
    s = caught.value.partial
    assert isinstance(s, mk.Spectrum)
    assert not s.converged
    assert s.num_applies <= max_applies
    assert len(s.eigenvalues) == min(10, s.num_applies // 8 * 8)
    assert s.missed_check == "not made"
    true = np.linalg.norm(M @ s.eigenvectors - s.eigenvectors * s.eigenvalues, axis=0)
    np.testing.assert_allclose(s.residual_norms, true, rtol=0, atol=1e-13)
    exact = M.diagonal()
    for low, high in zip(s.lower, s.upper, strict=True):
        assert np.any((exact >= low) & (exact <= high)), "no eigenvalue where there should be one"


def test_a_check_that_found_something_and_could_not_go_on_says_so() -> None:
    M = sparse.diags_array(np.repeat([3.0, 2.0, 1.0], [9, 9, 400]))
    statuses = set()
    for max_applies in range(20, mk.eigsh(M, 18, block_size=2).num_applies, 2):
        with pytest.raises(ConvergenceError) as caught:
            mk.eigsh(M, 18, block_size=2, max_applies=max_applies)
        partial = caught.value.partial
        assert isinstance(partial, mk.Spectrum)
        statuses.add(partial.status.partition(":")[0])
    assert statuses == {"not converged", "missed"}


class StopHere(Exception):  # noqa: N818
    pass


def test_progress() -> None:
    M, calls, thread = dense_case(500), list[tuple[int, int]](), threading.get_ident()

    def progress(done: int, total: int) -> None:
        assert threading.get_ident() == thread
        calls.append((done, total))

    s = mk.eigsh(M, 3, progress=progress)
    done = [call[0] for call in calls]
    assert done == sorted(done)
    assert done[-1] == s.num_applies
    assert all(total >= now for now, total in calls)

    def stop(done: int, total: int) -> None:
        raise StopHere

    with pytest.raises(StopHere):
        mk.eigsh(M, 3, progress=stop)


@pytest.mark.parametrize("in_operator", [False, True])
def test_an_interrupt_stops_it(in_operator: bool) -> None:
    calls = 0
    M = dense_case(500)

    class Operator:
        shape = M.shape

        def __matmul__(self, X: Array) -> Array:
            nonlocal calls
            calls += 1
            if in_operator and calls == 2:
                signal.raise_signal(signal.SIGINT)
            return M @ X

    def progress(done: int, total: int) -> None:
        if not in_operator and calls == 2:
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            mk.eigsh(Operator(), 3, progress=progress)
    finally:
        signal.signal(signal.SIGINT, before)
    assert calls == 2


def test_the_normal_operator_of_a_softmax_kernel() -> None:
    """F Fᵀ / n with the factor √P, of the Bhattacharyya similarity: trace 1, the spectrum in [0, 1]."""
    rng = np.random.default_rng(0)
    P = mk.SoftmaxKernel(rng.standard_normal((150, 6)), rng.standard_normal((40, 6)))
    F = np.sqrt(mk.panel_product(P, np.eye(40)))

    class Similarity:
        shape = (40, 40)

        def __matmul__(self, X: Array) -> Array:
            return mk.normal_product(P, X, 0.5)

    s = mk.eigsh(Similarity(), 5, 1e-5)
    exact = np.linalg.eigvalsh(F.T @ F / 150)[::-1][:5]
    np.testing.assert_allclose(s.eigenvalues, exact, rtol=0, atol=1e-5)


def test_repr() -> None:
    s = mk.eigsh(np.diag([2.0, 1.0]), 1)
    assert repr(s) == (
        f"Spectrum(1 eigenvalues, 2 … 2, residuals <= {s.residual_norms[0]:.1e}, 3 applies, "
        "converged: by a dense solver, M applied to the identity)"
    )
