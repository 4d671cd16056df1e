"""Dirichlet energies against their double sum."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import markovlm as mk
from markovlm.errors import DTypeError, ShapeError, ValueRangeError
from markovlm.typing import FloatArray
from reference import UNIT, assert_within
from similarity_cases import DOUBLE, Subject, softmax_kernel, subjects

pytestmark = pytest.mark.usefixtures("core")


def energy_by_definition(K: FloatArray, law: FloatArray, functions: FloatArray) -> FloatArray:
    differences = functions[:, None] - functions[None]
    return np.asarray(np.einsum("xy,x,y,xyj->j", K, law, law, differences**2) / 2)


class TestDirichletEnergy:
    @given(subject=subjects(sides=("contexts",), centered=False), normalized=st.booleans())
    def test_against_its_double_sum(self, subject: Subject, normalized: bool) -> None:
        n, root = len(subject.law), subject.root
        assume((subject.law > 0).sum() > 1)
        functions = subject.rng.standard_normal((n, 3)) * [1.0, 1e-3, 1e4] + [0.0, 1.0, 1e4]
        got = mk.dirichlet_energy(subject.M, functions, normalized=normalized)
        exact = energy_by_definition(subject.similarity(), subject.law, functions)
        centred = functions - subject.law @ functions
        variance = subject.law @ centred**2
        of_constant, of_functions = subject.error(root), subject.error(root * centred)
        bound = (root * of_constant)[:, 0] @ centred**2 + (np.abs(root * centred) * of_functions).sum(axis=0)
        largest = max(1.0, float(np.diagonal(subject.similarity()).max()))
        bound = bound + 64 * n * DOUBLE * largest * (variance + np.sqrt(variance) * np.abs(functions).max(axis=0))
        scale = variance if normalized else np.ones(3)
        assert_within("energy", np.asarray(got), exact / scale, bound / scale)
        one = mk.dirichlet_energy(subject.M, functions[:, 1], normalized=normalized)
        assert np.ndim(one) == 0
        assert abs(one - exact[1] / scale[1]) <= bound[1] / scale[1]

    def test_constants_have_none_and_shifts_change_nothing(self) -> None:
        P = softmax_kernel(20, 30, 4)
        M = mk.similarity_operator(P, "bhattacharyya", weights=np.arange(20) + 1.0)
        assert mk.dirichlet_energy(M, np.full(20, 0.1)) == 0
        with pytest.raises(ValueRangeError, match=r"functions: expected some variance.*column 1"):
            mk.dirichlet_energy(M, np.column_stack([np.arange(20), np.full(20, 0.1)]), normalized=True)
        f = np.random.default_rng(0).integers(-8, 9, 20) / 8
        np.testing.assert_allclose(mk.dirichlet_energy(M, f + 1024.0), mk.dirichlet_energy(M, f), rtol=100 * UNIT)
        assert mk.dirichlet_energy(M, f, normalized=True) <= 1 + 1000 * UNIT

    def test_of_sums(self) -> None:
        P = softmax_kernel(20, 30, 4)
        M1, M2 = (mk.similarity_operator(P, kind) for kind in ("bhattacharyya", "jensen_shannon"))
        f = np.random.default_rng(0).standard_normal(20)
        parts = 0.25 * mk.dirichlet_energy(M1, f) + 0.75 * mk.dirichlet_energy(M2, f)
        assert abs(mk.dirichlet_energy(0.25 * M1 + 0.75 * M2, f) - parts) <= 64 * 20 * DOUBLE * np.var(f)

    def test_errors(self) -> None:
        P = softmax_kernel(5, 6, 2)
        M, f = mk.similarity_operator(P, "bhattacharyya"), np.arange(5.0)
        other = mk.similarity_operator(P, "bhattacharyya", weights=[1.0, 2.0, 3.0, 4.0, 5.0])
        centered = mk.similarity_operator(P, "bhattacharyya", centered=True)
        tokens = mk.similarity_operator(P, "bhattacharyya", side="tokens")
        with pytest.raises(ValueRangeError, match=r"M: .*one law"):
            mk.dirichlet_energy(M + other, f)
        for wrong in (centered, M + centered):
            with pytest.raises(ValueRangeError, match=r"M: .*not centered"):
                mk.dirichlet_energy(wrong, f)
        with pytest.raises(ValueRangeError, match=r"M: .*on contexts, got one on tokens"):
            mk.dirichlet_energy(tokens, f)
        with pytest.raises(DTypeError, match=r"M: expected a similarity operator"):
            mk.dirichlet_energy(np.eye(5), f)  # type: ignore[arg-type]
        with pytest.raises(ShapeError, match=r"functions: .*5"):
            mk.dirichlet_energy(M, f[:4])
        with pytest.raises(ValueRangeError, match=r"functions: .*nan at row 2"):
            mk.dirichlet_energy(M, np.where(f == 2, np.nan, f))
