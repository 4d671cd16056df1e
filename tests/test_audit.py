"""An audit finds what is wrong, says where, and finds nothing where nothing is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import markovlm as mk
from kernel_cases import MAKERS, kernels, pipelines, random_rows
from markovlm._rows import Dense
from markovlm.errors import AuditError, MarkovLMError, ShapeError


@given(kernels())
def test_kernels_pass(k: mk.Kernel) -> None:
    assert mk.audit(k, samples=4)


@given(pipelines(3), st.integers(0, 100))
def test_pipelines_pass(stages: list[mk.Kernel], seed: int) -> None:
    found = mk.audit(*stages, samples=4, seed=seed)
    assert found
    names = {check.name for check in found.checks}
    assert {"rows sum to 1", "data processing", "information about the input falls"} <= names
    f, g, h = stages
    assert mk.audit(f >> g >> h, samples=4)


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
def test_larger_kernels_pass(maker: object) -> None:
    rng = np.random.default_rng(0)
    k = maker(rng, 60, 2000)  # type: ignore[operator]
    assert mk.audit(k)


def broken(change: object) -> mk.Kernel:
    matrix = random_rows(np.random.default_rng(0), 5, 4)
    change(matrix)  # type: ignore[operator]
    return mk.Kernel._of(Dense(matrix), (mk.Axis(5),), (mk.Axis(4),))


def test_rows_that_are_wrong_are_found_and_named() -> None:
    def too_much(matrix: np.ndarray) -> None:
        matrix[3, 1] += 1e-6

    found = mk.audit(broken(too_much))
    assert not found
    (failure,) = found.failures
    assert failure.name == "rows sum to 1"
    assert failure.where == "row 3"
    assert failure.worst == pytest.approx(1e-6, rel=1e-6)
    with pytest.raises(AuditError, match=r"rows sum to 1, kernel 0: missed by 1e-06 .* row 3"):
        found.require()
    assert issubclass(AuditError, AssertionError)
    assert issubclass(AuditError, MarkovLMError)

    def negative(matrix: np.ndarray) -> None:
        matrix[2] = [1.25, -0.25, 0, 0]

    assert [check.name for check in mk.audit(broken(negative)).failures] == ["entries ≥ 0"]

    def nothing(matrix: np.ndarray) -> None:
        matrix[1, 2] = np.nan

    assert {check.where for check in mk.audit(broken(nothing)).failures} == {"row 1"}


def test_arrays_are_looked_at_as_they_are() -> None:
    assert mk.audit(np.full((2, 4), 0.25))
    found = mk.audit([[0.5, 0.6], [0.1, 0.9]])
    assert [check.where for check in found.failures] == ["row 0"]
    with pytest.raises(ShapeError, match="audit"):
        mk.audit(np.ones(3))
    with pytest.raises(ShapeError, match="at least one kernel"):
        mk.audit()


def test_claims_are_checked() -> None:
    noise = mk.Kernel([[0.9, 0.1], [0.2, 0.8]])
    found = mk.audit(noise, mk.swap(2, 1), deterministic=[0, 1])
    (failure,) = found.failures
    assert (failure.name, failure.subject) == ("deterministic, as claimed", "kernel 0")
    assert failure.worst == pytest.approx(0.32)


def test_a_chain_is_claimed_as_a_whole() -> None:
    """Noise that is forgotten is no noise, though a stage has it."""
    noise = mk.Kernel([[0.9, 0.1], [0.2, 0.8]])
    assert mk.audit(noise >> mk.discard(2), deterministic=[0])
    assert not mk.audit(noise >> noise, deterministic=[0])


def test_each_check_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an audit looks at comes from the public operations: where one of them is wrong, the audit says so."""
    from markovlm import _auditor, _rowwise

    rng = np.random.default_rng(0)
    f, g = mk.Kernel(rng.dirichlet(np.ones(4), 3)), mk.Kernel(rng.dirichlet(np.ones(5), 4))
    original = _rowwise.divergences

    def growing(P: mk.Kernel, Q: mk.Kernel, Ds: object, **options: object) -> object:
        found = original(P, Q, Ds)  # type: ignore[arg-type]
        return {D: values * (1 + 10 * (P.shape[1] == 5)) for D, values in found.items()}

    monkeypatch.setattr(_auditor, "divergences", growing)
    assert "data processing" in {check.name for check in mk.audit(f, g).failures}
    monkeypatch.setattr(_auditor, "divergences", lambda P, Q, Ds, **o: {D: v**2 for D, v in original(P, Q, Ds).items()})
    failures = {check.name for check in mk.audit(f, g).failures}
    assert {"TV² ≤ H² (2 − H²)", "entropy = D(copied ‖ run twice)"} <= failures
    monkeypatch.undo()
    monkeypatch.setattr(_auditor, "state_prediction_information", lambda k: float(k.shape[1]))
    assert [check.name for check in mk.audit(f, g).failures] == ["information about the input falls"]
    monkeypatch.undo()
    monkeypatch.setattr(mk.Kernel, "bayes", lambda self, p, zero_evidence: self)
    square = mk.Kernel(rng.dirichlet(np.ones(3), 3))
    assert mk.audit(square)  # which is its own inverse then
    monkeypatch.setattr(
        mk.Kernel,
        "bayes",
        lambda self, p, zero_evidence: (
            mk.uniform(3) if self.shape[0] == 1 else mk.Kernel(self.matrix[::-1]) if self is square else mk.identity(3)
        ),
    )
    assert "bayes(bayes(k)) = k" in {check.name for check in mk.audit(square).failures}


def test_kernels_that_do_not_meet_are_looked_at_one_by_one() -> None:
    found = mk.audit(mk.identity(2), mk.identity(3))
    assert found
    assert not [check for check in found.checks if "…" in check.subject]


def features(rng: np.random.Generator, n: int = 40, V: int = 300, d: int = 8) -> mk.Features:
    count = np.arange(n)
    return mk.Features(
        hidden=rng.normal(size=(n, d)).astype(np.float32),
        head=rng.normal(size=(V, d)).astype(np.float32),
        targets=rng.integers(0, V, n),
        token_ids=rng.integers(0, V, n),
        sequence_ids=count // 10,
        positions=count % 10,
        layers=(0, 1),
        layer_rows=count[::2],
        layer_hidden=rng.normal(size=(2, n // 2, d)).astype(np.float32),
        num_layers=2,
    )


def test_features() -> None:
    found = mk.audit(features(np.random.default_rng(0)))
    assert found
    assert {check.subject for check in found.checks if check.name == "rows sum to 1"} == {
        "layer 0",
        "layer 1",
        "layer 2",
    }


def test_what_is_too_large_to_form_is_said() -> None:
    rng = np.random.default_rng(0)
    P = mk.SoftmaxKernel(rng.normal(size=(600, 4)), rng.normal(size=(5000, 4)))
    found = mk.audit(P, mk.coarse_grain(rng.integers(0, 3, 5000)))
    assert found
    assert any("600 × 5000" in one for one in found.skipped)
    assert "not checked: " in repr(found)


def test_looks() -> None:
    found = mk.audit([[0.5, 0.6]])
    first, *_, last = repr(found).splitlines()
    assert first.startswith("1 of 2 checks fail")
    assert last.startswith("FAILS  rows sum to 1  1.0e-01")
    assert "<td>FAILS</td>" in found._repr_html_()
    assert "<td>ok</td>" in mk.audit(mk.identity(2))._repr_html_()
