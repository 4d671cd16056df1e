"""Similarity operators against matrices formed by definition: all kinds and sides go through one suite."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.sparse.linalg import eigsh

import markovlm as mk
from markovlm import _factors
from markovlm._panels import product
from markovlm._similarity import KINDS
from markovlm.errors import DTypeError, ShapeError, ValueRangeError
from markovlm.typing import ArrayInput
from reference import UNIT, assert_within
from similarity_cases import DOUBLE, ENTRYWISE, FACTORISED, Subject, softmax_kernel, subjects
from softmax_cases import Case
from test_panels import RUN

pytestmark = pytest.mark.usefixtures("core")


class TestConformance:
    """What every operator does, whatever it is of."""

    @given(subject=subjects(), b=st.sampled_from([1, 2, 5, 17]))
    def test_products(self, subject: Subject, b: int) -> None:
        X = subject.columns(b)
        got, exact = subject.M @ X, subject.exact()
        assert got.shape == X.shape
        assert got.dtype == subject.M.dtype == np.float64
        assert subject.M.shape == exact.shape
        assert_within("M X", got, exact @ X, subject.error(X))
        single = subject.M @ X[:, 0]
        assert single.shape == X.shape[:1]
        columns = np.column_stack([single, *(subject.M @ column for column in X.T[1:])])
        assert_within("column by column", columns, got, 2 * subject.error(X))

    @given(subject=subjects())
    def test_formed_by_definition(self, subject: Subject) -> None:
        exact, size = subject.exact(), len(subject.p)
        relative = 8 * float(subject.float64_error.max()) + 64 * sum(subject.p.shape) * DOUBLE
        scale = np.abs(subject.factor.F).max() ** 2 * sum(subject.p.shape) if subject.kind == "prototype" else 1.0
        bound = relative * scale * (1 + subject.beta * np.log(2 + subject.p.shape[1])) * (1 + 2 * size)
        assert_within("dense", subject.M.dense(), exact, np.full(exact.shape, bound))

    @given(subject=subjects())
    def test_symmetric_and_positive_semidefinite(self, subject: Subject) -> None:
        X, Y = subject.columns(2), subject.columns(2)
        of_X, of_Y = subject.M @ X, subject.M @ Y
        slack = np.abs(Y).T @ subject.error(X) + subject.error(Y).T @ np.abs(X)
        assert_within("symmetric", Y.T @ of_X, of_Y.T @ X, slack + 64 * len(X) * DOUBLE * np.abs(Y).T @ np.abs(of_X))
        quadratic = np.einsum("ij,ij->j", X, of_X)
        room = np.einsum("ij,ij->j", np.abs(X), subject.error(X) + 64 * len(X) * DOUBLE * np.abs(of_X))
        assert np.all(quadratic >= -room)

    @given(subject=subjects())
    def test_diagonal_and_trace(self, subject: Subject) -> None:
        exact, bound = np.diagonal(subject.exact()), subject.diagonal_error()
        assert_within("diagonal", subject.M.diagonal(), exact, bound + 1e-300)
        if subject.side == "contexts":
            assert_within("trace", np.array(subject.M.trace), exact.sum(), bound.sum() + subject.projection_slack())
        else:  # by the sums of squares of rows
            other = subject.other_face()
            bound = other.diagonal_error().sum() + other.projection_slack() + subject.mean_square_error
            assert_within("trace", np.array(subject.M.trace), exact.sum(), bound)

    @given(subject=subjects(FACTORISED, sides=("contexts",)))
    def test_both_faces_have_the_same_eigenvalues(self, subject: Subject) -> None:
        other = subject.other_face()
        values, slack = [], 0.0
        for one in (subject, other):
            unit = np.eye(one.M.shape[0])
            formed = one.M @ unit
            values.append(np.linalg.eigvalsh((formed + formed.T) / 2)[::-1])
            slack += float(np.linalg.norm(one.error(unit))) + 64 * len(unit) * DOUBLE * float(np.abs(values[-1]).max())
        rank = min(map(len, values))  # by Weyl's inequality
        assert np.abs(values[0][:rank] - values[1][:rank]).max() <= slack
        for rest in values:
            assert np.abs(rest[rank:]).max(initial=0.0) <= slack

    @given(subject=subjects(("bhattacharyya",)))
    def test_bhattacharyya_spectrum_lies_between_zero_and_one(self, subject: Subject) -> None:
        unit = np.eye(subject.M.shape[0])
        formed = subject.M @ unit
        slack = float(np.linalg.norm(subject.error(unit))) + 64 * len(unit) * DOUBLE
        values = np.linalg.eigvalsh((formed + formed.T) / 2)
        assert values.min() >= -slack
        assert values.max() <= 1 + slack
        if not subject.centered:
            assert abs(subject.M.trace - 1) <= sum(subject.p.shape) * 2 * DOUBLE
        assert subject.M.trace <= 1 + subject.p.shape[0] * 2 * DOUBLE + slack

    @given(subject=subjects(sides=("contexts",), centered=True))
    def test_centered_ones_know_no_constants(self, subject: Subject) -> None:
        largest = np.diagonal(subject.similarity()).max()
        of_constant = subject.M @ subject.root
        assert np.abs(of_constant).max() <= 64 * len(of_constant) * DOUBLE * largest
        X = subject.columns(3)
        assert np.abs(subject.root.T @ (subject.M @ X)).max() <= 64 * len(X) * DOUBLE * largest * np.abs(X).sum()

    @given(subject=subjects())
    def test_contexts_without_weight_take_no_part(self, subject: Subject) -> None:
        counted = np.flatnonzero(subject.law > 0)
        case = subject.case and Case(subject.case.P[counted], subject.case.delta[counted], subject.rng)
        weights = {"weights": subject.law[counted]}
        P = subject.P[counted] if case is None else case.P
        part = replace(subject, P=P, case=case, options={**subject.options, **weights})
        X = subject.columns(2)
        got = subject.M @ X
        kept = counted if subject.side == "contexts" else np.arange(len(X))
        assert_within("M X", got[kept], part.M @ X[kept], 2 * subject.error(X)[kept] + 2 * part.error(X[kept]))
        if subject.side == "contexts":
            assert np.all(np.delete(got, counted, axis=0) == 0)

    @given(subject=subjects())
    def test_sums_and_multiples(self, subject: Subject) -> None:
        M, X = subject.M, subject.columns(3)
        kind = "prototype" if subject.kind == "prototype" else "expected_likelihood"
        other = mk.similarity_operator(subject.P, kind, side=subject.side)
        mixed = 0.5 * (M + np.float64(3.0) * other) - other
        assert mixed.shape == M.shape
        of_M, of_other = M @ X, other @ X
        np.testing.assert_array_equal(mixed @ X, 0.5 * of_M + 1.5 * of_other - of_other)
        np.testing.assert_array_equal((-M) @ X, -of_M)
        np.testing.assert_array_equal((2 * M).diagonal(), 2 * M.diagonal())
        assert (2 * M).trace == 2 * M.trace
        np.testing.assert_array_equal((2 * M).dense(), 2 * M.dense())

    @given(subject=subjects(max_rows=30))
    def test_scipy_finds_the_largest_eigenvalue(self, subject: Subject) -> None:
        size = subject.M.shape[0]
        assume(size > 2)
        largest = float(np.linalg.eigvalsh(subject.exact())[-1])
        room = float(np.linalg.norm(subject.error(np.eye(size))))
        assume(largest > 8 * room)
        v0 = subject.rng.standard_normal(size)
        found = eigsh(subject.M.to_scipy(), k=1, v0=v0, tol=1e-9, return_eigenvectors=False)
        assert abs(found[0] - largest) <= room + 1e-8 * largest

    @given(subject=subjects(max_rows=30), k=st.integers(1, 4))
    def test_eigsh_against_dense_float64(self, subject: Subject, k: int) -> None:
        """Eigenvalues within what M's own error allows (Weyl), and vectors that M, as it should be, leaves alone."""
        exact, size = subject.exact(), subject.M.shape[0]
        values = np.linalg.eigvalsh(exact)[::-1]
        room = float(np.linalg.norm(subject.error(np.eye(size)))) + 64 * size * DOUBLE * abs(values[0])
        tol = 1e-3
        assume(room < tol * values[0] / 8)  # else noise is all there is
        k = min(k, size)
        found = mk.eigsh(subject.M, k, tol)
        slack = (2 * np.sqrt(k) + 2) * (tol * found.norm + room)
        np.testing.assert_allclose(found.eigenvalues, values[:k], rtol=0, atol=slack)
        assert np.all(found.lower - room <= values[:k])
        assert np.all(values[:k] <= found.upper + room)
        residuals = np.linalg.norm(exact @ found.eigenvectors - found.eigenvectors * found.eigenvalues, axis=0)
        assert np.all(np.abs(residuals - found.residual_norms) <= room)

    @given(subject=subjects(max_rows=30), r=st.integers(1, 6))
    def test_eigenvalues_interlace_with_those_of_a_part(self, subject: Subject, r: int) -> None:
        """Ritz values of any r functions are at most the eigenvalues, and at least those of as many from below."""
        size = subject.M.shape[0]
        r = min(r, size)
        U = np.linalg.qr(subject.columns(r))[0]
        products = U.T @ (subject.M @ U)
        ritz = np.linalg.eigvalsh((products + products.T) / 2)[::-1]
        values = np.linalg.eigvalsh(subject.exact())[::-1]
        slack = float(np.linalg.norm(subject.error(U))) + 64 * size * DOUBLE * abs(values[0])
        assert np.all(ritz <= values[:r] + slack)
        assert np.all(ritz >= values[size - r :] - slack)

    @given(subject=subjects(centered=True))
    def test_centering_takes_one_dimension_away(self, subject: Subject) -> None:
        """Of the operator that is not centered, every other eigenvalue lies on either side: λ_{i+1} <= λ'_i <= λ_i."""
        whole = replace(subject, options={**subject.options, "centered": False}).exact()
        of_whole, of_part = (np.linalg.eigvalsh(M)[::-1] for M in (whole, subject.exact()))
        slack = 64 * len(whole) * DOUBLE * abs(of_whole[0])
        assert np.all(of_part <= of_whole + slack)
        if subject.side == "contexts":  # and 0 for the constant function, the least of all
            assert np.all(of_part[:-1] >= of_whole[1:] - slack)

    @given(subject=subjects())
    def test_kept_or_made_anew(self, subject: Subject) -> None:
        rows, pairs, anew = (replace(subject, keeps=keeps) for keeps in ("rows", "pairs", "nothing"))
        X = subject.columns(4)
        if subject.case is not None and subject.kind != "prototype":
            assert ", stored)" in repr(rows.M)
            of_pairs = subject.side == "contexts" and subject.kind in FACTORISED and subject.case.P.hidden.shape[1] > 0
            assert ("pairs stored" in repr(pairs.M)) == of_pairs
            assert "recomputed" in repr(anew.M)
        for other in (pairs, anew):
            assert_within("M X", other.M @ X, rows.M @ X, rows.error(X) + other.error(X))

    @given(subject=subjects())
    def test_columns_of_any_size(self, subject: Subject) -> None:
        X = subject.columns(3)
        powers = np.array([2.0**-300, 1.0, 2.0**300])  # out of the range of float32
        got = subject.M @ (X * powers)
        assert_within("M X", got / powers, subject.M @ X, 2 * subject.error(X))
        assert (subject.M @ np.zeros_like(X)).any() == 0


@pytest.mark.parametrize("side", ["contexts", "tokens"])
@pytest.mark.parametrize("kind", ["bhattacharyya", "expected_likelihood"])
def test_same_bits_for_any_number_of_threads(kind: str, side: str) -> None:
    P = softmax_kernel(300, 201, 7, softcap=3.0)
    X = np.random.default_rng(1).standard_normal((300 if side == "contexts" else 201, 5))
    operators = [
        mk.similarity_operator(P, kind, side=side, centered=True, max_memory=100_000, num_threads=threads)
        for threads in (1, 2, 5)
    ]
    assert "recomputed" in repr(operators[0])
    for M in operators[1:]:
        np.testing.assert_array_equal(M @ X, operators[0] @ X)
        np.testing.assert_array_equal(M.diagonal(), operators[0].diagonal())


@pytest.mark.parametrize("kind", ["bhattacharyya", "expected_likelihood"])
def test_what_is_kept_agrees_with_what_is_made_anew(core: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within rounding: normalisers of what is kept are its own; and after an interrupted product as before."""
    P = softmax_kernel(300, 201, 7, softcap=3.0)
    X = np.random.default_rng(1).standard_normal((300, 5))
    room = _factors.PowerStore.bytes(P)
    kept = mk.similarity_operator(P, kind, max_memory=room)
    anew = mk.similarity_operator(P, kind, max_memory=room - 1)
    assert core.round_trip_bytes(300, 7, 201, 5) < room
    assert "stored" in repr(kept)
    assert "recomputed" in repr(anew)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept.apply(X, progress=stop)
    with pytest.raises(KeyboardInterrupt):
        mk.similarity_operator(P[:50], kind, max_memory=_factors.PowerGram.bytes(P[:50]), progress=stop)
    size = np.abs(anew.dense()) @ np.abs(X)
    expected = anew @ X
    for _ in range(2):
        assert_within("kept", kept @ X, expected, 4 * (RUN + 64) * UNIT * size)
    np.testing.assert_array_equal(kept @ X, mk.similarity_operator(P, kind, max_memory=room, num_threads=3) @ X)
    two_passes = mk.similarity_operator(P, kind, max_memory=core.round_trip_bytes(300, 7, 201, 5) - 1)
    passes = list[bool]()
    monkeypatch.setattr(_factors, "product", lambda *a, **k: passes.append("Y" in k) or product(*a, **k))
    assert_within("two passes", two_passes @ X, expected, 4 * (RUN + 64) * UNIT * size)
    assert passes == [True, False]


@pytest.mark.parametrize(("max_memory", "keeps"), [(None, "contexts, stored"), (2**17, "pairs stored")])
@pytest.mark.parametrize("kind", ["bhattacharyya", "expected_likelihood"])
def test_predictions_that_a_sample_of_tokens_does_not_see(kind: str, max_memory: int | None, keeps: str) -> None:
    """The guess of a normaliser is off by e⁵⁰ where one token is all but certain, and has another chance."""
    V, gaps = 5000, np.array([0.0, 20.0, 50.0, 150.0])
    head = np.zeros((V, 2), np.float32)
    head[1, 0] = 1.0  # every fourth token is looked at, from the first
    head[:, 1] = np.random.default_rng(0).standard_normal(V)
    P = mk.SoftmaxKernel(np.column_stack([gaps, np.ones(4)]), head)
    M = mk.similarity_operator(P, kind, max_memory=max_memory)
    assert keeps in repr(M)
    assert_within("K", M @ np.eye(4), M.dense(), (2 * RUN + 500) * UNIT * M.dense())
    assert_within("diagonal", M.diagonal(), np.diagonal(M.dense()), 500 * UNIT * M.diagonal())


@pytest.mark.parametrize("kind", KINDS)
def test_progress_of_creation_and_of_a_product(kind: str) -> None:
    seen: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        seen.append((done, total))

    M = mk.similarity_operator(softmax_kernel(70, 30, 4), kind, max_memory=60_000, progress=progress)
    assert kind == "jensen_shannon" or seen[-1] == (70, 70)
    seen.clear()
    (M + 2 * M).apply(np.ones((70, 3)), progress=progress)
    done = [now / total for now, total in seen]
    assert done == sorted(done)
    assert kind == "prototype" or done[-1] == 1.0


@pytest.mark.parametrize(("n", "V"), [(60, 40), (120, 400)])  # square roots are kept, or made anew for each tile
@pytest.mark.parametrize("kind", ENTRYWISE)
def test_tiles_of_several_rows(kind: str, n: int, V: int) -> None:
    P = softmax_kernel(n, V, 5)
    M = mk.similarity_operator(P, kind, max_memory=16 * n**2, beta=2.0)
    tiled = mk.similarity_operator(P, kind, max_memory=16 * n**2 - 1, beta=2.0)
    assert 1 < (16 * n**2 - 1) // (48 * V) < n  # rows of a tile
    assert "stored" in repr(M)
    assert "recomputed" in repr(tiled)
    X = np.random.default_rng(1).standard_normal((n, 3))
    largest = 2 * 2.0 * 2 * (RUN + 64) * UNIT  # error of an entry: twice beta times that of BC; over n
    for one in (M, tiled):
        bound = np.broadcast_to(largest / n * np.abs(X).sum(axis=0), X.shape)
        assert_within("M X", one @ X, M.dense() @ X, bound)
    formed = tiled @ np.eye(n)
    np.testing.assert_array_equal(formed, formed.T)
    np.testing.assert_allclose(np.diagonal(formed), 1 / n, rtol=8 * DOUBLE)


def test_errors_of_what_is_kept_do_not_grow_with_tokens_or_contexts() -> None:
    bound = 2 * 2 * (RUN + 64) * UNIT  # relative, of both products
    wide = mk.similarity_operator(mk.SoftmaxKernel(np.ones((2, 1)), np.zeros((300_001, 1))), "bhattacharyya")
    assert "stored" in repr(wide)
    assert_within("many tokens", wide @ np.ones((2, 1)), np.ones((2, 1)), np.full((2, 1), bound))
    pairs = mk.similarity_operator(
        mk.SoftmaxKernel(np.ones((2, 1)), np.zeros((300_001, 1))), "bhattacharyya", max_memory=2**20
    )
    assert "pairs stored" in repr(pairs)
    assert_within("many tokens", pairs @ np.ones((2, 1)), np.ones((2, 1)), np.full((2, 1), bound))
    tall = mk.similarity_operator(mk.SoftmaxKernel(np.ones((300_001, 1)), np.zeros((2, 1))), "bhattacharyya")
    assert "stored" in repr(tall)
    assert_within("many contexts", tall @ np.ones((300_001, 1)), np.ones((300_001, 1)), np.full((300_001, 1), bound))


@pytest.mark.parametrize(
    ("max_memory", "keeps"),
    [(None, "200 x 200 on contexts, stored"), (1_100_000, "pairs stored"), (400_000, "recomputed")],
)
@pytest.mark.parametrize("side", ["contexts", "tokens"])
@pytest.mark.parametrize("kind", ["bhattacharyya", "expected_likelihood"])
def test_accuracy_of_the_documentation(kind: str, side: str, max_memory: int | None, keeps: str) -> None:
    """Some 1e-6 of ``Σ F Fᵀ |X|``: roundings of ``d`` products and some 64 more add up like their square root."""
    d = 48
    P = softmax_kernel(200, 2000, d)
    M = mk.similarity_operator(P, kind, side=side, max_memory=max_memory)
    assert keeps in repr(M) or side == "tokens"
    X = np.random.default_rng(1).standard_normal((M.shape[0], 300))
    assert np.abs((M @ X - M.dense() @ X) / (M.dense() @ np.abs(X))).max() <= np.sqrt(d + 64) * UNIT


@pytest.mark.parametrize("side", ["contexts", "tokens"])
@pytest.mark.parametrize("kind", ["bhattacharyya", "expected_likelihood", "prototype"])
def test_trace_without_the_constant_function(kind: str, side: str) -> None:
    d = 7
    P = softmax_kernel(40, 60, d)
    M = mk.similarity_operator(P, kind, side=side, centered=True)
    whole = mk.similarity_operator(P, kind, side=side).dense().trace()
    assert M.trace < 0.9 * whole
    assert abs(M.trace - M.dense().trace()) <= (d + 64) * UNIT * whole
    assert abs(M.trace - M.diagonal().sum()) <= (d + 64) * UNIT * whole


def test_known_values() -> None:
    k = mk.Kernel(sp.csr_array([[0.5, 0.5, 0.0], [0.25, 0.75, 0.0], [0.0, 0.0, 1.0]]))
    overlap = np.sqrt(1 / 8) + np.sqrt(3 / 8)
    expected = {
        "bhattacharyya": overlap,
        "expected_likelihood": 0.5,
        "hellinger_gaussian": np.exp(-2 * 3.0 * (1 - overlap)),
        "jensen_shannon": np.exp(-3.0 * float(mk.divergence(k[[0]], k[[1]], mk.JensenShannon())[0])),
    }
    apart = {"hellinger_gaussian": np.exp(-6.0), "jensen_shannon": 2.0**-3}  # rows that have nothing in common
    for kind, value in expected.items():
        K = mk.similarity_operator(k, kind, beta=3.0).dense() * 3
        assert abs(K[0, 1] - value) <= 32 * DOUBLE
        assert abs(K[0, 2] - apart.get(kind, 0.0)) <= 32 * DOUBLE
    C = mk.similarity_operator(k, "bhattacharyya", side="tokens", weights=[1.0, 1.0, 2.0])
    np.testing.assert_allclose(C.diagonal(), [3 / 16, 5 / 16, 1 / 2], rtol=8 * DOUBLE)


def test_prototypes_of_tokens_are_the_covariance_of_prototypes() -> None:
    P = softmax_kernel(30, 50, 4)
    M = mk.similarity_operator(P, "prototype", side="tokens", centered=True)
    assert M.shape == (4, 4)
    covariance = np.cov(mk.prototypes(P).T, bias=True)
    np.testing.assert_allclose(M @ np.eye(4), covariance, atol=100 * DOUBLE * np.abs(covariance).max())


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("kind", FACTORISED)
def test_the_other_face_of_an_eigenvector(kind: str, centered: bool) -> None:
    """``Aᵀ A = C``, ``A Aᵀ = M``: each side's vectors lead to the other's, √λ times as long."""
    P = softmax_kernel(9, 12, 3)
    options: dict[str, Any] = {"centered": centered, "weights": np.arange(1.0, 10.0)}
    M = mk.similarity_operator(P, kind, **options)
    C = mk.similarity_operator(P, kind, side="tokens", **options)
    scale, slack = M.trace, 1e-5  # of products in float32, see Notes of similarity_operator
    X = np.random.default_rng(0).standard_normal((9, 3))
    np.testing.assert_allclose(C.other_face(M.other_face(X)), M @ X, atol=slack * scale * np.abs(X).sum())
    values, vectors = np.linalg.eigh(M.dense())
    face = M.other_face(vectors[:, -1])
    np.testing.assert_allclose(np.linalg.norm(face), np.sqrt(values[-1]), rtol=slack)
    np.testing.assert_allclose(C @ face, values[-1] * face, atol=slack * scale * np.sqrt(scale))
    assert C.other_face(face).shape == (9,)
    with pytest.raises(ValueRangeError, match=r"other_face: .* no other side"):
        (M + M).other_face(X)
    with pytest.raises(ValueRangeError, match=r"other_face: .*hellinger_gaussian"):
        mk.similarity_operator(P, "hellinger_gaussian").other_face(X)


def test_errors_of_making_one() -> None:
    P = softmax_kernel(5, 6, 2)
    with pytest.raises(ValueRangeError, match=r"kind: expected one of 'bhattacharyya'.*got 'cosine'"):
        mk.similarity_operator(P, "cosine")
    with pytest.raises(ValueRangeError, match=r"side: expected one of 'contexts', 'tokens', got 'words'"):
        mk.similarity_operator(P, "bhattacharyya", side="words")
    for kind in ENTRYWISE:
        with pytest.raises(ValueRangeError, match=rf"side: .*{kind}.*no factor"):
            mk.similarity_operator(P, kind, side="tokens")
    with pytest.raises(ValueRangeError, match=r"beta"):
        mk.similarity_operator(P, "jensen_shannon", beta=-1.0)
    with pytest.raises(DTypeError, match=r"P: expected a softmax kernel.*prototype"):
        mk.similarity_operator(mk.uniform(3), "prototype")
    with pytest.raises(DTypeError, match=r"P: expected a kernel, got ndarray"):
        mk.similarity_operator(np.eye(2), "bhattacharyya")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"P: expected at least one context"):
        mk.similarity_operator(P[:0], "bhattacharyya")
    with pytest.raises(ShapeError, match=r"weights"):
        mk.similarity_operator(P, "bhattacharyya", weights=[1.0])
    with pytest.raises(ValueRangeError, match=r"max_memory"):
        mk.similarity_operator(P, "bhattacharyya", max_memory=0)
    with pytest.raises(ValueRangeError, match=r"max_memory: expected at least \d+ bytes.*got 1"):
        mk.similarity_operator(P, "hellinger_gaussian", max_memory=1)


@pytest.mark.parametrize("kind", KINDS)
def test_errors_of_applying_it(kind: str) -> None:
    M = mk.similarity_operator(softmax_kernel(5, 6, 2), kind)
    wrong: list[tuple[ArrayInput, type[Exception], str]] = [
        (np.ones(6), ShapeError, r"X: expected shape \(5,\) or \(5, b\).*\(6,\)"),
        (np.ones((5, 1, 1)), ShapeError, "X"),
        (np.array([0, 1, np.nan, 3, 4]), ValueRangeError, "X: expected finite values, got nan at row 2"),
        (np.array([[0, 0]] * 3 + [[0, np.inf]] + [[0, 0]]), ValueRangeError, "X: .*inf at row 3, column 1"),
        (np.ones(5) * 1j, DTypeError, "X: .*complex"),
        (M, DTypeError, "X: .*another operator"),
    ]
    for X, error, message in wrong:
        with pytest.raises(error, match=message):
            M @ X
    with pytest.raises(ShapeError, match=r"M1 \+ M2"):
        M + mk.similarity_operator(softmax_kernel(4, 6, 2), "bhattacharyya")
    with pytest.raises(ShapeError, match=r"M1 \+ M2.*on contexts and.*on tokens"):
        M + mk.similarity_operator(softmax_kernel(5, 5, 2), "bhattacharyya", side="tokens")
    with pytest.raises(TypeError):
        M * "2"
    with pytest.raises(TypeError):
        M + 1  # type: ignore[operator]
    assert (M @ np.ones((5, 0))).shape == (5, 0)
    assert kind in repr(2 * M)
