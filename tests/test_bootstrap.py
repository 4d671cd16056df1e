"""Intervals over sequences: against resampling written out, and how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest

from markovlm._bootstrap import Estimate, bootstrap_mean
from markovlm.errors import ValueRangeError
from markovlm.typing import FloatArray, IntArray


def written_out(values: FloatArray, groups: IntArray, resamples: int, seed: int) -> FloatArray:
    """Pooled means of resamples, one after the other: the replicates that `bootstrap_mean` takes quantiles of."""
    rng = np.random.default_rng(seed)
    names = np.unique(groups)
    replicates = []
    for _ in range(resamples):
        times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)))
        rows = np.concatenate([np.tile(np.flatnonzero(groups == g), t) for g, t in zip(names, times, strict=True)])
        replicates.append(values[rows].mean(axis=0))
    return np.array(replicates)


def test_against_resampling_written_out() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat([7, 3, 3, 11, 20, 21], [5, 1, 9, 2, 30, 4])
    values = rng.standard_normal((len(groups), 3)) + groups[:, None] / 10
    estimates = bootstrap_mean(values, groups, level=0.8, resamples=300, seed=5)
    replicates = np.sort(written_out(values, groups, 300, 5), axis=0)
    rounding = 1e3 * np.finfo(np.float64).eps * np.abs(values).max()
    for q, estimate in enumerate(estimates):
        assert estimate.level == 0.8
        assert abs(estimate.value - values[:, q].mean()) <= rounding
        assert np.abs(np.array(estimate.interval) - replicates[[29, 270], q]).max() <= rounding


def coverage(samples: int, *, over_tokens: bool = False) -> float:
    """Share of simulated samples whose 90 % interval holds the mean of the law that they were drawn from, 0."""
    rng = np.random.default_rng(1)
    sequence = np.repeat(np.arange(40), rng.integers(5, 15, 40))
    resampled = np.arange(len(sequence)) if over_tokens else sequence
    hits = 0
    for _ in range(samples):
        x = rng.standard_normal(40)[sequence] + 0.5 * rng.standard_normal(len(sequence))
        (estimate,) = bootstrap_mean(x[:, None], resampled, level=0.9, resamples=400)
        hits += estimate.interval[0] <= 0 <= estimate.interval[1]
    return hits / samples


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    # The percentile interval of 40 groups is a little short; 300 samples know a share of 0.9 to 0.017.
    assert 0.9 - 0.03 - 3 * 0.017 <= coverage(300) <= 0.9 + 3 * 0.017


def test_intervals_over_tokens_would_not() -> None:
    assert coverage(60, over_tokens=True) < 0.6


def test_order_and_names_of_groups_do_not_matter() -> None:
    rng = np.random.default_rng(0)
    groups, values = rng.integers(0, 6, 200), rng.standard_normal((200, 1))
    (expected,) = bootstrap_mean(values, groups)
    (renamed,) = bootstrap_mean(values, groups * 10 - 3)
    assert renamed == expected
    order = rng.permutation(200)
    (shuffled,) = bootstrap_mean(values[order], groups[order])
    np.testing.assert_allclose(shuffled.interval, expected.interval, rtol=1e4 * np.finfo(np.float64).eps)


def test_too_little_to_resample() -> None:
    (one,) = bootstrap_mean(np.array([[1.0], [2.0]]), np.zeros(2, np.int64))
    assert one.value == 1.5
    assert np.isnan(one.interval).all()
    none = bootstrap_mean(np.empty((0, 2)), np.empty(0, np.int64))
    assert len(none) == 2
    assert all(np.isnan([e.value, *e.interval]).all() for e in none)


def test_infinite_values_reach_the_end_that_they_should() -> None:
    values = np.array([[1.0, 1.0], [np.inf, 2.0], [3.0, 3.0], [4.0, 4.0]])
    rare, finite = bootstrap_mean(values, np.arange(4))
    assert rare.value == rare.interval[1] == np.inf
    assert 1.0 <= rare.interval[0] < np.inf  # some resamples are without it
    assert np.isfinite(finite.interval).all()
    (always,) = bootstrap_mean(np.full((3, 1), np.inf), np.arange(3))
    assert (always.value, *always.interval) == (np.inf,) * 3


@pytest.mark.parametrize("level", [0.0, 1.0, -1, 95, float("nan")])
def test_level_is_a_probability(level: float) -> None:
    with pytest.raises(ValueRangeError, match="level: expected a number between 0 and 1"):
        bootstrap_mean(np.ones((2, 1)), np.arange(2), level=level)


def test_words() -> None:
    estimate = Estimate(1.23456, (1.0, 2.0))
    assert str(estimate) == f"{estimate}" == "1.2346 [1.0000, 2.0000]"
    assert f"{estimate:.1f}" == "1.2 [1.0, 2.0]"
