"""Products of sparse matrices against SciPy's, on every build of the core: values within a bound, structure exactly."""

from __future__ import annotations

import signal
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import sparse

from markovlm.typing import Progress

UNIT = 2.0**-53
WIDTHS = st.sampled_from([0, 1, 7, 64, 65, 130, 700, 5000, 10**9, 2**31 - 1, 2**31, 2**40])


def columns_of(matrix: Any) -> list[NDArray[Any]]:
    return [matrix.indptr, matrix.indices, matrix.data]


def product(core: Any, A: Any, B: Any, num_threads: int = 1, progress: Progress | None = None) -> Any:
    """As a csr_array that took the arrays as they are; kept canonical."""
    arrays = core.sparse_product(*columns_of(A), *columns_of(B), B.shape[1], num_threads, progress)
    indptr, indices, data = arrays
    C = sparse.csr_array((data, indices, indptr), shape=(A.shape[0], B.shape[1]))
    assert indptr.dtype == indices.dtype
    if C.nnz:
        assert all(map(np.shares_memory, columns_of(C), arrays)), "SciPy converted something"
    starts = np.zeros(C.nnz, bool)
    starts[indptr[:-1][np.diff(indptr) > 0]] = True
    assert np.all((np.diff(indices) > 0) | starts[1:]), "columns do not rise"
    assert np.all(data != 0)
    return C


def random_matrix(rng: np.random.Generator, rows: int, columns: int, per_row: int, integers: bool, wide: bool) -> Any:
    """Rows of random lengths, some empty, some runs without a gap."""
    chosen = []
    for _ in range(rows):
        length = min(int(rng.integers(0, per_row + 1)), columns)
        first = int(rng.integers(0, columns - length + 1))
        run = np.arange(first, first + length)
        spread = np.unique(rng.integers(0, max(1, columns), length))
        chosen.append(run if rng.random() < 0.3 else spread)
    indices = np.concatenate([*chosen, np.zeros(0, int)]).astype(np.int64 if wide else np.int32)
    indptr = np.cumsum([0, *map(len, chosen)]).astype(indices.dtype)
    small = rng.choice([-2.0, -1.0, 1.0, 3.0], len(indices))
    data = small if integers else (1 - rng.random(len(indices))) * 10.0 ** rng.integers(-9, 9, len(indices))
    matrix = sparse.csr_array((rows, columns), dtype=float)
    matrix.indptr, matrix.indices, matrix.data = indptr, indices, data  # the constructor would choose the index type
    return matrix


def narrowed(matrix: Any, kept: NDArray[Any]) -> Any:
    """With these columns alone: SciPy's product takes memory for every column there could be."""
    indices = np.searchsorted(kept, matrix.indices)
    return sparse.csr_array((matrix.data, indices, matrix.indptr), shape=(matrix.shape[0], len(kept)))


def assert_product(C: Any, A: Any, B: Any) -> None:
    """Each side adds k products with k roundings at most, of all that was added; integers are exact."""
    kept = np.unique(B.indices)
    assert np.isin(C.indices, kept).all()
    B, C = narrowed(B, kept), narrowed(C, kept)
    exact = A @ B
    exact.sort_indices()
    exact.eliminate_zeros()
    np.testing.assert_array_equal(C.indptr, exact.indptr)
    np.testing.assert_array_equal(C.indices, exact.indices)
    size, terms = abs(A) @ abs(B), A.astype(bool).astype(float) @ B.astype(bool).astype(float)
    bound = 2 * 1.01 * UNIT * (terms * size)
    error = abs(C - exact)
    assert (error > bound).nnz == 0


@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(0, 40),
    middle=st.integers(0, 40),
    columns=WIDTHS,
    per_row=st.sampled_from([1, 4, 30, 200]),
    integers=st.booleans(),
    wide=st.tuples(st.booleans(), st.booleans()),
    num_threads=st.integers(1, 3),
)
def test_against_scipy(
    core: Any,
    seed: int,
    rows: int,
    middle: int,
    columns: int,
    per_row: int,
    integers: bool,
    wide: tuple[bool, bool],
    num_threads: int,
) -> None:
    rng = np.random.default_rng(seed)
    A = random_matrix(rng, rows, middle, per_row, integers, wide[0])
    B = random_matrix(rng, middle, columns, per_row, integers, wide[1] or columns >= 2**31)
    assert_product(product(core, A, B, num_threads), A, B)


@pytest.mark.parametrize(("rows", "columns", "per_row"), [(3000, 3000, 4), (1000, 1000, 100), (1500, 10**9, 40)])
def test_threads_do_not_matter(core: Any, rows: int, columns: int, per_row: int) -> None:
    """Many blocks, of rows that take very different times, in all of the three ways to add."""
    rng = np.random.default_rng(0)
    A = random_matrix(rng, rows, rows, per_row, False, False)
    A = sparse.vstack([A, np.ones((3, rows)), A], format="csr")
    B = random_matrix(rng, rows, columns, per_row, False, False)
    alone = product(core, A, B)
    assert_product(alone, A, B)
    for num_threads in (2, 3, 8):
        for one, many in zip(columns_of(alone), columns_of(product(core, A, B, num_threads)), strict=True):
            assert one.tobytes() == many.tobytes()


@pytest.mark.parametrize(("rows", "full"), [(30, range(30)), (200, range(150, 200)), (96, [32]), (6400, [50, 150])])
@pytest.mark.parametrize("num_threads", [1, 4])
def test_results_longer_and_shorter_than_foreseen(core: Any, rows: int, full: list[int], num_threads: int) -> None:
    rng = np.random.default_rng(0)
    A = np.zeros((rows, 500))
    A[full] = 1.0
    B = random_matrix(rng, 500, 3000, 100, False, False)
    A = sparse.csr_array(A)
    assert_product(product(core, A, B, num_threads), A, B)


@pytest.mark.parametrize("columns", [3, 10**9, 2**40])
def test_sums_that_are_zero_are_left_out(core: Any, columns: int) -> None:
    """They underflow or cancel; rows of the result become empty; NaN is something."""
    wide = np.int64 if columns > 2**31 else np.int32
    A = sparse.csr_array([[1e-200, 0.0], [1e-200, 1.0], [1.0, -1.0], [np.nan, 0.0]])
    B = sparse.csr_array((2, columns), dtype=float)
    B.indptr, B.indices = np.array([0, 2, 3], wide), np.array([0, columns - 1, columns - 1], wide)
    B.data = np.array([1e-200, 1.0, 1.0])
    indptr, indices, data = core.sparse_product(*columns_of(A), *columns_of(B), columns, 1, None)
    assert indptr.tolist() == [0, 1, 2, 3, 5]
    assert indices.tolist() == [columns - 1, columns - 1, 0, 0, columns - 1]
    np.testing.assert_array_equal(data, [1e-200, 1.0, 1e-200, np.nan, np.nan])
    nothing = core.sparse_product(*columns_of(1e-200 * A[:1]), *columns_of(1e-200 * B), columns, 1, None)
    assert [part.tolist() for part in nothing] == [[0, 0], [], []]


def test_powers_of_a_kernel_stay_stochastic(core: Any) -> None:
    rng = np.random.default_rng(0)
    P = sparse.csr_array(random_matrix(rng, 500, 500, 5, False, False) + sparse.eye_array(500))
    P.data /= np.repeat(P.sum(axis=1), np.diff(P.indptr))
    power, dense = P, P.toarray()
    for step in range(1, 10):  # fills up
        power, dense = product(core, power, P, 2), dense @ P.toarray()
        terms = step * 500
        assert np.max(np.abs(power.toarray() - dense)) <= 2 * terms * UNIT
        assert np.max(np.abs(power.sum(axis=1) - 1)) <= 2 * terms * UNIT
    assert power.nnz > 0.5 * 500**2


@pytest.mark.parametrize("broken", ["indptr", "indices", "data", "type", "columns", "threads"])
def test_memory_is_guarded(core: Any, broken: str) -> None:
    A = sparse.eye_array(3, format="csr")
    indptr, indices, data = columns_of(A)
    arguments: dict[str, Any] = {
        "indptr": (indptr[:-1], indices, data, 3, 1),
        "indices": (indptr, indices[:-1], data, 3, 1),
        "data": (indptr, indices, data[:-1], 3, 1),
        "type": (indptr.astype(np.int64), indices, data, 3, 1),
        "columns": (indptr, indices, data, -1, 1),
        "threads": (indptr, indices, data, 3, 0),
    }
    *b, columns, num_threads = arguments[broken]
    with pytest.raises(ValueError, match=r"expected|differ|fit"):
        core.sparse_product(*columns_of(A), *b, columns, num_threads, None)


class StopHere(Exception):  # noqa: N818
    pass


@pytest.fixture(scope="module")
def long() -> tuple[Any, Any]:
    """Two thousand million products, which take seconds."""
    n, per_row = 200_000, 20
    rng = np.random.default_rng(0)
    indices = np.sort(rng.integers(0, 100, (n, per_row)) + 100 * np.arange(per_row), axis=1).ravel()
    A = sparse.csr_array((np.ones(n * per_row), indices, np.arange(n + 1) * per_row), shape=(n, 2000))
    return A, sparse.csr_array(np.tile([1.0, 0.0], (2000, 500)))


@pytest.mark.parametrize("num_threads", [1, 3])
def test_an_exception_from_progress_stops_it(core: Any, long: tuple[Any, Any], num_threads: int) -> None:
    calls: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        calls.append((done, total))
        raise StopHere

    with pytest.raises(StopHere):
        product(core, *long, num_threads, progress)
    [(done, total)] = calls
    assert done < total == 200_000


def test_an_interrupt_stops_it(core: Any, long: tuple[Any, Any]) -> None:
    calls: list[int] = []

    def progress(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            product(core, *long, 2, progress)
    finally:
        signal.signal(signal.SIGINT, before)
    assert max(calls) < 200_000


def test_progress_rises_to_the_number_of_rows(core: Any, long: tuple[Any, Any]) -> None:
    A, B = long
    calls: list[int] = []
    thread = threading.get_ident()

    def progress(done: int, total: int) -> None:
        assert threading.get_ident() == thread
        assert total == 20_001
        calls.append(done)

    product(core, A[:20_001], B, 2, progress)
    assert calls == sorted(calls)
    assert calls[-1] == 20_001
