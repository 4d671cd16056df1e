"""The Fisher–Rao metric on hidden states that a softmax head pulls back, never formed over tokens (theory §8)."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _checks
from ._ext import core
from ._softmax import SoftmaxKernel
from .errors import DTypeError, ShapeError, ValueRangeError
from .typing import ArrayInput, FloatArray, ModelArray, Progress

__all__ = ["MetricOperator", "fisher_metric", "mean_metric", "metric_operator", "metric_width", "sensitivity"]

TOKENS_AT_A_TIME = 1024  # whose rows of the head are widened to float64
DIRECTIONS_AT_A_TIME = 64


class MetricOperator:
    """The metric at one context as a symmetric operator: ``G @ X``, for `eigsh` and others. `metric_operator` makes it.

    ``shape`` is (d, d), ``trace`` the sum of eigenvalues; ``matrix()`` forms it, for small d.
    """

    dtype = np.dtype(np.float64)

    def __init__(self, head: ModelArray, probabilities: FloatArray, slopes: FloatArray) -> None:
        self.head, self.probabilities, self.slopes = head, probabilities, slopes
        self.shape = (head.shape[1], head.shape[1])
        # Rows are taken relative to the likeliest token's: where that has nearly all the probability, the metric is as
        # small as what the others have, and keeps its digits.
        likeliest = int(np.argmax(probabilities))
        self._top = slopes[likeliest] * head[likeliest].astype(np.float64)
        self._beyond = np.zeros(head.shape[1])
        square = 0.0
        for some in self._parts():
            rows = self._rows(some)
            self._beyond += probabilities[some] @ rows
            square += float(probabilities[some] @ np.einsum("wd,wd->w", rows, rows))
        self.trace = max(square - float(self._beyond @ self._beyond), 0.0)

    def __matmul__(self, X: ArrayInput) -> FloatArray:
        """``g* X`` for X (d,) or (d, b): ``4 V d b`` flops in float64."""
        columns = _checks.columns("X", X, self.shape[0], "component")
        product = np.zeros(columns.shape)
        for some in self._parts():
            rows = self._rows(some) - self._beyond
            values = rows @ columns
            product += rows.T @ (values.T * self.probabilities[some]).T
        return product

    def matrix(self) -> FloatArray:
        """(d, d): ``2 V d²`` flops."""
        return self @ np.eye(self.shape[0])

    def __repr__(self) -> str:
        return f"MetricOperator({self.shape[0]} x {self.shape[1]}, {len(self.probabilities)} tokens, {self.trace=:.4g})"

    def _parts(self) -> list[slice]:
        return [slice(i, i + TOKENS_AT_A_TIME) for i in range(0, len(self.probabilities), TOKENS_AT_A_TIME)]

    def _rows(self, some: slice) -> FloatArray:
        """``D_w g_w`` less that of the likeliest token."""
        rows = self.head[some].astype(np.float64)
        rows *= self.slopes[some, None]
        rows -= self._top
        return rows


def metric_operator(P: SoftmaxKernel, context: int) -> MetricOperator:
    r"""The metric at one context, :math:`g^*(h) = J^\top (\operatorname{diag} p - p p^\top) J`, as an operator.

    .. math:: J = \frac{\partial z}{\partial h} = D W, \qquad
              D_w = \frac{\mathrm{scale}}{T} \;\text{ or }\;
              \frac{\mathrm{scale}}{T} \operatorname{sech}^2\!\Bigl(\frac{\mathrm{scale}\,(g_w \cdot h + b_w)}{c}\Bigr)

    It is the covariance of ``D_w g_w`` under p; ``½ ε² vᵀ g* v`` is the KL divergence that a step ``ε v`` of the state
    causes, up to ``O(ε³)``.

    Parameters
    ----------
    P : SoftmaxKernel
        ``n`` contexts, ``V`` tokens, width ``d``; with bias, temperature, scale and soft-capping.
    context : int in [-n, n)
        Which of the contexts.

    Returns
    -------
    MetricOperator
        ``.shape`` (d, d), ``.trace``, ``@``, ``.matrix()``. In nats per squared unit of h, from float64 logits.

    Raises
    ------
    DTypeError, ValueRangeError

    Notes
    -----
    ``4 V d`` flops for each column, memory ``16 V`` bytes and 1024 rows of the head in float64. The rank is at most
    ``min(d, V − 1)``. For the leading pairs of many contexts `geometry` is far faster. Source: arXiv 2507.19247, Eq.
    6.2, 6.4, Thm 6.1, Prop. 6.3; the slopes of a soft-capped head are ours.

    Examples
    --------
    >>> import numpy as np, markovlm as mk
    >>> P = mk.SoftmaxKernel([[0.0, 0.0]], [[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])  # uniform p
    >>> G = mk.metric_operator(P, 0)
    >>> G.matrix(), G.trace
    (array([[0.5, 0. ],
           [0. , 2. ]]), 2.5)
    >>> mk.eigsh(G, k=1).eigenvalues
    array([2.])
    """
    metric_width(P)
    n = P.shape[0]
    if isinstance(context, bool) or not isinstance(context, (int, np.integer)):
        raise DTypeError(f"context: expected an integer, got {context!r}; several are for mk.geometry")
    if not -n <= context < n:
        raise ValueRangeError(f"context: expected a row number in [{-n}, {n}), got {context}")
    state = P.hidden[[int(context) % n]]
    raw = SoftmaxKernel(state, P.head, P.bias, scale=P.scale).logits()[0]
    slopes = np.full(len(raw), P.scale / P.temperature)
    if P.softcap:
        decay = np.exp(-2 * np.abs(raw / P.softcap))  # sech² keeps its digits where tanh is all but 1
        slopes *= 4 * decay / (1 + decay) ** 2
        raw = np.where(np.isneginf(raw), raw, P.softcap * np.tanh(raw / P.softcap))
    logits = raw / P.temperature
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    return MetricOperator(P.head, probabilities, slopes)


def mean_metric(
    P: SoftmaxKernel,
    weights: ArrayInput | None = None,
    *,
    max_memory: int | None = None,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> FloatArray:
    r"""The metric averaged over contexts, in one fused pass over them.

    .. math:: \mathbb{E}_x\, g^*(h_x) = W^\top \operatorname{diag}\bigl(\mathbb{E}_x\, p_x D_x^2\bigr) W
              - \mathbb{E}_x\, m_x m_x^\top, \qquad m_x = \sum_w p_x(w) D_x(w)\, g_w

    Parameters
    ----------
    P : SoftmaxKernel
        ``n`` contexts, ``V`` tokens, width ``d``.
    weights : (n,) floats >= 0, optional
        The law over contexts, normalised here; default uniform.
    max_memory, num_threads, progress
        As in `geometry`.

    Returns
    -------
    (d, d) float64
        Symmetric, positive semidefinite up to rounding: some 1e-6 of ``E |D g|²``.

    Raises
    ------
    ShapeError, DTypeError, ValueRangeError

    Notes
    -----
    ``4 n V d + 2 V d²`` flops. For linear heads the law of tokens in the first term is the mean prediction. Ours;
    theory §8.

    Examples
    --------
    >>> import numpy as np, markovlm as mk
    >>> P = mk.SoftmaxKernel([[0.0], [np.log(3.0)]], [[0.0], [1.0]])  # variances 1/4 and 3/16
    >>> mk.mean_metric(P).round(6)
    array([[0.21875]])
    """
    if P.shape[0] == 0:
        raise ShapeError("P: expected at least one context to average over, got none")
    return mean_of(P, fisher_metric(P, 0, weights, None, max_memory, num_threads, progress))[0]


def mean_of(P: SoftmaxKernel, found: dict[str, Any]) -> tuple[FloatArray, float]:
    """The mean metric from what the pass gave, and how large eigenvalues that are 0 may be by rounding of the sums."""
    roots = np.sqrt(found["token_weights"])
    mean = -found["second_moment"]
    for first in range(0, len(roots), TOKENS_AT_A_TIME):
        some = slice(first, first + TOKENS_AT_A_TIME)
        rows = P.head[some].astype(np.float64)
        rows *= roots[some, None]
        mean += rows.T @ rows
    size = float(np.trace(found["second_moment"]))
    return np.asarray((mean + mean.T) / 2), 4 * len(mean) * float(np.finfo(np.float64).eps) * size


def fisher_metric(
    P: SoftmaxKernel,
    k: int,
    weights: ArrayInput | None,
    options: tuple[float, int, int] | None,
    max_memory: int | None,
    num_threads: int | None,
    progress: Progress | None,
) -> dict[str, Any]:
    """The pass of metric.hpp; options: tolerance, most rounds, seed."""
    metric_width(P)
    n = P.shape[0]
    law = np.full(n, 1.0 / max(n, 1)) if weights is None else _checks.row_weights(weights, n)
    tolerance, max_rounds, seed = options or (1.0, 0, 0)
    found = core.fisher_metric(
        P.hidden,
        P._head_arguments(),
        k,
        tolerance,
        max_rounds,
        law,
        seed,
        _checks.memory(max_memory),
        _checks.threads(num_threads),
        progress,
    )
    _require_finite(found["trace"])
    return found


def metric_width(P: SoftmaxKernel) -> int:
    """The width of its states, for which there is a metric."""
    if not isinstance(P, SoftmaxKernel):
        raise DTypeError(f"P: expected a SoftmaxKernel, got {type(P).__name__}; features.softmax_kernel() makes one")
    d = int(P.hidden.shape[1])
    if d == 0:
        raise ShapeError("P: expected states of width 1 or more, got width 0")
    return d


def _require_finite(values: FloatArray) -> None:
    bad = np.argwhere(~np.isfinite(values))
    if bad.size:
        raise ValueRangeError(
            f"hidden: expected logits and products within the range of float32, got an overflow at row {bad[0][0]}; "
            "scale the states, the head or the directions down"
        )


def sensitivity(
    P: SoftmaxKernel,
    directions: ArrayInput,
    *,
    per_context: bool = False,
    max_memory: int | None = None,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> FloatArray:
    r"""How much the prediction changes along given directions: the metric's quadratic form at every context.

    .. math:: g^*(h_x)(v_j, v_j) = \sum_w p_x(w) (u_w - \bar u)^2, \qquad
              u_w = D_x(w)\, g_w \cdot v_j, \; \bar u = \sum_w p_x(w) u_w

    For steering vectors, differences of states, principal axes: ``KL(p_{h + ε v} ‖ p_h) = ½ ε² g*(v, v) + O(ε³)``, and
    its root is the speed, in the Fisher–Rao distance, of a state that moves along v.

    Parameters
    ----------
    P : SoftmaxKernel
        ``n`` contexts, ``V`` tokens, width ``d``.
    directions : (m, d) or (d,) floats
        The same for all contexts; or, ``per_context``, (n, d): one for each.
    per_context : bool
        Whether there is a direction for each context.
    max_memory, num_threads, progress
        As in `geometry`.

    Returns
    -------
    (n, m) float64; (n,) of one direction, or with ``per_context``
        Nats per squared step, >= 0. Also where they are small next to ``E u²``: rounding is some 1e-6 of
        ``Σ p (u − u_top)²`` with the likeliest token's u.

    Raises
    ------
    ShapeError, DTypeError, ValueRangeError

    Notes
    -----
    ``2 n V d`` flops for the logits, as many again with ``per_context``; for shared directions ``2 m V d + 6 n m V``,
    64 at a time with ``8 V`` bytes for each. Source: arXiv 2507.19247, Thm 6.1; theory §8.

    Examples
    --------
    >>> import numpy as np, markovlm as mk
    >>> P = mk.SoftmaxKernel([[0.0], [np.log(3.0)]], [[0.0], [1.0]])  # p = (1/2, 1/2) and (1/4, 3/4)
    >>> mk.sensitivity(P, [[1.0], [2.0]]).round(6)
    array([[0.25  , 1.    ],
           [0.1875, 0.75  ]])
    """
    d = metric_width(P)
    n, vocabulary = P.shape
    arguments = (_checks.memory(max_memory), _checks.threads(num_threads), progress)
    if per_context:
        own = _checks.model_matrix("directions", directions, "(n, d)")
        if own.shape != (n, d):
            raise ShapeError(f"directions: expected shape ({n}, {d}), one for each context, got {own.shape}")
        found = core.metric_forms(P.hidden, P._head_arguments(), None, own, *arguments)
        _require_finite(found)
        return found
    given = _checks.as_numpy("directions", directions)
    shared = np.atleast_2d(_checks.columns("directions", given.T, d, "component").T)
    forms = np.empty((n, len(shared)))
    for first in range(0, len(shared), DIRECTIONS_AT_A_TIME):
        part = shared[first : first + DIRECTIONS_AT_A_TIME]
        derivatives = np.empty((len(part), vocabulary))
        for begin in range(0, vocabulary, TOKENS_AT_A_TIME):
            some = slice(begin, begin + TOKENS_AT_A_TIME)
            derivatives[:, some] = part @ P.head[some].astype(np.float64).T
        forms[:, first : first + len(part)] = core.metric_forms(
            P.hidden, P._head_arguments(), derivatives, None, *arguments
        )
    _require_finite(forms)
    return forms[:, 0] if given.ndim == 1 else forms
