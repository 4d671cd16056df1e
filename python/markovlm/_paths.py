"""How far predictions are from each other, and how long the straight way between their states is (theory §8)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import _checks
from ._divergences import SquaredHellinger
from ._ext import core
from ._kernels import Kernel
from ._metric import metric_width
from ._rowwise import divergence
from ._softmax import SoftmaxKernel
from .errors import ShapeError, ValueRangeError
from .typing import FloatArray, Progress

__all__ = ["PathLength", "fisher_rao_distance", "path_length"]


@dataclass(frozen=True, eq=False)
class PathLength:
    """Of straight paths between states: ``length`` (n,) >= ``distance`` (n,), both in units of the Fisher–Rao metric.

    ``error`` (n,) is how far two quadratures of the length were from each other.
    """

    length: FloatArray
    error: FloatArray
    distance: FloatArray

    def __repr__(self) -> str:
        if not len(self.length):
            return "PathLength(0 paths)"
        longest = np.max(self.length)
        return (
            f"PathLength({len(self.length)} paths: mean length {np.mean(self.length):.4g}, longest {longest:.4g}, "
            f"mean distance {np.mean(self.distance):.4g})"
        )


def fisher_rao_distance(
    P: Kernel,
    Q: Kernel,
    *,
    max_memory: int | None = None,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> FloatArray:
    r"""The geodesic distance of the Fisher–Rao metric between rows.

    .. math:: d_{FR}(p, q) = 2 \arccos \sum_w \sqrt{p_w q_w} = 4 \arcsin \sqrt{H^2(p, q) / 2}

    Parameters
    ----------
    P, Q : Kernel
        With ``n`` rows on the same set, as in `divergence`.
    max_memory, num_threads, progress
        As in `softmax_stats`.

    Returns
    -------
    (n,) float64
        In [0, π]; π where supports are disjoint. As exact as the squared Hellinger distance is, from which it is taken:
        near 0 it keeps the digits that an arc cosine would lose.

    Raises
    ------
    ShapeError, DTypeError, ValueRangeError

    Notes
    -----
    One pass, as of `divergence`. Where Q's states are those of P and a step ``ε v``, it is ``ε √g*(v, v) + O(ε²)``.
    Source: arXiv 2507.19247, Cor. 7.2; theory §8.

    Examples
    --------
    >>> import numpy as np, markovlm as mk
    >>> f, g = mk.Kernel([[0.5, 0.5], [1.0, 0.0]]), mk.Kernel([[1.0, 0.0], [0.0, 1.0]])
    >>> mk.fisher_rao_distance(f, g) / np.pi
    array([0.5, 1. ])
    """
    squared = divergence(P, Q, SquaredHellinger(), max_memory=max_memory, num_threads=num_threads, progress=progress)
    return np.asarray(4 * np.arcsin(np.sqrt(np.clip(squared, 0.0, 1.0) / 2)))


def path_length(
    P: SoftmaxKernel,
    Q: SoftmaxKernel,
    *,
    tol: float = 1e-5,
    max_memory: int | None = None,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> PathLength:
    r"""How far predictions travel while states move straight from those of P to those of Q.

    .. math:: \ell_x = \int_0^1 \sqrt{g^*(h_s)(\delta, \delta)}\, ds \;\ge\; d_{FR}(p_x, q_x), \qquad
              h_s = h_x + s\, \delta, \; \delta = h'_x - h_x

    Parameters
    ----------
    P, Q : SoftmaxKernel
        Of as many contexts, with the same head.
    tol : float in (0, 1)
        Of the quadrature, relative to the length.
    max_memory, num_threads, progress
        As in `geometry`.

    Returns
    -------
    PathLength
        ``.length``, ``.error``, ``.distance``.

    Raises
    ------
    ShapeError, DTypeError, ValueRangeError
        Also where heads differ.

    Notes
    -----
    Logits are linear in s up to soft-capping: ``4 n V d`` flops give those of all points of a path, each of which then
    costs two exponentials per token. Gauss–Legendre rules of ten points, on halves of halves until these change an
    interval by less than ``tol`` times the length; ``error`` adds the last changes up. States that predict with near
    certainty on the way take most points. Source: arXiv 2507.19247, Cor. 7.2; theory §8.

    Examples
    --------
    >>> import numpy as np, markovlm as mk
    >>> W = np.array([[0.0], [1.0]])  # of two tokens: every path between two predictions is the shortest
    >>> found = mk.path_length(mk.SoftmaxKernel([[0.0]], W), mk.SoftmaxKernel([[np.log(3.0)]], W))
    >>> found.length.round(5), (found.distance / np.pi * 6).round(5)
    (array([0.5236]), array([1.]))
    """
    d, tol = metric_width(P), _checks.positive("tol", tol)
    if tol >= 1:
        raise ValueRangeError(f"tol: expected a number in (0, 1), relative to the length, got {tol!r}")
    if metric_width(Q) != d or Q.shape != P.shape:
        raise ShapeError(
            f"Q: expected the contexts, tokens and width of P, {(*P.shape, d)}, got {(*Q.shape, metric_width(Q))}"
        )
    if not _same_head(P, Q):
        raise ValueRangeError(
            "Q: expected the head of P, along whose metric the path is measured, got another head, bias, temperature, "
            "scale or softcap; mk.fisher_rao_distance compares heads"
        )
    length, error = core.path_lengths(
        P.hidden,
        Q.hidden,
        P._head_arguments(),
        tol,
        _checks.memory(max_memory),
        _checks.threads(num_threads),
        progress,
    )
    distance = fisher_rao_distance(P, Q, max_memory=max_memory, num_threads=num_threads)
    return PathLength(length=length, error=error, distance=distance)


def _same_head(P: SoftmaxKernel, Q: SoftmaxKernel) -> bool:
    names = ("temperature", "scale", "softcap")
    if any(getattr(P, name) != getattr(Q, name) for name in names) or (P.bias is None) != (Q.bias is None):
        return False
    same_bias = P.bias is None or np.array_equal(P.bias, Q.bias)  # type: ignore[arg-type]
    return same_bias and (P.head is Q.head or (P.head.dtype == Q.head.dtype and np.array_equal(P.head, Q.head)))
