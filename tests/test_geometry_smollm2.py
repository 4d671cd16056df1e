"""The pullback metric of a real model: SmolLM2-135M, against its matrix in float64."""

from __future__ import annotations

import numpy as np
import pytest

import markovlm as mk
import reference
from geometry_cases import metric_error
from markovlm._geometry import effective_rank
from markovlm._sample_text import standard_library_docstrings
from markovlm.typing import FloatArray
from reference import assert_within

pytestmark = pytest.mark.real_model

N, K = 48, 16
RANK_ERROR = (
    0.05  # of effective ranks, relative: what the docstring of `geometry` promises, and room for other contexts
)


@pytest.fixture(scope="module")
def kernel() -> mk.SoftmaxKernel:
    texts, names = standard_library_docstrings(8 * N)
    return mk.extract("smollm2-135m", texts=texts, text_names=names, max_tokens=N).softmax_kernel()


@pytest.fixture(scope="module")
def found(kernel: mk.SoftmaxKernel) -> mk.Geometry:
    return mk.geometry(kernel, K)


def test_pairs_and_ranks_are_those_of_the_matrix(kernel: mk.SoftmaxKernel, found: mk.Geometry) -> None:
    assert found.status == "converged"
    for x in (5, N - 1):
        one = kernel[[x]]
        exact = reference.metrics(one)
        values = np.linalg.eigvalsh(exact[0])[::-1]
        error = metric_error(one, exact)[0]
        away = float(np.linalg.norm(found.residual_norms[x]))
        assert_within("eigenvalues", found.eigenvalues[x], values[:K], np.array(away + error))
        vectors = found.eigenvectors[x].astype(np.float64)
        residuals = np.linalg.norm(exact[0] @ vectors - vectors * found.eigenvalues[x], axis=0)
        assert_within("residual norms", found.residual_norms[x], residuals, np.array(error))
        assert abs(found.effective_rank[x] / effective_rank(np.maximum(values, 0)) - 1) < RANK_ERROR


def test_the_divergence_of_a_small_step_is_half_the_metric(kernel: mk.SoftmaxKernel, found: mk.Geometry) -> None:
    """Thm 6.1, by the fused passes alone: of ``KL(p_{h + ε v} ‖ p_h) − ½ ε² g*(v, v)`` the part that is odd in ε is
    ``O(ε³)`` and next ``O(ε⁵)``, so that its order shows at steps where float32 still resolves it.
    """
    v = found.eigenvectors[:, :, 0] / np.sqrt(found.eigenvalues[:, :1])
    steps = 2.0 ** -np.arange(2, 6)

    def remainder(step: float) -> FloatArray:
        moved = (kernel.hidden + step * v).astype(np.float32)
        Q = mk.SoftmaxKernel(moved, kernel.head)
        return mk.divergence(Q, kernel, mk.KL()) - mk.sensitivity(kernel, moved - kernel.hidden, per_context=True) / 2

    odd = [np.abs(remainder(step) - remainder(-step)).mean() for step in steps]
    order = np.polyfit(np.log(steps), np.log(odd), 1)[0]
    assert abs(order - 3) <= 0.1, odd


def test_no_path_is_shorter_than_the_distance(kernel: mk.SoftmaxKernel) -> None:
    P, Q = kernel[: N // 2], kernel[N // 2 :]
    paths = mk.path_length(P, Q)
    assert np.all(paths.length + paths.error >= paths.distance)
    assert np.all(paths.error <= 1e-3 * paths.length)
    assert np.all(paths.distance <= np.pi)
