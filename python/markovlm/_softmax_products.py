"""Products with a softmax kernel on either side, as passes over it: registered where all other products are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ._panels import adjoint_product, panel_product
from ._products import Work, multiplication, of_used_rows, product
from ._rows import BLOCK_BYTES, SINGLE, Dense, Function, Rows, Sparse, require_room
from ._softmax import SoftmaxKernel, SoftmaxRows, mean_prediction, softmax_stats
from .typing import BoolArray, FloatArray, IntArray, SinglePrecisionArray

__all__ = ["guessed_normalizers", "on_tokens", "unmasked"]

MOST_COLUMNS = 1024  # in one pass over the kernel
SAMPLED_TOKENS = 1024  # that a guess of normalisers looks at
FURTHEST = 1e-6  # that a sum may be from what was guessed, as a factor
FLUSHED = 2.0**-125  # probabilities below are 0 to a pass
PANEL_BYTES = 2**28  # of columns of the vocabulary that are formed for a pass


def _options(work: Work) -> dict[str, Any]:
    return {"max_memory": work.max_memory, "num_threads": work.num_threads, "progress": work.progress}


def _column_blocks(columns: int, length: int) -> Iterator[slice]:
    step = int(np.clip(PANEL_BYTES // (4 * max(length, 1)), 1, MOST_COLUMNS))
    for first in range(0, columns, step):
        yield slice(first, min(first + step, columns))


def unmasked(P: SoftmaxKernel) -> IntArray:
    """Tokens that have a probability at all."""
    return np.arange(P.shape[1]) if P.bias is None else np.flatnonzero(P.bias > -np.inf)


def on_tokens(P: SoftmaxKernel, tokens: IntArray) -> SoftmaxKernel:
    """The kernel with the same logits for some of the tokens alone."""
    bias = None if P.bias is None else P.bias[tokens]
    return SoftmaxKernel(P.hidden, P.head[tokens], bias, P.temperature, P.scale, P.softcap or None)


def guessed_normalizers(P: SoftmaxKernel) -> FloatArray:
    """(n,) ``log Z`` as some of the tokens have it: near enough for exponentials to stay within float32."""
    tokens = unmasked(P)
    some = tokens[:: max(1, len(tokens) // SAMPLED_TOKENS)]
    return np.asarray(softmax_stats(on_tokens(P, some)).log_normalizer + np.log(len(tokens) / len(some)))


def _by_panels(a: SoftmaxRows, b: Rows, work: Work) -> Rows:
    """Columns of ``b`` are formed some at a time, and each pass makes the rows of the kernel anew.

    The first needs no normalisers: it sums each row along with the columns, relative to a guess.
    """
    (n, vocabulary), m = a.shape, b.shape[1]
    require_room(n * m)
    out = np.empty((n, m))
    columns: Any = b.matrix if isinstance(b, Dense) else b.sparse().tocsc()
    normalizers: FloatArray | None = None
    for block in _column_blocks(m, vocabulary):
        formed = columns[:, block].astype(np.float32)
        formed = formed if isinstance(b, Dense) else formed.toarray()
        if normalizers is None:
            out[:, block], normalizers = _summed_along(a.kernel, formed, work)
        else:
            out[:, block] = panel_product(a.kernel, formed, log_normalizer=normalizers, **_options(work))
    faint = (out < vocabulary * FLUSHED / (SINGLE * FURTHEST)) & _reached(a.kernel, columns)
    rows = np.flatnonzero(faint.any(axis=1))
    if rows.size:  # what is improbable must not become impossible: once more in float64
        out[rows] = _by_rows(a.take(rows), b, work).dense()
    return Dense(out, max(SINGLE, b.eps))


def _reached(P: SoftmaxKernel, columns: Any) -> BoolArray:
    """Columns that some token with a probability has a part in."""
    tokens = np.zeros(P.shape[1])
    tokens[unmasked(P)] = 1.0
    return np.asarray(tokens @ (columns > 0) > 0)


def _summed_along(P: SoftmaxKernel, columns: SinglePrecisionArray, work: Work) -> tuple[FloatArray, FloatArray]:
    """``P X`` and the normalisers from one pass."""
    guess = guessed_normalizers(P)
    with_ones = np.hstack([columns, np.ones((len(columns), 1), np.float32)])
    *_, total = found = panel_product(P, with_ones, log_normalizer=guess, **_options(work)).T
    far = np.flatnonzero(~((total > FURTHEST) & (total < 1 / FURTHEST)))  # exponentials could leave float32
    products, normalizers = (
        found[:-1].T / np.where(total > 0, total, 1.0)[:, None],
        guess + np.log(np.maximum(total, FURTHEST)),
    )
    if far.size:
        part = P[far]
        normalizers[far] = softmax_stats(part, **_options(work)).log_normalizer
        products[far] = panel_product(part, columns, log_normalizer=normalizers[far], **_options(work))
    return products, normalizers


def _by_rows(a: SoftmaxRows, b: Rows, work: Work) -> Rows:
    """A block of rows at a time is formed, in float64."""
    n, m = a.shape[0], b.shape[1]
    require_room(n * m)
    out = np.empty((n, m))
    for rows, block in a.blocks(work.max_memory):
        out[rows] = product(Dense(block), b, work).dense()
        if work.progress is not None:
            work.progress(rows.stop, n)
    return Dense(out, max(a.eps, b.eps))


@multiplication(SoftmaxRows, Dense)
def _softmax_dense(a: SoftmaxRows, b: Dense, work: Work) -> Rows:
    return _by_panels(a, b, work)


@multiplication(SoftmaxRows, Sparse)
def _softmax_sparse(a: SoftmaxRows, b: Sparse, work: Work) -> Rows:
    return (_by_panels if b.shape[1] <= MOST_COLUMNS else _by_rows)(a, b, work)


@multiplication(SoftmaxRows, Function)
def _softmax_function(a: SoftmaxRows, b: Function, work: Work) -> Rows:
    n, vocabulary = a.shape
    if b.size > 2 * vocabulary:  # a copy, or another embedding: every entry stays one
        require_room(n * vocabulary)
        return product(Sparse(a.sparse(), a.eps), b, work)
    return _softmax_sparse(a, Sparse(b.sparse()), work)


@multiplication(SoftmaxRows, SoftmaxRows)
def _softmax_softmax(a: SoftmaxRows, b: SoftmaxRows, work: Work) -> Rows:
    return _by_rows(a, b, work)


@multiplication(Dense, SoftmaxRows)
def _dense_softmax(a: Dense, b: SoftmaxRows, work: Work) -> Rows:
    n, vocabulary = a.shape[0], b.shape[1]
    require_room(n * vocabulary)
    P, out = b.kernel, np.empty((n, vocabulary))
    normalizers: FloatArray | None = None
    if n == 1:  # one pass
        out[0] = mean_prediction(P, a.matrix[0], **_options(work))
    else:
        normalizers = softmax_stats(P, **_options(work)).log_normalizer
        for block in _column_blocks(n, a.shape[1]):
            weights: FloatArray = np.ascontiguousarray(a.matrix[block].T, np.float32)
            out[block] = adjoint_product(P, weights, log_normalizer=normalizers, **_options(work)).T
    tokens = unmasked(P)
    faint = tokens[(out[:, tokens] < FLUSHED / SINGLE).any(axis=0)]
    if faint.size:  # as for products on the other side
        out[:, faint] = _tokens_exactly(a.matrix, P, normalizers, faint, work)
    return Dense(out, max(SINGLE, a.eps))


def _tokens_exactly(
    laws: FloatArray, P: SoftmaxKernel, normalizers: FloatArray | None, tokens: IntArray, work: Work
) -> FloatArray:
    """What laws on contexts say of some tokens, in float64."""
    used = np.flatnonzero(laws.any(axis=0))
    part = P[used]
    logs = softmax_stats(part, **_options(work)).log_normalizer if normalizers is None else normalizers[used]
    out = np.empty((len(laws), len(tokens)))
    step = max(1, BLOCK_BYTES // (8 * max(len(used), 1)))
    for first in range(0, len(tokens), step):
        block = slice(first, first + step)
        out[:, block] = laws[:, used] @ np.exp(on_tokens(part, tokens[block]).logits() - logs[:, None])
    return out


@multiplication(Sparse, SoftmaxRows)
def _sparse_softmax(a: Sparse, b: SoftmaxRows, work: Work) -> Rows:
    law, part = of_used_rows(a, b)
    return product(Dense(law.dense(), a.eps), part, work)
