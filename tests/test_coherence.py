"""Coherence of successive states: known values, nulls, and invariance."""

from __future__ import annotations

import numpy as np
import pytest

import markovlm as mk
from markovlm.errors import ValueRangeError
from markovlm.typing import FloatArray


def features(states: FloatArray, length: int) -> mk.Features:
    n = len(states)
    count = np.arange(n)
    return mk.Features(
        hidden=states.astype(np.float32),
        head=np.zeros((3, states.shape[1]), np.float32),
        targets=0 * count,
        token_ids=0 * count,
        sequence_ids=count // length,
        positions=count % length,
    )


def moving(rng: np.random.Generator, sequences: int, length: int, memory: FloatArray) -> FloatArray:
    """Stationary sequences of independent coordinates, each of which keeps ``memory`` of itself."""
    states = np.empty((sequences, length, len(memory)))
    states[:, 0] = rng.normal(size=(sequences, len(memory)))
    for t in range(1, length):
        states[:, t] = memory * states[:, t - 1] + np.sqrt(1 - memory**2) * rng.normal(size=states[:, t].shape)
    return states.reshape(-1, len(memory))


def test_gaussian_states_have_the_information_that_is_known() -> None:
    memory = np.array([0.95, 0.8, 0.5, 0.2, 0.0])
    found = mk.temporal_coherence(features(moving(np.random.default_rng(0), 200, 100, memory), 100))
    exact = -0.5 * np.log(1 - memory**2).sum()
    # a correlation is off by (1 − ρ²)/√n, so −½ log(1 − ρ²) by ρ/√n; n = 9,900 pairs, which depend on each other
    assert abs(found.value - exact) <= 6 * np.linalg.norm(memory) / np.sqrt(9_900)
    assert np.abs(found.correlations - memory).max() <= 5 / np.sqrt(9_900)
    assert found.num_pairs == (9_900, 9_900)
    assert "9900 pairs fitted" in repr(found)


def test_states_without_a_past_are_at_the_null() -> None:
    rng = np.random.default_rng(0)
    values = []
    for _ in range(20):
        found = mk.temporal_coherence(features(rng.normal(size=(1000, 20)), 50))
        values.append(found.value)
        assert found.fitted.max() > found.correlations.max()  # in sample it is too good
    # each is half a χ² of 20 degrees by n − 1 = 489: mean 20/978, deviation √40/978
    assert abs(np.mean(values) - found.null) <= 4 * np.sqrt(40) / 978 / np.sqrt(20)


def test_invariant_to_linear_maps() -> None:
    rng = np.random.default_rng(0)
    states = moving(rng, 40, 50, np.array([0.9, 0.5, 0.1]))
    mapped = states @ (np.eye(3) + 0.3 * rng.normal(size=(3, 3)))
    one, other = (mk.temporal_coherence(features(x, 50)) for x in (states, mapped))
    assert other.value == pytest.approx(one.value, rel=1e-4)  # states are rounded to float32 after the map


def test_few_pairs_get_few_components() -> None:
    rng = np.random.default_rng(0)
    found = mk.temporal_coherence(features(rng.normal(size=(120, 30)), 10))
    assert len(found.correlations) == 54 // 10
    assert len(mk.temporal_coherence(features(rng.normal(size=(120, 30)), 10), components=2).correlations) == 2
    with pytest.raises(ValueRangeError, match=r"components: expected an integer in \[1, 5\], got 6"):
        mk.temporal_coherence(features(rng.normal(size=(120, 30)), 10), components=6)


def test_constant_directions_do_not_matter() -> None:
    rng = np.random.default_rng(0)
    states = moving(rng, 40, 50, np.array([0.9, 0.5]))
    wider = np.hstack([states, np.ones((len(states), 1)), states[:, :1]])
    assert mk.temporal_coherence(features(wider, 50)).value == pytest.approx(
        mk.temporal_coherence(features(states, 50)).value,
        rel=1e-4,  # as above
    )


def test_what_cannot_be_measured_is_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueRangeError, match="at least two sequences, got 1"):
        mk.temporal_coherence(features(rng.normal(size=(100, 2)), 100))
    with pytest.raises(ValueRangeError, match="at least two sequences, got 0"):
        mk.temporal_coherence(features(rng.normal(size=(100, 2)), 1))
    with pytest.raises(ValueRangeError, match="at least 10 pairs"):
        mk.temporal_coherence(features(rng.normal(size=(6, 2)), 3))
