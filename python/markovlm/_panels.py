"""Products of a softmax kernel, and of its element-wise powers, with a few columns: never a matrix of ``n × V``."""

from __future__ import annotations

import numpy as np

from . import _checks
from ._ext import core
from ._softmax import SoftmaxKernel, softmax_stats
from .typing import ArrayInput, FloatArray, ModelArray, Progress, SinglePrecisionArray

__all__ = ["adjoint_product", "normal_product", "panel_product", "product", "prototypes"]


def panel_product(
    P: SoftmaxKernel,
    X: ArrayInput,
    power: float = 1.0,
    *,
    log_normalizer: ArrayInput | None = None,
    max_memory: int | None = None,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> FloatArray:
    r""":math:`Y = P^{a} X` with element-wise powers: ``Y[x, j] = Σ_w p_x(w)^a X[w, j]``.

    For a = 1 these are the conditional expectations of functions of the next token; for a = 1/2, ``√P`` is the factor
    of the Bhattacharyya similarity.

    Parameters
    ----------
    P : SoftmaxKernel
        ``n`` contexts, ``V`` tokens.
    X : (V, b) floating point
        float32, bfloat16 and float16 are used where they lie; other types are rounded to float32.
    power : float > 0
        The power a of every probability.
    log_normalizer : (n,) float64, optional
        From an earlier `softmax_stats` of the same kernel; made by one more pass if missing.
    max_memory, num_threads, progress
        As in `softmax_stats`.

    Returns
    -------
    (n, b) float64
        Within rounding of float32 terms: some 1e-6 of ``Σ_w p_x(w)^a |X[w, j]|``.

    Raises
    ------
    ShapeError, DTypeError, ValueRangeError

    Notes
    -----
    ``2 n V (d + b)`` flops; working memory some 64 MiB at most, whatever ``n`` and ``V``. Source:
    theory §9, §12.

    Examples
    --------
    >>> import numpy as np, markovlm as mk
    >>> P = mk.SoftmaxKernel(np.array([[np.log(3.0)]]), np.array([[0.0], [1.0]]))  # p = (1/4, 3/4)
    >>> mk.panel_product(P, np.array([[8.0], [4.0]])).round(5)
    array([[5.]])
    """
    rows, _ = product(P, power, log_normalizer, max_memory, num_threads, progress, X=X, want_rows=True)
    assert rows is not None  # for the type checker
    return rows


def adjoint_product(
    P: SoftmaxKernel,
    Y: ArrayInput,
    power: float = 1.0,
    *,
    log_normalizer: ArrayInput | None = None,
    max_memory: int | None = None,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> FloatArray:
    r""":math:`Z = (P^{a})^\top Y` with element-wise powers: ``Z[w, j] = Σ_x p_x(w)^a Y[x, j]``.

    For a = 1, measures on contexts are pushed forward to measures on tokens.

    Parameters
    ----------
    Y : (n, b) floating point
        As X of `panel_product`.
    P, power, log_normalizer, max_memory, num_threads, progress
        As in `panel_product`.

    Returns
    -------
    (V, b) float64

    Examples
    --------
    >>> import numpy as np, markovlm as mk
    >>> P = mk.SoftmaxKernel(np.array([[0.0], [np.log(3.0)]]), np.array([[0.0], [1.0]]))  # (1/2, 1/2) and (1/4, 3/4)
    >>> mk.adjoint_product(P, np.array([[0.5], [0.5]])).round(5)  # the mean prediction
    array([[0.375],
           [0.625]])
    """
    _, tokens = product(P, power, log_normalizer, max_memory, num_threads, progress, Y=Y, want_tokens=True)
    assert tokens is not None  # for the type checker
    return tokens


def normal_product(
    P: SoftmaxKernel,
    X: ArrayInput,
    power: float = 1.0,
    weights: ArrayInput | None = None,
    *,
    log_normalizer: ArrayInput | None = None,
    max_memory: int | None = None,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> FloatArray:
    r""":math:`(P^{a})^\top D_μ P^{a} X`: both products in one pass, each row of P made once and used twice.

    The vocabulary side of a similarity operator: with a = 1/2, ``C[w, w'] = E_x √(p_x(w) p_x(w'))`` times X.

    Parameters
    ----------
    X : (V, b) floating point
        As in `panel_product`.
    weights : (n,) floats >= 0, optional
        The law μ over contexts, normalised here; default uniform.
    P, power, log_normalizer, max_memory, num_threads, progress
        As in `panel_product`.

    Returns
    -------
    (V, b) float64

    Notes
    -----
    ``2 n V (d + 2 b)`` flops; working memory ``max_memory``: 64 MiB, or 32 rows of ``V`` floats if that is more.

    Examples
    --------
    >>> import numpy as np, markovlm as mk
    >>> P = mk.SoftmaxKernel(np.array([[np.log(3.0)]]), np.array([[0.0], [1.0]]))  # p = (1/4, 3/4)
    >>> mk.normal_product(P, np.array([[8.0], [4.0]])).round(5)
    array([[1.25],
           [3.75]])
    """
    n = P.shape[0]
    law = np.full(n, 1.0 / max(n, 1)) if weights is None else _checks.row_weights(weights, n)
    _, tokens = product(P, power, log_normalizer, max_memory, num_threads, progress, X=X, weights=law, want_tokens=True)
    assert tokens is not None  # for the type checker
    return tokens


def prototypes(
    P: SoftmaxKernel,
    *,
    log_normalizer: ArrayInput | None = None,
    max_memory: int | None = None,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> FloatArray:
    r"""Mean head vectors :math:`\bar g_x = \sum_w p_x(w)\, g_w`, the gradients of ``log Z`` for a linear head: (n, d).

    `panel_product` with the head itself for X. Source: arXiv 2507.19247, Thm 7.6; theory §8.

    Examples
    --------
    >>> import numpy as np, markovlm as mk
    >>> P = mk.SoftmaxKernel(np.array([[np.log(3.0)]]), np.array([[0.0], [1.0]]))  # p = (1/4, 3/4)
    >>> mk.prototypes(P).round(5)
    array([[0.75]])
    """
    return panel_product(
        P,
        P.head,
        log_normalizer=log_normalizer,
        max_memory=max_memory,
        num_threads=num_threads,
        progress=progress,
    )


def product(
    P: SoftmaxKernel,
    power: float,
    log_normalizer: ArrayInput | None,
    max_memory: int | None,
    num_threads: int | None,
    progress: Progress | None,
    *,
    X: ArrayInput | None = None,
    Y: ArrayInput | None = None,
    weights: FloatArray | None = None,
    want_rows: bool = False,
    want_tokens: bool = False,
    store: SinglePrecisionArray | None = None,
) -> tuple[FloatArray | None, FloatArray | None]:
    """What `panel.hpp` says: (P^a X, or P^a P^aT Y; P^aT Y, or P^aT D P^a X), None where it is not wanted.

    ``store``: the array of a `PowerStore`, to be read for ``P^a``.
    """
    n, vocabulary = P.shape
    power = _checks.positive("power", power)
    of_tokens: ModelArray | None = None if X is None else _checks.panel("X", X, vocabulary, "V")
    of_rows: ModelArray | None = None if Y is None else _checks.panel("Y", Y, n, "n")
    if log_normalizer is None:
        log_normalizer = softmax_stats(P, max_memory=max_memory, num_threads=num_threads).log_normalizer
    return core.panel_product(
        P.hidden,
        P._head_arguments(),
        _checks.log_normalizers(log_normalizer, n),
        power,
        of_tokens,
        of_rows,
        weights,
        want_rows,
        want_tokens,
        store,
        _checks.memory(max_memory),
        _checks.threads(num_threads),
        progress,
    )
