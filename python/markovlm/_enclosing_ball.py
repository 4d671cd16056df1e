"""The smallest ball that holds all of many points, bounded from both sides (theory §11)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from . import _checks
from .errors import ConvergenceError, DTypeError, ShapeError, ValueRangeError
from .typing import ArrayInput, BoolArray, FloatArray, IntArray, ModelArray, Progress

__all__ = ["Ball", "row_blocks", "smallest_enclosing_ball", "squared_distances"]

EPS = float(np.finfo(np.float64).eps)
ROWS_AT_A_TIME = 4096  # that are widened
ADDED = 128  # farthest points that join the core after a pass: products with a few hundred points cost next to nothing
MOST_PASSES = 1000
MOST_STEPS = 20_000  # of weights, between two passes


@dataclass(frozen=True, repr=False, eq=False)
class Ball:
    """A ball that holds all points, and a proof that none much smaller does."""

    center: FloatArray  # (d,)
    radius: float  # no point is farther from the center, rounding included
    lower: float  # no ball that holds all points has a smaller radius, rounding included
    support: IntArray  # (m,) points that the proof rests on, ascending
    weights: FloatArray  # (m,) > 0, they sum to 1; the center is the mean of the support with these
    num_passes: int  # over all points

    @property
    def gap(self) -> float:
        """``(radius − lower) / radius``, 0 for a ball of one point: how much smaller the smallest may be."""
        return (self.radius - self.lower) / self.radius if self.radius > 0 else 0.0

    def __repr__(self) -> str:
        return (
            f"Ball(radius={self.radius:.6g}, lower={self.lower:.6g}, {len(self.center)} dimensions, "
            f"{len(self.support)} points of support, {self.num_passes} passes)"
        )


def smallest_enclosing_ball(
    points: ArrayInput,
    *,
    mask: ArrayInput | None = None,
    tol: float = 1e-3,
    progress: Progress | None = None,
) -> Ball:
    r"""The smallest ball that holds all points, with its radius bounded from both sides.

    .. math:: R^2 = \min_c \max_i \|x_i - c\|^2 = \max_{u \ge 0,\, \sum u_i = 1}
              \sum_i u_i \|x_i\|^2 - \Bigl\| \sum_i u_i x_i \Bigr\|^2

    Any center gives an upper bound and any ``u`` a lower one.

    Parameters
    ----------
    points : (V, d) floating point
        float32, bfloat16 and float16 are read where they lie, other types are rounded to float32. Duplicates and points
        in a subspace are fine.
    mask : (V,) booleans, optional
        Points that count; default all.
    tol : float in [1e-6, 1)
        Of ``(radius − lower) / radius``.
    progress : callable, optional
        ``progress(passes done, most passes)``, after each pass; what it raises ends the work.

    Returns
    -------
    Ball

    Raises
    ------
    ShapeError, DTypeError, ValueRangeError
        No point that counts; values that are not finite.
    ConvergenceError
        Rounding, or 1,000 passes, end the work before ``tol``; ``partial`` holds the `Ball` that was reached.

    Notes
    -----
    A core of points grows: the best ``u`` of the core by exchanges of weight between two points (Frank–Wolfe steps
    with exact line search, in float64), then one pass over all points, whose 128 farthest join; those without
    weight leave. A pass takes ``2 V d`` flops in single precision, and 1/tol points of support are enough whatever
    ``V`` and ``d`` (Bădoiu and Clarkson 2003): the head of SmolLM2-135M takes 5 passes, and so do 100,000 Gaussian
    points in 1,024 dimensions, give or take one. The last pass, whose result counts, is in float64, by blocks of
    4,096 rows. With distances of one center in float64, each a sum of d squares of differences that are rounded
    once, ``radius²`` is off by at most ``(d + 3) ε`` of itself, which is added. ``lower²`` is ``Σ u_i ‖x_i − c‖² −
    ‖Σ u_i (x_i − c)‖²`` for the same c; what rounding can do to it, ``(d + m + 8) ε`` of its terms for m points, is
    taken off. Memory ``8 V`` bytes and a block.
    Source: the dual is that of Gärtner (1999), *Fast and robust smallest enclosing balls*.

    Examples
    --------
    >>> import numpy as np, markovlm as mk
    >>> ball = mk.smallest_enclosing_ball(np.array([[0.0, 0.0], [6.0, 0.0], [6.0, 8.0], [5.0, 5.0]]))
    >>> ball.center.round(6), round(ball.radius, 6), len(ball.support)
    (array([3., 4.]), 5.0, 2)
    """
    array = _checks.model_matrix("points", points, "(V, d)")
    counted = _counted(mask, len(array))
    if not isinstance(tol, (int, float)) or not 1e-6 <= tol < 1:
        raise ValueRangeError(f"tol: expected a number in [1e-6, 1), got {tol!r}")
    return _grown(array, counted, float(tol), progress)


def _grown(points: ModelArray, counted: BoolArray, tol: float, progress: Progress | None) -> Ball:
    core = np.flatnonzero(counted)[:1]
    weights, origin = np.ones(1), points[core[0]].astype(np.float64)
    squares = squared_distances(points, origin)
    exactness = tol / 4  # of the best weights on the core
    lower, passes = -1.0, 1
    best: Ball | None = None
    while passes < MOST_PASSES and exactness >= EPS:
        before, x = lower, points[core].astype(np.float64) - origin
        weights = _best_weights(x, weights, exactness)
        kept = weights > 0
        core, x, weights = core[kept], x[kept], weights[kept] / weights[kept].sum()
        center = origin + weights @ x
        lower = _lower_bound(points[core].astype(np.float64) - center, weights)
        new: IntArray = np.empty(0, np.int64)
        # the search goes on while what it finds is truly far, not rounding; the last pass must be an exact one
        if lower > before * (1 + tol / 8) and passes + 1 < MOST_PASSES:
            found = np.where(counted, _approximate_distances(points, origin, center - origin, squares), -np.inf)
            passes += 1
            if found.max() > (lower / (1 - tol)) ** 2:
                new = np.setdiff1d(_farthest(found, lower), core)
        if not new.size:
            found = np.where(counted, squared_distances(points, center), -np.inf)
            passes += 1
            radius = math.sqrt(float(found.max()) * (1 + (points.shape[1] + 4) * EPS))
            order = np.argsort(core)
            ball = Ball(center, radius, lower, core[order], weights[order], passes)
            best = ball if best is None or ball.gap < best.gap else best
            new = np.setdiff1d(_farthest(found, lower), core)
            exactness /= 1 if new.size else 4
        if progress is not None:
            progress(passes, MOST_PASSES)
        if best is not None and best.gap <= tol:
            return best
        core, weights = np.concatenate([core, new]), np.concatenate([weights, np.zeros(len(new))])
    raise ConvergenceError(
        f"smallest_enclosing_ball: radius and lower bound differ by more than tol = {tol:g}, reached {best}; raise tol",
        best,
    )


def _best_weights(x: FloatArray, weights: FloatArray, exactness: float) -> FloatArray:
    """``u`` on the simplex for which ``f = ½ uᵀ D u`` is largest, D the squared distances: ``f ≤ R² ≤ max D u − f``.

    Each step moves weight to the farthest point, from the one that it helps most to take it from, as much as is best.
    """
    products = x @ x.T
    squares = np.diag(products)
    D = np.maximum(squares[:, None] + squares - 2 * products, 0.0)
    weights, slopes = weights.copy(), D @ weights
    for _ in range(MOST_STEPS):
        to = int(slopes.argmax())
        f = 0.5 * float(weights @ slopes)
        if slopes[to] - 2 * f <= exactness * f:
            break
        behind = np.where(weights > 0, slopes[to] - slopes, 0.0)
        near = np.maximum(D[to], EPS * slopes[to])  # duplicates: all their weight moves
        source = int((behind * behind / near).argmax())
        moved = min(float(weights[source]), float(behind[source] / (2 * near[source])))
        weights[to] += moved
        weights[source] = 0.0 if moved >= weights[source] else weights[source] - moved
        slopes += moved * (D[to] - D[source])
    return weights


def _lower_bound(x: FloatArray, weights: FloatArray) -> float:
    """Of R, from points relative to a center: ``Σ u ‖x‖² − ‖Σ u x‖²``, for weights that sum to 1 within rounding."""
    m, d = x.shape
    unit = (d + m + 8) * EPS
    squares = (x * x).sum(axis=1)
    spread = float(weights @ squares) / float(weights.sum())
    off = float(np.linalg.norm(weights @ x)) + unit * float(np.sqrt(squares.max()))
    return float(np.sqrt(max(spread * (1 - unit) - off * off * (1 + unit), 0.0)))


def _farthest(distances: FloatArray, lower: float) -> IntArray:
    """At most `ADDED` points, among them the farthest, that are farther than a lower bound of R."""
    most = min(ADDED, len(distances))
    some = np.argpartition(distances, -most)[-most:]
    return some[distances[some] > lower * lower]


def squared_distances(points: ModelArray, center: FloatArray) -> FloatArray:
    """(V,) in float64, by differences."""
    found = np.empty(len(points))
    for rows in row_blocks(len(points)):
        x = points[rows].astype(np.float64) - center
        found[rows] = np.einsum("vd,vd->v", x, x)
    return found


def _approximate_distances(
    points: ModelArray, origin: FloatArray, direction: FloatArray, squares: FloatArray
) -> FloatArray:
    """(V,) from ``origin + direction``, by products in single precision: good enough to say which are far."""
    single, constant = direction.astype(np.float32), float(direction @ direction + 2 * (direction @ origin))
    found = squares + constant
    for rows in row_blocks(len(points)):
        found[rows] -= 2.0 * (points[rows].astype(np.float32, copy=False) @ single)
    return found


def row_blocks(count: int) -> Iterator[slice]:
    return (slice(first, first + ROWS_AT_A_TIME) for first in range(0, count, ROWS_AT_A_TIME))


def _counted(mask: ArrayInput | None, count: int) -> BoolArray:
    found = np.ones(count, bool) if mask is None else _checks.as_numpy("mask", mask)
    if found.dtype != bool:
        raise DTypeError(f"mask: expected booleans, got {found.dtype}; write mask > 0")
    if found.shape != (count,):
        raise ShapeError(f"mask: expected shape ({count},), one for each point, got {found.shape}")
    if not found.any():
        raise ValueRangeError("points: expected at least one point that counts, got none")
    return found
