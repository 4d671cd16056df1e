"""Kernels as channels: capacity, and which of two can imitate the other (theory §4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from scipy.optimize import linprog, minimize

from ._axes import matched
from ._kernels import Kernel
from ._rows import Dense, require_room
from .errors import ConvergenceError, ValueRangeError
from .typing import FloatArray, Progress

__all__ = ["Capacity", "Garbling", "channel_capacity", "garbling"]

STEPS_BEFORE_A_LEAP, MOST_INPUTS_OF_A_LEAP = 500, 256


@dataclass(frozen=True, repr=False)
class Capacity:
    """What a channel can carry, in nats: at least ``lower``, which ``input`` reaches, and at most ``upper``."""

    lower: float
    upper: float
    input: Kernel  # the state that reaches the lower bound
    iterations: int

    @property
    def value(self) -> float:
        """The middle of the two bounds."""
        return (self.lower + self.upper) / 2

    def __repr__(self) -> str:
        return f"Capacity({self.value:.6g} nats, gap {self.upper - self.lower:.1e}, {self.iterations} iterations)"


def channel_capacity(
    k: Kernel, tolerance: float = 1e-9, *, max_iterations: int = 100_000, progress: Progress | None = None
) -> Capacity:
    r"""The most information that a channel can carry, :math:`C = \max_p I(X; Y)`, with a certified gap.

    Parameters
    ----------
    k : Kernel
        ``n`` inputs, ``m`` outputs.
    tolerance : float > 0
        Of ``upper - lower``, nats.
    max_iterations : int
        After which it gives up.
    progress : callable, optional
        ``progress(iterations, max_iterations)``.

    Returns
    -------
    Capacity

    Raises
    ------
    ConvergenceError
        Carries the bounds that were reached in ``partial``.

    Notes
    -----
    Blahut and Arimoto's iteration with growing steps, ``4 n m`` flops each. For every input law p with output law q,
    ``Σ p(x) KL(k_x ‖ q) ≤ C ≤ max_x KL(k_x ‖ q)``: both ends are evaluated, so the gap is no estimate. Source: Blahut,
    IEEE Trans. IT 18 (1972) 460; steps: Matz and Duhamel, ITW 2004.

    Examples
    --------
    >>> import numpy as np, markovlm as mk
    >>> found = mk.channel_capacity(mk.Kernel([[0.9, 0.1], [0.1, 0.9]]))
    >>> round(found.value, 6), round(float(np.log(2) - mk.KL().entropy([0.1, 0.9])), 6)
    (0.368064, 0.368064)
    """
    if not tolerance > 0:
        raise ValueRangeError(f"tolerance: expected a number > 0, got {tolerance!r}")
    n, m = k.shape
    if n == 0:
        raise ValueRangeError("k: expected at least one input, got none")
    require_room(0 if k._rows.kind in ("sparse", "deterministic") else n * m)
    rows = k.sparse
    transposed = sp.csr_array(rows.T)
    row = np.repeat(np.arange(n), np.diff(rows.indptr))
    minus_entropy = np.bincount(row, rows.data * np.log(rows.data), minlength=n)

    def informations(p: FloatArray) -> FloatArray:
        """KL(k_x ‖ q) for each input: (n,)."""
        q = transposed @ p
        return np.asarray(np.maximum(minus_entropy - rows @ np.log(np.where(q > 0, q, 1.0)), 0.0))

    p, iterations, step = np.full(n, 1.0 / n), 0, 1.0
    found = informations(p)
    while True:
        upper = float(found.max())
        lower = min(float(p @ found), upper)  # a mean, but for rounding
        if upper - lower <= tolerance:
            break
        if iterations >= max_iterations:
            partial = Capacity(lower, upper, Kernel._of(Dense(p[None, :]), (), k.domain), iterations)
            raise ConvergenceError(
                f"channel_capacity: expected a gap of at most {tolerance:g} nats, got {upper - lower:.3g} after "
                f"{iterations} iterations; allow more, or a wider gap (partial has the bounds that hold)",
                partial,
            )
        iterations += 1
        if progress is not None:
            progress(iterations, max_iterations)
        if iterations == STEPS_BEFORE_A_LEAP and n <= MOST_INPUTS_OF_A_LEAP:
            candidate = _leap(p, informations)
            values = informations(candidate)
            if float(candidate @ values) > lower:
                p, found, step = candidate, values, 1.0
                continue
        candidate = _stepped(p, found, step)
        values = informations(candidate)
        if float(candidate @ values) < lower and step > 1.0:  # too far: the plain step never loses
            step = 1.0
            continue
        p, found, step = candidate, values, min(step * 1.5, 1e6)
    return Capacity(lower, upper, Kernel._of(Dense(p[None, :]), (), k.domain), iterations)


def _leap(p: FloatArray, informations: Callable[[FloatArray], FloatArray]) -> FloatArray:
    """Where sequential quadratic programming gets to: inputs that are almost alike take steps forever to tell apart."""

    def lost(p: FloatArray) -> tuple[float, FloatArray]:
        found = informations(p)
        return -float(p @ found), 1 - found

    solved = minimize(
        lost,
        p,
        jac=True,
        method="SLSQP",
        bounds=[(0.0, 1.0)] * len(p),
        constraints={"type": "eq", "fun": lambda p: p.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-16, "maxiter": 200},
    )
    return _normalised(solved.x)


def _stepped(p: FloatArray, found: FloatArray, step: float) -> FloatArray:
    """``p e^{step · found}``, normalised; nothing dies, or an output that it alone reaches would be lost."""
    return _normalised(p * np.exp(step * (found - found.max())))


def _normalised(weights: FloatArray) -> FloatArray:
    kept = np.maximum(weights, 1e-250)
    return np.asarray(kept / kept.sum())


@dataclass(frozen=True, repr=False)
class Garbling:
    """How well ``f >> witness`` imitates ``g``: ``deficiency`` is its largest total variation distance over inputs."""

    deficiency: float
    witness: Kernel
    tolerance: float

    @property
    def exists(self) -> bool:
        """Whether g is a garbling of f, within the tolerance."""
        return self.deficiency <= self.tolerance

    def __bool__(self) -> bool:
        return self.exists

    def __repr__(self) -> str:
        return f"Garbling(exists={self.exists}, deficiency={self.deficiency:.3g})"


def garbling(f: Kernel, g: Kernel, tolerance: float = 1e-7) -> Garbling:
    r"""Whether ``f`` is at least as informative as ``g``: is there a kernel w with ``f >> w = g``?

    .. math:: \delta(f, g) = \min_w \max_x TV\bigl((f \gg w)_x, g_x\bigr)

    Blackwell's order, and Le Cam's deficiency with the w that reaches it. It is 0 exactly where every decision problem
    on the inputs can be solved as well with f as with g.

    Parameters
    ----------
    f, g : Kernel
        From the same ``n`` inputs, to ``m`` and ``l`` outputs.
    tolerance : float
        What counts as 0. The program's constraints are met to 1e-10; garblings of random channels of up to 8 inputs
        and outputs came out at 1e-9 at most.

    Returns
    -------
    Garbling
        True where g is a garbling of f. ``witness`` is a kernel from the outputs of f to those of g, and ``deficiency``
        is evaluated with it: an upper bound that holds whatever the solver did.

    Raises
    ------
    ShapeError, ConvergenceError

    Notes
    -----
    A linear program of ``m l + n l + 1`` variables, by SciPy's HiGHS: for small sets. Source: Blackwell (1953);
    Torgersen, Comparison of Statistical Experiments (1991).

    Examples
    --------
    >>> import markovlm as mk
    >>> clear, noisy = mk.Kernel([[0.9, 0.1], [0.1, 0.9]]), mk.Kernel([[0.7, 0.3], [0.3, 0.7]])
    >>> bool(mk.garbling(clear, noisy)), bool(mk.garbling(noisy, clear))
    (True, False)
    >>> mk.garbling(clear, noisy).witness.matrix.round(6)
    array([[0.75, 0.25],
           [0.25, 0.75]])
    """
    matched(f.domain, g.domain, "g: domain")
    (n, m), size = f.shape, g.shape[1]
    from_f, to_g = f.sparse, g.matrix
    # Variables: w (m, size), slack (n, size) >= |f w - g|, and t >= half the sum of a row's slacks.
    product = sp.kron(from_f, sp.eye_array(size))
    slack = sp.eye_array(n * size)
    nothing = sp.csr_array((n * size, 1))
    sums = sp.kron(sp.eye_array(n), np.full((1, size), 0.5))
    inequalities = sp.block_array(
        [[product, -slack, nothing], [-product, -slack, nothing], [sp.csr_array((n, m * size)), sums, -np.ones((n, 1))]]
    )
    bounds = np.concatenate([to_g.reshape(-1), -to_g.reshape(-1), np.zeros(n)])
    normal = sp.block_array([[sp.kron(sp.eye_array(m), np.ones((1, size))), sp.csr_array((m, n * size + 1))]])
    cost = np.zeros(m * size + n * size + 1)
    cost[-1] = 1.0
    solved = linprog(
        cost,
        A_ub=sp.csr_array(inequalities),
        b_ub=bounds,
        A_eq=sp.csr_array(normal),
        b_eq=np.ones(m),
        method="highs",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    if solved.x is None:
        raise ConvergenceError(f"garbling: the linear program was not solved: {solved.message}")
    w = np.clip(solved.x[: m * size].reshape(m, size), 0.0, None)
    w /= w.sum(axis=1, keepdims=True)
    witness = Kernel._of(Dense(w), f.codomain, g.codomain)
    gap = np.abs((f >> witness).matrix - to_g).sum(axis=1) / 2
    return Garbling(float(gap.max(initial=0.0)), witness, tolerance)
