"""Sums over the whole spectrum of a positive semidefinite operator, without its eigenvalues (theory §9, §12)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from . import _checks
from ._bootstrap import Estimate
from ._quadrature import Measure, entropy_terms, measure_of
from ._spectral import Spectrum
from .errors import DTypeError, ShapeError, ValueRangeError
from .typing import ArrayInput, FloatArray, Progress

__all__ = ["SpectralSummary", "spectral_summary"]


@dataclass(frozen=True)
class SpectralSummary:
    """Sums over all eigenvalues of a positive semidefinite operator, as `spectral_summary` estimated them.

    ``effective_rank``, ``participation`` (no unit), ``trace`` and ``frobenius_norm`` (unit of M) are `Estimate`; an
    interval of no width is exact, up to rounding of M. ``counts`` and ``spectral_sum`` make others, of no new products.

    ``known`` (k,) are the eigenvalues that were given. The others, ``size - k`` in number, are distributed as the
    mean over rows of ``nodes`` (p, m), with ``weights`` (p, m) that sum to 1 in each row: one row for each random
    vector, or one eigenvalue in each row where all were computed. Nodes are not negative, and rise along rows.

    ``num_applies`` counts columns that M was applied to, ``num_panels`` calls.
    """

    effective_rank: Estimate
    participation: Estimate
    trace: Estimate
    frobenius_norm: Estimate
    known: FloatArray
    nodes: FloatArray
    weights: FloatArray
    size: int
    num_applies: int
    num_panels: int
    level: float
    _measure: Measure

    def counts(self, edges: ArrayInput) -> list[Estimate]:
        """How many eigenvalues lie in ``[edges[i], edges[i + 1])``, in the last interval ``<= edges[-1]``.

        Intervals hold the sampling of random vectors, and what a rule of that degree may leave open of how many
        eigenvalues are below an edge (Chebyshev, Markov and Stieltjes). Edges rise, in the unit of M: (e,) gives
        e - 1 estimates. Rounding of M may put an eigenvalue on either side of an edge that it lies on.
        """
        ends = _checks.as_numpy("edges", edges)
        if ends.ndim != 1 or len(ends) < 2:
            raise ShapeError(f"edges: expected shape (e,), e >= 2, got {ends.shape}")
        if ends.dtype.kind not in "iuf" or not np.all(np.diff(ends) > 0):  # NaN is not
            raise ValueRangeError(f"edges: expected numbers that rise, got {ends}")
        ends = ends.astype(np.float64)
        found = np.histogram(self.known, ends)[0]
        ends[-1] = np.nextafter(ends[-1], np.inf)
        rest = self.size - len(self.known)
        counts = [self._measure.count(a, b) for a, b in pairwise(ends / self._measure.unit)]
        return [_estimate(k + np.clip(count, 0.0, rest), self.level) for k, count in zip(found, counts, strict=True)]

    def spectral_sum(self, f: Callable[[FloatArray], FloatArray]) -> Estimate:
        """``Σ f(λ_i)`` over all eigenvalues, for a function of arrays, element by element, of numbers >= 0.

        The interval holds the sampling of random vectors, and the difference between the rule and one of half its
        degree: an indication of what the degree leaves out, large enough where that falls as 1 / degree or faster,
        and no bound.
        """
        measure = self._measure
        total, error = measure.total(measure.gauss, _values(f, measure.unit * measure.gauss.nodes))
        coarse, _ = measure.total(measure.coarse, _values(f, measure.unit * measure.coarse.nodes))
        value, half = _values(f, self.known).sum() + total, error + abs(total - coarse)
        return _estimate(np.array([value, value - half, value + half]), self.level)

    def __repr__(self) -> str:
        names = ("effective_rank", "participation", "trace")
        parts = [f"{name.replace('_', ' ')} {getattr(self, name)}" for name in names]
        return f"SpectralSummary({', '.join(parts)}, size {self.size}, {self.num_applies} applies)"


def spectral_summary(
    M: ArrayInput,
    *,
    num_probes: int = 16,
    degree: int = 24,
    spectrum: Spectrum | None = None,
    rank: int | None = None,
    level: float = 0.95,
    seed: int = 0,
    progress: Progress | None = None,
) -> SpectralSummary:
    r"""Effective rank, participation, norm and density of the whole spectrum, by stochastic Lanczos quadrature.

    .. math:: \exp\Big(-\sum_i \frac{\lambda_i}{T} \log \frac{\lambda_i}{T}\Big), \qquad
              \frac{T^2}{\sum_i \lambda_i^2}, \qquad T = \sum_i \lambda_i = \operatorname{tr} M, \qquad
              \sum_i f(\lambda_i) \approx \frac{n}{p} \sum_{j=1}^{p} v_j^\top f(M) \, v_j

    Parameters
    ----------
    M : (n, n) symmetric, positive semidefinite
        Anything that `eigsh` takes.
    num_probes : int >= 2
        Random vectors ``v_j``, that is columns per product. Errors fall with its square root.
    degree : int >= 2
        Products with each of them: steps of Lanczos' recurrence, nodes of each rule.
    spectrum : Spectrum, optional
        Largest eigenpairs of M, from `eigsh`. They count as exact, vectors are drawn orthogonal to them, and what is
        left varies less: a few pairs are worth many vectors.
    rank : int in [1, n], optional
        That M is known not to exceed: effective rank and participation do not either.
    level : float in (0, 1)
        Of the intervals.
    seed : int
        Of the random vectors. The same seed gives the same result.
    progress : callable, optional
        ``progress(applies, total)`` after each product: columns so far, and in all. An exception that it raises stops
        the work.

    Returns
    -------
    SpectralSummary
        Of the zero operator, effective rank and participation are 0.

    Raises
    ------
    ShapeError, DTypeError
        M is not square, returns something of another shape or type, or ``spectrum`` is of another operator.
    ValueRangeError
        M returns NaN or infinity; is not symmetric, or has negative eigenvalues, as the random vectors show it and
        beyond rounding (1e-5 of the largest; 1e-3 in float32); or an argument is out of range.

    Notes
    -----
    ``num_probes * degree`` columns in ``degree`` products, ``8 n num_probes (degree + 7)`` bytes (up to twice that
    where some recurrences end early), and ``4 n num_probes degree²`` flops to keep them orthogonal. Where no more than
    ``num_probes * degree`` eigenvalues are unknown, all are computed instead, from as many columns, and every interval
    has no width.

    Vectors are the columns of a random orthonormal matrix, so that ``vᵀ f(M) v`` of each has the variance
    ``2 / (n + 2)`` times that of ``f(λ)`` over eigenvalues, and their mean ``(n − p) / (n − 1)`` of that of a mean of
    independent ones. That variance is taken from the rules themselves, and intervals are Student's with ``p − 1``
    degrees of freedom. The trace is exact where M has ``trace`` or ``diagonal``, and then corrects the other sums
    (as a control variate). Otherwise errors of quotients are those of their linear parts.

    For ``−λ log λ`` Gauss' rule is an upper bound, and Gauss–Radau's with a node at 0 a lower one, for each vector: the
    interval of the effective rank goes from one to the other, and beyond by the error of sampling. Sums of squares are
    exact for each vector. Pairs in ``spectrum`` of residuals R are off by some ``‖R‖²`` over their gap, which no
    interval holds. Nor do they hold the rounding of M: eigenvalues below ``η ‖M‖``, η some 1e-7 of products in float32,
    are noise, of which n are worth up to ``n η log(1 / η) ‖M‖`` in ``Σ −λ log λ``.
    Sources: Ubaru, Chen & Saad (2017), *Fast estimation of tr(f(A)) via stochastic Lanczos quadrature*, Alg. 1; Golub
    & Meurant (2010), *Matrices, moments and quadrature*, ch. 6; Roy & Vetterli (2007), *The effective rank*.

    Examples
    --------
    >>> import numpy as np, markovlm as mk
    >>> from scipy import sparse
    >>> M = sparse.diags_array(1.0 / np.arange(1, 2001) ** 2)
    >>> plain = mk.spectral_summary(M)
    >>> sharp = mk.spectral_summary(M, spectrum=mk.eigsh(M, k=12))
    >>> sharp  # of 2000 eigenvalues, from 24 products with 16 columns
    SpectralSummary(effective rank ..., participation ..., trace 1.6444 [1.6444, 1.6444], size 2000, 384 applies)
    >>> exact = np.exp(-np.sum(M.diagonal() / M.trace() * np.log(M.diagonal() / M.trace())))
    >>> bool(sharp.effective_rank.interval[0] <= exact <= sharp.effective_rank.interval[1])
    True
    """
    num_probes = _checks.count("num_probes", num_probes, 2, 2**31)
    degree = _checks.count("degree", degree, 2, 2**31)
    if not 0 < level < 1:
        raise ValueRangeError(f"level: expected a number between 0 and 1, got {level!r}")
    if spectrum is not None and not isinstance(spectrum, Spectrum):
        raise DTypeError(f"spectrum: expected what mk.eigsh returns, got {type(spectrum).__name__}")
    rng = np.random.default_rng(_checks.count("seed", seed, 0, 2**63 - 1))
    measure = measure_of(M, spectrum, num_probes, degree, level, rng, progress)
    most = measure.size if rank is None else _checks.count("rank", rank, 1, measure.size)
    total, trace = _traces(measure)
    if total > 0:
        effective = np.exp(np.clip(_entropy(measure, total), 0.0, math.log(most)))
        squares, participation = _squares(measure, total)
        participation = np.clip(participation, 1.0, most)
    else:
        effective = participation = squares = np.zeros(3)
    unit = measure.unit
    return SpectralSummary(
        effective_rank=_estimate(effective, level),
        participation=_estimate(participation, level),
        trace=_estimate(unit * trace, level),
        frobenius_norm=_estimate(unit * total * np.sqrt(squares), level),
        known=unit * measure.known,
        nodes=unit * measure.gauss.nodes,
        weights=measure.gauss.weights,
        size=measure.size,
        num_applies=measure.num_applies,
        num_panels=measure.num_panels,
        level=level,
        _measure=measure,
    )


def _estimate(ends: FloatArray, level: float) -> Estimate:
    """Of (value, low, high)."""
    value, low, high = (float(end) for end in ends)
    return Estimate(value, (low, high), level)


def _traces(measure: Measure) -> tuple[float, FloatArray]:
    """``T`` that shares are of, and the trace with its interval: the same, unless all eigenvalues were computed."""
    known = float(measure.known.sum())
    total, error = measure.total(measure.gauss, measure.gauss.nodes)
    sums = known + np.array([total, max(total - error, 0.0), total + error])
    if measure.trace is None:
        return float(sums[0]), sums
    return float(sums[0]) if measure.complete else measure.trace, np.full(3, measure.trace)


def _entropy(measure: Measure, trace: float) -> FloatArray:
    """``log T + Σ −λ log λ / T`` likewise: of ``S = Σ −p log p``, p = λ / T, changing by ``dS + (1 − S) dT / T``."""
    known = float(entropy_terms(measure.known / trace).sum())
    sums = []
    for rule in (measure.radau, measure.gauss):
        p = rule.nodes / trace
        total, error = measure.total(rule, entropy_terms(p))
        if measure.rest_trace is None:
            error = measure.total(rule, entropy_terms(p) + (1 - known - total) * p)[1]
        sums.append((known + total, error))
    (low, below), (high, above) = sums
    middle = (low + high) / 2  # where they are the same, rounding may put them in either order
    return np.array([middle, min(low, middle) - below, max(high, middle) + above])


def _squares(measure: Measure, trace: float) -> tuple[FloatArray, FloatArray]:
    """``Q = Σ (λ / T)²`` for a T that is fixed, and ``T² / Σ λ²``, likewise; both by errors of logarithms."""
    p = measure.gauss.nodes / trace
    total, error = measure.total(measure.gauss, p**2)
    Q = float(np.sum((measure.known / trace) ** 2)) + total
    of_inverse = error / Q
    if measure.rest_trace is None:
        of_inverse = measure.total(measure.gauss, p**2 / Q - 2 * p)[1]
    return Q * np.exp([0.0, -error / Q, error / Q]), np.exp([0.0, -of_inverse, of_inverse]) / Q


def _values(f: Callable[[FloatArray], FloatArray], eigenvalues: FloatArray) -> FloatArray:
    values = np.asarray(f(eigenvalues), dtype=np.float64)
    if values.shape != eigenvalues.shape:
        raise ShapeError(f"f: expected values of shape {eigenvalues.shape}, as it is given, got {values.shape}")
    bad = np.argwhere(~np.isfinite(values))
    if bad.size:
        place = tuple(bad[0])
        raise ValueRangeError(
            f"f: expected finite values, got {values[place]} at {eigenvalues[place]}; M may have eigenvalues 0"
        )
    return values
