"""Linear maps of states to the smallest expected surrogate, against its definition, context by context, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import markovlm as mk
import reference
from markovlm import _surrogate
from markovlm.typing import FloatArray
from reference import SUM, UNIT
from surrogate_cases import EPS, Plain, features

pytestmark = pytest.mark.filterwarnings("ignore::markovlm.errors.SampleWarning")


def case(seed: int, n: int = 60, d: int = 5) -> tuple[mk.Features, mk.Surrogate, Plain, FloatArray]:
    f = features(n, 40, d, seed=seed, scale=0.5)
    found = mk.quadratic_surrogate(f, ranks=(1, 2))
    centered = f.hidden - f.hidden.mean(axis=0, dtype=np.float64)
    u, _, _ = np.linalg.svd(centered, full_matrices=False)
    return f, found, Plain.of(f, found.reference), math.sqrt(n) * u  # φ


def expected_surrogate(
    plain: Plain, g: FloatArray, phi: FloatArray, B: FloatArray, beta: float, constant: float
) -> float:
    moved = phi @ B.T  # B φ
    g_0 = np.exp(reference.log_softmax(plain.z_0))[0] @ plain.g
    terms = moved @ g_0 + beta / 2 * (moved**2).sum(axis=1) - (g * moved).sum(axis=1)
    return constant + float(terms.mean())


def rows_of(f: mk.Features, plain: Plain, which: str) -> tuple[FloatArray, float, float]:
    """g, the surrogate of the reference alone, and how far passes may put a singular value of ``C_gφ`` off."""
    log_p, log_p_0 = reference.log_softmax(plain.z), reference.log_softmax(plain.z_0)[0]
    if which == "text":
        return plain.g[f.targets], float(-log_p_0[f.targets].mean()), 0.0
    # a probability is off by ρ of itself, so that ḡ is by ρ max ‖g‖, and a singular value by as much at most
    delta = reference.logit_error(f.softmax_kernel()).max()
    rho = 2 * delta + SUM + 20 * UNIT - 3 * UNIT * log_p.min() + 64 * UNIT
    return (
        np.exp(log_p) @ plain.g,
        float(-(np.exp(log_p) @ log_p_0).mean()),
        rho * np.linalg.norm(plain.g, axis=1).max(),
    )


@pytest.mark.parametrize("which", ["text", "model"])
@given(seed=st.integers(0, 2**32 - 1))
def test_no_other_map_has_a_smaller_surrogate(which: str, seed: int) -> None:
    f, found, plain, phi = case(seed)
    maps = found.text_maps if which == "text" else found.model_maps
    assert maps is not None
    rng = np.random.default_rng(seed)
    g, constant, off = rows_of(f, plain, which)
    left, singular, right = np.linalg.svd(g.T @ phi / len(phi), full_matrices=False)
    condition = found.assumptions.condition_number
    slack = off + 64 * len(phi) * EPS * condition * singular[0]
    np.testing.assert_allclose(np.sqrt(maps.eigenvalues), singular, atol=slack)
    h = f.hidden - f.hidden.mean(axis=0, dtype=np.float64)
    scores = h @ maps.directions  # of variance 1, uncorrelated
    np.testing.assert_allclose(scores.T @ scores / len(h), np.eye(2), atol=64 * len(h) * EPS * condition)
    constant_slack = float(plain.bregman_error.max() + plain.loss_error.max()) + 1e-12
    assert abs(maps.constant - constant) <= constant_slack
    for b, beta in enumerate((found.beta_ball, found.beta_calibrated)):
        for i, rank in enumerate(maps.ranks.tolist()):
            change = (2 * singular.sum() * slack + 5 * slack**2) / (2 * beta) + constant_slack
            best = left[:, :rank] * singular[:rank] @ right[:rank] / beta
            least = expected_surrogate(plain, g, phi, best, beta, constant)
            assert abs(maps.minimum[b, i] - least) <= change + 64 * EPS * abs(least)
            for size in (0.01, 1.0):
                near = best + size * singular[0] / beta * rng.standard_normal(best.shape)
                u, s, v = np.linalg.svd(near, full_matrices=False)
                other = u[:, :rank] * s[:rank] @ v[:rank]
                assert expected_surrogate(plain, g, phi, other, beta, constant) >= maps.minimum[b, i] - change


@pytest.mark.parametrize("which", ["text", "model"])
def test_what_the_models_own_states_reach(which: str) -> None:
    f, found, plain, phi = case(7)
    maps = found.text_maps if which == "text" else found.model_maps
    assert maps is not None
    g, constant, off = rows_of(f, plain, which)
    h = f.hidden - f.hidden.mean(axis=0, dtype=np.float64)
    own, common = h.T @ phi / len(phi), g.T @ phi / len(phi)
    cosine = float((own * common).sum() / np.linalg.norm(own) / np.linalg.norm(common))
    relative = 8 * off / np.linalg.norm(common) + 1e-10  # the condition number of h is below 100
    assert abs(maps.scaled[-1] - max(cosine, 0) ** 2) <= relative
    for b, beta in enumerate((found.beta_ball, found.beta_calibrated)):
        least = constant - expected_surrogate(plain, g, phi, common / beta, beta, constant)
        reached = (constant - expected_surrogate(plain, g, phi, own, beta, constant)) / least
        assert abs(maps.reached[b, -1] - reached) <= relative * (1 + abs(reached))
    # in the leading direction alone
    theta, v = maps.eigenvalues[0], maps.directions[:, 0]
    along = h.T @ (h @ v) / len(h)
    with_rows = g.T @ (h @ v) / len(h)
    cosine = float(along @ with_rows / np.linalg.norm(along) / math.sqrt(theta))
    assert abs(maps.scaled[0] - max(cosine, 0) ** 2) <= relative


def test_of_the_text_they_are_what_the_surrogate_says() -> None:
    """At full rank the model's own states are such a map, if the reference is their mean."""
    f, found, plain, _ = case(3)
    maps = found.text_maps
    assert maps is not None
    from_mean = np.linalg.norm(f.hidden.mean(axis=0, dtype=np.float64) - found.reference)  # rounded to float32
    for b, estimate in enumerate((found.surrogate_ball, found.surrogate_calibrated)):
        value = maps.constant - maps.reached[b, -1] * maps.decrease[b, -1]
        slack = (
            plain.loss_error.max() + plain.bregman_error.max() + 2 * np.linalg.norm(plain.g, axis=1).max() * from_mean
        )
        assert abs(value - estimate.value) <= slack + 1e-10 * abs(value)


def test_chance_is_what_permuted_rows_give() -> None:
    rng = np.random.default_rng(0)
    n, repeats = 50, 400
    states, g = rng.standard_normal((2, n, 4)).astype(np.float32)
    betas = np.ones(2)
    found = [
        _surrogate._linear_maps(states, g[rng.permutation(n)], np.zeros(n), 2.0, 0.0, betas, [1], rng)
        for _ in range(repeats)
    ]
    sums = np.array([maps.eigenvalues.sum() for maps in found])
    assert abs(sums.mean() - found[0].null) <= 4 * sums.std() / math.sqrt(repeats)


def test_maps_of_one_half_are_tried_on_the_other() -> None:
    """Twice β times what they take off the expected surrogate there, by its definition; none where nothing is."""
    rng, n = np.random.default_rng(0), 400
    states = rng.standard_normal((n, 4)).astype(np.float32)
    unrelated = rng.standard_normal((n, 4)).astype(np.float32)
    related = (unrelated + 2 * states @ rng.standard_normal((4, 4))).astype(np.float32)
    groups, ranks = np.arange(n) // 200, np.array([1, 4])
    sizes = []
    for g in (related, unrelated):
        found = _surrogate._held_out_maps(states, g, groups, 1.0, ranks, rng)
        expected = np.zeros(2)
        for fitted, tried in ((slice(200), slice(200, None)), (slice(200, None), slice(200))):
            h, y = (x[fitted].astype(np.float64) - x[fitted].mean(axis=0, dtype=np.float64) for x in (states, g))
            _, s, v = np.linalg.svd(h, full_matrices=False)
            whitening = math.sqrt(200) * v.T / s
            left, singular, right = np.linalg.svd(y.T @ (h @ whitening) / 200, full_matrices=False)
            h, y = (x[tried].astype(np.float64) - x[tried].mean(axis=0, dtype=np.float64) for x in (states, g))
            for i, rank in enumerate(ranks):
                moved = h @ whitening @ right[:rank].T * singular[:rank] @ left[:, :rank].T  # B φ for β = 1
                expected[i] += float((2 * (y * moved).sum(axis=1) - (moved**2).sum(axis=1)).mean()) / 2
        # sums of n terms of the size of g², each in float64
        np.testing.assert_allclose(found, expected, rtol=0, atol=64 * n * EPS * float((g**2).sum(axis=1).max()))
        sizes.append(found[1])
    assert sizes[0] > 0 > sizes[1]
    assert np.isnan(_surrogate._held_out_maps(states, related, 0 * groups, 1.0, ranks, rng)).all()


def test_ranks_beyond_the_full_one_are_left_out() -> None:
    f = features(60, 40, 5)
    f.hidden[:, 4] = f.hidden[:, 0] + f.hidden[:, 1]  # rounded to float32
    found = mk.quadratic_surrogate(f, ranks=(9, 2, 2, 4)).model_maps
    assert found.ranks.tolist() == [2, 4]
    assert found.directions.shape == (5, 2)
    assert found.eigenvalues.shape == (4,)
    assert (np.diff(found.decrease, axis=1) >= 0).all()
