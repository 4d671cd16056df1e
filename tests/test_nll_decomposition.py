"""The loss as KL plus entropy: each term against its definition, and that they add up, on every representation."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

import exact
import markovlm as mk
import reference
from kernel_cases import kernels, random_rows, rounding, sizes
from markovlm._bootstrap import bootstrap_mean
from markovlm._cross_entropy import cross_entropies
from markovlm.errors import DTypeError, ShapeError, ValueRangeError
from markovlm.typing import FloatArray
from reference import Bounds, assert_within
from softmax_cases import Case, cases
from test_nll import features
from test_panels import matrices, product_bound

DOUBLE = float(np.finfo(np.float64).eps)
ALL = [mk.KL(), mk.TotalVariation(), mk.SquaredHellinger(), mk.ChiSquared(), mk.JensenShannon(), mk.Renyi(2.0)]


def definitions(p: FloatArray, q: FloatArray) -> tuple[list[Any], list[Any], list[Any]]:
    """Cross-entropy, KL and entropy of rows that are made to sum to 1, in mpmath."""
    found: list[tuple[Any, Any, Any]] = []
    for left, right in zip(p, q, strict=True):
        a, b = ([x / mpmath.fsum(exact.numbers(row)) for x in exact.numbers(row)] for row in (left, right))
        pairs = [(x, y) for x, y in zip(a, b, strict=True) if x > 0]
        loss = mpmath.inf if any(y == 0 for _, y in pairs) else -mpmath.fsum(x * mpmath.log(y) for x, y in pairs)
        found.append((loss, exact.divergence(mk.KL(), a, b), -mpmath.fsum(x * mpmath.log(x) for x, _ in pairs)))
    return [row[0] for row in found], [row[1] for row in found], [row[2] for row in found]


# A known data kernel


@given(sizes, sizes, st.data(), st.booleans())
def test_every_pair_of_representations(n: int, m: int, data: st.DataObject, weighted: bool) -> None:
    truth, model = data.draw(kernels(n, m)), data.draw(kernels(n, m))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    weights = rng.random(n) * (rng.random(n) < 0.7) + (np.arange(n) == rng.integers(n)) if weighted else None
    found = mk.nll_decomposition(model, truth, weights)
    p, q = truth.matrix, model.matrix
    law = np.full(n, 1 / n) if weights is None else weights / weights.sum()
    used = law > 0
    logs = np.abs(np.log(np.where(p > 0, np.where(q > 0, q, 1), 1))) + np.abs(np.log(np.where(p > 0, p, 1)))
    # an entry is off by so much of itself, its logarithm by as much; matrices that the definitions are taken of, too
    bound = 2 * rounding(truth, model) * (2 + logs.max())
    with mpmath.workdps(exact.DIGITS):
        for name, values in zip(("cross_entropy", "kl", "entropy"), definitions(p, q), strict=True):
            defined = float(mpmath.fsum(mpmath.mpf(w) * x for w, x in zip(law, values, strict=True) if w > 0))
            assert_within(name, np.array([getattr(found, name).value]), np.array([defined]), np.array([bound]))
    assert found.residual is not None
    if np.isfinite(found.cross_entropy.value):  # type: ignore[union-attr]
        assert abs(found.residual) <= 3 * bound
    else:
        assert np.isnan(found.residual)
    assert found.nll is None
    assert found.num_contexts == used.sum()


@pytest.mark.parametrize("as_kernel", [mk.Kernel, lambda rows: mk.Kernel(sp.csr_array(rows))], ids=["dense", "sparse"])
def test_float64_matrices_leave_a_residual_of_float64(as_kernel: Any) -> None:
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.full(200, 0.3), (2, 30))
    p[:, ::3] = 0  # data on part of the set
    p /= p.sum(axis=1, keepdims=True)
    found = mk.nll_decomposition(as_kernel(q), as_kernel(p))
    # of 200 terms, sums that are off from 1 by 200 half-units at most, times the largest logarithm
    assert found.residual is not None
    assert abs(found.residual) <= 200 * DOUBLE * float(np.abs(np.log(q[q > 0])).max())


def test_a_model_that_forbids_what_the_data_does() -> None:
    p, q = mk.Kernel([[0.5, 0.5], [1.0, 0.0]]), mk.Kernel([[1.0, 0.0], [0.5, 0.5]])
    found = mk.nll_decomposition(q, p, groups=[0, 1])
    assert found.cross_entropy is not None
    assert found.kl is not None
    assert found.cross_entropy.value == found.kl.value == found.calibration.value == np.inf
    assert found.cross_entropy.interval[1] == np.inf
    assert found.cross_entropy.interval[0] == pytest.approx(np.log(2), rel=4 * DOUBLE)  # of resamples without that row
    assert found.residual is not None
    assert np.isnan(found.residual)
    elsewhere = mk.nll_decomposition(q, p, [0.0, 1.0])
    assert elsewhere.cross_entropy is not None
    assert elsewhere.cross_entropy.value == pytest.approx(np.log(2), rel=4 * DOUBLE)
    mask = np.array([0.0, -np.inf])
    S = mk.SoftmaxKernel(np.ones((2, 1)), np.ones((2, 1)), mask)
    T = mk.SoftmaxKernel(np.ones((2, 1)), np.ones((2, 1)))
    for softcap in (None, 2.0):
        masked = mk.SoftmaxKernel(np.ones((2, 1)), np.ones((2, 1)), mask, softcap=softcap)
        assert np.array_equal(cross_entropies(T, masked), [np.inf, np.inf])
        assert_within("both removed", cross_entropies(S, masked), np.zeros(2), np.full(2, 16 * reference.UNIT))


def test_laws_of_contexts() -> None:
    rng = np.random.default_rng(0)
    p, q = (mk.Kernel(rng.dirichlet(np.ones(4), 3)) for _ in range(2))
    by_state = mk.nll_decomposition(q, p, mk.state([0.5, 0.25, 0.25]))
    by_weights = mk.nll_decomposition(q, p, [4.0, 2.0, 2.0])
    repeated = mk.nll_decomposition(q[[0, 0, 1, 2]], p[[0, 0, 1, 2]])
    for name in ("cross_entropy", "kl", "entropy", "model_entropy"):
        assert getattr(by_state, name).value == pytest.approx(getattr(by_weights, name).value, rel=8 * DOUBLE)
        assert getattr(by_state, name).value == pytest.approx(getattr(repeated, name).value, rel=8 * DOUBLE)


# Teacher and student


@st.composite
def students(draw: st.DrawFn, n: int, V: int) -> Case:
    """A softmax kernel with every option of a head, on given sets."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    d = draw(st.integers(0, 60))
    bias = rng.standard_normal(V)
    if draw(st.booleans()):
        bias[rng.random(V) < 0.1] = -np.inf
        bias[rng.integers(V)] = 0.0
    P = mk.SoftmaxKernel(
        rng.standard_normal((n, d)),
        draw(st.sampled_from([0.0, 1.0, 8.0])) / np.sqrt(max(d, 1)) * rng.standard_normal((V, d)),
        draw(st.sampled_from([None, bias])),
        scale=draw(st.sampled_from([1.0, 0.3])),
        temperature=draw(st.sampled_from([1.0, 0.7, 5.0])),
        softcap=draw(st.sampled_from([None, 0.5, 30.0])),
    )
    return Case(P, reference.logit_error(P), rng)


def cross_entropy_bound(teacher: Case, student: Case) -> FloatArray:
    """(n,): the normaliser's error, and that of the mean logit.

    By a panel product it is made of errors of each component of ``P W``, times the state's; by tiles the logits are
    exact, and probabilities carry the error of the teacher's normaliser. The larger of both, doubled for the rest.
    """
    P, Q = teacher.P, student.P
    F, error = matrices(teacher, 1.0)
    zq = reference.kernel_logits(Q)
    mean = product_bound(F, error, Q.head.astype(np.float64)) * np.abs(Q.hidden.astype(np.float64))
    by_panel = mean.sum(axis=1)
    if Q.bias is not None:
        by_panel += product_bound(F, error, np.where(np.isneginf(Q.bias), 0, Q.bias)[:, None])[:, 0]
    # the tiles' probabilities are exact but for the normaliser's error
    exactly = Bounds(reference.kernel_logits(P), teacher.delta).log_normalizer + 64 * DOUBLE
    by_tiles = exactly * (F * np.where(F > 0, np.abs(np.where(np.isneginf(zq), 0, zq)), 0)).sum(axis=1)
    mean_logit = by_tiles if Q.softcap else Q.scale / Q.temperature * by_panel
    return np.asarray(2 * (Bounds(zq, student.delta).log_normalizer + mean_logit))


@given(case=cases(max_rows=30), data=st.data())
def test_softmax_kernels_with_every_option(case: Case, data: st.DataObject) -> None:
    n, V = case.P.shape
    other = data.draw(students(n, V))
    if n == 0:
        return
    weights = case.rng.random(n)
    found = mk.nll_decomposition(other.P, case.P, weights)
    zp, zq = reference.kernel_logits(case.P), reference.kernel_logits(other.P)
    log_p, log_q = reference.log_softmax(zp), reference.log_softmax(zq)
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):
        loss = np.where(zp > -np.inf, -p * log_q, 0.0).sum(axis=1)
    bounds, others = Bounds(zp, case.delta), Bounds(zq, other.delta)
    eta = case.delta + other.delta + bounds.log_normalizer + others.log_normalizer
    slack = {
        "cross_entropy": cross_entropy_bound(case, other),
        "kl": reference.divergence_bound(mk.KL(), zp, zq, eta, case.delta) + 4 * reference.UNIT,
        "entropy": bounds.entropy,
        "model_entropy": others.entropy,
    }
    values = {
        "cross_entropy": loss,
        "kl": reference.divergence(mk.KL(), zp, zq),
        "entropy": reference.entropy(zp),
        "model_entropy": reference.entropy(zq),
    }
    law = weights / weights.sum()
    for name, rows in values.items():
        got, bound = getattr(found, name).value, law @ slack[name] + 2**-40
        assert_within(name, np.array([got]), np.array([law @ rows]), np.array([bound]))
    assert found.residual is not None
    if np.isfinite(loss).all():
        allowed = law @ (slack["cross_entropy"] + slack["kl"] + slack["entropy"])
        assert abs(found.residual) <= allowed + 2**-40
    else:
        assert np.isnan(found.residual)


def softmax(n: int, V: int, d: int, seed: int = 0, size: float = 1.0, **options: Any) -> mk.SoftmaxKernel:
    rng = np.random.default_rng(seed)
    return mk.SoftmaxKernel(
        rng.standard_normal((n, d), dtype=np.float32),
        np.float32(size / np.sqrt(d)) * rng.standard_normal((V, d), dtype=np.float32),
        **options,
    )


@pytest.mark.parametrize("options", [{}, {"softcap": 5.0}], ids=["linear", "capped"])
def test_a_large_vocabulary_leaves_a_residual_below_a_millionth(options: dict[str, Any]) -> None:
    teacher, student = softmax(256, 50_000, 32, size=3.0), softmax(256, 50_000, 16, seed=1, size=3.0, **options)
    found = mk.nll_decomposition(student, teacher)
    assert found.residual is not None
    assert abs(found.residual) <= 1e-6


def test_routes_for_capped_and_linear_heads_meet() -> None:
    """A cap far above all logits changes them by z³ / 3c² at most."""
    teacher, student = softmax(50, 300, 8), softmax(50, 300, 8, seed=1)
    cap = 1e4
    capped = mk.SoftmaxKernel(student.hidden, student.head, softcap=cap)
    z = np.abs(reference.kernel_logits(student)).max()
    bound = cross_entropy_bound(
        *(Case(k, reference.logit_error(k), np.random.default_rng(0)) for k in (teacher, student))
    )
    slack = bound + 2 * z**3 / (3 * cap**2) + 2 * reference.logit_error(capped)
    linear, tiles = cross_entropies(teacher, student), cross_entropies(teacher, capped)
    assert_within("loss", tiles, linear, slack)
    few = cross_entropies(teacher, capped, max_memory=20_000)  # tiles of 17
    assert_within("tiles", few, tiles, np.full(50, 1e3 * DOUBLE * z + 2 * reference.SUM))


GROWTH = """
import ctypes, sys
from pathlib import Path
import numpy as np
import markovlm as mk

def status(name):
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if name in line)

rng = np.random.default_rng(0)
def kernel(**options):
    hidden, head = (rng.standard_normal((rows, 16), dtype=np.float32) for rows in (600, 50_000))
    return mk.SoftmaxKernel(hidden, head, **options)
teacher, student = kernel(), kernel(softcap=float(sys.argv[2]) or None)
limits = {"max_memory": int(sys.argv[1]), "num_threads": 1, "divergences": [mk.TotalVariation()]}
mk.nll_decomposition(student[:40], teacher[:40], **limits)  # buffers that BLAS keeps
ctypes.CDLL(None).malloc_trim(0)
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # resets the peak
mk.nll_decomposition(student, teacher, groups=np.arange(600) // 10, **limits)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured on Linux only")
@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_no_array_of_contexts_by_vocabulary(softcap: float) -> None:
    """In MiB: 600 rows of 50,000 tokens would be 114 in float32; a bias and masks of the vocabulary are below 2."""
    allowed = 16
    command = [sys.executable, "-c", GROWTH, str(allowed << 20), str(softcap)]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 1024
    assert 2 < grown < allowed + 6


# Groups


def test_intervals_are_those_of_the_rows() -> None:
    rng = np.random.default_rng(0)
    p, q = (mk.Kernel(random_rows(rng, 60, 5) * 0.9 + 0.02) for _ in range(2))
    groups, weights = rng.integers(0, 9, 60), rng.random(60) * (rng.random(60) < 0.8)
    found = mk.nll_decomposition(q, p, weights, groups=groups, level=0.8, seed=3)
    a, b = p.matrix, q.matrix
    entropies = [-(x * np.log(x)).sum(axis=1) for x in (a, b)]
    loss = -(a * np.log(b)).sum(axis=1)
    columns = np.column_stack([loss, loss - entropies[0], *entropies, loss - entropies[1]])
    used = weights > 0
    expected = bootstrap_mean(columns[used], groups[used], weights=weights[used], level=0.8, seed=3)
    names = ("cross_entropy", "kl", "entropy", "model_entropy", "calibration")
    for name, estimate in zip(names, expected, strict=True):
        got = getattr(found, name)
        assert got.level == 0.8
        bound = np.full(3, 1e3 * DOUBLE * np.abs(columns).max())
        assert_within(name, np.array([got.value, *got.interval]), np.array([estimate.value, *estimate.interval]), bound)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    rows = 8
    p, q = (mk.Kernel(rng.dirichlet(np.ones(5), rows)) for _ in range(2))
    truth = mk.average_divergence(p, q, mk.KL())  # contexts are uniform in each sequence's half, which is drawn
    hits = 0
    for _ in range(100):
        half = rng.integers(0, 2, 40)
        contexts = (half[:, None] * (rows // 2) + rng.integers(0, rows // 2, (40, 6))).reshape(-1)
        found = mk.nll_decomposition(q[contexts], p[contexts], groups=np.repeat(np.arange(40), 6), level=0.9).kl
        assert found is not None
        hits += found.interval[0] <= truth <= found.interval[1]
    # as in test_bootstrap.py: the percentile interval of 40 groups is a little short; a share of 0.9 is known to 0.03
    assert 0.9 - 0.03 - 3 * 0.03 <= hits / 100 <= 0.9 + 3 * 0.03


def test_weighted_bootstrap_is_that_of_repeated_rows() -> None:
    rng = np.random.default_rng(0)
    values, groups, times = rng.standard_normal((30, 2)), rng.integers(0, 5, 30), rng.integers(1, 4, 30)
    weighted = bootstrap_mean(values, groups, weights=times / 7)
    repeated = bootstrap_mean(np.repeat(values, times, axis=0), np.repeat(groups, times))
    for one, other in zip(weighted, repeated, strict=True):
        assert_within("value", np.array(one.value), np.array(other.value), np.array(1e3 * DOUBLE))
        assert_within("interval", np.array(one.interval), np.array(other.interval), np.full(2, 1e3 * DOUBLE * 4))


# Text


def test_text_alone_is_what_nll_says() -> None:
    f = features(300, 40, 8, softcap=4.0)
    f.targets[::7] = mk.IGNORED_TARGET
    found, expected = mk.nll_decomposition(f, seed=5, level=0.9, divergences=ALL), mk.nll(f, seed=5, level=0.9)
    # resamples are the same; sums over them may run in another order
    slack = np.full(3, 1e3 * DOUBLE * expected.nll.value)
    pairs = {"nll": expected.nll, "model_entropy": expected.entropy, "calibration": expected.calibration}
    for name, want in pairs.items():
        got = getattr(found, name)
        assert_within(name, np.array([got.value, *got.interval]), np.array([want.value, *want.interval]), slack)
    assert (found.cross_entropy, found.kl, found.entropy, found.residual) == (None, None, None, None)
    assert found.data_entropies == {}
    assert found.entropies[mk.KL()] == found.model_entropy
    assert found.num_contexts == (f.targets != mk.IGNORED_TARGET).sum()
    assert "kl" not in repr(found)


def taught(f: mk.Features, size: float = 0.5) -> mk.Features:
    """Features of a teacher with another width, on the same contexts."""
    rng = np.random.default_rng(7)
    hidden = rng.standard_normal((f.num_contexts, 5), dtype=np.float32)
    return replace(
        f, hidden=hidden, head=np.float32(size) * rng.standard_normal((f.vocabulary_size, 5), dtype=np.float32)
    )


def test_text_and_a_teacher_on_the_same_contexts() -> None:
    f = features(300, 40, 8)
    f.targets[::9] = mk.IGNORED_TARGET
    teacher = taught(f)
    both = mk.nll_decomposition(f, teacher)
    known = (f.targets != mk.IGNORED_TARGET).astype(float)
    alone = mk.nll_decomposition(f)
    assert both.nll is not None
    assert alone.nll is not None
    for got, want in (
        (both.nll, alone.nll),
        (both.calibration, alone.calibration),
        (both.model_entropy, alone.model_entropy),
    ):
        assert got.value == pytest.approx(want.value, rel=1e3 * DOUBLE)
    kernels_only = mk.nll_decomposition(f.softmax_kernel(), teacher.softmax_kernel(), known, groups=f.sequence_ids)
    for name in ("cross_entropy", "kl", "entropy"):
        got, want = getattr(both, name), getattr(kernels_only, name)
        assert_within(name, np.array(got.interval), np.array(want.interval), np.full(2, 1e3 * DOUBLE * 10))
    student = mk.nll_decomposition(f.softmax_kernel(), teacher)  # whose sequences are then the teacher's
    assert student.nll is None
    assert student.kl is not None
    assert np.isfinite(student.kl.interval).all()


def test_features_of_other_contexts_are_refused() -> None:
    f = features(60, 40, 8)
    another = replace(taught(f), token_ids=f.token_ids + (np.arange(60) == 5))
    with pytest.raises(ValueRangeError, match=r"data: expected the same contexts, but token_ids differ first at row 5"):
        mk.nll_decomposition(f, another)
    moved = replace(taught(f), sequence_ids=f.sequence_ids + 1)
    with pytest.raises(ValueRangeError, match=r"data: .*sequence_ids differ first at row 0: 0 and 1"):
        mk.nll_decomposition(f, moved)
    with pytest.raises(ShapeError, match=r"data: expected the same 60 contexts, got 50"):
        mk.nll_decomposition(f, taught(features(50, 40, 8)))
    changed = f.targets.copy()
    changed[3] = mk.IGNORED_TARGET
    with pytest.raises(ValueRangeError, match=r"model: .*targets differ first at row 3"):
        mk.nll_decomposition([f, replace(f, targets=changed)])


# Input


def test_what_does_not_fit_is_named() -> None:
    p, q = mk.Kernel(np.full((3, 4), 0.25)), mk.Kernel(np.full((3, 4), 0.25))
    named = p.renamed(codomain={"token": ["a", "b", "c", "d"]})
    for wrong, pattern in (
        (mk.Kernel(np.full((2, 4), 0.25)), "model: domain: expected sets of one size, got 3"),
        (mk.Kernel(np.full((3, 2), 0.5)), "model: codomain: expected sets of one size, got 4"),
        (named.renamed(codomain={"token": ["a", "b", "d", "c"]}), "model: codomain: expected the same labels"),
    ):
        with pytest.raises(ShapeError, match=pattern):
            mk.nll_decomposition(wrong, named)
    with pytest.raises(ShapeError, match=r"groups: expected shape \(3,\), one per context"):
        mk.nll_decomposition(p, q, groups=[0, 1])
    with pytest.raises(ShapeError, match=r"weights: expected shape \(3,\), one per context"):
        mk.nll_decomposition(p, q, [1.0, 1.0])
    with pytest.raises(ValueRangeError, match="data: expected a kernel"):
        mk.nll_decomposition(p)
    with pytest.raises(ValueRangeError, match="model: expected at least one checkpoint"):
        mk.nll_decomposition([], q)
    with pytest.raises(ShapeError, match=r"steps: expected shape \(2,\), one per checkpoint"):
        mk.nll_decomposition([p, p], q, steps=[1, 2, 3])
    with pytest.raises(ValueRangeError, match="steps: expected rising numbers, got 5 after 5"):
        mk.nll_decomposition([p, p], q, steps=[5, 5])
    with pytest.raises(ValueRangeError, match="steps: expected none for a single model"):
        mk.nll_decomposition(p, q, steps=[1])  # type: ignore[call-overload]
    with pytest.raises(DTypeError, match="model: expected checkpoints of one kind"):
        mk.nll_decomposition([features(3, 4, 2), p], q)
    with pytest.raises(ValueRangeError, match="level: expected a number between 0 and 1"):
        mk.nll_decomposition(p, q, level=95)


def test_words() -> None:
    p, q = mk.Kernel([[0.5, 0.5]]), mk.Kernel([[0.25, 0.75]])
    shown = "cross_entropy=0.8370, kl=0.1438, entropy=0.6931, model_entropy=0.5623, calibration=0.2747"
    assert repr(mk.nll_decomposition(q, p)).startswith(f"NLLDecomposition({shown}, residual=")


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_progress_rises_to_its_total_and_threads_change_nothing(softcap: float | None) -> None:
    teacher, student = softmax(300, 200, 6), softmax(300, 200, 4, seed=1, softcap=softcap, bias=np.zeros(200))
    calls: list[tuple[int, int]] = []
    runs = [
        mk.nll_decomposition(
            [student, teacher],
            teacher,
            num_threads=threads,
            divergences=[mk.KL(), mk.Renyi(0.5)],
            progress=lambda done, total: calls.append((done, total)),
        )
        for threads in (1, 3)
    ]
    assert repr(vars(runs[0])) == repr(vars(runs[1]))
    done, totals = zip(*calls[: len(calls) // 2], strict=True)
    assert set(totals) == {300 * (2 + 2 * 4)}
    assert list(done) == sorted(done)
    assert done[-1] == totals[0]
