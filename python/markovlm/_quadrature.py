"""Stochastic Lanczos quadrature: the distribution of eigenvalues as seen by random vectors (Golub & Meurant 2010)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from . import _checks
from ._panel_operator import PanelOperator
from ._spectral import Spectrum
from .errors import ShapeError, ValueRangeError
from .typing import ArrayInput, BoolArray, FloatArray, Progress

__all__ = ["Measure", "Rule", "entropy_terms", "measure_of"]

EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Rule:
    """``vᵀ f(M) v ≈ Σ weights f(nodes)``, one row for each unit vector v; the weights of a row sum to 1."""

    nodes: FloatArray  # (p, m), rising
    weights: FloatArray  # (p, m)

    def clipped(self) -> Rule:
        """With 0 in place of nodes that rounding has made negative."""
        return Rule(np.maximum(self.nodes, 0.0), self.weights)

    def mean(self, values: FloatArray) -> float:
        """Of a function with these values at the nodes, over vectors."""
        return float(np.einsum("pm,pm->", self.weights, values)) / len(self.nodes)


@dataclass(frozen=True)
class Recurrence:
    """Lanczos' for each of p vectors: ``M V = V T + ...`` with T of these diagonals."""

    alpha: FloatArray  # (p, m); after the space of a vector is invariant, as in its first step
    beta: FloatArray  # (p, m): beneath the diagonal, and in the end what is left over; 0 where the space is invariant

    def gauss(self, degree: int) -> Rule:
        """Exact for polynomials of degree ``2 degree − 1``."""
        return _rule(self.alpha[:, :degree], self.beta[:, : degree - 1])

    def radau(self, norm: float) -> Rule:
        """Likewise with a node at 0, for a positive semidefinite M of that norm; one node more than `gauss`.

        The last entry makes T singular: ``β² / d``, d being the last pivot of ``T = L D Lᵀ``. Pivots are at least
        ``β² / ‖M‖`` of such an M, and are made so where rounding has them below.
        """
        pivot = np.zeros(len(self.alpha))
        above = np.zeros_like(pivot)
        for alpha, beta in zip(self.alpha.T, self.beta.T, strict=True):
            pivot = np.maximum(alpha - above, beta**2 / norm)
            above = np.divide(beta**2, pivot, out=np.zeros_like(beta), where=beta > 0)
        return _rule(np.column_stack([self.alpha, above]), self.beta)


def _rule(diagonal: FloatArray, beneath: FloatArray) -> Rule:
    p, m = diagonal.shape
    T = np.zeros((p, m, m))
    i = np.arange(m)
    T[:, i, i] = diagonal
    T[:, i[1:], i[:-1]] = beneath  # eigh reads the lower triangle
    nodes, vectors = np.linalg.eigh(T)
    return Rule(nodes, vectors[:, 0] ** 2)


@dataclass(frozen=True)
class Measure:
    """How eigenvalues are distributed: those that are known, and rules for the others; all in units of ``unit``."""

    unit: float  # a power of two
    size: int
    known: FloatArray  # (k,)
    trace: float | None  # of M, where it is known
    gauss: Rule
    radau: Rule
    coarse: Rule  # of half the degree
    exact: BoolArray  # (p,): whether the rule of a vector is that of the operator
    complete: bool  # whether there is a row for each of the other eigenvalues
    level: float
    num_applies: int
    num_panels: int

    @property
    def rest(self) -> int:
        """Number of the others."""
        return self.size - len(self.known)

    @property
    def rest_trace(self) -> float | None:
        """Their sum, where it is known."""
        return None if self.trace is None else max(self.trace - float(self.known.sum()), 0.0)

    def total(self, rule: Rule, values: FloatArray) -> tuple[float, float]:
        """Sum over the others of a function with these values at the nodes, and half the width of its interval.

        Where their trace is known, what the function has of a multiple of λ is exact.
        """
        if not self.rest:
            return 0.0, 0.0
        if self.complete:
            return float(values.sum()), 0.0
        if self.rest_trace is not None:
            deviation = rule.nodes - rule.mean(rule.nodes)
            spread = rule.mean(deviation**2)
            if spread > (16 * EPS * float(rule.nodes.max())) ** 2:  # and not rounding alone
                slope = rule.mean(deviation * (values - rule.mean(values))) / spread
                values = values - slope * (rule.nodes - self.rest_trace / self.rest)
        mean = rule.mean(values)
        return self.rest * mean, self._error(rule.mean((values - mean) ** 2))

    def count(self, low: float, high: float) -> tuple[float, float, float]:
        """How many of the others are in ``[low, high)``, and from where to where that is.

        Of eigenvalues below an edge, a vector has no more weight than the nodes below it and the next one, and no less
        than the nodes below it but the last.
        """
        if not self.rest:
            return 0.0, 0.0, 0.0
        nodes, weights = self.gauss.nodes, self.gauss.weights
        inside = weights * ((nodes >= low) & (nodes < high))
        if self.complete:
            count = float(inside.sum())
            return count, count, count
        p = len(nodes)
        sums = np.column_stack([np.zeros((p, 2)), np.cumsum(weights, axis=1), np.ones(p)])  # (p, m + 3)
        row, margin = np.arange(p), np.where(self.exact, 0, 1)
        (first_least, first_most), (last_least, last_most) = (
            (sums[row, 1 + below - margin], sums[row, 1 + below + margin])
            for below in ((nodes < edge).sum(axis=1) for edge in (low, high))
        )
        ends = []
        for sign, share in ((-1, np.maximum(last_least - first_most, 0.0)), (1, last_most - first_least)):
            mean = min(float(share.mean()), 1.0)
            ends.append(self.rest * mean + sign * self._error(mean * (1 - mean)))
        return self.rest * float(inside.sum()) / p, ends[0], ends[1]

    def _error(self, variance: float) -> float:
        """Half the interval of a sum over the others, from the variance of its terms, for orthonormal vectors.

        ``vᵀ A v`` of a uniform unit vector has ``2 / (N + 2)`` times the variance of A's N eigenvalues; N orthonormal
        ones have a constant sum, so that the mean of p has the share ``(N − p) / ((N − 1) p)`` of it.
        """
        N, p = self.rest, len(self.gauss.nodes)
        quantile = float(stdtrit(p - 1, (1 + self.level) / 2))
        return quantile * N * math.sqrt(2 * max(variance, 0.0) / (N + 2) * (N - p) / ((N - 1) * p))


def entropy_terms(p: FloatArray) -> FloatArray:
    """``−p log p``, element by element, 0 at 0."""
    return np.asarray(-p * np.log(np.where(p > 0, p, 1.0)))


def measure_of(
    M: ArrayInput,
    spectrum: Spectrum | None,
    num_probes: int,
    degree: int,
    level: float,
    rng: np.random.Generator,
    progress: Progress | None,
) -> Measure:
    """By ``degree`` products with ``num_probes`` columns, or all eigenvalues by no more columns than these."""
    operator = PanelOperator(M)
    n = operator.n
    known, basis = np.zeros(0), np.zeros((n, 0))
    if spectrum is not None:
        known, basis = spectrum.eigenvalues, spectrum.eigenvectors
        if len(basis) != n:
            raise ShapeError(f"spectrum: expected that of M, with eigenvectors of length {n}, got {len(basis)}")
        skew = float(np.abs(basis.T @ basis - np.eye(len(known))).max(initial=0.0))
        if skew > 16 * EPS * n:
            raise ValueRangeError(
                f"spectrum: expected orthonormal eigenvectors, got some that are off by {skew:.1e}; compute them of M "
                "itself, not of a pencil"
            )
    rest = n - len(known)
    applied = _Applied(operator, basis, min(num_probes * degree, rest), progress, float(np.linalg.norm(known)))
    complete = rest <= num_probes * degree
    if complete:
        values = _all_eigenvalues(applied, n, num_probes)
        gauss = radau = coarse = Rule(values[:, None], np.ones((rest, 1)))
        exact = np.ones(rest, dtype=bool)
        size = float(np.abs(values).max(initial=0.0))
    else:
        recurrence = _recurrence(applied, _orthonormal(rng.standard_normal((n, num_probes)), basis), degree)
        gauss, coarse = recurrence.gauss(degree), recurrence.gauss(degree // 2)
        size = float(np.abs(gauss.nodes).max())
        radau = recurrence.radau(size or 1.0)
        exact = (recurrence.beta == 0).any(axis=1)
    unit = applied.unit
    known = known / unit
    size = max(size, float(np.abs(known).max(initial=0.0)))
    least = min(float(gauss.nodes.min(initial=0.0)), float(known.min(initial=0.0)))
    if least < -operator.largest_asymmetry * size:
        raise ValueRangeError(
            f"M: expected a positive semidefinite operator, got one with an eigenvalue of {unit * least:.3g} or below, "
            f"where the largest modulus is {unit * size:.3g}; take M Mᵀ, or add a multiple of the identity"
        )
    trace = _trace_of(M, unit)
    if trace is not None and not trace >= known.sum() * (1 - operator.largest_asymmetry):  # NaN is not
        raise ValueRangeError(
            f"spectrum: expected eigenvalues of M, whose trace is {unit * trace:.6g}, got some that sum to "
            f"{unit * known.sum():.6g}; compute both of the same operator"
        )
    return Measure(
        unit=unit,
        size=n,
        known=np.maximum(known, 0.0),
        trace=trace,
        gauss=gauss.clipped(),
        radau=radau.clipped(),
        coarse=coarse.clipped(),
        exact=exact,
        complete=complete,
        level=level,
        num_applies=applied.columns,
        num_panels=operator.calls,
    )


class _Applied:
    """The operator between projections that leave out a basis, in units of its first product."""

    def __init__(
        self,
        operator: PanelOperator,
        basis: FloatArray,
        foreseen: int,
        progress: Progress | None,
        known: float = 0.0,
    ) -> None:
        self.operator, self.basis, self.foreseen, self.progress = operator, basis, foreseen, progress
        self.known = known  # Frobenius norm of what is left out, of whose rounding some stays
        self.columns = 0
        self.unit = 0.0 if foreseen else 1.0

    def __call__(self, X: FloatArray) -> FloatArray:
        """(n, b) for X of this shape, orthogonal to the basis."""
        Y = self.operator(X)
        if not self.unit:
            self.unit = math.ldexp(1.0, math.frexp(float(np.abs(Y).max()))[1])  # so that squares stay within range
        Y /= self.unit
        self.columns += X.shape[1]
        if self.progress is not None:
            self.progress(self.columns, max(self.columns, self.foreseen))
        return Y - self.basis @ (self.basis.T @ Y)

    def require_symmetric(self, block: FloatArray, norm: float) -> None:
        """``Xᵀ M X`` of p orthonormal X, against the Frobenius norm that the part of M should have."""
        n, p = len(self.basis), len(block)
        norm = math.hypot(norm, self.known / self.unit * math.sqrt(p / n))
        asymmetry = float(np.linalg.norm(block - block.T)) / norm if norm else 0.0
        if asymmetry > self.operator.largest_asymmetry:
            raise ValueRangeError(
                f"M: expected a symmetric operator, got ‖M − Mᵀ‖ / ‖M‖ of about {asymmetry:.1e} (allowed: "
                f"{self.operator.largest_asymmetry:.0e}); symmetrise it, (M + Mᵀ) / 2"
            )


def _orthonormal(X: FloatArray, basis: FloatArray) -> FloatArray:
    """An orthonormal basis of what X spans beside the basis."""
    for _ in range(2):
        X = np.linalg.qr(X - basis @ (basis.T @ X))[0]
    return X


def _all_eigenvalues(applied: _Applied, n: int, columns: int) -> FloatArray:
    """Those that do not belong to the basis, by some columns at a time."""
    k = applied.basis.shape[1]
    X = np.linalg.qr(applied.basis, mode="complete")[0][:, k:] if k else np.eye(n)
    parts = range(0, n - k, columns)
    block = np.hstack([np.zeros((n - k, 0)), *(X.T @ applied(X[:, first : first + columns]) for first in parts)])
    applied.require_symmetric(block, float(np.linalg.norm(block)))
    return np.linalg.eigvalsh((block + block.T) / 2)


def _recurrence(applied: _Applied, X: FloatArray, degree: int) -> Recurrence:
    """Lanczos' with full reorthogonalisation, for each column of X (n, p) its own; all are multiplied together."""
    n, p = X.shape
    V = np.zeros((p, degree, n))
    V[:, 0] = X.T
    alpha, beta = np.zeros((p, degree)), np.zeros((p, degree))
    active, norm = np.arange(p), 0.0
    for j in range(degree):
        Y = applied(np.ascontiguousarray(V[active, j].T))
        if j == 0:
            applied.require_symmetric(X.T @ Y, float(np.linalg.norm(Y)) * math.sqrt(p / n))
        W = Y.T[:, :, None]  # (active, n, 1)
        before = V[:, : j + 1] if len(active) == p else V[active, : j + 1]  # a view, as long as that is possible
        for sweep in range(2):
            along = before @ W
            W = W - before.transpose(0, 2, 1) @ along
            if sweep == 0:
                alpha[active, j] = along[:, j, 0]
        length = np.linalg.norm(W[:, :, 0], axis=1)
        norm = max(norm, float(np.max(np.abs(alpha[active, j]) + length)))
        going = length > 16 * EPS * math.sqrt(n) * norm
        alpha[active[~going], j + 1 :] = alpha[active[~going], :1]
        active = active[going]
        beta[active, j] = length[going]
        if not len(active) or j + 1 == degree:
            break
        V[active, j + 1] = W[going, :, 0] / length[going, None]
    return Recurrence(alpha, beta)


def _trace_of(M: Any, unit: float) -> float | None:
    """Where the operator knows it, in that unit."""
    trace = getattr(M, "trace", None)
    if isinstance(trace, (float, np.floating)):
        return float(trace) / unit
    if hasattr(M, "diagonal"):
        diagonal = _checks.as_numpy("M.diagonal()", M.diagonal()).astype(np.float64)
        return float((diagonal / unit).sum())
    return None
