"""Generalised eigenpairs from covariances: the pencil itself, invariance, and directions without variance."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from markovlm._linear_maps import generalized, rounding_of
from markovlm.typing import FloatArray

EPS = float(np.finfo(np.float64).eps)


def covariances(h: FloatArray, g: FloatArray) -> tuple[FloatArray, FloatArray]:
    h, g = h - h.mean(axis=0), g - g.mean(axis=0)
    return h.T @ g / len(h), h.T @ h / len(h)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_the_pencil(d: int, e: int, dependent: int, seed: int) -> None:
    """``C_hg C_gh V = C_hh V Θ`` and ``Vᵀ C_hh V = I``, also where some states are sums of others."""
    rng = np.random.default_rng(seed)
    h = rng.standard_normal((40, d)) @ (np.eye(d) + 0.3 * rng.standard_normal((d, d)))
    g = h @ rng.standard_normal((d, e)) + rng.standard_normal((40, e))
    wide = np.hstack([h, h @ rng.standard_normal((d, dependent))])
    C_hg, C_hh = covariances(wide, g)
    values, V = generalized(C_hg, C_hh)
    variances = np.linalg.eigvalsh(C_hh)
    kept = variances[variances > rounding_of(variances)]
    assert len(kept) == d
    assert V.shape == (d + dependent, min(d, e))
    assert len(values) == min(d, e)
    assert (np.diff(values) <= 0).all()
    # a direction is off by the rounding of C, ε ‖C‖ for each axis, over the variance that it was divided by
    error = 64 * (d + e) * EPS * kept[-1] / kept[0]
    np.testing.assert_allclose(V.T @ C_hh @ V, np.eye(len(values)), atol=error)
    size = np.linalg.norm(C_hg) ** 2 * np.linalg.norm(V, axis=0).max() + EPS
    np.testing.assert_allclose(C_hg @ C_hg.T @ V, C_hh @ V * values, atol=error * size)
    # ... and they are those of h alone, by another route: singular values of whitened samples
    u, _, _ = np.linalg.svd(h - h.mean(axis=0), full_matrices=False)
    plain = np.linalg.svd(u.T @ (g - g.mean(axis=0)) / np.sqrt(40), compute_uv=False) ** 2
    np.testing.assert_allclose(values, plain, atol=error * plain[0])


@given(st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_invariant_to_linear_maps_of_the_states(d: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    h, g = rng.standard_normal((30, d)), rng.standard_normal((30, 4))
    A = np.eye(d) + 0.2 * rng.standard_normal((d, d))
    (C_hg, C_hh), (D_hg, D_hh) = covariances(h, g), covariances(h @ A, g)
    (values, V), (others, U) = generalized(C_hg, C_hh), generalized(D_hg, D_hh)
    error = 64 * 30 * d * EPS * max(np.linalg.cond(C_hh), np.linalg.cond(D_hh))
    np.testing.assert_allclose(others, values, atol=error * values[0])
    # the leading function of states is the same: ⟨u, Aᵀ h⟩ = ± ⟨v, h⟩, as far as its eigenvalue is by itself
    gap = values[0] - values[1] if len(values) > 1 else values[0]
    assert abs(abs(V[:, 0] @ C_hh @ A @ U[:, 0]) - 1) <= error * (1 + values[0] / gap) ** 2


def test_nothing_varies() -> None:
    values, V = generalized(np.zeros((3, 2)), np.zeros((3, 3)))
    assert values.shape == (0,)
    assert V.shape == (3, 0)
