"""Draft heads in closed form: the state some tokens ahead, from the state now and the tokens in between (theory §7)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import brentq

from . import _checks
from ._divergences import KL
from ._features import IGNORED_TARGET, Features, evenly_spread
from ._softmax import SoftmaxKernel, softmax_stats
from .errors import ShapeError, ValueRangeError
from .typing import ArrayInput, FloatArray, IntArray, SinglePrecisionArray

__all__ = [
    "DraftHead",
    "Residual",
    "Starts",
    "fitted_heads",
    "fitted_temperature",
    "read_out",
    "with_temperatures",
]

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)  # of standardised inputs
_CONSTANT = 1e-10  # variance, of the second moment, that is rounding
_ROWS = 4096  # that are multiplied at a time
_STEP, _FARTHEST, _PRECISION = 0.25, 4.0, 0.02  # of the logarithm of a temperature


@dataclass(frozen=True, eq=False)
class Residual:
    """What a small network adds to a linear map: ``relu((x − center) scale U + c) V``."""

    center: SinglePrecisionArray  # (p,) of the inputs, without the constant
    scale: SinglePrecisionArray  # (p,)
    first: SinglePrecisionArray  # U (p, m)
    bias: SinglePrecisionArray  # c (m,)
    second: SinglePrecisionArray  # V (m, d)

    def __call__(self, X: SinglePrecisionArray) -> SinglePrecisionArray:
        hidden = ((X - self.center) * self.scale) @ self.first + self.bias
        return np.asarray(np.maximum(hidden, 0) @ self.second)


@dataclass(frozen=True, repr=False, eq=False)
class DraftHead:
    r"""A draft head: for each step a linear map, and perhaps a small network, in front of the model's own head.

    .. math:: q_k(\cdot \mid h_t, w_t, \dots, w_{t+k-1}) = \mathrm{softmax}\bigl( z(\hat h_k) / T_k \bigr), \qquad
              \hat h_k = A_k^\top [1, h_t, e(w_t), \dots, e(w_{t+k-1})]

    ``z`` are the model's logits of a state. Step k guesses the law of ``W_{t+k}``, k = 1 … K − 1; the token ``w_t`` is
    drawn from the model itself, from ``h_t``. With ``residuals`` a small network's output is added to ``ĥ_k``.
    `surplus` fits one, and `speculative_decode` drafts with it. Source: theory §7.

    Examples
    --------
    >>> import markovlm as mk
    >>> features = mk.synthetic.copy_language(length=2).features(num_sequences=100, length=9)
    >>> draft = mk.surplus(features, horizon=3).draft
    >>> draft
    DraftHead(2 steps ahead, 14 wide)
    >>> draft.kernel(2, features.hidden[:5], features.targets[[[0, 1], [1, 2], [2, 3], [3, 4], [4, 5]]]).shape
    (5, 2)
    """

    maps: tuple[SinglePrecisionArray, ...]  # step k: (1 + d + k e, d); (1 + k e, d) without the state
    temperatures: tuple[float, ...]
    embedding: SinglePrecisionArray  # (V, e)
    model: SoftmaxKernel  # of any contexts: its head, bias, scale and soft-capping
    uses_state: bool = True
    residuals: tuple[Residual | None, ...] = ()  # of each step, or of none

    @property
    def horizon(self) -> int:
        """K: the tokens of one round, drawn and drafted."""
        return len(self.maps) + 1

    def __repr__(self) -> str:
        steps = len(self.maps)
        return f"DraftHead({steps} step{'s' * (steps != 1)} ahead, {self.maps[0].shape[1]} wide)"

    def states(self, step: int, hidden: ArrayInput, tokens: ArrayInput) -> SinglePrecisionArray:
        """(n, d) ``ĥ_k`` from ``h_t`` (n, d) and ``w_t … w_{t+k−1}`` (n, k), of step k in [1, K − 1]."""
        step = _checks.count("step", step, 1, len(self.maps))
        hidden = _checks.model_matrix("hidden", hidden, "(n, d)").astype(np.float32, copy=False)
        ids = _checks.integers("tokens", tokens)
        if ids.shape != (len(hidden), step):
            raise ShapeError(f"tokens: expected shape {(len(hidden), step)}, {step} for each state, got {ids.shape}")
        return self._states(step, hidden, ids)

    def kernel(self, step: int, hidden: ArrayInput, tokens: ArrayInput) -> SoftmaxKernel:
        """The laws ``q_k`` for the same arguments, never formed."""
        return read_out(self.model, self.states(step, hidden, tokens), self.temperatures[step - 1])

    def inputs(self, step: int, hidden: SinglePrecisionArray, ids: IntArray) -> SinglePrecisionArray:
        """(n, p) ``[h_t, e(w_t), …]``, as far as the head sees them."""
        tokens = [self.embedding[ids[:, j]] for j in range(step)]
        return np.asarray(np.concatenate([hidden, *tokens] if self.uses_state else tokens, axis=1))

    def _states(self, step: int, hidden: SinglePrecisionArray, ids: IntArray) -> SinglePrecisionArray:
        A, X = self.maps[step - 1], self.inputs(step, hidden, ids)
        out: SinglePrecisionArray = A[0] + X @ A[1:]
        residual = self.residuals[step - 1] if self.residuals else None
        return out if residual is None else out + residual(X)


def read_out(model: SoftmaxKernel, states: SinglePrecisionArray, temperature: float = 1.0) -> SoftmaxKernel:
    """The laws that a model's own head gives to some states."""
    return SoftmaxKernel(
        states, model.head, model.bias, model.temperature * temperature, model.scale, model.softcap or None
    )


@dataclass(frozen=True, eq=False)
class Starts:
    """Contexts from which to draft, with what the draft sees of them: ``source[index]``, a state each."""

    features: Features
    rows: IntArray  # (m,) whose next K tokens are known and of the same sequence
    source: SinglePrecisionArray
    index: IntArray  # (m,) rows of source

    @classmethod
    def of(cls, features: Features, horizon: int, states: SinglePrecisionArray) -> Starts:
        """All of them, seen by the states (n, ·) of all contexts."""
        n = features.num_contexts
        rows = np.arange(max(n - horizon + 1, 0))
        good = np.ones(len(rows), dtype=bool)
        for k in range(horizon):
            good &= features.targets[rows + k] != IGNORED_TARGET
            good &= features.sequence_ids[rows + k] == features.sequence_ids[rows]
            good &= features.positions[rows + k] == features.positions[rows] + k
        if not good.any():
            longest = int(np.unique(features.sequence_ids, return_counts=True)[1].max()) if n else 0
            raise ValueRangeError(
                f"horizon: expected at most {longest}, the contexts of the longest sequence, got {horizon}; extract "
                "with a larger context_length, or look less far"
            )
        return cls(features, rows[good], states, rows[good])

    def of_sequences(self, numbers: IntArray) -> Starts:
        """Those of some sequences."""
        return self[np.isin(self.sequences, numbers)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: Any) -> Starts:
        return Starts(self.features, self.rows[which], self.source, self.index[which])

    @property
    def sequences(self) -> IntArray:
        """(m,) ids."""
        return self.features.sequence_ids[self.rows]

    def states(self) -> SinglePrecisionArray:
        """(m, d) of them."""
        return np.asarray(self.source[self.index], dtype=np.float32)

    def tokens(self, step: int) -> IntArray:
        """(m, k) ``w_t … w_{t+k−1}``: what step k of a draft has seen."""
        return np.asarray(self.features.targets[self.rows[:, None] + np.arange(step)])

    def targets(self, step: int) -> IntArray:
        """(m,) ``w_{t+k}``."""
        return np.asarray(self.features.targets[self.rows + step])

    def futures(self, step: int) -> SinglePrecisionArray:
        """(m, d) ``h_{t+k}``."""
        return np.asarray(self.features.hidden[self.rows + step])


class Moments:
    """Sums of products of inputs ``[1, h_t, e(w_t), …, e(w_{t+K−2})]`` and of future states, all less their means."""

    def __init__(self, starts: Starts, horizon: int, means: Moments | None = None) -> None:
        features = starts.features
        assert features.embedding is not None
        width, e = starts.source.shape[1], features.embedding.shape[1]
        self.width, self.e, self.steps, self.count = width, e, horizon - 1, len(starts)
        size = 1 + width + e * self.steps
        if means is None:
            self.state_mean = _mean(starts.source, starts.index)
            self.token_mean = _mean(features.embedding, starts.tokens(1)[:, 0])
            self.future_mean = _mean(features.hidden, starts.rows + 1)
        else:
            self.state_mean, self.token_mean, self.future_mean = means.state_mean, means.token_mean, means.future_mean
        self.inputs = np.zeros((size, size))
        self.cross = [np.zeros((1 + width + e * k, features.hidden_size)) for k in range(1, horizon)]
        self.squares = np.zeros(self.steps)
        for first in range(0, len(starts), _ROWS):
            part = starts[first : first + _ROWS]
            X = np.empty((len(part), size), np.float32)
            X[:, 0] = 1
            X[:, 1 : 1 + width] = part.states() - self.state_mean
            for j in range(self.steps):
                tokens = part.features.targets[part.rows + j]
                X[:, 1 + width + j * e : 1 + width + (j + 1) * e] = features.embedding[tokens] - self.token_mean
            self.inputs += X.T @ X
            for k in range(1, horizon):
                Y = part.futures(k) - self.future_mean
                self.cross[k - 1] += X[:, : 1 + width + k * e].T @ Y
                self.squares[k - 1] += np.vdot(Y, Y)

    def columns(self, step: int, uses_state: bool) -> IntArray:
        """Of the inputs, those that a step sees."""
        first = 1 if uses_state else 1 + self.width
        return np.concatenate([[0], np.arange(first, 1 + self.width + step * self.e)])

    def solve(self, step: int, uses_state: bool, penalty: float) -> FloatArray:
        """Ridge regression: the penalty is on inputs of unit variance, and none is on the constant."""
        which = self.columns(step, uses_state)
        G = self.inputs[np.ix_(which, which)] / self.count
        variance = np.diagonal(G) - G[0] ** 2  # the first input is 1
        scale = 1 / np.sqrt(np.where(variance > _CONSTANT * np.diagonal(G), variance, 1.0))
        G *= scale[:, None] * scale
        G[np.diag_indices_from(G)] += np.where(np.arange(len(G)) > 0, penalty, 0.0)
        right = scale[:, None] * self.cross[step - 1][which] / self.count
        return np.asarray(scale[:, None] * cho_solve(cho_factor(G, overwrite_a=True, check_finite=False), right))

    def error(self, step: int, uses_state: bool, B: FloatArray) -> float:
        """Mean squared error of ``B`` here."""
        which = self.columns(step, uses_state)
        G, C = self.inputs[np.ix_(which, which)], self.cross[step - 1][which]
        return float(self.squares[step - 1] - 2 * np.vdot(B, C) + np.vdot(B, G @ B)) / max(self.count, 1)

    def with_means(self, step: int, uses_state: bool, B: FloatArray) -> SinglePrecisionArray:
        """The map of inputs and outputs as they are."""
        means = [self.state_mean] if uses_state else []
        A = B.copy()
        A[0] += self.future_mean - np.concatenate([*means, *[self.token_mean] * step]) @ B[1:]
        return A.astype(np.float32)


def fitted_heads(
    train: Starts,
    validation: Starts,
    horizon: int,
    kinds: Sequence[bool],
    num_rows: int,
    num_threads: int | None,
    report: Callable[[], None],
    penalties: Sequence[float] = PENALTIES,
) -> tuple[list[DraftHead], list[float]]:
    """Draft heads with (True) and without (False) the state, and the penalty of each, which its first step chooses.

    Penalties and temperatures are the best for the validation, temperatures for ``num_rows`` contexts of it at most.
    """
    features = train.features
    assert features.embedding is not None
    model = features.softmax_kernel()
    moments = Moments(train, horizon)
    report()
    held_out = Moments(validation, 2, moments) if len(penalties) > 1 else None
    report()
    heads, chosen = [], []
    for uses_state in kinds:
        solutions = {penalty: moments.solve(1, uses_state, penalty) for penalty in penalties}
        errors = [held_out.error(1, uses_state, B) if held_out else 0.0 for B in solutions.values()]
        penalty = penalties[int(np.argmin(errors))]
        chosen.append(penalty)
        maps = []
        for k in range(1, horizon):
            B = solutions[penalty] if k == 1 else moments.solve(k, uses_state, penalty)
            maps.append(moments.with_means(k, uses_state, B))
            report()
        head = DraftHead(tuple(maps), (1.0,) * len(maps), features.embedding, model[:0], uses_state)
        heads.append(with_temperatures(head, validation, num_rows, num_threads, report))
    return heads, chosen


def with_temperatures(
    head: DraftHead, validation: Starts, num_rows: int, num_threads: int | None, report: Callable[[], None]
) -> DraftHead:
    """The head with the best temperature of each step, for ``num_rows`` contexts at most."""
    some, model = validation[evenly_spread(len(validation), num_rows)], validation.features.softmax_kernel()
    plain, found = replace(head, temperatures=(1.0,) * len(head.maps)), []
    for k in range(1, head.horizon):
        Q = plain.kernel(k, some.states(), some.tokens(k))
        found.append(fitted_temperature(model[some.rows + k], Q, num_threads))
        report()
    return replace(head, temperatures=tuple(found))


def fitted_temperature(P: SoftmaxKernel, Q: SoftmaxKernel, num_threads: int | None) -> float:
    r"""The T in [1/64, 64] that makes :math:`\mathbb{E} \, \mathrm{KL}(p \,\|\, q_T)` least, where ``q_T ∝ q^{1/T}``.

    With ``β = 1 / T`` the derivative is ``E_{q_β}[z] − E_p[z]``, rising in β. The first is ``(log Z_β − H(q_β)) / β``
    of one pass; the second, the same for all β, comes from one KL.
    """
    entropy = softmax_stats(P, num_threads=num_threads).entropy
    at_one = softmax_stats(Q, reference=P, divergences=[KL()], num_threads=num_threads)
    wanted = float((at_one.log_normalizer - entropy - at_one.divergences[KL()]).mean())
    if not np.isfinite(wanted):
        raise ValueRangeError("features: expected finite logits, got a token that a draft rules out and the model not")

    @cache
    def slope(log_beta: float) -> float:
        beta = math.exp(log_beta)
        stats = softmax_stats(read_out(Q, Q.hidden, 1 / beta), num_threads=num_threads) if log_beta else at_one
        return float(((stats.log_normalizer - stats.entropy) / beta).mean()) - wanted

    near, step = 0.0, -_STEP if slope(0.0) > 0 else _STEP
    while slope(near + step) * step < 0:  # the root is farther that way
        near += step
        if abs(near) >= _FARTHEST:
            return math.exp(-near)
    return math.exp(-brentq(slope, near, near + step, xtol=_PRECISION))


def _mean(values: SinglePrecisionArray, index: IntArray) -> SinglePrecisionArray:
    """In float64, of some rows of ``values``, by how often they occur."""
    rows, times = np.unique(index, return_counts=True)
    total = np.zeros(values.shape[1])
    for first in range(0, len(rows), _ROWS):
        some = slice(first, first + _ROWS)
        total += times[some] @ values[rows[some]].astype(np.float64)
    return np.asarray(total / max(len(index), 1), np.float32)
