"""Slow, obvious versions of what the fused passes compute, from explicit logits, and how far a pass may be from them.

Everything takes the ``(n, V)`` float64 logits ``z`` of `logits`; a token with ``-inf`` is not there. In nats.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import mpmath  # type: ignore[import-untyped]
import numpy as np

import markovlm as mk
from markovlm import SoftmaxKernel
from markovlm._divergences import Divergence
from markovlm.typing import ArrayInput, FloatArray, IntArray

UNIT = 2.0**-24
"""Unit roundoff of float32: each operation is exact up to a factor in [1 - UNIT, 1 + UNIT]."""

RUN = 16
"""Terms of a vocabulary sum that the core adds in float32 before it goes on in float64 (reductions.hpp)."""

DEPTH = 96
"""Words of a logit's products, of one float or two bfloat16, that the core adds in one run of float32 (logits.hpp)."""

EXP_ULP, EXPM1_ULP, TANH_ULP, EXPM1_MINUS_ULP, LOG1P_ULP = 1.25, 2.0, 3.0, 8.0, 2.0
"""Worst errors of the core's vector functions in units of the last place, as test_vector_math.py holds them to."""

SUM = (RUN + 2 * EXP_ULP + 1) * UNIT
"""Relative error of a sum of positive float32 terms: the exponentials', one product's, and of additions in a run."""

JS_SERIES = 7.5e-9
"""How far the core's polynomial for ``(1 + p) log(1 + p)`` is from it on [0, 1/2], as test_softmax.py holds it to."""


def logits(
    hidden: ArrayInput,
    head: ArrayInput,
    bias: ArrayInput | None = None,
    *,
    temperature: float = 1.0,
    scale: float = 1.0,
    softcap: float | None = None,
) -> FloatArray:
    """``scale (W h + b) / T``, or ``c tanh(scale (W h + b) / c) / T``; a bias of -inf removes the token."""
    z = np.asarray(hidden, np.float64) @ np.asarray(head, np.float64).T
    if bias is not None:
        z = z + np.asarray(bias, np.float64)
    z = scale * z
    if softcap is not None:
        z = np.where(np.isneginf(z), z, softcap * np.tanh(z / softcap))
    return np.asarray(z / temperature)


def kernel_logits(P: SoftmaxKernel) -> FloatArray:
    """`logits` of the numbers that a kernel holds."""
    return logits(P.hidden, P.head, P.bias, temperature=P.temperature, scale=P.scale, softcap=P.softcap or None)


def logit_error(P: SoftmaxKernel) -> FloatArray:
    r"""(n,) bound on the error of a float32 logit, unmasked ones, over each row.

    A product passes through at most ``min(d, 96)`` roundings in its run, 192 where both sides are bfloat16, which some
    builds take in pairs (and one of its own where the CPU has no fused multiply-add), and one per run after the first;
    then bias (1), gain (2: the factor and the product), tanh and its factor. Each is relative to something of size at
    most ``a = scale / T (|W| |h| + |b|)``, tanh being 1-Lipschitz, so ``|error| <= gamma_m a`` with
    ``gamma_m = m u / (1 - m u)``. Subnormal bfloat16 may be taken for zero, each below ``2^-126``.
    """
    d = P.hidden.shape[1]
    pairs = P.hidden.dtype == P.head.dtype == ml_dtypes.bfloat16
    run = DEPTH * (2 if pairs else 1)
    m = min(d, run) + -(-d // DEPTH) + 1 + 3 + (2 * TANH_ULP + 2 if P.softcap else 0)
    size = np.abs(P.hidden).astype(np.float64) @ np.abs(P.head).astype(np.float64).T
    if P.bias is not None:
        size = np.where(np.isneginf(P.bias), 0.0, size + np.abs(np.where(np.isneginf(P.bias), 0.0, P.bias)))
    gamma = m * UNIT / (1 - m * UNIT)
    lost = 2.0**-126 * (
        np.abs(P.hidden).sum(axis=1, dtype=np.float64) + np.abs(P.head).sum(axis=1, dtype=np.float64).max()
    )
    return np.asarray(P.scale / P.temperature * (gamma * size.max(axis=1, initial=0.0) + (lost if pairs else 0.0)))


def slopes(P: SoftmaxKernel) -> FloatArray:
    """(n, V) of ``dz/d(g · h)``: ``scale / T``, times ``sech²`` of what is capped."""
    raw = logits(P.hidden, P.head, P.bias, scale=P.scale)
    rate = P.scale / P.temperature
    if not P.softcap:
        return np.full(raw.shape, rate)
    q = np.exp(-2 * np.abs(raw / P.softcap))
    return np.asarray(rate * 4 * q / (1 + q) ** 2)


def metrics(P: SoftmaxKernel) -> FloatArray:
    """(n, d, d): ``Jᵀ (diag p − p pᵀ) J`` with ``J = D W``, rows of J relative to the likeliest token's."""
    p, D, W = np.exp(log_softmax(kernel_logits(P))), slopes(P), P.head.astype(np.float64)
    found = []
    for p_x, D_x in zip(p, D, strict=True):
        J = D_x[:, None] * W
        J = J - J[np.argmax(p_x)]
        mean = p_x @ J
        found.append(J.T @ (p_x[:, None] * J) - np.outer(mean, mean))
    return np.array(found).reshape(len(p), W.shape[1], W.shape[1])


def log_normalizer(z: FloatArray) -> FloatArray:
    m = z.max(axis=1)
    return np.asarray(m + np.log(np.exp(z - m[:, None]).sum(axis=1)))


def log_softmax(z: FloatArray) -> FloatArray:
    return np.asarray(z - log_normalizer(z)[:, None])


def expectation(p: FloatArray, x: FloatArray) -> FloatArray:
    """Row sums of ``p x`` where ``0 · anything`` is 0."""
    return np.asarray((p * np.where(p > 0, x, 0.0)).sum(axis=1))


def entropy(z: FloatArray) -> FloatArray:
    log_p = log_softmax(z)
    return expectation(np.exp(log_p), -log_p)


def at(x: FloatArray, ids: IntArray) -> FloatArray:
    """``x[i, ids[i]]``."""
    return np.asarray(np.take_along_axis(x, ids[:, None], axis=1)[:, 0])


def nll(z: FloatArray, targets: IntArray) -> FloatArray:
    return -at(log_softmax(z), targets)


def rank(z: FloatArray, targets: IntArray) -> IntArray:
    """Tokens with a strictly larger logit."""
    return np.asarray((z > at(z, targets)[:, None]).sum(axis=1))


def top(z: FloatArray, k: int) -> tuple[IntArray, FloatArray]:
    """Ids by falling probability, ties by rising id, with their log-probabilities; -1 where tokens are masked."""
    ids = np.argsort(-z, axis=1, kind="stable")[:, :k]
    log_p = np.take_along_axis(log_softmax(z), ids, axis=1)
    return np.where(np.isneginf(log_p), -1, ids), log_p


def renyi(z: FloatArray, order: float) -> FloatArray:
    """``log(sum p^a) / (1 - a)`` over the support and its limits; by mpmath where float64 would lose digits."""
    log_p = log_softmax(z)
    if order == -np.inf:
        return np.asarray(-np.where(log_p > -np.inf, log_p, np.inf).min(axis=1))
    if order == 0:
        return np.asarray(np.log((z > -np.inf).sum(axis=1)))
    if order == 1:
        return entropy(z)
    if np.isinf(order):
        return np.asarray(-log_p.max(axis=1))
    if abs(order - 1) < 1e-3 or abs(order) < 1e-3:
        return np.array([float(mp_row(row).renyi(order)) for row in z])
    a_log_p = np.where(log_p > -np.inf, order * log_p, -np.inf)
    m = a_log_p.max(axis=1)
    return np.asarray((m + np.log(np.exp(a_log_p - m[:, None]).sum(axis=1))) / (1 - order))


def jensen_shannon(z: FloatArray) -> FloatArray:
    """Categorical entropy, theory's closed form in long double; where p is near 1, 1 - p is the sum of all others."""
    z = z.astype(np.longdouble)
    log_p = log_softmax(z - z.max(axis=1, keepdims=True))
    p = np.exp(log_p)
    top = np.arange(z.shape[1]) == z.argmax(axis=1)[:, None]
    rest = np.where(top, np.where(top, 0, p).sum(axis=1, keepdims=True), 1 - p)
    with np.errstate(divide="ignore"):
        log_p = np.where(top, np.log1p(-rest), log_p)
    log_mean = np.log1p(-rest / 2)  # of (1 + p) / 2
    on_diagonal = (expectation(p, -log_mean) + expectation(p**2, log_p - log_mean)) / 2  # (w, w): p against p²
    return np.asarray(on_diagonal + np.log(np.longdouble(2)) / 2 * expectation(p, rest), np.float64)


def jensen_shannon_slope(p: FloatArray) -> FloatArray:
    """d/dp of ``p (1 + p) log(1 + p) - p² log p``."""
    return np.asarray((1 + 2 * p) * np.log1p(p) - 2 * p * np.log(np.where(p > 0, p, 1.0)))


def divergence(D: Divergence, zp: FloatArray, zq: FloatArray) -> FloatArray:
    """``D(p || q)`` of each row by its definition, in long double."""
    if getattr(D, "reverse", False):
        return divergence(replace(D, reverse=False), zq, zp)  # type: ignore[type-var, call-arg]
    lp, lq = (log_softmax(z.astype(np.longdouble)) for z in (zp, zq))
    p, q = np.exp(lp), np.exp(lq)
    in_p, in_q = lp > -np.inf, lq > -np.inf
    leaves = (in_p & ~in_q).any(axis=1)
    order = 1.0 if isinstance(D, mk.KL) else 0.5 if isinstance(D, mk.SquaredHellinger) else 2.0
    order = D.alpha if isinstance(D, mk.Renyi) else order
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        if isinstance(D, mk.TotalVariation):
            value = np.abs(p - q).sum(axis=1) / 2
        elif isinstance(D, mk.JensenShannon):
            m = np.log((p + q) / 2)
            value = (np.where(in_p, p * (lp - m), 0) + np.where(in_q, q * (lq - m), 0)).sum(axis=1) / 2
        elif order == 1:
            value = np.where(leaves, np.inf, np.where(in_p & in_q, p * (lp - lq), 0).sum(axis=1))
        elif order == np.inf:
            value = np.where(leaves, np.inf, np.where(in_p & in_q, lp - lq, -np.inf).max(axis=1))
        else:
            exponents = np.where(in_p & in_q, order * lp + (1 - np.longdouble(order)) * lq, -np.inf)
            top = exponents.max(axis=1)
            log_sum = top + np.log(np.exp(exponents - np.where(np.isneginf(top), 0, top)[:, None]).sum(axis=1))
            value = log_sum / (order - 1)
            if order > 1:
                log_sum, value = (np.where(leaves, np.inf, x) for x in (log_sum, value))
            if isinstance(D, mk.SquaredHellinger):
                value = -np.expm1(log_sum)
            if isinstance(D, mk.ChiSquared):
                value = np.expm1(log_sum)
    with np.errstate(over="ignore"):
        return np.asarray(value, np.float64)


def mean_prediction(z: FloatArray, weights: FloatArray | None = None) -> FloatArray:
    w = np.ones(len(z)) if weights is None else np.asarray(weights, np.float64)
    return np.asarray(w / w.sum() @ np.exp(log_softmax(z)))


@dataclass
class ExactRow:
    """One row to 60 digits."""

    log_p: list[Any]  # of the unmasked tokens
    log_normalizer: Any

    def renyi(self, order: float) -> Any:
        with mpmath.workdps(60):
            if order == 0:
                return mpmath.log(len(self.log_p))
            if order == 1:
                return -mpmath.fsum(mpmath.exp(x) * x for x in self.log_p)
            if order == float("inf"):
                return -max(self.log_p)
            if order == -float("inf"):
                return -min(self.log_p)
            return mpmath.log(mpmath.fsum(mpmath.exp(order * x) for x in self.log_p)) / (1 - mpmath.mpf(order))

    def jensen_shannon(self) -> Any:
        with mpmath.workdps(60):
            p = [mpmath.exp(x) for x in self.log_p]
            terms = (q * (1 + q) * mpmath.log1p(q) - q**2 * x for q, x in zip(p, self.log_p, strict=True))
            return mpmath.log(2) - mpmath.fsum(terms) / 2


def mp_row(z: FloatArray) -> ExactRow:
    with mpmath.workdps(60):
        present = [mpmath.mpf(float(x)) for x in z if x > -np.inf]
        log_z = mpmath.log(mpmath.fsum(mpmath.exp(x) for x in present))
        return ExactRow([x - log_z for x in present], log_z)


@dataclass
class Bounds:
    r"""How far a pass may be from the exact row: (n,) each, to first order in the roundoff, doubled for the rest.

    ``delta`` bounds the error of a logit; a logit's error moves a quantity by that times the quantity's derivatives,
    summed in absolute value. Writing ``g = m - z >= 0`` for the gap to the largest logit: the difference is rounded, so
    ``e^{-g}`` carries ``g u`` besides the ``SUM`` of its sum.
    """

    z: FloatArray
    delta: FloatArray

    def __post_init__(self) -> None:
        self.log_p = log_softmax(self.z)
        self.p = np.exp(self.log_p)
        m = self.z.max(axis=1, keepdims=True) if self.z.size else np.zeros((len(self.z), 1))
        self.gap = np.where(self.p > 0, m - self.z, 0.0)

    @property
    def mean_gap(self) -> FloatArray:
        return expectation(self.p, self.gap)

    @property
    def log_normalizer(self) -> FloatArray:
        return np.asarray(2 * (self.delta + SUM + UNIT * self.mean_gap))

    @property
    def nll(self) -> FloatArray:
        """Also of every other log-probability."""
        return np.asarray(2 * self.delta + self.log_normalizer)

    @property
    def entropy(self) -> FloatArray:
        """H = log s - t / s, with dH/dz = -p (log p + H), and t a sum of ``g e^{-g}``."""
        spread = expectation(self.p, np.abs(self.log_p + entropy(self.z)[:, None]))
        rounding = SUM * (1 + 2 * self.mean_gap) + UNIT * (3 * self.mean_gap + 2 * expectation(self.p, self.gap**2))
        return np.asarray(2 * (self.delta * spread + rounding))

    def renyi(self, order: float) -> FloatArray:
        """With q = p^a / sum p^a: dH_a/dz = a (q - p) / (1 - a).

        Below order 0 sums are relative to the least logit, and values so large that float64 has to round them.
        """
        if order == 0:
            return np.zeros(len(self.z))
        if order == 1:
            return self.entropy
        present, gap, double = self.log_p > -np.inf, self.gap, np.zeros(len(self.z))
        if order < 0:
            gap = np.where(present, self.z - np.where(present, self.z, np.inf).min(axis=1, keepdims=True), 0.0)
            double = 2.0**-50 * (gap.max(axis=1, initial=0.0) + np.log(self.z.shape[1]))
        if np.isinf(order):
            return np.asarray(self.log_normalizer + 2 * self.delta + double)
        a, away = abs(order), abs(1 - order)
        log_q = np.where(present, order * np.where(present, self.log_p, 0.0), -np.inf)
        log_q = log_q - log_q.max(axis=1, keepdims=True)
        q = np.exp(log_q) / np.exp(log_q).sum(axis=1, keepdims=True)
        slope = expectation(self.p, np.abs(self.log_p + entropy(self.z)[:, None]))  # the limit at 1
        if away >= 1e-3:
            slope = a * np.abs(q - self.p).sum(axis=1) / away
        sums = SUM + UNIT * self.mean_gap  # of log s
        if away > 0.5:  # (log P - a log s) / (1 - a), P a sum of e^{-|a| g}, whose exponent is rounded three times
            own = SUM + 3 * UNIT * a * expectation(q, gap)
            return np.asarray(2 * (self.delta * slope + (own + a * sums) / away) + double)
        # log s + log1p(E / s) / (1 - a), E = sum of e^{-g} expm1((1 - a) g): terms of one sign
        terms = self.p * np.abs(np.expm1((1 - a) * np.minimum(self.gap, 700.0)))
        total = terms.sum(axis=1)
        in_terms = (terms * self.gap).sum(axis=1) / np.where(total > 0, total, 1.0)  # mean gap where E comes from
        relative = SUM + (2 * EXPM1_ULP + 2) * UNIT + UNIT * (1 + 2 * away) * in_terms + sums
        power = 1 + np.where(a < 1, 1, -1) * total  # P / s
        return np.asarray(2 * (self.delta * slope + sums + relative * total / power / away))

    @property
    def jensen_shannon(self) -> FloatArray:
        r"""H = log 2 - Σ g(p) / 2 from sums over all tokens but one of the likeliest, whose logit they are relative to.

        With g' as `jensen_shannon_slope`, ``dH/dz = -p (g' - Σ p g') / 2``. The mass of the others carries the relative
        error of ``Σ e^{-g}``, and moves by ``mass``; H then moves by ``mass g'/2`` of the likeliest token, and by
        ``mass p g'/2`` of each other. Sums of ``p^k`` round k exponentials, their exponents, and k products; the
        polynomial in p, times p, has terms of p², p³/2 and less. It is off by ``JS_SERIES``, p³/2 is left out where p
        is below 2^-17 of the largest, and terms of less than e^-87 may be zero.
        """
        p, slope = self.p, jensen_shannon_slope(self.p)
        top = np.arange(self.z.shape[1]) == self.z.argmax(axis=1)[:, None]
        others = np.where(top, 0.0, p)
        of_logits = self.delta * expectation(p, np.abs(slope - expectation(p, slope)[:, None])) / 2
        mass = expectation(others, SUM + UNIT * self.gap) + 2.0**-125 * (others.shape[1] - 1)

        def rounded(power: int) -> FloatArray:
            return np.asarray((RUN + 1 + power * (2 * EXP_ULP + 1 + self.gap)) * UNIT)

        log_p = np.where(others > 0, self.log_p, 0.0)
        own = others**2 * (1 - log_p) * rounded(2) + others**3 * rounded(7) + others * JS_SERIES
        cut = np.where(self.gap > 17 * np.log(2) * (1 - 1e-5), others**3 / 2, 0.0)
        rest = (own + cut).sum(axis=1) + mass * (slope * np.where(top, 1.0, p)).sum(axis=1)
        return np.asarray(2 * (of_logits + rest / 2))

    def mean_prediction(self, weights: FloatArray | None = None) -> FloatArray:
        """(V,): a probability carries the errors of logit, normaliser and exponent, and a rounded weight."""
        w = np.ones(len(self.z)) if weights is None else np.asarray(weights, np.float64)
        log_p = np.where(self.p > 0, self.log_p, 0.0)
        relative = self.nll[:, None] + 2 * (SUM + UNIT * (1 - log_p))
        return np.asarray(w / w.sum() @ (self.p * relative))


def divergence_bound(D: Divergence, zp: FloatArray, zq: FloatArray, eta: FloatArray, delta: FloatArray) -> FloatArray:
    r"""How far a pass may be from `divergence`: (n,), to first order, doubled for the rest.

    ``eta`` (n,) bounds the error of a log-ratio ``d = log q/p``, ``delta`` (n,) that of a logit of p; a probability is
    off by ``rho = 2 delta + O(u)(1 + |log p|)``, relatively. The pass sums terms of one sign. Where ``|d| <= 4`` a term
    is p times a function of d, and off by rho of itself, its slope times eta, and (where d is not larger than eta) its
    curvature times eta²; elsewhere it is made of probabilities, each off by its rho.
    """
    if getattr(D, "reverse", False):
        return divergence_bound(replace(D, reverse=False), zq, zp, eta, delta)  # type: ignore[type-var, call-arg]
    lp, lq = log_softmax(zp), log_softmax(zq)
    p, q = np.exp(lp), np.exp(lq)
    in_p, in_q = lp > -np.inf, lq > -np.inf
    d = np.where(in_p & in_q, np.where(in_q, lq, 0) - np.where(in_p, lp, 0), 0)
    rho = 2 * delta[:, None] + SUM + 20 * UNIT + 3 * UNIT * (np.where(in_p, -lp, 0) + np.where(in_q, -lq, 0))
    near = in_p & in_q & (np.abs(d) <= 4)
    step = eta[:, None]

    def sum_of(term: FloatArray, parts: FloatArray, slope: FloatArray, curvature: float = 1) -> FloatArray:
        by_parts = rho * np.where(near, np.abs(term), parts)
        return np.asarray((by_parts + np.abs(slope) * step + curvature * np.maximum(p, q) * step**2).sum(axis=1))

    if isinstance(D, mk.TotalVariation):
        return 2 * sum_of(p - q, p + q, q)
    if isinstance(D, mk.JensenShannon):
        tilt = np.log(np.where(q > 0, 2 * q, 1) / np.where(q > 0, p + q, 1))
        return 2 * sum_of((p + q) * np.tanh(d / 2) ** 2, p + q, q * tilt)
    order = D.alpha if isinstance(D, mk.Renyi) else 1.0 if isinstance(D, mk.KL) else 2.0
    order = 0.5 if isinstance(D, mk.SquaredHellinger) else order
    if order == np.inf:
        return 2 * eta
    if order == 1:
        return 2 * sum_of(p * (np.expm1(np.minimum(d, 4)) - d), q + p * (1 + np.abs(d)), q - p)
    b, toward_q = 1 - order, order < 0.5  # the pass exchanges p and q for small orders
    exponents = np.where(in_p & in_q, np.where(in_p, lp, 0) + b * d, -np.inf)
    mixed = np.exp(np.minimum(exponents, 100.0))  # where it is larger, terms are not what counts
    top = np.where((in_p & in_q).any(axis=1), exponents.max(axis=1), 0)
    share = np.exp(exponents - top[:, None])
    c, weight, other = (order, q, p) if toward_q else (b, p, q)
    error = sum_of(
        mixed - weight - c * (other - weight),
        mixed + weight + abs(c) * (p + q),
        c * (mixed - other),
        (1 + abs(c)) ** 2,
    )
    total = mixed.sum(axis=1)
    by_exponents = (share * (rho + (1 + abs(b)) * step + 4 * UNIT * np.abs(b * d))).sum(axis=1)
    of_log = by_exponents / np.maximum(share.sum(axis=1), 1e-9) + SUM
    of_log = np.where(np.abs(total - 1) <= 0.5 + error, error / np.maximum(total, 0.4), of_log)
    if order == 0:
        of_log = ((rho + step) * np.where(in_p, 0, q)).sum(axis=1) / np.maximum(total, 1e-300)
    if isinstance(D, mk.Renyi):
        return np.asarray(2 * of_log / abs(b))
    return np.asarray(2 * of_log * np.exp(np.clip(top + np.log(np.maximum(share.sum(axis=1), 1)), 0, 700)))


def assert_within(name: str, actual: FloatArray, exact: FloatArray, bound: FloatArray) -> None:
    """``|actual - exact| <= bound`` everywhere, infinities equal; a failure names the worst place."""
    actual, exact, bound = (np.asarray(x, np.float64) for x in np.broadcast_arrays(actual, exact, bound))
    with np.errstate(invalid="ignore", divide="ignore"):
        excess = np.where(actual == exact, 0.0, np.abs(actual - exact) / bound)
    if not np.all(excess <= 1):  # also where it is NaN
        i = np.unravel_index(int(np.argmax(np.nan_to_num(excess, nan=np.inf))), excess.shape)
        place = tuple(int(j) for j in i)
        raise AssertionError(f"{name}{place}: {actual[i]!r}, exact {exact[i]!r}: {excess[i]:.3g} times {bound[i]:.3g}")
