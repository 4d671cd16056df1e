"""Spectral summaries against dense eigenvalues: intervals that hold as often as they say, bounds for each vector."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import LinearOperator
from scipy.stats import binom

import markovlm as mk
from markovlm import _quadrature
from markovlm._panel_operator import PanelOperator
from markovlm._quadrature import entropy_terms
from markovlm.errors import DTypeError, ShapeError, ValueRangeError
from test_spectral import EPS, rounding, with_spectrum

Array = NDArray[np.float64]

n = 300
i = np.arange(1, n + 1.0)
SPECTRA: dict[str, Array] = {
    "slow decay": i**-0.5,
    "decay": i**-2.0,
    "geometric": 0.9**i,
    "vanishing": 0.3**i,  # most are below rounding
    "clusters": np.repeat([10.0, 1.0, 0.01], [10, 90, 200]),
    "low rank": np.where(i <= 20, 1 / i, 0.0),
    "one and many": np.where(i == 1, 50.0, 1.0),
    "identity": np.ones(n),
    "line": i / n,
}
NAMES = ("effective_rank", "participation", "trace", "frobenius_norm")
SEEDS = 200
FEW: dict[str, int] = {"num_probes": 8, "degree": 10}  # fewer columns than eigenvalues


def exact(eigenvalues: Array) -> dict[str, float]:
    """By definition."""
    total = float(eigenvalues.sum())
    p = eigenvalues[eigenvalues > 0] / total
    return {
        "effective_rank": float(np.exp(-np.sum(p * np.log(p)))),
        "participation": 1 / float(np.sum(p**2)),
        "trace": total,
        "frobenius_norm": float(np.sqrt(np.sum(eigenvalues**2))),
    }


def slack(M: Array) -> float:
    """Relative, of any summary: eigenvalues are off by δ, p log p by no more than −δ log δ (it is concave)."""
    delta = 2 * rounding(M) / float(np.trace(M))
    return 4 * len(M) * delta * (1 - math.log(delta))


def without_trace(M: Array) -> LinearOperator:
    return LinearOperator(M.shape, matvec=lambda x: M @ x, matmat=lambda X: M @ X, dtype=M.dtype)


def covers(estimate: mk.Estimate, value: float, error: float = 0.0) -> bool:
    low, high = estimate.interval
    assert low <= estimate.value <= high
    return low - error <= value <= high + error


def width(estimate: mk.Estimate) -> float:
    return estimate.interval[1] - estimate.interval[0]


def test_the_helper_sees_what_is_not_covered() -> None:
    assert covers(mk.Estimate(1.0, (0.5, 1.5)), 1.5)
    assert not covers(mk.Estimate(1.0, (0.5, 1.5)), 1.6)


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize("name", SPECTRA)
def test_all_eigenvalues_where_columns_suffice(name: str, traced: bool) -> None:
    M = with_spectrum(np.random.default_rng(0), SPECTRA[name])
    s = mk.spectral_summary(M if traced else without_trace(M))
    assert (s.num_applies, s.num_panels) == (n, math.ceil(n / 16))
    for key, value in exact(SPECTRA[name]).items():
        estimate = getattr(s, key)
        assert width(estimate) <= slack(M) * value
        assert estimate.value == pytest.approx(value, rel=slack(M)), key
    largest = SPECTRA[name].max()
    np.testing.assert_allclose(np.sort(s.nodes[:, 0]), np.sort(SPECTRA[name]), rtol=0, atol=rounding(M))
    assert s.spectral_sum(lambda x: x**3).value == pytest.approx(np.sum(SPECTRA[name] ** 3), rel=slack(M))
    edges = largest * np.array([0.0, 0.3713, 2.0])  # at no eigenvalue
    assert [count.value for count in s.counts(edges)] == list(np.histogram(SPECTRA[name], edges)[0])


@pytest.mark.parametrize("mode", ["traced", "not traced", "deflated"])
@pytest.mark.parametrize("name", [name for name in SPECTRA if name != "vanishing"])
def test_intervals_hold_as_often_as_they_say(name: str, mode: str) -> None:
    eigenvalues = SPECTRA[name]
    M = sparse.diags_array(eigenvalues)
    dense = M.toarray()
    spectrum = mk.eigsh(M, 4, tol=1e-10) if mode == "deflated" else None
    edges = np.array([0.0, np.median(eigenvalues) * 1.01 + 0.001, 2 * eigenvalues.max()])
    wanted, allowed = exact(eigenvalues), slack(dense)
    wanted |= {"cubes": float(np.sum(eigenvalues**3)), "count": float(np.histogram(eigenvalues, edges)[0][0])}
    hits = dict.fromkeys(wanted, 0)
    for seed in range(SEEDS):
        operator = without_trace(dense) if mode == "not traced" else M
        s = mk.spectral_summary(operator, **FEW, spectrum=spectrum, seed=seed)
        found = {key: getattr(s, key) for key in NAMES}
        found |= {"cubes": s.spectral_sum(lambda x: x**3), "count": s.counts(edges)[0]}
        for key, value in wanted.items():
            hits[key] += covers(found[key], value, allowed * value)
    least = binom.ppf(1e-4 / 150, SEEDS, 0.95)  # in one of 150 comparisons less often, with probability 1e-4
    assert {key: hit for key, hit in hits.items() if hit < least} == {}


def test_a_lower_level_holds_less_often() -> None:
    """Intervals are not so wide that anything would be inside."""
    hits = sum(
        covers(mk.spectral_summary(sparse.diags_array(1 / i), **FEW, level=0.5, seed=seed).participation, target)
        for target in [exact(1 / i)["participation"]]
        for seed in range(SEEDS)
    )
    assert binom.ppf(1e-4, SEEDS, 0.5) <= hits <= binom.ppf(1 - 1e-4, SEEDS, 0.65)


def test_more_vectors_and_known_pairs_narrow_intervals() -> None:
    M = sparse.diags_array(1 / i)
    few = mk.spectral_summary(M, num_probes=4, degree=10)
    many = mk.spectral_summary(M, num_probes=24, degree=10)
    deflated = mk.spectral_summary(M, num_probes=4, degree=10, spectrum=mk.eigsh(M, 10))
    for key in ("effective_rank", "participation", "frobenius_norm"):
        assert width(getattr(many, key)) < width(getattr(few, key)) / 2, key
        assert width(getattr(deflated, key)) < width(getattr(few, key)) / 4, key
    np.testing.assert_array_equal(deflated.known, mk.eigsh(M, 10).eigenvalues)


@pytest.mark.parametrize("degree", [2, 3, 6, 12])
@pytest.mark.parametrize("name", SPECTRA)
def test_rules_enclose_the_form_of_each_vector(name: str, degree: int) -> None:
    rng = np.random.default_rng(degree)
    M = with_spectrum(rng, SPECTRA[name])
    values, vectors = np.linalg.eigh(M)
    values = np.maximum(values, 0.0)
    X = np.linalg.qr(rng.standard_normal((n, 5)))[0]
    applied = _quadrature._Applied(PanelOperator(M), np.zeros((n, 0)), 5 * degree, None)
    recurrence = _quadrature._recurrence(applied, X, degree)
    masses = (vectors.T @ X).T ** 2 * np.ones((5, n))
    gauss, radau = recurrence.gauss(degree), recurrence.radau(values.max() / applied.unit)
    for rule in (gauss, radau):
        np.testing.assert_allclose(rule.weights.sum(axis=1), 1.0, rtol=0, atol=8 * (degree + 1) * EPS)
    true = masses @ entropy_terms(values / applied.unit)
    low, high = (np.sum(r.weights * entropy_terms(r.clipped().nodes), axis=1) for r in (radau, gauss))
    allowed = slack(M) * float(np.trace(M)) / applied.unit
    assert np.all(low <= true + allowed)
    assert np.all(true <= high + allowed)
    squares = np.sum(gauss.weights * gauss.nodes**2, axis=1) * applied.unit**2
    np.testing.assert_allclose(squares, np.sum((M @ X) ** 2, axis=0), rtol=slack(M))


def test_recurrences_keep_out_of_a_basis() -> None:
    """Of vectors that need not be eigenvectors: rules are those of ``(I − U Uᵀ) M (I − U Uᵀ)``."""
    rng = np.random.default_rng(8)
    M, basis = with_spectrum(rng, SPECTRA["line"]), np.linalg.qr(rng.standard_normal((n, 3)))[0]
    left = np.eye(n) - basis @ basis.T
    X = _quadrature._orthonormal(rng.standard_normal((n, 4)), basis)
    applied = _quadrature._Applied(PanelOperator(M), basis, 12, None)
    rule = _quadrature._recurrence(applied, X, 3).gauss(3)
    for power in range(6):
        true = np.einsum("nj,nj->j", X, np.linalg.matrix_power(left @ M @ left, power) @ X)
        found = np.sum(rule.weights * (applied.unit * rule.nodes) ** power, axis=1)
        np.testing.assert_allclose(found, true, rtol=0, atol=slack(M))


def test_errors_of_quotients_are_those_of_their_parts() -> None:
    """A projection has eigenvalues 0 and 1: its trace, participation and effective rank are its rank, one error."""
    s = mk.spectral_summary(without_trace(np.diag(np.where(i <= 40, 1.0, 0.0))), **FEW)
    relative = width(s.trace) / s.trace.value
    assert relative > 0.1
    for estimate in (s.participation, s.effective_rank):
        assert estimate.value == pytest.approx(s.trace.value, rel=n * EPS)
        assert math.log(estimate.interval[1] / estimate.interval[0]) == pytest.approx(relative, rel=n * EPS)


@pytest.mark.parametrize("traced", [True, False])
def test_intervals_are_as_wide_as_values_vary(traced: bool) -> None:
    M = np.diag(i / n)
    found = [mk.spectral_summary(M if traced else without_trace(M), **FEW, seed=seed) for seed in range(SEEDS)]
    for key in NAMES[:2] if traced else NAMES:
        estimates = [getattr(s, key) for s in found]
        half = np.mean([math.log(e.interval[1] / e.interval[0]) for e in estimates]) / 2
        # a sample deviation of a normal law is off by 1 / √(2 SEEDS) of itself, six times; the rules leave little open
        spread = np.std([math.log(e.value) for e in estimates]) * float(_quadrature.stdtrit(7, 0.975))
        assert spread == pytest.approx(half, rel=6 / math.sqrt(2 * SEEDS)), key


def test_the_error_of_orthonormal_vectors_is_as_derived() -> None:
    """The variance of a mean of forms, over many frames, against that of eigenvalues."""
    size, p, draws = 12, 5, 20_000
    A = np.random.default_rng(1).standard_normal(size) ** 2
    frames = np.linalg.qr(np.random.default_rng(2).standard_normal((draws, size, p)))[0]
    sums = size * np.einsum("dnp,n,dnp->d", frames, A, frames) / p
    rule = _quadrature.Rule(np.tile(A, (p, 1)), np.full((p, size), 1 / size))
    measure = _quadrature.Measure(
        1.0, size, np.zeros(0), None, rule, rule, rule, np.zeros(p, dtype=bool), False, 0.95, 0, 0
    )
    error = measure.total(rule, rule.nodes)[1] / float(_quadrature.stdtrit(p - 1, 0.975))
    # a sample variance of a kurtosis up to 9 is off by √(8 / draws) of itself, six times
    assert np.var(sums) == pytest.approx(error**2, rel=6 * math.sqrt(8 / draws))
    assert np.mean(sums) == pytest.approx(A.sum(), abs=6 * error / math.sqrt(draws))


@pytest.mark.parametrize("name", ["low rank", "identity", "one and many"])
def test_an_invariant_space_ends_a_recurrence(name: str) -> None:
    """Then nothing is left out, and the interval is that of sampling: none for the identity."""
    eigenvalues = np.where(i <= 3, 1 / i, 0.0) if name == "low rank" else SPECTRA[name]
    M = with_spectrum(np.random.default_rng(3), eigenvalues)
    s = mk.spectral_summary(M, **FEW)
    assert s.num_applies < 8 * 10
    assert s._measure.exact.all()
    low, high = (s._measure.total(rule, entropy_terms(rule.nodes))[0] for rule in (s._measure.radau, s._measure.gauss))
    assert high - low <= slack(M) * float(np.trace(M)) / s._measure.unit
    if name != "low rank":  # a constant and one other value: the trace says the rest
        assert width(s.effective_rank) <= slack(M) * s.effective_rank.value
        assert covers(s.effective_rank, exact(eigenvalues)["effective_rank"], slack(M) * n)
    if name == "identity":
        assert s.spectral_sum(np.log).value == pytest.approx(0.0, abs=slack(M) * n)  # nothing is asked of log 0
        (below, at) = s.counts([0.0, 0.5, 1.5])
        assert (below.interval, at.interval) == ((0.0, 0.0), (pytest.approx(n), pytest.approx(n)))


@pytest.mark.parametrize("options", [{}, FEW, {"num_probes": 2, "degree": 2}])
@pytest.mark.parametrize("traced", [True, False])
def test_the_zero_operator(options: dict[str, int], traced: bool) -> None:
    M = np.zeros((n, n))
    s = mk.spectral_summary(M if traced else without_trace(M), **options)
    assert {getattr(s, key).value for key in NAMES} | {width(getattr(s, key)) for key in NAMES} == {0.0}
    assert s.counts([0.0, 1.0])[0].value == n


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_smallest_operators(size: int) -> None:
    M = np.diag(np.arange(1.0, size + 1))
    for spectrum in (None, mk.eigsh(M, 1), mk.eigsh(M, size)):
        s = mk.spectral_summary(M, num_probes=2, degree=2, spectrum=spectrum)
        for key, value in exact(np.diag(M)).items():
            assert getattr(s, key).value == pytest.approx(value, rel=64 * EPS)
            assert width(getattr(s, key)) <= 64 * EPS * value
        assert [count.value for count in s.counts(np.arange(0.5, size + 1))] == [1] * size


def test_a_spectrum_that_covers_everything_needs_no_products() -> None:
    M = with_spectrum(np.random.default_rng(4), SPECTRA["decay"])
    s = mk.spectral_summary(M, spectrum=mk.eigsh(M, n))
    assert (s.num_applies, s.num_panels, s.nodes.size) == (0, 0, 0)
    assert s.effective_rank.value == pytest.approx(exact(SPECTRA["decay"])["effective_rank"], rel=slack(M))
    assert width(s.effective_rank) <= 8 * EPS * s.effective_rank.value


@pytest.mark.parametrize("factor", [1e200, 1e-200])
def test_the_unit_does_not_matter(factor: float) -> None:
    M = np.diag(1 / i)
    plain, scaled = mk.spectral_summary(M, **FEW), mk.spectral_summary(factor * M, **FEW)
    for key in NAMES:
        unit = factor if key in ("trace", "frobenius_norm") else 1.0
        assert getattr(scaled, key).value == pytest.approx(unit * getattr(plain, key).value, rel=slack(M))
    counts = [s.counts([0.0, 0.1 * unit, unit]) for s, unit in ((plain, 1.0), (scaled, factor))]
    assert counts[0][0].value == pytest.approx(counts[1][0].value, rel=slack(M))


def test_the_same_seed_gives_the_same() -> None:
    M = sparse.diags_array(1 / i)
    first, again, other = (mk.spectral_summary(M, **FEW, seed=seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.nodes, again.nodes)
    assert first.effective_rank == again.effective_rank != other.effective_rank
    assert first.trace == other.trace


def test_a_known_rank_limits() -> None:
    M = sparse.diags_array(np.where(i <= 3, 1.0, 0.0))
    assert mk.spectral_summary(M, **FEW).participation.interval[1] > 3
    s = mk.spectral_summary(M, **FEW, rank=3)
    assert s.participation.interval[1] == 3
    assert s.effective_rank.interval[1] == pytest.approx(3, rel=4 * EPS)


def test_counts_add_up() -> None:
    s = mk.spectral_summary(sparse.diags_array(i / n), **FEW, spectrum=mk.eigsh(sparse.diags_array(i / n), 7))
    counts = s.counts(np.linspace(0, 1.01, 6))
    assert sum(count.value for count in counts) == pytest.approx(n, rel=64 * EPS)
    for count, true in zip(counts, np.histogram(i / n, np.linspace(0, 1.01, 6))[0], strict=True):
        assert covers(count, true)
    assert s.counts([2.0, 3.0])[0].interval[0] == 0


@pytest.mark.parametrize("options", [{}, FEW])
@pytest.mark.parametrize("kind", ["ndarray", "float32", "integers", "torch", "apply"])
def test_kinds_of_operators(kind: str, options: dict[str, int]) -> None:
    M = np.diag(np.arange(n, 0, -1.0))
    operators: dict[str, Any] = {
        "ndarray": M,
        "float32": M.astype(np.float32),
        "integers": M.astype(np.int64),
        "apply": type("Applied", (), {"shape": M.shape, "apply": lambda self, X: M @ X})(),
    }
    operator = (
        pytest.importorskip("torch", reason="multiplies a tensor").from_numpy(M) if kind == "torch" else operators[kind]
    )
    s = mk.spectral_summary(operator, **options)
    assert covers(s.trace, float(np.trace(M)), slack(M) * float(np.trace(M)))
    assert (width(s.trace) == 0) == (kind != "apply" or not options)
    assert covers(s.effective_rank, exact(np.diag(M))["effective_rank"], slack(M) * n)


def test_progress_and_what_stops() -> None:
    calls: list[tuple[int, int]] = []
    s = mk.spectral_summary(sparse.diags_array(1 / i), **FEW, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(8 * (step + 1), 80) for step in range(10)]
    assert (s.num_applies, s.num_panels) == (80, 10)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mk.spectral_summary(np.eye(n), progress=stop)


def kernel() -> mk.SoftmaxKernel:
    rng = np.random.default_rng(7)
    hidden, head = rng.standard_normal((150, 6)), rng.standard_normal((220, 6))
    return mk.SoftmaxKernel(hidden.astype(np.float32), head.astype(np.float32))


@pytest.mark.usefixtures("core")
@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("kind", ["bhattacharyya", "expected_likelihood", "prototype"])
def test_both_sides_of_a_similarity_have_one_effective_rank(kind: str, centered: bool) -> None:
    sides = [mk.similarity_operator(kernel(), kind, side=side, centered=centered) for side in ("contexts", "tokens")]
    true = exact(np.maximum(np.linalg.eigvalsh(sides[0].dense()), 0.0))
    noise = 2e-5  # entries of products are off by 1e-6 of F Fᵀ; n of that in eigenvalues times their logarithms
    for M in sides:
        for options in ({}, {"num_probes": 4, "degree": 12}):
            s = mk.spectral_summary(M, **options)
            for key, value in true.items():
                loose = 150 * noise if key == "effective_rank" else noise * 10
                estimate = getattr(s, key)
                assert covers(mk.Estimate(estimate.value, estimate.interval), value, loose * value), (key, M)
    if kind == "bhattacharyya" and not centered:
        assert mk.spectral_summary(sides[0]).trace.value == sides[0].trace == pytest.approx(1.0, abs=8 * EPS)
        assert mk.spectral_summary(sides[0], num_probes=4, degree=8).trace.value == sides[0].trace


@pytest.mark.usefixtures("core")
@pytest.mark.parametrize("kind", ["hellinger_gaussian", "jensen_shannon"])
def test_similarities_without_a_factor(kind: str) -> None:
    M = mk.similarity_operator(kernel()[:60], kind)
    true = exact(np.maximum(np.linalg.eigvalsh(M.dense()), 0.0))
    for options in ({}, {"num_probes": 4, "degree": 8}):
        s = mk.spectral_summary(M, **options)
        assert covers(s.effective_rank, true["effective_rank"], 1e-3 * true["effective_rank"])
        assert s.trace.value == pytest.approx(1.0, abs=8 * EPS)


ASYMMETRIC = np.triu(np.random.default_rng(0).standard_normal((n, n))) + 30 * np.eye(n)
PENCIL = mk.eigsh(np.diag(i), 3, B=np.diag(i))


@pytest.mark.parametrize(
    ("M", "options", "error", "message"),
    [
        (np.ones((3, 4)), {}, ShapeError, r"M: expected a symmetric operator"),
        (np.diag(-i), FEW, ValueRangeError, r"M: expected a positive semidefinite .* eigenvalue of -.* or below"),
        (np.diag(np.where(i == 9, -1.0, i)), {}, ValueRangeError, r"M: expected a positive semidefinite"),
        (np.diag(np.where(i == 9, np.nan, i)), FEW, ValueRangeError, r"M: expected finite products, got nan at row 8"),
        (ASYMMETRIC, FEW, ValueRangeError, r"M: expected a symmetric operator, got ‖M − Mᵀ‖"),
        (ASYMMETRIC, {}, ValueRangeError, r"M: expected a symmetric operator, got ‖M − Mᵀ‖"),
        (np.eye(n), {"num_probes": 1}, ValueRangeError, r"num_probes: expected an integer in \[2"),
        (np.eye(n), {"degree": 1}, ValueRangeError, r"degree: expected an integer in \[2"),
        (np.eye(n), {"degree": 2.5}, DTypeError, r"degree: expected an integer"),
        (np.eye(n), {"rank": n + 1}, ValueRangeError, r"rank: expected an integer in \[1, 300\]"),
        (np.eye(n), {"level": 1.0}, ValueRangeError, r"level: expected a number between 0 and 1"),
        (np.eye(n), {"spectrum": 3}, DTypeError, r"spectrum: expected what mk.eigsh returns, got int"),
        (np.eye(9), {"spectrum": mk.eigsh(np.eye(4), 1)}, ShapeError, r"spectrum: .* of length 9, got 4"),
        (np.eye(9), {"spectrum": mk.eigsh(9 * np.eye(9), 2)}, ValueRangeError, r"spectrum: .* trace is 9, .* to 18"),
        (np.eye(n), {"spectrum": PENCIL}, ValueRangeError, r"spectrum: expected orthonormal .* not of a pencil"),
    ],
)
def test_errors(M: Array, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mk.spectral_summary(M, **options)


def test_errors_of_what_is_asked_for_later() -> None:
    s = mk.spectral_summary(np.diag(np.where(i < 5, i, 0.0)))
    for edges in ([1.0], [[1.0, 2.0]]):
        with pytest.raises(ShapeError, match="edges: expected shape"):
            s.counts(edges)
    for edges in ([1.0, 1.0], [1.0, np.nan], ["a", "b"]):
        with pytest.raises(ValueRangeError, match="edges: expected numbers that rise"):
            s.counts(edges)
    with pytest.raises(ShapeError, match="f: expected values of shape"):
        s.spectral_sum(lambda x: x.sum())
    with pytest.raises(ValueRangeError, match="f: expected finite values, got -inf at 0"), np.errstate(divide="ignore"):
        s.spectral_sum(np.log)


def test_repr_says_what_matters() -> None:
    assert repr(mk.spectral_summary(np.eye(3))) == (
        "SpectralSummary(effective rank 3.0000 [3.0000, 3.0000], participation 3.0000 [3.0000, 3.0000], "
        "trace 3.0000 [3.0000, 3.0000], size 3, 3 applies)"
    )
