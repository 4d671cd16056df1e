"""A similarity between all pairs of contexts, formed once where many products follow; else applied anew."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg.blas import ssyrk

from ._factors import slices
from ._panels import prototypes
from ._similarity import POWERS, similarity_operator
from ._softmax import SoftmaxKernel, softmax_stats
from .typing import FloatArray, IntArray, Progress, SinglePrecisionArray

__all__ = ["Pairs", "pairs_of"]

_TILE_BYTES = 2**27  # of the factor, for all contexts and some tokens
_LEAST_TOKENS = 256
_COLUMNS = 1024  # of the matrix that are looked at a time
_ROUNDING = 1e-10  # of K: the square of that of its factor's entries
_APPLIED_ROUNDING = 1e-6  # of products that are not centered before they are rounded


class Pairs:
    """K (n, n), symmetric, up to ``c(x) + c(x')``, which centering takes out on any contexts; and their prototypes."""

    log_normalizer: FloatArray | None = None  # (n,) of the kernel, where it is known
    noise: float
    """A trace of the centered K / n that is not larger is rounding."""

    def __init__(self, n: int, prototypes: FloatArray) -> None:
        self.n, self.prototypes = n, prototypes

    def product(self, columns: slice, X: FloatArray | SinglePrecisionArray) -> FloatArray | SinglePrecisionArray:
        """``K[:, columns] X``: (n, m), in the precision that K has."""
        raise NotImplementedError

    def within(self, part: slice, X: FloatArray | SinglePrecisionArray) -> FloatArray | SinglePrecisionArray:
        """``K[part, part] X``."""
        return self.product(part, X)[part]

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

    def product(self, columns: slice, X: FloatArray | SinglePrecisionArray) -> SinglePrecisionArray:
        return np.asarray(self.matrix[:, columns] @ X.astype(np.float32, copy=False))

    def within(self, part: slice, X: FloatArray | SinglePrecisionArray) -> SinglePrecisionArray:
        return np.asarray(self.matrix[part, part] @ X.astype(np.float32, copy=False))

    @property
    def own(self) -> FloatArray:
        return self.matrix.diagonal().astype(np.float64)


class PrototypePairs(Pairs):
    """Inner products of prototypes less their mean."""

    def __init__(self, prototypes: FloatArray) -> None:
        super().__init__(len(prototypes), prototypes)
        self.centered = prototypes - prototypes.mean(axis=0)
        self.noise = _ROUNDING * float((prototypes**2).sum(axis=1).mean())

    def product(self, columns: slice, X: FloatArray | SinglePrecisionArray) -> FloatArray:
        return np.asarray(self.centered @ (self.centered[columns].T @ X))

    def within(self, part: slice, X: FloatArray | SinglePrecisionArray) -> FloatArray:
        own = self.centered[part]
        return np.asarray(own @ (own.T @ X))

    @property
    def own(self) -> FloatArray:
        return np.asarray((self.centered**2).sum(axis=1))


class AppliedPairs(Pairs):
    """By an operator, where there is no room for the matrix or no fast way to it."""

    def __init__(self, operator: Any, prototypes: FloatArray) -> None:
        super().__init__(operator.shape[0], prototypes)
        self.operator = operator
        self.noise = _APPLIED_ROUNDING * float(self.own.mean())

    def product(self, columns: slice, X: FloatArray | SinglePrecisionArray) -> FloatArray:
        padded = np.zeros((self.n, X.shape[1]))
        padded[columns] = X
        return np.asarray(self.n * self.operator.apply(padded))

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

    ``n V (n + 6 d)`` flops: a symmetric product takes half of what a general one does.
    """
    n, vocabulary = P.shape
    log_normalizer = softmax_stats(P, num_threads=num_threads).log_normalizer
    shift, hidden = log_normalizer.astype(np.float32)[:, None], P.hidden.astype(np.float32, copy=False)
    matrix: SinglePrecisionArray = np.zeros((n, n), np.float32, order="F")
    means, size = np.zeros((n, P.head.shape[1])), 0.0
    for some in slices(vocabulary, max(_LEAST_TOKENS, _TILE_BYTES // (4 * n))):
        head = P.head[some].astype(np.float32, copy=False)
        tile = _logits(P, hidden @ head.T, some)
        tile -= shift
        if power == 0.5:
            tile *= np.float32(0.5)
        np.exp(tile, out=tile)
        square = tile * tile
        means += (square if power == 0.5 else tile) @ head
        size += float(square.sum(dtype=np.float64)) / n
        tile -= tile.mean(axis=0, dtype=np.float64).astype(np.float32)
        matrix = ssyrk(1.0, tile.T, beta=1.0, c=matrix, trans=1, lower=1, overwrite_c=1)
        if progress is not None:
            progress(some.stop, vocabulary)
    for rows in slices(n, _COLUMNS):
        matrix[rows, rows.stop :] = matrix[rows.stop :, rows].T
        own = np.tril(matrix[rows, rows], -1)
        matrix[rows, rows] = own + own.T + np.diag(matrix[rows, rows].diagonal())
    return FormedPairs(matrix, means, log_normalizer, size)


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
