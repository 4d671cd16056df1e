"""A similarity between all pairs of contexts, formed once where many products follow; else applied anew."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from . import _checks
from ._ext import core
from ._factors import slices
from ._features import evenly_spread
from ._panels import prototypes
from ._similarity import POWERS, similarity_operator
from ._softmax import SoftmaxKernel, softmax_stats
from .typing import FloatArray, IntArray, Progress, SinglePrecisionArray

__all__ = ["Block", "Pairs", "pairs_of"]

_TILE_BYTES = 2**27  # of the factor, for all contexts and some tokens
_LEAST_TOKENS = 256
_ROWS = 512  # of a tile that are made at a time
_SHARED_NOISE = 1e-4  # of the trace, at most, in the root mean square over pairs, where rare tokens share columns
_SPREAD_CONTEXTS = 64  # by which the trace is guessed
_COLUMNS = 1024  # of the matrix that are looked at a time
_ROUNDING = 1e-10  # of K: the square of that of its factor's entries
_APPLIED_ROUNDING = 1e-6  # of products that are not centered before they are rounded

Block = Callable[[FloatArray | SinglePrecisionArray], FloatArray | SinglePrecisionArray]


class Pairs:
    """K (n, n), symmetric, up to ``c(x) + c(x')``, which centering takes out on any contexts; and their prototypes."""

    log_normalizer: FloatArray | None = None  # (n,) of the kernel, where it is known
    noise: float
    """A trace of the centered K / n that is not larger is rounding."""

    def __init__(self, n: int, prototypes: FloatArray) -> None:
        self.n, self.prototypes = n, prototypes

    def times(
        self, rows: slice, columns: slice, X: FloatArray | SinglePrecisionArray
    ) -> FloatArray | SinglePrecisionArray:
        """``K[rows, columns] X``: (m, b), in the precision that K has."""
        raise NotImplementedError

    def block(self, rows: slice, columns: slice, num_threads: int) -> Block:
        """The same with what can be done once for many wide X."""
        return partial(self.times, rows, columns)

    @property
    def own(self) -> FloatArray:
        """(n,): ``K(x, x)``."""
        raise NotImplementedError


class FormedPairs(Pairs):
    """As a matrix in float32, of what differs between contexts: it keeps its digits where that is little."""

    def __init__(
        self, matrix: SinglePrecisionArray, prototypes: FloatArray, log_normalizer: FloatArray, size: float
    ) -> None:
        super().__init__(len(matrix), prototypes)
        self.matrix, self.log_normalizer, self.noise = matrix, log_normalizer, _ROUNDING * size

    def times(self, rows: slice, columns: slice, X: FloatArray | SinglePrecisionArray) -> SinglePrecisionArray:
        return np.asarray(self.matrix[rows, columns] @ X.astype(np.float32, copy=False))

    def block(self, rows: slice, columns: slice, num_threads: int) -> Block:
        """In fixed point, in two thirds of the time: 1.3e-5 off at random, of lengths of a row and a column."""
        fixed = core.fixed_point(self.matrix[rows, columns], num_threads)

        def times(X: FloatArray | SinglePrecisionArray) -> SinglePrecisionArray:
            return np.asarray(core.inner_products(fixed, np.ascontiguousarray(X.T, np.float32), num_threads))

        return times

    @property
    def own(self) -> FloatArray:
        return self.matrix.diagonal().astype(np.float64)


class PrototypePairs(Pairs):
    """Inner products of prototypes less their mean."""

    def __init__(self, prototypes: FloatArray) -> None:
        super().__init__(len(prototypes), prototypes)
        self.centered = prototypes - prototypes.mean(axis=0)
        self.noise = _ROUNDING * float((prototypes**2).sum(axis=1).mean())

    def times(self, rows: slice, columns: slice, X: FloatArray | SinglePrecisionArray) -> FloatArray:
        return np.asarray(self.centered[rows] @ (self.centered[columns].T @ X))

    @property
    def own(self) -> FloatArray:
        return np.asarray((self.centered**2).sum(axis=1))


class AppliedPairs(Pairs):
    """By an operator, where there is no room for the matrix or no fast way to it."""

    def __init__(self, operator: Any, prototypes: FloatArray) -> None:
        super().__init__(operator.shape[0], prototypes)
        self.operator = operator
        self.noise = _APPLIED_ROUNDING * float(self.own.mean())

    def times(self, rows: slice, columns: slice, X: FloatArray | SinglePrecisionArray) -> FloatArray:
        padded = np.zeros((self.n, X.shape[1]))
        padded[columns] = X
        return np.asarray(self.n * self.operator.apply(padded)[rows])

    @property
    def own(self) -> FloatArray:
        return np.asarray(self.n * self.operator.diagonal())


def pairs_of(
    P: SoftmaxKernel, kind: str, beta: float, max_memory: int, num_threads: int | None, progress: Progress | None
) -> Pairs:
    """The similarity of every two contexts of P, by the way that memory allows."""
    n = P.shape[0]
    formed = (kind in POWERS or kind == "hellinger_gaussian") and 4 * n * n <= max_memory
    if formed:
        pairs = _formed(P, POWERS.get(kind, 0.5), num_threads, progress)
        if kind == "hellinger_gaussian":
            half = (pairs.own / 2).astype(np.float32)
            for columns in slices(n, _COLUMNS):  # exp(−2 β (1 − BC)) − 1, and 1 − BC is half of a squared distance
                part = pairs.matrix[:, columns]
                part -= half[:, None]
                part -= half[columns]
                part *= np.float32(2 * beta)
                np.expm1(part, out=part)
        return pairs
    means = prototypes(P, max_memory=max_memory, num_threads=num_threads, progress=progress)
    if kind == "prototype":
        return PrototypePairs(means)
    operator = similarity_operator(P, kind, beta=beta, max_memory=max_memory, num_threads=num_threads)
    return AppliedPairs(operator, means)


def _formed(P: SoftmaxKernel, power: float, num_threads: int | None, progress: Progress | None) -> FormedPairs:
    """``F Fᵀ`` of ``F = P^a`` less its mean row, and ``P W``, from tiles of all contexts and some tokens at a time.

    The rarest tokens share columns: tiles of them are added up with random signs, which on average leaves inner
    products as they are. ``n T (n + 2 d)`` flops for the T columns that are left, and ``6 n V d``.
    """
    n, vocabulary = P.shape
    threads = _checks.threads(num_threads)
    stats = softmax_stats(P, mean=True, num_threads=threads)
    assert stats.mean is not None  # for the type checker
    width = min(vocabulary, max(_LEAST_TOKENS, _TILE_BYTES // (4 * n)))
    order, kept = _common_first(P, power, stats.log_normalizer, stats.mean, width)
    signs = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), vocabulary)
    matrix: SinglePrecisionArray = np.zeros((n, n), np.float32)
    means, sizes = np.zeros((n, P.head.shape[1])), np.full(n, float(power == 0.5))  # and Σ p is 1
    space: SinglePrecisionArray = np.empty((n, width), np.float32)
    shared: SinglePrecisionArray = np.zeros((n, width if kept < vocabulary else 0), np.float32)

    def fill(tokens: IntArray, head: SinglePrecisionArray, rows: slice) -> None:
        F = _powers(P, power, stats.log_normalizer, rows, tokens, head, space[rows, : len(tokens)])
        square = F * F
        means[rows] += (square if power == 0.5 else F) @ head
        if power != 0.5:
            sizes[rows] += square.sum(axis=1)

    def share(tokens: IntArray, rows: slice) -> None:
        shared[rows, : len(tokens)] += signs[tokens] * space[rows, : len(tokens)]

    # One BLAS thread for each block of rows at work, whose elements are seen to beside the products of others.
    with ThreadPoolExecutor(threads) as pool, threadpool_limits(1, user_api="blas"):
        for some in (*slices(kept, width), *slices(vocabulary, width, kept)):
            tokens = order[some]
            list(pool.map(partial(fill, tokens, P.head[tokens].astype(np.float32)), slices(n, _ROWS)))
            if some.start < kept:
                core.add_centered_gram(space[:, : len(tokens)], matrix, threads)
            else:
                list(pool.map(partial(share, tokens), slices(n, _ROWS)))
            if progress is not None:
                progress(some.stop, vocabulary)
    core.add_centered_gram(shared, matrix, threads)
    for rows in slices(n, _COLUMNS):
        matrix[rows, rows.stop :] = matrix[rows.stop :, rows].T
        own = np.tril(matrix[rows, rows], -1)
        matrix[rows, rows] = own + own.T + np.diag(matrix[rows, rows].diagonal())
    return FormedPairs(matrix, means, stats.log_normalizer, float(sizes.mean()))


def _common_first(
    P: SoftmaxKernel, power: float, log_normalizer: FloatArray, mean: FloatArray, width: int
) -> tuple[IntArray, int]:
    """Tokens by falling mean probability, and how many of them need columns of their own.

    Sharing ``width`` columns takes ``√(2 / width) |x| |y|`` from an inner product at random, of what x and y have on
    the tokens that do. In the root mean square over pairs that is ``√(2 / width)`` times the mean square length there,
    which is at most what these tokens have of the probability.
    """
    order = np.argsort(-mean, kind="stable")
    rest = np.cumsum(mean[order][::-1])[::-1]
    contexts, trace = evenly_spread(P.shape[0], _SPREAD_CONTEXTS), 0.0
    for some in slices(len(order), width):
        head = P.head[some].astype(np.float32, copy=False)
        trace += float(_powers(P, power, log_normalizer, contexts, some, head).var(axis=0).sum())
    kept = int(np.count_nonzero(rest > _SHARED_NOISE * np.sqrt(width / 2) * trace))
    return order, kept if len(order) - kept > width else len(order)


def _powers(
    P: SoftmaxKernel,
    power: float,
    log_normalizer: FloatArray,
    rows: slice | IntArray,
    tokens: slice | IntArray,
    head: SinglePrecisionArray,
    out: SinglePrecisionArray | None = None,
) -> SinglePrecisionArray:
    """``P^a`` of some contexts and tokens, whose part of the head is given."""
    F = _logits(P, np.matmul(P.hidden[rows].astype(np.float32, copy=False), head.T, out=out), tokens)
    F -= log_normalizer[rows, None].astype(np.float32)
    if power == 0.5:
        F *= np.float32(0.5)
    return np.exp(F, out=F)


def _logits(P: SoftmaxKernel, z: SinglePrecisionArray, some: slice | IntArray) -> SinglePrecisionArray:
    """From ``H Wᵀ`` of some tokens, in place."""
    if P.bias is not None:
        z += P.bias[some]
    if P.scale != 1.0:
        z *= np.float32(P.scale)
    if P.softcap:
        masked = np.isneginf(z)
        z /= np.float32(P.softcap)
        np.tanh(z, out=z)
        z *= np.float32(P.softcap)
        z[masked] = -np.inf
    if P.temperature != 1.0:
        z /= np.float32(P.temperature)
    return z
