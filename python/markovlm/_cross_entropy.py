"""Cross-entropy of each row of two kernels by a route of its own, not as a divergence plus an entropy (theory §6)."""

from __future__ import annotations

import math

import numpy as np

from . import _checks
from . import _formulas as formulas
from ._kernels import Kernel
from ._panels import panel_product
from ._rowwise import entry_pairs
from ._softmax import SoftmaxKernel, softmax_of, softmax_stats
from ._softmax_products import on_tokens, unmasked
from .typing import FloatArray, Progress

__all__ = ["cross_entropies"]

DEFAULT_MEMORY = 2**26
SMALLEST_TILE = 16  # rows and tokens, however little memory there is


def cross_entropies(
    P: Kernel,
    Q: Kernel,
    normalizers: tuple[FloatArray | None, FloatArray | None] = (None, None),
    *,
    max_memory: int | None = None,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> FloatArray:
    r""":math:`-\sum_w P_x(w) \log Q_x(w)` of each row of two kernels between the same sets.

    .. math:: \log Z_Q(h) - \frac{\mathrm{scale}}{T} \Bigl(\bigl\langle \textstyle\sum_w p_x(w)\, g_w, h \bigr\rangle
              + \sum_w p_x(w)\, b_w \Bigr)

    with the head ``g``, ``b`` of Q where both are softmax kernels and Q has no soft-capping: ``P`` times that head, by
    a panel product.

    Parameters
    ----------
    P, Q : Kernel
        With ``n`` rows on the same set, which the caller has seen to.
    normalizers : pair of (n,) float64 or None
        ``log Z`` of each softmax kernel from an earlier `softmax_stats`; made by one more pass if missing.
    max_memory, num_threads, progress
        As in `softmax_stats`.

    Returns
    -------
    (n,) float64
        Nats, ``[0, inf]``; infinite where Q forbids what P does.

    Notes
    -----
    By the panel product ``2 n V (d_P + d_Q)`` flops and ``8 n d_Q`` bytes, ``2 n V d_P`` flops more with a bias. With
    soft-capping the logits of Q are no linear functions of the state: then tiles of both logits are formed in float64,
    in ``max_memory`` (64 MiB), with as many threads as NumPy's BLAS takes, some four times as slow. Of other kernels
    from their entries, a block of rows at a time.
    """
    p, q = softmax_of(P), softmax_of(Q)
    out: FloatArray = np.empty(P.shape[0])
    if p is None or q is None:
        for rows, layout, left, right in entry_pairs(P._rows, Q._rows, max_memory):
            out[rows] = formulas.cross_entropy(layout, left, right)
            if progress is not None:
                progress(rows.stop, len(out))
        return out
    if np.isin(unmasked(p), unmasked(q), invert=True).any():  # a softmax has mass wherever it is not masked
        out[:] = np.inf
        return out
    log_z_p, log_z_q = (
        softmax_stats(k, max_memory=max_memory, num_threads=num_threads).log_normalizer if given is None else given
        for k, given in zip((p, q), normalizers, strict=True)
    )
    if q.softcap:
        return log_z_q - _mean_logits_by_tiles(p, q, log_z_p, max_memory, progress)

    def expected(columns: FloatArray, progress: Progress | None = None) -> FloatArray:
        return panel_product(
            p, columns, log_normalizer=log_z_p, max_memory=max_memory, num_threads=num_threads, progress=progress
        )

    mean = np.einsum("xj,xj->x", expected(q.head, progress), q.hidden.astype(np.float64))
    if q.bias is not None:
        mean += expected(np.where(np.isneginf(q.bias), 0.0, q.bias)[:, None])[:, 0]  # P removes those too
    return np.asarray(log_z_q - q.scale / q.temperature * mean)


def _mean_logits_by_tiles(
    P: SoftmaxKernel, Q: SoftmaxKernel, log_z: FloatArray, max_memory: int | None, progress: Progress | None
) -> FloatArray:
    """``Σ_w p_x(w) z_w`` with the logits of Q, from square tiles of rows and tokens."""
    n, tokens = P.shape[0], unmasked(P)
    memory = _checks.memory(max_memory) or DEFAULT_MEMORY
    width = P.hidden.shape[1] + Q.hidden.shape[1]
    # half for states and heads in float64, half for four arrays of tiles
    step = max(SMALLEST_TILE, min(math.isqrt(memory // 64), memory // (32 * max(width, 1))))
    out = np.zeros(n)
    for first in range(0, n, step):
        rows = slice(first, min(first + step, n))
        p, q = P[rows], Q[rows]
        for start in range(0, len(tokens), step):
            some = tokens[start : start + step]
            weight = on_tokens(p, some).logits()
            weight -= log_z[rows, None]
            np.exp(weight, out=weight)
            out[rows] += np.einsum("xw,xw->x", weight, on_tokens(q, some).logits())
        if progress is not None:
            progress(rows.stop, n)
    return out
