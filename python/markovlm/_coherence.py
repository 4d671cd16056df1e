"""How much successive states know of each other (theory §4)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular

from . import _checks
from ._features import Features
from .errors import ValueRangeError
from .typing import FloatArray, IntArray

__all__ = ["Coherence", "temporal_coherence"]

PAIRS_PER_COMPONENT = 10  # that are fitted with, at least: with as many as components every correlation is 1


@dataclass(frozen=True, repr=False)
class Coherence:
    """Canonical correlations of successive states, fitted on one half of the sequences and taken on the other."""

    value: float  # nats, −½ Σ log(1 − ρ²) with the held-out correlations
    null: float  # nats, what the same gives in expectation where successive states have nothing in common
    correlations: FloatArray  # (k,) held out, by the order of those that were fitted
    fitted: FloatArray  # (k,) in sample, falling
    num_pairs: tuple[int, int]  # fitted with, and evaluated on

    def __repr__(self) -> str:
        fitted, tested = self.num_pairs
        return (
            f"Coherence({self.value:.4f} nats held out, {self.null:.4f} by chance, {len(self.correlations)} "
            f"components, {fitted} pairs fitted, {tested} evaluated)"
        )


def temporal_coherence(
    features: Features, layer: int = -1, *, components: int | None = None, seed: int = 0
) -> Coherence:
    r"""A lower bound, of Gaussian kind, for what successive states know of each other, :math:`I(H_t; H_{t+1})`.

    .. math:: -\tfrac12 \sum_i \log(1 - \rho_i^2)

    with the canonical correlations ρ of successive states of a sequence. Directions are fitted on one half of the
    sequences and correlated on the other, because on their own half they are too good.

    Parameters
    ----------
    features : Features
        Of at least two sequences with successive contexts.
    layer : int
        As in `Features.softmax_kernel`.
    components : int, optional
        Leading principal components of the states that are used; default all, but at most a tenth of the pairs that
        are fitted with.
    seed : int
        Of the split of the sequences.

    Returns
    -------
    Coherence
        Invariant to invertible linear maps of the states where all components are used.

    Raises
    ------
    ValueRangeError
        Where fewer than two sequences have successive contexts, or too few for one component.

    Notes
    -----
    ``O(n d²)``. For states that are jointly Gaussian it is the mutual information; otherwise a bound for what the
    directions found carry, as far as these are Gaussian. Source: arXiv 2507.19247, §4; theory §4, §11.

    Examples
    --------
    >>> import numpy as np, markovlm as mk
    >>> rng = np.random.default_rng(0)
    >>> n = 4000  # states that forget half of themselves at each step, in two sequences
    >>> states = np.zeros((n, 2), np.float32)
    >>> for t in range(1, n):
    ...     states[t] = 0.5 * states[t - 1] + rng.normal(size=2)
    >>> features = mk.Features(
    ...     hidden=states, head=np.zeros((3, 2), np.float32), targets=np.zeros(n, int), token_ids=np.zeros(n, int),
    ...     sequence_ids=np.arange(n) // 2000, positions=np.arange(n) % 2000)
    >>> found = mk.temporal_coherence(features)
    >>> round(found.value, 1), round(float(-0.5 * np.log(1 - 0.5**2) * 2), 1)
    (0.3, 0.3)
    """
    kernel = features.softmax_kernel(layer)
    states = np.asarray(kernel.hidden, np.float64)
    rows = np.arange(len(features.hidden)) if kernel.shape[0] == len(features.hidden) else features.layer_rows
    assert rows is not None  # for the type checker: layers come with their rows
    first, second, group = _successive(np.asarray(rows), features)
    groups = np.unique(group)
    if len(groups) < 2:
        raise ValueRangeError(
            f"features: expected successive contexts in at least two sequences, got {len(groups)}; extract more text, "
            "and layers at every context"
        )
    half = np.random.default_rng(seed).permutation(groups)[: len(groups) // 2]
    fitted = np.isin(group, half)
    count = int(fitted.sum())
    most = min(states.shape[1], count // PAIRS_PER_COMPONENT)
    if components is not None:
        components = _checks.count("components", components, 1, max(most, 1))
    if most < 1:
        raise ValueRangeError(f"features: expected at least {PAIRS_PER_COMPONENT} pairs of contexts, got {count}")
    X, Y = (_reduced(states, states[part[fitted]], components or most) for part in (first, second))
    x, y = X[first], Y[second]
    correlations, into_x, into_y = _canonical(x[fitted], y[fitted])
    held_out = _correlations(x[~fitted] @ into_x, y[~fitted] @ into_y)
    tested = int((~fitted).sum())
    return Coherence(
        value=float(-0.5 * np.log1p(-(held_out**2)).sum()),
        null=len(held_out) / (2.0 * max(tested - 1, 1)),  # a correlation of nothing has a variance of 1/(n − 1)
        correlations=held_out,
        fitted=correlations,
        num_pairs=(count, tested),
    )


def _successive(rows: IntArray, features: Features) -> tuple[IntArray, IntArray, IntArray]:
    """Numbers of contexts that follow each other, and their sequence."""
    sequence, position = features.sequence_ids[rows], features.positions[rows]
    first = np.flatnonzero((np.diff(sequence) == 0) & (np.diff(position) == 1))
    return first, first + 1, sequence[first]


def _reduced(states: FloatArray, known: FloatArray, count: int) -> FloatArray:
    """Leading principal components of the states, found in those that are known: (n, at most count)."""
    mean = known.mean(axis=0)
    _, values, directions = np.linalg.svd(known - mean, full_matrices=False)
    kept = min(count, int((values > values[0] * 1e-7).sum()))  # states are float32: below is rounding
    return np.asarray((states - mean) @ directions[:kept].T)


def _canonical(x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Canonical correlations, falling, and the maps to the canonical variables."""
    (q_x, r_x), (q_y, r_y) = (np.linalg.qr(part - part.mean(axis=0)) for part in (x, y))
    left, values, right = np.linalg.svd(q_x.T @ q_y, full_matrices=False)
    return np.minimum(values, 1.0), solve_triangular(r_x, left), solve_triangular(r_y, right.T)


def _correlations(x: FloatArray, y: FloatArray) -> FloatArray:
    """Of each column of one with the same column of the other."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    scale = np.sqrt((x * x).sum(axis=0) * (y * y).sum(axis=0))
    found = (x * y).sum(axis=0) / np.where(scale > 0, scale, 1.0)
    return np.asarray(np.clip(found, -1 + 2.0**-52, 1 - 2.0**-52))
