"""The pullback metric: against dense float64, on every build of the core; its laws; and what no input may do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import markovlm as mk
import reference
from geometry_cases import metric_error
from markovlm import SoftmaxKernel, _store
from markovlm._bootstrap import bootstrap_mean
from markovlm._geometry import Geometry, effective_rank
from markovlm.errors import DTypeError, FileFormatError, ShapeError, ValueRangeError
from markovlm.typing import FloatArray
from reference import UNIT, assert_within
from softmax_cases import Case, cases

SINGLE = 4 * UNIT  # of vectors of length 1 that are rounded to float32

HEADS: dict[str, dict[str, Any]] = {
    "linear": {},
    "bias": {"bias": True},
    "temperature": {"temperature": 0.7, "scale": 1.5},
    "softcap": {"softcap": 4.0, "temperature": 1.3, "bias": True},
}


def random_kernel(
    n: int, V: int, d: int, seed: int = 0, dtype: Any = np.float64, size: float = 1.5, **options: Any
) -> SoftmaxKernel:
    """Logits with a standard deviation of ``size``; directions of the head fall off, as those of models do."""
    rng = np.random.default_rng(seed)
    falling = 1 / np.sqrt(np.arange(1, d + 1))
    falling *= size / np.linalg.norm(falling)
    bias = rng.standard_normal(V) if options.pop("bias", False) else None
    hidden, head = rng.standard_normal((n, d)), rng.standard_normal((V, d)) * falling
    return SoftmaxKernel(hidden.astype(dtype), head.astype(dtype), bias, **options)


def check(P: SoftmaxKernel, found: Geometry, exact: FloatArray) -> None:
    """Everything that a geometry says, against the metrics themselves."""
    n, d, k = found.eigenvectors.shape
    error = metric_error(P, exact)
    trace = np.trace(exact, axis1=1, axis2=2)
    values = np.linalg.eigvalsh(exact)[:, ::-1] if n else np.empty((0, d))
    assert_within("trace", found.trace, trace, d * error)
    vectors = found.eigenvectors.astype(np.float64)
    gram = np.einsum("ndi,ndj->nij", vectors, vectors)
    assert_within("orthonormal", gram, np.broadcast_to(np.eye(k), gram.shape), (d + 8) * SINGLE)
    residuals = np.linalg.norm(exact @ vectors - vectors * found.eigenvalues[:, None, :], axis=1)
    rounding = (error + (d + 8) * SINGLE * values[:, :1].sum(axis=1))[:, None]
    assert_within("residual norms", found.residual_norms, residuals, rounding)
    away = np.linalg.norm(found.residual_norms, axis=1, keepdims=True)
    assert_within("eigenvalues", found.eigenvalues, values[:, :k], away + rounding)
    assert np.all(found.eigenvalues <= values[:, :k] + rounding)  # Courant and Fischer
    norm_error = float(np.mean(error)) if n else 0.0
    assert np.linalg.norm(found.mean_metric - exact.mean(axis=0), 2) <= d * norm_error


@pytest.mark.usefixtures("core")
@settings(max_examples=8)
@given(case=cases(max_rows=9), share=st.floats(0, 1), tol=st.sampled_from([1e-2, 1e-3]), own=st.booleans())
def test_pairs_traces_means_and_directions_are_those_of_the_dense_metric(
    case: Case, share: float, tol: float, own: bool
) -> None:
    P, rng = case.P, case.rng
    n, d = P.hidden.shape
    if n == 0 or d == 0:
        return
    exact = reference.metrics(P)
    k = 1 + round(share**2 * (d - 1))
    check(P, mk.geometry(P, k, tol=tol, num_threads=2), exact)
    directions = rng.standard_normal((n if own else 3, d)).astype(np.float32)
    forms = mk.sensitivity(P, directions, per_context=own)
    wide = directions.astype(np.float64)
    dense = np.einsum("nd,nde,ne->n", wide, exact, wide) if own else np.einsum("md,nde,me->nm", wide, exact, wide)
    error = metric_error(P, exact).reshape(-1, *[1] * (dense.ndim - 1))
    assert_within("sensitivity", forms, dense, error * np.linalg.norm(wide, axis=1) ** 2)
    assert np.all(forms >= 0)
    operator = mk.metric_operator(P, n - 1)
    assert_within(
        "operator", operator.matrix(), exact[-1], 1e-11 * max(1.0, float(np.abs(exact[-1]).max())) + error[-1]
    )
    assert_within("trace of the operator", np.array(operator.trace), np.trace(exact[-1]), d * error[-1])


@pytest.mark.usefixtures("core")
@pytest.mark.parametrize("name", list(HEADS))
def test_a_reduced_metric_leads_to_pairs_of_the_whole_one(name: str) -> None:
    """Wide enough for the Krylov space, with a tail of light tokens, in bfloat16."""
    P = random_kernel(6, 1500, 96, dtype=ml_dtypes.bfloat16, **HEADS[name])
    found, exact = mk.geometry(P, 6), reference.metrics(P)
    check(P, found, exact)
    assert found.status == "converged"
    # Both lie between those of a rest that is one eigenvalue and of one that is d − k equal ones.
    values = np.linalg.eigvalsh(exact)[:, ::-1]
    exactly = np.log([effective_rank(np.maximum(row, 0)) for row in values])
    rest = 1 - found.eigenvalues.sum(axis=1) / found.trace
    off = np.abs(found.eigenvalues - values[:, :6]).sum(axis=1) / found.trace
    slack = off * (1 + np.abs(np.log(np.maximum(off, 1e-300)))) + off * np.log(96)
    assert_within("entropy", np.log(found.effective_rank), exactly, rest * np.log(96 - 6) + slack + 1e-6)


def test_multiple_eigenvalues_are_all_found() -> None:
    """Of uniform p on d one-hot rows, ``(I − 11ᵀ/d) / d``: one 0, all others the same, more than any block has."""
    d, k = 160, 40
    found = mk.geometry(SoftmaxKernel(np.zeros((2, d)), np.eye(d)), k)
    assert_within("eigenvalues", found.eigenvalues, np.full((2, k), 1 / d), (d + 300) * UNIT / d)
    assert found.status == "converged"
    assert_within("rank", found.effective_rank, np.full(2, d - 1.0), 2 * d * (d + 300) * UNIT)


@pytest.mark.usefixtures("core")
def test_the_metric_of_near_certain_predictions_keeps_its_digits() -> None:
    """The likeliest token leads by up to 60 nats: g* is as small as e^-60, its relative error is not."""
    rng = np.random.default_rng(5)
    d, lead = 70, np.array([10.0, 30.0, 60.0])
    head = rng.integers(-4, 5, (40, d)) / 4
    head[:, 0] = 0
    head[7, 0] = 1
    hidden = np.zeros((3, d))
    hidden[:, 0] = lead  # logits are exact
    P = SoftmaxKernel(hidden, head)
    exact, found = reference.metrics(P), mk.geometry(P, 4)
    trace = np.trace(exact, axis1=1, axis2=2)
    relative = (87 + 40 + 16 + d) * 4 * UNIT  # of exponentials and sums; rows are exact but for their mean
    assert_within("trace", found.trace, trace, relative * trace)
    values = np.linalg.eigvalsh(exact)[:, ::-1][:, :4]
    allowed = relative * trace[:, None] + np.linalg.norm(found.residual_norms, axis=1, keepdims=True)
    assert_within("eigenvalues", found.eigenvalues, values, allowed)
    assert found.status == "converged"
    v = rng.standard_normal((1, d))
    dense = np.einsum("md,nde,me->nm", v, exact, v)
    assert_within("sensitivity", mk.sensitivity(P, v), dense, relative * dense)
    assert_within(
        "sensitivity, own", mk.sensitivity(P, np.repeat(v, 3, 0), per_context=True), dense[:, 0], 1e-4 * dense[:, 0]
    )


@pytest.mark.parametrize("name", list(HEADS))
def test_the_divergence_of_a_small_step_is_half_the_metric(name: str) -> None:
    """Thm 6.1: ``KL(p_{h + ε v} ‖ p_h) = ½ ε² g*(v, v) + O(ε³)``, the order of the remainder fitted."""
    P = random_kernel(4, 50, 8, seed=3, **HEADS[name])
    steps = 2.0 ** -np.arange(6, 11)
    v = np.random.default_rng(4).standard_normal((4, 8))
    options = {"temperature": P.temperature, "scale": P.scale, "softcap": P.softcap or None}
    log_p = reference.log_softmax(reference.kernel_logits(P))
    for x in range(4):
        form = float(v[x] @ (mk.metric_operator(P, x) @ v[x]))
        remainders = []
        for step in steps:
            moved = P.hidden[x].astype(np.float64) + step * v[x]
            log_q = reference.log_softmax(reference.logits(moved[None], P.head, P.bias, **options))[0]
            remainders.append(abs(np.exp(log_q) @ (log_q - log_p[x]) - step**2 / 2 * form))
        order = np.polyfit(np.log(steps), np.log(remainders), 1)[0]
        assert abs(order - 3) <= 0.1, (name, x, remainders)


@pytest.mark.parametrize(("V", "d"), [(2, 5), (4, 9), (30, 6), (3, 80)])
def test_the_rank_is_at_most_that_of_tokens_less_one(V: int, d: int) -> None:
    """Prop. 6.3, also where the Krylov space ends before k vectors."""
    P = random_kernel(3, V, d, bias=True)
    k = d if d < 20 else 7
    found, error = mk.geometry(P, k), metric_error(P, reference.metrics(P))
    rank = min(d, V - 1)
    assert np.all(found.eigenvalues[:, rank:] <= error[:, None])
    assert np.all(found.eigenvalues[:, : min(rank, k)] > error[:, None])
    assert np.all(found.effective_rank <= rank * (1 + 1e-3))


def test_a_constant_on_all_logits_and_threads_change_nothing() -> None:
    P = random_kernel(70, 500, 96, bias=True)
    found, again = (mk.geometry(P, 5, num_threads=threads) for threads in (1, 3))
    for name in ("trace", "eigenvalues", "eigenvectors", "residual_norms", "effective_rank", "mean_metric"):
        np.testing.assert_array_equal(getattr(found, name), getattr(again, name))
    moved = SoftmaxKernel(P.hidden, P.head, P.bias + np.float32(8))
    error = metric_error(moved, reference.metrics(moved))
    assert_within("trace", mk.geometry(moved, 1).trace, found.trace, 2 * 96 * error)
    blocks = mk.geometry(P, 5, max_memory=2**22)
    assert_within("blocks", blocks.trace, found.trace, 2 * 96 * error)


def test_where_nothing_can_change_there_is_no_direction() -> None:
    one = SoftmaxKernel(np.ones((2, 3)), np.ones((1, 3)))
    masked = SoftmaxKernel(np.ones((2, 80)), random_kernel(1, 3, 80).head, [-np.inf, 0.0, -np.inf], softcap=3.0)
    for P in (one, masked):
        found = mk.geometry(P, 2, sequence_ids=[0, 1])
        assert not found.trace.any()
        assert not found.eigenvalues.any()
        assert not found.mean_eigenvalues.any()
        assert np.isnan(found.mean_effective_rank)
        assert np.isnan(found.anisotropy).all()
        assert np.isnan(found.effective_rank).all()
        assert np.isnan(found.averages()["anisotropy"].value)
        assert found.status == "converged"
        assert not mk.sensitivity(P, np.ones((1, P.hidden.shape[1]))).any()
    empty = mk.geometry(one[[]], 2)
    assert empty.eigenvectors.shape == (0, 3, 2)
    assert empty.trace.shape == (0,)


def test_what_is_kept_can_be_read_again(tmp_path: Path) -> None:
    P = random_kernel(12, 60, 10)
    ids = np.arange(12) // 3
    found = mk.geometry(P, 3, sequence_ids=ids, weights=np.arange(12) + 1.0)
    found.save(tmp_path / "geometry.safetensors")
    again = Geometry.load(tmp_path / "geometry.safetensors")
    for name, value in vars(found).items():
        np.testing.assert_array_equal(getattr(again, name), value)
    assert repr(again) == repr(found)
    assert "12 contexts, d=10, k=3" in repr(found)
    assert json.loads(json.dumps(found.summary()))["anisotropy"]["value"] == found.averages()["anisotropy"].value
    law = (np.arange(12) + 1) / 78
    (expected,) = bootstrap_mean(found.trace[:, None], ids, weights=law)
    got = found.averages()["trace"]
    np.testing.assert_allclose([got.value, *got.interval], [expected.value, *expected.interval], rtol=1e-12)
    assert expected.interval[0] < expected.value < expected.interval[1]
    assert np.isnan(mk.geometry(P, 1).averages()["trace"].interval).all()
    np.testing.assert_allclose(found.mean_metric, np.tensordot(law, reference.metrics(P), 1), atol=1e-5)
    np.testing.assert_array_equal(mk.mean_metric(P, np.arange(12) + 1.0), found.mean_metric)
    np.testing.assert_allclose(found.mean_eigenvalues.sum(), np.trace(found.mean_metric), rtol=1e-12)
    _store.write(tmp_path / "other.safetensors", {"x": np.zeros(1)}, {})
    with pytest.raises(FileFormatError, match="expected a geometry of schema 1, got a file of another kind"):
        Geometry.load(tmp_path / "other.safetensors")


def test_the_solver_says_what_it_did_not_reach() -> None:
    found = mk.geometry(random_kernel(3, 400, 80), 3, tol=1e-12)
    assert not found.converged.any()
    assert "not converged: at 3 of 3 contexts residual norms stay above tol · λ₁" in found.status
    assert np.all(found.residual_norms.max(axis=1) < 1e-4 * found.eigenvalues[:, 0])


def test_an_operator_goes_into_the_eigensolver() -> None:
    P = random_kernel(2, 300, 90, softcap=3.0)
    G = mk.metric_operator(P, -1)
    found, exact = mk.eigsh(G, k=4), np.linalg.eigvalsh(reference.metrics(P)[1])[::-1][:4]
    assert_within("eigenvalues", found.eigenvalues, exact, found.residual_norms.max() + 1e-12)
    assert "MetricOperator(90 x 90, 300 tokens" in repr(G)


def test_work_reports_and_stops() -> None:
    P, seen = random_kernel(70, 400, 20), list[tuple[int, int]]()
    mk.geometry(P, 2, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (70, 70)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    for work in (lambda: mk.geometry(P, 2, progress=stop), lambda: mk.sensitivity(P, P.head[:1], progress=stop)):
        with pytest.raises(KeyboardInterrupt):
            work()


P3 = SoftmaxKernel(np.ones((2, 3)), np.ones((4, 3)))
BIG = SoftmaxKernel(np.full((2, 3), 1e30), np.full((4, 3), 1e30))


@pytest.mark.parametrize(
    ("work", "error", "text"),
    [
        (lambda: mk.geometry(P3, 4), ValueRangeError, r"k: expected an integer in \[1, 3\], got 4"),
        (lambda: mk.geometry(P3, 1, tol=1.0), ValueRangeError, r"tol: expected a number in \(0, 1\)"),
        (lambda: mk.geometry(P3, 1, sequence_ids=[0]), ShapeError, r"sequence_ids: expected shape \(2,\)"),
        (lambda: mk.geometry(P3, 1, weights=[1.0]), ShapeError, r"weights: expected shape \(2,\)"),
        (lambda: mk.geometry(P3, 1, max_memory=10), ValueRangeError, "max_memory: expected at least"),
        (lambda: mk.geometry(mk.uniform(2), 1), DTypeError, "P: expected a SoftmaxKernel, got Kernel"),  # type: ignore[arg-type]
        (lambda: mk.geometry(BIG, 1), ValueRangeError, "hidden: expected logits and products within .* at row 0"),
        (lambda: mk.mean_metric(P3[[]]), ShapeError, "P: expected at least one context to average over"),
        (lambda: mk.mean_metric(SoftmaxKernel(np.ones((1, 0)), np.ones((2, 0)))), ShapeError, "width 1 or more"),
        (lambda: mk.metric_operator(P3, 2), ValueRangeError, r"context: expected a row number in \[-2, 2\), got 2"),
        (lambda: mk.metric_operator(P3, 0.5), DTypeError, "context: expected an integer, got 0.5"),  # type: ignore[arg-type]
        (lambda: mk.metric_operator(P3, 0) @ np.ones(2), ShapeError, "X: expected shape"),
        (lambda: mk.sensitivity(P3, np.ones((2, 4))), ShapeError, "directions: expected shape"),
        (lambda: mk.sensitivity(P3, np.ones((1, 3)), per_context=True), ShapeError, "one for each context"),
        (lambda: mk.sensitivity(P3, [[np.nan, 0.0, 0.0]]), ValueRangeError, "directions: expected finite values"),
    ],
)
def test_errors_say_what_to_do(work: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        work()
