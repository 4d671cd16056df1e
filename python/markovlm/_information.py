"""How much factors of a joint state know of each other, and a state of what follows it (theory §4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from ._axes import Space, axis_positions, size_of, spelled
from ._constructors import state
from ._divergences import KL, Divergence, as_divergence
from ._formulas import RaggedRows
from ._kernels import Kernel, law_of
from ._rows import Dense, Rows, Sparse, require_room
from ._rowwise import average_divergence, divergence
from ._softmax import softmax_of, softmax_stats
from .errors import ShapeError, ValueRangeError
from .typing import ArrayInput, FloatArray, IntArray, Progress

__all__ = [
    "conditional_mutual_information",
    "joint",
    "mutual_information",
    "representation_divergence",
    "state_prediction_information",
]

FORMED = 2**22  # pairs of elements up to which those that never happen are looked at one by one
SMALLEST = float(np.finfo(np.float64).smallest_subnormal)


def joint(p: Kernel | ArrayInput, k: Kernel) -> Kernel:
    r"""The joint state of what goes into a kernel and what comes out, :math:`p[x]\, k[x, y]`.

    The same as ``p >> mk.copy(X) >> mk.identity(X).tensor(k)``.

    Parameters
    ----------
    p : state or (n,) probabilities
        On the domain of ``k``.
    k : Kernel
        Of any representation.

    Returns
    -------
    Kernel
        A state on the factors of the domain and then those of the codomain.

    Examples
    --------
    >>> import markovlm as mk
    >>> mk.joint([0.5, 0.5], mk.Kernel([[1.0, 0.0], [0.5, 0.5]])).matrix
    array([[0.5 , 0.  , 0.25, 0.25]])
    """
    law = law_of("p", p, k.domain)
    rows = k._rows
    n, m = rows.shape
    made: Rows
    if rows.kind in ("sparse", "deterministic"):
        csr = rows.sparse()
        row = np.repeat(np.arange(n, dtype=np.int64), np.diff(csr.indptr))
        data = law[row] * csr.data
        kept = data > 0
        columns = (row * m + csr.indices)[kept]
        made = Sparse(sp.csr_array((data[kept], columns, np.array([0, len(columns)])), shape=(1, n * m)), rows.eps)
    else:
        require_room(n * m)
        made = Dense((law[:, None] * rows.dense()).reshape(1, n * m), rows.eps)
    return Kernel._of(made, (), (*k.domain, *k.codomain))


def mutual_information(
    joint: Kernel | ArrayInput,
    D: Divergence | None = None,
    *,
    between: tuple[str | int | Sequence[str | int], str | int | Sequence[str | int]] | None = None,
) -> float:
    r""":math:`I_D = D(p_{XY} \,\|\, p_X \otimes p_Y)`: how far a joint state is from independence.

    Parameters
    ----------
    joint : Kernel or array
        A state on several factors, or an (n, m) array of probabilities.
    D : divergence, optional
        Default: ``mk.KL()``, Shannon's mutual information.
    between : pair, optional
        Two names or numbers of factors, or two lists of them. Default: the first factor and all others.

    Returns
    -------
    float
        In the unit of ``D``; 0 for independent factors alone.

    Raises
    ------
    ShapeError, NotStochasticError

    Notes
    -----
    Work as for the positive entries of the joint state: what ``D`` says of all others depends on their sum alone.
    Source: arXiv 2507.19247, Def. 2.6; theory §4.

    Examples
    --------
    >>> import markovlm as mk
    >>> round(mk.mutual_information([[0.5, 0.0], [0.0, 0.5]]), 6)  # log 2
    0.693147
    """
    given = _joint_state(joint)
    if between is None:
        if len(given.codomain) < 2:
            raise ShapeError(f"joint: expected a state on two factors or more, got {spelled(given.codomain)}")
        between = (0, range(1, len(given.codomain)))
    return conditional_mutual_information(given, *between, given=(), D=D)


def conditional_mutual_information(
    joint: Kernel | ArrayInput,
    first: str | int | Sequence[str | int],
    second: str | int | Sequence[str | int],
    given: str | int | Sequence[str | int],
    D: Divergence | None = None,
) -> float:
    r""":math:`I_D(X; Y \mid Z) = \sum_z p(z)\, D(p_{XY|z} \,\|\, p_{X|z} \otimes p_{Y|z})`.

    For KL the chain rule holds: ``I(X; Y, Z) = I(X; Z) + I(X; Y | Z)``.

    Parameters
    ----------
    joint : Kernel or array
        A state on several factors, or an array with as many axes.
    first, second, given : str, int, or sequence of them
        Names or numbers of the factors that are X, Y and Z.
    D : divergence, optional
        Default: ``mk.KL()``.

    Examples
    --------
    >>> import numpy as np, markovlm as mk
    >>> xor = np.zeros((2, 2, 2))
    >>> xor[[0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 1, 0]] = 0.25
    >>> mk.mutual_information(xor, between=(0, 1)), round(mk.conditional_mutual_information(xor, 0, 1, given=2), 6)
    (0.0, 0.693147)
    """
    D = KL() if D is None else as_divergence(D)
    state_ = _joint_state(joint)
    space = state_.codomain
    x, y, z = (
        axis_positions(name, space, [one] if isinstance(one, (str, int, np.integer)) else list(one))
        for name, one in (("first", first), ("second", second), ("given", given))
    )
    axis_positions("first, second and given", space, (*x, *y, *z))  # each factor once
    ordered = state_.marginal(*z, *x, *y)._rows.sparse()
    place, mass = ordered.indices.astype(np.int64), ordered.data  # positive entries, by z, then x, then y
    size_x, size_y = (size_of(tuple(space[i] for i in factors)) for factors in (x, y))
    of_z, of_x, of_y = place // (size_x * size_y), place // size_y % size_x, place % size_y
    values, z_index = np.unique(of_z, return_inverse=True)
    total = np.bincount(z_index, mass, minlength=len(values))
    p = mass / total[z_index]
    p_x, p_y = _marginal(z_index, of_x, p), _marginal(z_index, of_y, p)
    q = np.maximum(p_x * p_y, SMALLEST)  # not 0: what happens together happens apart as well
    rest = _never_together(z_index, of_x, of_y, p_x, p_y)
    order = np.argsort(np.concatenate([z_index, np.arange(len(values))]), kind="stable")
    p_all, q_all = np.concatenate([p, np.zeros(len(values))])[order], np.concatenate([q, rest])[order]
    counts = np.bincount(z_index, minlength=len(values)) + 1
    found = D._between(RaggedRows(counts), p_all, q_all)
    return float(total @ found)


def _marginal(z: IntArray, x: IntArray, p: FloatArray) -> FloatArray:
    """Of each entry, the sum of p over the entries with the same z and x."""
    _, group = np.unique(np.stack([z, x]), axis=1, return_inverse=True)
    group = group.reshape(-1)
    return np.asarray(np.bincount(group, p)[group])


def _never_together(z: IntArray, x: IntArray, y: IntArray, p_x: FloatArray, p_y: FloatArray) -> FloatArray:
    """What independence gives, for each z, to pairs without an entry: their sum, which is all that divergences see."""
    count = int(z.max(initial=-1)) + 1
    values_x, at_x = np.unique(x, return_inverse=True)
    values_y, at_y = np.unique(y, return_inverse=True)
    if count * len(values_x) * len(values_y) <= FORMED:
        of_x, of_y = np.zeros((count, len(values_x))), np.zeros((count, len(values_y)))
        of_x[z, at_x], of_y[z, at_y] = p_x, p_y
        apart = of_x[:, :, None] * of_y[:, None, :]
        apart[z, at_x, at_y] = 0.0
        return np.asarray(apart.sum(axis=(1, 2)))
    pairs = np.ones(count, dtype=np.int64)
    for at in (at_x, at_y):
        pairs *= np.bincount(np.unique(np.stack([z, at]), axis=1)[0], minlength=count)
    some = pairs > np.bincount(z)
    return np.where(some, np.maximum(1 - np.bincount(z, p_x * p_y), SMALLEST), 0.0)


def _joint_state(joint: Kernel | ArrayInput) -> Kernel:
    made = joint if isinstance(joint, Kernel) else state(joint)
    if made.shape[0] != 1:
        raise ShapeError(f"joint: expected a state, a kernel from one element, got shape {made.shape}; see mk.joint")
    return made


def state_prediction_information(
    P: Kernel,
    p: Kernel | ArrayInput | None = None,
    *,
    max_memory: int | None = None,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> float:
    r"""What a state says about what follows it: :math:`I(H; W) = H(\bar p) - \sum_x \mu(x) H(P_x)`, in nats.

    Parameters
    ----------
    P : Kernel
        From ``n`` contexts, of any representation.
    p : state or (n,) probabilities, optional
        The law μ over contexts; default uniform.
    max_memory, num_threads, progress
        As in `softmax_stats`.

    Returns
    -------
    float
        In ``[0, log n]``: exact for the contexts given, and no more than they are.

    Notes
    -----
    One fused pass over a softmax kernel; for others the mean of ``KL(P_x ‖ p̄)``, which is the same and does not cancel.
    Source: arXiv 2507.19247, §4; theory §4.

    Examples
    --------
    >>> import markovlm as mk
    >>> round(mk.state_prediction_information(mk.identity(4)), 6)  # log 4
    1.386294
    """
    law = law_of("p", p, P.domain)
    softmax = softmax_of(P)
    if softmax is None:
        mean = state(law, P.domain) >> P
        return average_divergence(P, _repeated(mean, P.domain), KL(), law)
    stats = softmax_stats(
        softmax, mean=True, weights=law, max_memory=max_memory, num_threads=num_threads, progress=progress
    )
    assert stats.mean is not None  # for the type checker: it was asked for
    return max(0.0, float(KL().entropy(stats.mean) - law @ stats.entropy))


def _repeated(one: Kernel, domain: Space) -> Kernel:
    """The kernel that forgets where it comes from."""
    rows = one._rows.take(np.zeros(size_of(domain), dtype=np.int64))
    return Kernel._of(rows, domain, one.codomain)


def representation_divergence(
    P: Kernel, first: ArrayInput, second: ArrayInput, D: Divergence | None = None, *, reverse: bool = False
) -> float:
    r""":math:`D(\bar p_{s_1} \| \bar p_{s_2})` of the mean predictions of two groups of contexts.

    By data processing a lower bound for how far apart the groups are as laws of hidden states.

    Parameters
    ----------
    P : Kernel
        Of any representation.
    first, second : array
        Numbers of rows, or masks over them.
    D : divergence, optional
        Default: ``mk.KL()``.
    reverse : bool
        Exchanges the groups.

    Examples
    --------
    >>> import markovlm as mk
    >>> P = mk.Kernel([[0.5, 0.5], [0.5, 0.5], [0.25, 0.75]])
    >>> round(mk.representation_divergence(P, [0, 1], [2], mk.TotalVariation()), 6)
    0.25
    """
    groups = []
    for name, rows in (("first", first), ("second", second)):
        part = P[np.asarray(rows)]
        if part.shape[0] == 0:
            raise ValueRangeError(f"{name}: expected at least one context, got none")
        groups.append(state(law_of(name, None, part.domain), part.domain) >> part)
    p, q = reversed(groups) if reverse else groups
    return float(divergence(p, q, KL() if D is None else D)[0])
