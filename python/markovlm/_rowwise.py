"""Divergences and categorical entropies of kernels, row by row, averaged, or the largest (theory §2, §3)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import scipy.sparse as sp

from ._axes import matched
from ._divergences import Divergence, TotalVariation, as_divergence, entropies_of_pass
from ._formulas import FullRows, Layout, RaggedRows
from ._kernels import Kernel, law_of
from ._rows import Rows
from ._softmax import softmax_of, softmax_stats
from .typing import ArrayInput, FloatArray, IntArray, Progress

__all__ = [
    "almost_surely_equal",
    "average_categorical_entropy",
    "average_divergence",
    "categorical_entropies",
    "categorical_entropy",
    "divergence",
    "divergences",
    "entry_pairs",
    "supremum_categorical_entropy",
    "supremum_divergence",
]

BLOCK_ENTRIES = 2**17  # that are looked at at a time: some ten arrays of them stay in a cache


def divergences(
    P: Kernel,
    Q: Kernel,
    Ds: Sequence[Divergence],
    *,
    max_memory: int | None = None,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> dict[Divergence, FloatArray]:
    """As `divergence`, several at once, in one pass where both are softmax kernels.

    Examples
    --------
    >>> import markovlm as mk
    >>> f, g = mk.Kernel([[0.5, 0.5], [0.0, 1.0]]), mk.Kernel([[0.5, 0.5], [1.0, 0.0]])
    >>> {D.name: v.tolist() for D, v in mk.divergences(f, g, [mk.KL(), mk.TotalVariation()]).items()}
    {'Kullback–Leibler': [0.0, inf], 'total variation': [0.0, 1.0]}
    """
    wanted = [as_divergence(D) for D in Ds]
    matched(P.domain, Q.domain, "Q: domain")
    matched(P.codomain, Q.codomain, "Q: codomain")
    found: dict[Divergence, FloatArray] = {}
    for k in (P, Q):
        k.evaluate(max_memory=max_memory, num_threads=num_threads)
    first, second = softmax_of(P), softmax_of(Q)
    if first is not None and second is not None:
        by_pass = [D for D in wanted if D._request() is not None]
        if by_pass:
            found = softmax_stats(
                second,
                reference=first,
                divergences=by_pass,
                max_memory=max_memory,
                num_threads=num_threads,
                progress=progress,
            ).divergences
    missing = [D for D in wanted if D not in found]
    if missing:
        found |= {D: np.empty(P.shape[0]) for D in missing}
        for rows, layout, p, q in entry_pairs(P._rows, Q._rows, max_memory):
            for D in missing:
                found[D][rows] = D._between(layout, p, q)
            if progress is not None:
                progress(rows.stop, P.shape[0])
    return {D: found[D] for D in wanted}


def divergence(
    P: Kernel,
    Q: Kernel,
    D: Divergence,
    *,
    max_memory: int | None = None,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> FloatArray:
    r"""``D(P[i] ‖ Q[i])`` for each row of two kernels between the same sets, whatever their representations.

    Of two softmax kernels (layers, checkpoints, teacher and student, draft and target, which may differ in states,
    head, width and type) in one pass over both; of others from their entries, a block of rows at a time.

    Parameters
    ----------
    P, Q : Kernel
        With ``n`` rows on the same set; names and labels have to agree.
    D : divergence
        ``mk.KL()``, ``mk.TotalVariation()``, ``mk.SquaredHellinger()``, ``mk.ChiSquared()``, ``mk.JensenShannon()``,
        ``mk.Renyi(alpha)`` or ``mk.FDivergence(f)``. For several in the same pass: `divergences`.
    max_memory, num_threads, progress
        As in `softmax_stats`.

    Returns
    -------
    (n,) float64
        In the unit and range of ``D``; infinite where its support condition fails.

    Raises
    ------
    ShapeError, DTypeError, ValueRangeError

    Notes
    -----
    Of softmax kernels ``4 n V d`` flops, working memory as in `softmax_stats`, no array of ``n × V``; of two sparse
    ones work as for their entries; nothing is clipped or smoothed. Sums are of terms of one sign, such as
    ``p (e^δ − 1 − δ)`` for KL with ``δ = log q/p``, so that a divergence is as exact as δ is. Where both kernels
    have the very same head (the same memory), without soft-capping, differences of logits are products with the
    difference of the states, exact to some 1e-6 of their size: KL keeps two digits and more down to 1e-10. (Where the
    CPU multiplies bfloat16, this is done unless every row of ``Q`` is farther from that of ``P`` than 1/64 of its
    length.) With two heads δ carries the rounding of both logits, η ≈ 1e-6 of theirs, and KL a floor of about η²/2.
    Source: theory §2.

    Examples
    --------
    >>> import numpy as np, markovlm as mk
    >>> W = np.array([[0.0], [1.0]])
    >>> P, Q = mk.SoftmaxKernel([[0.0]], W), mk.SoftmaxKernel([[np.log(3.0)]], W)  # (1/2, 1/2) and (1/4, 3/4)
    >>> print(f"{mk.divergence(P, Q, mk.KL())[0]:.6f} {mk.divergence(P, Q, mk.TotalVariation())[0]:.6f}")
    0.143841 0.250000
    """
    D = as_divergence(D)
    return divergences(P, Q, [D], max_memory=max_memory, num_threads=num_threads, progress=progress)[D]


def average_divergence(P: Kernel, Q: Kernel, D: Divergence, p: Kernel | ArrayInput | None = None) -> float:
    r"""The mean over the domain, :math:`\sum_x p(x)\, D(P_x \| Q_x)`; rows without mass do not count.

    Parameters
    ----------
    P, Q, D
        As in `divergence`.
    p : state or (n,) probabilities, optional
        Default: uniform.

    Examples
    --------
    >>> import markovlm as mk
    >>> f, g = mk.Kernel([[0.5, 0.5], [0.0, 1.0]]), mk.Kernel([[0.5, 0.5], [1.0, 0.0]])
    >>> mk.average_divergence(f, g, mk.TotalVariation()), mk.average_divergence(f, g, mk.KL(), [1.0, 0.0])
    (0.5, 0.0)
    """
    return _average(P, divergence(P, Q, D), p)


def supremum_divergence(P: Kernel, Q: Kernel, D: Divergence) -> float:
    r"""The largest over the domain, :math:`\max_x D(P_x \| Q_x)`: the divergence of kernels in Perrone's enrichment.

    Examples
    --------
    >>> import markovlm as mk
    >>> f, g = mk.Kernel([[0.5, 0.5], [0.0, 1.0]]), mk.Kernel([[0.5, 0.5], [1.0, 0.0]])
    >>> mk.supremum_divergence(f, g, mk.TotalVariation())
    1.0
    """
    return float(divergence(P, Q, D).max(initial=0.0))


def almost_surely_equal(
    f: Kernel, g: Kernel, p: Kernel | ArrayInput | None = None, tolerance: float | None = None
) -> bool:
    """Whether two kernels agree on all that a law gives mass to.

    Parameters
    ----------
    f, g : Kernel
        Between the same sets.
    p : state or (n,) probabilities, optional
        Default: uniform, so that all rows count.
    tolerance : float, optional
        Of the total variation distance of rows; default the rounding of their entries.

    Examples
    --------
    >>> import markovlm as mk
    >>> f, g = mk.Kernel([[0.5, 0.5], [0.0, 1.0]]), mk.Kernel([[0.5, 0.5], [1.0, 0.0]])
    >>> mk.almost_surely_equal(f, g, [1.0, 0.0]), mk.almost_surely_equal(f, g)
    (True, False)
    """
    law = law_of("p", p, f.domain)
    if tolerance is None:
        tolerance = max(f._rows.rounding, g._rows.rounding)
    return bool(np.all(divergence(f, g, TotalVariation())[law > 0] <= tolerance))


def categorical_entropies(
    k: Kernel,
    Ds: Sequence[Divergence],
    *,
    max_memory: int | None = None,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> dict[Divergence, FloatArray]:
    """As `categorical_entropy`, several at once, in one pass over a softmax kernel.

    Examples
    --------
    >>> import markovlm as mk
    >>> k = mk.Kernel([[0.25, 0.75]])
    >>> {D.name: round(float(v[0]), 6) for D, v in mk.categorical_entropies(k, [mk.KL(), mk.JensenShannon()]).items()}
    {'Kullback–Leibler': 0.562335, 'Jensen–Shannon': 0.166801}
    """
    wanted = [as_divergence(D) for D in Ds]
    n = k.shape[0]
    found: dict[Divergence, FloatArray] = {}
    k.evaluate(max_memory=max_memory, num_threads=num_threads)
    softmax = softmax_of(k)
    if softmax is not None:
        orders = {D: D._entropy_order for D in wanted if D._entropy_order is not None}
        if orders:
            stats = softmax_stats(
                softmax,
                orders=sorted({order for order in orders.values() if not math.isnan(order)}),
                jensen_shannon=any(math.isnan(order) for order in orders.values()),
                max_memory=max_memory,
                num_threads=num_threads,
                progress=progress,
            )
            found = entropies_of_pass(orders, stats.renyi, stats.jensen_shannon)
    missing = [D for D in wanted if D not in found]
    if missing:
        found |= {D: np.zeros(n) for D in missing}
        if k._rows.kind != "deterministic":
            for rows, layout, p in _entries(k._rows, max_memory):
                for D in missing:
                    found[D][rows] = D._entropy(layout, p)
                if progress is not None:
                    progress(rows.stop, n)
    return {D: found[D] for D in wanted}


def categorical_entropy(
    k: Kernel,
    D: Divergence,
    *,
    max_memory: int | None = None,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> FloatArray:
    r"""How far each row of a kernel is from being deterministic, as the divergence D sees it.

    .. math:: H_D(k)(x) = D\bigl( (k \gg \Delta)(x) \,\big\|\, (\Delta \gg k \otimes k)(x) \bigr)

    Copying the outcome against running the kernel twice. 0 for functions alone.

    Parameters
    ----------
    k : Kernel
        ``n`` rows on ``m`` elements, of any representation.
    D : divergence
        ``mk.KL()`` gives Shannon's entropy, ``mk.TotalVariation()`` that of Gini and Simpson, ``mk.Renyi(a)`` Rényi's
        of order ``2 − a``, ``mk.ChiSquared()`` the size of the support less one.
    max_memory, num_threads, progress
        As in `softmax_stats`.

    Returns
    -------
    (n,) float64
        In the unit of ``D``, ``[0, inf]``.

    Raises
    ------
    DTypeError, ValueRangeError

    Notes
    -----
    Closed forms, one pass over the entries: nothing of size ``m²`` is made. Of a softmax kernel all come from one fused
    pass, ``2 n V d`` flops, exact to float32 rounding of its logits; of other kernels to some roundings of float64.
    Source: Perrone, arXiv 2212.11719; arXiv 2507.19247, Def. 2.5, Prop. 4.2; theory §3.

    Examples
    --------
    >>> import markovlm as mk
    >>> mk.categorical_entropy(mk.Kernel([[0.25, 0.75], [0.0, 1.0]]), mk.TotalVariation())
    array([0.375, 0.   ])
    """
    D = as_divergence(D)
    return categorical_entropies(k, [D], max_memory=max_memory, num_threads=num_threads, progress=progress)[D]


def average_categorical_entropy(k: Kernel, D: Divergence, p: Kernel | ArrayInput | None = None) -> float:
    r"""The mean :math:`\bar H_D(k; p) = \sum_x p(x)\, H_D(k)(x)` (arXiv 2507.19247, Eq. 4.4); for KL ``H(Y | X)``.

    Examples
    --------
    >>> import markovlm as mk
    >>> mk.average_categorical_entropy(mk.Kernel([[0.25, 0.75], [0.0, 1.0]]), mk.TotalVariation(), [0.8, 0.2])
    0.30000000000000004
    """
    return _average(k, categorical_entropy(k, D), p)


def supremum_categorical_entropy(k: Kernel, D: Divergence) -> float:
    r"""The largest :math:`\max_x H_D(k)(x)`, the entropy of a kernel as Perrone defines it.

    Examples
    --------
    >>> import markovlm as mk
    >>> mk.supremum_categorical_entropy(mk.Kernel([[0.25, 0.75], [0.0, 1.0]]), mk.TotalVariation())
    0.375
    """
    return float(categorical_entropy(k, D).max(initial=0.0))


def _average(k: Kernel, values: FloatArray, p: Kernel | ArrayInput | None) -> float:
    law = law_of("p", p, k.domain)
    counted = law > 0
    return float(law[counted] @ values[counted])


def _row_blocks(n: int, per_row: float, max_memory: int | None) -> Iterator[slice]:
    entries = BLOCK_ENTRIES if max_memory is None else min(BLOCK_ENTRIES, max_memory // 160)
    step = max(1, int(entries / max(per_row, 1.0)))
    for first in range(0, n, step):
        yield slice(first, min(first + step, n))


def _is_sparse(rows: Rows) -> bool:
    return rows.kind in ("sparse", "deterministic")


def _entries(rows: Rows, max_memory: int | None) -> Iterator[tuple[slice, Layout, FloatArray]]:
    for which in _row_blocks(rows.shape[0], rows.per_row, max_memory):
        part = rows.part(which)
        if _is_sparse(part):
            csr = part.sparse()
            yield which, RaggedRows(np.diff(csr.indptr)), csr.data
        else:
            yield which, FullRows(), part.dense()


def entry_pairs(a: Rows, b: Rows, max_memory: int | None) -> Iterator[tuple[slice, Layout, FloatArray, FloatArray]]:
    """Entries of the same rows of two kernels, block by block: (which rows, how they lie, p, q)."""
    ragged = _is_sparse(a) and _is_sparse(b)
    per_row = a.per_row + b.per_row if ragged else float(a.shape[1])
    for which in _row_blocks(a.shape[0], per_row, max_memory):
        left, right = a.part(which), b.part(which)
        if not ragged:
            yield which, FullRows(), left.dense(), right.dense()
            continue
        p, q = left.sparse(), right.sparse()
        union = _support(p) + _support(q)
        union.sort_indices()
        yield which, RaggedRows(np.diff(union.indptr)), _placed(p, union), _placed(q, union)


def _support(csr: sp.csr_array) -> sp.csr_array:
    return sp.csr_array((np.ones(csr.nnz), csr.indices, csr.indptr), shape=csr.shape)


def _placed(csr: sp.csr_array, union: sp.csr_array) -> FloatArray:
    """The entries where a larger support has them, 0 elsewhere; both sorted."""
    columns = np.unique(union.indices)

    def place(one: sp.csr_array) -> IntArray:  # its number among all, row by row
        row = np.repeat(np.arange(one.shape[0], dtype=np.int64), np.diff(one.indptr))
        return np.asarray(row * len(columns) + np.searchsorted(columns, one.indices))

    out = np.zeros(union.nnz)
    out[np.searchsorted(place(union), place(csr))] = csr.data
    return out
