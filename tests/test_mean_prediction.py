"""The mean prediction against the explicit average, on every build of the core."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import markovlm as mk
import reference
from markovlm import SoftmaxKernel, mean_prediction, softmax_stats
from markovlm.errors import ShapeError
from reference import Bounds, assert_within
from softmax_cases import Case, cases

pytestmark = pytest.mark.usefixtures("core")

# Probabilities below e^-87 are zero in float32.
TINY = np.exp(-87.0)


@given(case=cases(), weighted=st.booleans())
def test_within_its_bound(case: Case, weighted: bool) -> None:
    P, n = case.P, case.P.shape[0]
    if n == 0:
        with pytest.raises(ShapeError, match="at least one context"):
            mean_prediction(P)
        return
    z = reference.kernel_logits(P)
    weights = case.rng.random(n) * (case.rng.random(n) < 0.7) + 1e-3 if weighted else None
    got = mean_prediction(P, weights, num_threads=2)
    bounds = Bounds(z, case.delta)
    bound = bounds.mean_prediction(weights)
    assert_within("mean prediction", got, reference.mean_prediction(z, weights), bound + TINY)
    assert np.all(got >= 0)
    assert abs(got.sum() - 1) <= bound.sum() + TINY * len(got)


@given(case=cases())
def test_information_lies_between_zero_and_log_n(case: Case) -> None:
    P, n = case.P, case.P.shape[0]
    if n == 0:
        return
    bounds = Bounds(reference.kernel_logits(P), case.delta)
    p, entropy = mean_prediction(P), softmax_stats(P).entropy
    # dH = -sum dp (log p + 1), and log p >= -|z| - log V - ... is bounded by the largest gap
    slack = float((bounds.mean_prediction() * (1 + np.abs(np.log(np.maximum(p, TINY))))).sum() + bounds.entropy.mean())
    information = mk.KL().entropy(p) - entropy.mean()
    assert -slack <= information <= np.log(n) + slack


@given(case=cases())
def test_equal_weights_change_nothing_and_one_row_is_its_own_mean(case: Case) -> None:
    P, n = case.P, case.P.shape[0]
    if n == 0:
        return
    plain = mean_prediction(P)
    np.testing.assert_allclose(mean_prediction(P, np.full(n, 7)), plain, rtol=4 * reference.UNIT, atol=TINY)
    one = np.zeros(n)
    one[n // 2] = 1e308
    bound = Bounds(reference.kernel_logits(P), case.delta).mean_prediction(one)
    alone = mean_prediction(P[n // 2 : n // 2 + 1])
    assert_within("one row", mean_prediction(P, one), alone, 2 * bound + TINY)


def kernel(n: int, V: int, d: int, **options: Any) -> SoftmaxKernel:
    rng = np.random.default_rng(0)
    return SoftmaxKernel(rng.standard_normal((n, d)), rng.standard_normal((V, d)), **options)


@pytest.mark.parametrize(("n", "V", "d"), [(1, 1, 1), (40, 700, 5), (1300, 99, 300)])  # the last: more than one block
def test_same_bits_for_any_number_of_threads(n: int, V: int, d: int) -> None:
    P = kernel(n, V, d, temperature=np.sqrt(d))
    runs = [mean_prediction(P, num_threads=threads) for threads in (1, 2, 3, 7)]
    for run in runs[1:]:
        np.testing.assert_array_equal(runs[0], run)
    bound = Bounds(reference.kernel_logits(P), reference.logit_error(P)).mean_prediction()
    assert_within("mean prediction", runs[0], reference.mean_prediction(reference.kernel_logits(P)), bound)


def test_groups_have_means_of_their_own_and_all_else_stays_as_it_is() -> None:
    P, R = kernel(1100, 97, 6), kernel(275, 97, 6)  # contexts and groups both in more than one block
    weights = np.random.default_rng(1).random(275)
    s, without = softmax_stats(P, reference=R, mean=True, weights=weights), softmax_stats(P, reference=R)
    for name in ("log_normalizer", "entropy"):
        np.testing.assert_array_equal(getattr(s, name), getattr(without, name))
    assert s.mean is not None
    assert s.mean.shape == (4, 97)
    z = reference.kernel_logits(P)
    bounds = Bounds(z, reference.logit_error(P))
    for j, mean in enumerate(s.mean):
        rows = slice(275 * j, 275 * (j + 1))
        part = Bounds(z[rows], bounds.delta[rows])
        assert_within("mean", mean, reference.mean_prediction(z[rows], weights), part.mean_prediction(weights))


def test_a_vocabulary_too_large_for_a_slab_of_many_rows() -> None:
    P = SoftmaxKernel(np.array([[0.0], [0.5], [1.0]]), np.linspace(-9, 9, 1_700_000)[:, None])
    z = reference.kernel_logits(P)
    bound = Bounds(z, reference.logit_error(P)).mean_prediction()
    assert_within("mean prediction", mean_prediction(P), reference.mean_prediction(z), bound)


def test_errors_do_not_grow_with_the_number_of_contexts() -> None:
    P = SoftmaxKernel(np.ones((300_001, 1)), np.array([[0.0], [1.0], [-0.5]]))
    z = reference.kernel_logits(P)
    bound = Bounds(z, reference.logit_error(P)).mean_prediction()
    assert_within("mean prediction", mean_prediction(P), reference.mean_prediction(z), bound)


def test_huge_weights_do_not_overflow() -> None:
    P = kernel(3, 4, 2)
    np.testing.assert_array_equal(mean_prediction(P, [1.5e308] * 3), mean_prediction(P, [1.0] * 3))


def test_no_width_at_all() -> None:
    P = SoftmaxKernel(np.zeros((3, 0)), np.zeros((4, 0)))
    assert_within("mean prediction", mean_prediction(P), np.full(4, 0.25), np.full(4, 2 * reference.SUM))
