"""The smallest enclosing ball: both of its bounds hold, against radii that are known and against all subsets."""

from __future__ import annotations

import itertools
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import markovlm as mk
from markovlm import _enclosing_ball
from markovlm.errors import ConvergenceError, DTypeError, ShapeError, ValueRangeError
from markovlm.typing import FloatArray

EPS = float(np.finfo(np.float64).eps)


def exact_radius(points: FloatArray) -> float:
    """The smallest ball through some of the points, with its center in their hull, that holds all: tried one by one."""
    size, best = float(np.ptp(points, axis=0).max()), math.inf
    for count in range(1, min(len(points), points.shape[1] + 1) + 1):
        for chosen in itertools.combinations(points, count):
            base, edges = chosen[0], np.array(chosen) - chosen[0]  # the first is 0 = 0
            center = base + np.linalg.lstsq(edges, (edges * edges).sum(axis=1) / 2, rcond=None)[0]
            radius = float(np.linalg.norm(points - center, axis=1).max())
            best = min(best, radius)  # any center gives an upper bound, the best one is among these
    assert best <= size * math.sqrt(points.shape[1]) + EPS
    return best


def bracketed(ball: mk.Ball, radius: float, tol: float, of: float = 1.0) -> None:
    """``of`` the size of what is known of the radius: it is so to some roundings."""
    assert ball.lower <= radius + 64 * EPS * of
    assert ball.radius >= radius - 64 * EPS * of
    assert ball.gap <= tol


def small_sets() -> st.SearchStrategy[FloatArray]:
    def made(n: int, d: int, seed: int, on_grid: bool) -> FloatArray:
        rng = np.random.default_rng(seed)
        points = rng.integers(-2, 3, (n, d)) / 2 if on_grid else rng.standard_normal((n, d))
        return np.asarray(points.astype(np.float32), np.float64)

    return st.builds(made, st.integers(1, 7), st.integers(1, 3), st.integers(0, 2**32 - 1), st.booleans())


@given(small_sets(), st.sampled_from([1e-2, 1e-3, 1e-5]))
def test_against_all_subsets(points: FloatArray, tol: float) -> None:
    ball = mk.smallest_enclosing_ball(points, tol=tol)
    bracketed(ball, exact_radius(points), tol, of=4.0)
    distances = np.linalg.norm(points - ball.center, axis=1)
    assert distances.max() <= ball.radius
    assert ball.weights.min() > 0
    assert abs(ball.weights.sum() - 1) <= 16 * EPS
    np.testing.assert_allclose(ball.weights @ points[ball.support], ball.center, atol=64 * EPS * 4)
    assert (np.diff(ball.support) > 0).all()


def test_the_reference_knows_a_triangle() -> None:
    assert exact_radius(np.array([[0.0, 0.0], [2.0, 0.0], [1.0, 3.0**0.5]])) == pytest.approx(2 / 3**0.5, rel=1e-12)
    assert exact_radius(np.array([[0.0, 0.0], [6.0, 8.0], [5.0, 5.0]])) == 5.0


@given(small_sets(), st.integers(0, 2**32 - 1))
def test_permuted_moved_turned(points: FloatArray, seed: int) -> None:
    rng, d, tol = np.random.default_rng(seed), points.shape[1], 1e-4
    radius = exact_radius(points)
    turn, _ = np.linalg.qr(rng.standard_normal((d, d)))
    for moved, slack in (
        (points[rng.permutation(len(points))], 0.0),
        (points + rng.integers(-8, 9, d), 2.0**-24 * 16),  # rounded to float32 once more: each point by that at most
        (points @ turn, 2.0**-24 * 16),
    ):
        ball = mk.smallest_enclosing_ball(moved, tol=tol)
        assert ball.lower - slack * math.sqrt(d) <= radius + 256 * EPS
        assert ball.radius + slack * math.sqrt(d) >= radius - 256 * EPS
        assert ball.gap <= tol


KNOWN: dict[str, tuple[Any, float]] = {
    "one point": ([[1.1, 2.2, 3.3]], 0.0),
    "the same point often": ([[1.1, 2.2, 3.3]] * 9, 0.0),
    "no dimensions": (np.zeros((3, 0)), 0.0),
    "two points": ([[1.0, 2.0], [4.0, 6.0]], 2.5),
    "on a line, in three dimensions": (np.outer(np.arange(33), [1.0, 2.0, 2.0]), 48.0),
    "simplex": (np.eye(50), math.sqrt(1 - 1 / 50)),
    "cross, with repetitions": (np.vstack([np.eye(7), -np.eye(7), np.eye(7)]), 1.0),
    "cross, far from the origin": (4096.0 + np.vstack([np.eye(7), -np.eye(7)]), 1.0),
    "cube": (np.array(list(itertools.product([0.0, 2.0], repeat=5))), math.sqrt(5)),
}


@pytest.mark.parametrize("name", sorted(KNOWN))
@pytest.mark.parametrize("tol", [1e-3, 1e-6])
def test_known_radii(name: str, tol: float) -> None:
    points, radius = KNOWN[name]
    bracketed(mk.smallest_enclosing_ball(np.asarray(points), tol=tol), radius, tol, of=max(radius, 1.0))


def test_a_sphere_whose_center_is_in_the_hull_of_many_points() -> None:
    rng = np.random.default_rng(0)
    points = rng.standard_normal((2000, 12))
    points /= np.linalg.norm(points, axis=1)[:, None]
    points = np.vstack([points, -points, 0.9 * points]).astype(np.float32)
    # points and their opposites: no ball is smaller; float32 moves each by 2^-24 of its length at most
    ball = mk.smallest_enclosing_ball(points, tol=1e-4)
    assert ball.lower <= 1 + 2.0**-24
    assert ball.radius >= 1 - 2.0**-24
    assert ball.gap <= 1e-4
    assert np.linalg.norm(ball.center) <= math.sqrt(ball.radius**2 - ball.lower**2) + 2.0**-12  # √(1² − (1 − 2^-24)²)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_types_and_strides(dtype: Any) -> None:
    rng = np.random.default_rng(1)
    wide = rng.standard_normal((5000, 40)).astype(dtype)
    points = wide[::2, :24]
    ball, plain = (mk.smallest_enclosing_ball(x) for x in (points, np.ascontiguousarray(points).astype(np.float64)))
    assert max(ball.lower, plain.lower) <= min(ball.radius, plain.radius)
    assert max(ball.gap, plain.gap) <= 1e-3
    assert np.linalg.norm(points.astype(np.float64) - ball.center, axis=1).max() <= ball.radius


def test_more_points_of_support_than_join_in_a_pass() -> None:
    ball = mk.smallest_enclosing_ball(np.eye(700))
    bracketed(ball, math.sqrt(1 - 1 / 700), 1e-3)
    assert len(ball.support) > 2 * _enclosing_ball.ADDED


def test_masked_points_do_not_count() -> None:
    points = np.array([[0.0, 0.0], [2.0, 0.0], [1.0, 0.5], [100.0, 0.0]])
    ball = mk.smallest_enclosing_ball(points, mask=np.array([True, True, True, False]))
    bracketed(ball, 1.0, 1e-3)
    assert 3 not in ball.support
    assert mk.smallest_enclosing_ball(points, mask=[False, False, False, True]).radius == 0.0


def test_what_is_refused() -> None:
    points = np.eye(3)
    with pytest.raises(ValueRangeError, match=r"tol: expected a number in \[1e-6, 1\), got 0"):
        mk.smallest_enclosing_ball(points, tol=0)
    with pytest.raises(DTypeError, match="mask: expected booleans, got int64"):
        mk.smallest_enclosing_ball(points, mask=np.ones(3, int))
    with pytest.raises(ShapeError, match=r"mask: expected shape \(3,\)"):
        mk.smallest_enclosing_ball(points, mask=np.ones(4, bool))
    for empty, mask in ((points, np.zeros(3, bool)), (np.zeros((0, 3)), None)):
        with pytest.raises(ValueRangeError, match="at least one point that counts"):
            mk.smallest_enclosing_ball(empty, mask=mask)
    points[1, 1] = np.nan
    with pytest.raises(ValueRangeError, match="points: expected finite"):
        mk.smallest_enclosing_ball(points)


def test_too_few_passes_leave_what_was_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    points = np.random.default_rng(0).standard_normal((3000, 30))
    monkeypatch.setattr(_enclosing_ball, "MOST_PASSES", 3)
    monkeypatch.setattr(_enclosing_ball, "ADDED", 1)
    with pytest.raises(ConvergenceError, match="raise tol") as caught:
        mk.smallest_enclosing_ball(points)
    reached = caught.value.partial
    assert isinstance(reached, mk.Ball)
    assert reached.num_passes == 3
    distances = np.linalg.norm(points.astype(np.float32) - reached.center, axis=1)
    assert 0 < reached.lower < distances.max() <= reached.radius


def test_progress_can_stop_it() -> None:
    calls: list[tuple[int, int]] = []

    def stop(*done: int) -> None:
        calls.append((done[0], done[1]))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mk.smallest_enclosing_ball(np.eye(5), progress=stop)
    assert calls == [(2, 1000)]
    assert "5 points of support" in repr(mk.smallest_enclosing_ball(np.eye(5)))
