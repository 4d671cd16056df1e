"""How much of a similarity linear functions of states capture: one layer's scores, with their influence functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ._pairs import Pairs
from ._spectral import eigsh
from ._subspaces import canonical_pairs, normalizing, orthonormal, ritz
from .errors import ValueRangeError
from .typing import FloatArray, SinglePrecisionArray

__all__ = ["Captured", "LayerScores", "Sample", "Subject", "captured", "layer_scores", "padded"]

_TOL = 1e-5  # of residuals; eigenvalues are off by its square, next to gaps
_EIGENSOLVER_BLOCK = 16  # fewer columns in all than with 32, in less time


@dataclass(frozen=True, eq=False)
class Sample:
    """Some contexts: the leading eigenpairs of the centered similarity on them, under their uniform law."""

    part: slice
    size: int
    degrees: FloatArray  # (m,) ``K 1``
    values: FloatArray  # (k,) falling
    vectors: FloatArray  # (m, k) of length 1
    trace: float

    @classmethod
    def of(cls, K: Pairs, part: slice, k: int, seed: int, num_threads: int | None, between: str = "contexts") -> Sample:
        m = part.stop - part.start
        degrees = np.asarray(K.times(part, part, np.ones((m, 1))), np.float64)[:, 0]
        trace = float(K.own[part].mean()) - float(degrees.mean()) / m
        if trace <= K.noise:
            raise ValueRangeError(
                f"features: expected predictions that differ between {between}, got the same everywhere: there are no "
                "modes to align with"
            )

        def product(X: FloatArray) -> FloatArray:
            return np.asarray(_centered(K.times(part, part, _centered(X))) / m)

        found = eigsh(
            _Operator(m, product),
            min(k, m),
            _TOL,
            block_size=min(_EIGENSOLVER_BLOCK, m),
            seed=seed,
            num_threads=num_threads,
        )
        return cls(part, m, degrees, np.maximum(found.eigenvalues, 0.0), found.eigenvectors, trace)

    def influence(self, r: int) -> FloatArray:
        """(m,): what a context adds to the sum of the first r eigenvalues, ``Σ λ (f² − 1)``."""
        return np.asarray((self.size * self.vectors[:, :r] ** 2 - 1.0) @ self.values[:r])


class _Operator:
    dtype = np.dtype(np.float32)  # what its products are good for

    def __init__(self, n: int, product: Callable[[FloatArray], FloatArray]) -> None:
        self.shape, self.product = (n, n), product

    def __matmul__(self, X: FloatArray) -> FloatArray:
        return self.product(X)


class Subject:
    """What layers are held against: the similarity on all contexts and on two halves, which follow each other.

    ``num_threads``: of the products that one layer takes.
    """

    def __init__(
        self, K: Pairs, whole: Sample, halves: Sequence[Sample], ranks: tuple[int, ...], num_threads: int
    ) -> None:
        self.K, self.whole, self.halves, self.ranks = K, whole, tuple(halves), ranks
        basis = orthonormal(K.prototypes).astype(np.float32)
        self.prototypes = basis
        """(n, p) an orthonormal basis of the prototypes' linear functions."""
        self.prototype_parts = _parts(basis, self.halves)
        first, second = (half.part for half in halves) if halves else (whole.part, slice(0, 0))
        self.of_first = K.block(whole.part, first, num_threads)
        """``K[:, first] X``; the block above the diagonal is the transpose of the one below."""
        self.of_second = K.block(second, second, num_threads)


@dataclass(frozen=True, eq=False)
class Captured:
    """What linear functions capture; of each context a number whose mean is the score, and its spread that of it."""

    dimension: int
    theta: FloatArray  # (k,) Ritz values, falling
    trace: float  # of all
    in_sample: FloatArray  # (n, R)
    held_out: FloatArray  # (n, R); NaN


@dataclass(frozen=True, eq=False)
class LayerScores:
    """One layer's."""

    captured: Captured
    cosines: FloatArray  # (R, k) of principal angles; NaN from each rank on
    modes: FloatArray  # (k,) share of an eigenfunction's variance
    modes_held_out: tuple[FloatArray, FloatArray]  # (n, k) squared errors, and squared values
    correlations: FloatArray  # (k,) canonical, with prototypes
    correlations_held_out: FloatArray  # (k,)


def captured(U: FloatArray, subject: Subject) -> Captured:
    """Of functions with an orthonormal basis U (n, q) on the subject's contexts."""
    return _captured(U.astype(np.float32), subject)[0]


def layer_scores(U: FloatArray, subject: Subject) -> LayerScores:
    """Of a layer whose states have U (n, q) as a basis of their linear functions, on the subject's contexts."""
    single, whole, k = U.astype(np.float32), subject.whole, len(subject.whole.values)
    found, halves = _captured(single, subject)
    against = _times(single.T, whole.vectors)
    cosines = np.full((len(subject.ranks), k), np.nan)
    for i, r in enumerate(subject.ranks):
        values = np.linalg.svd(against[:, :r], compute_uv=False)
        cosines[i, : len(values)] = np.minimum(values, 1.0)
    cross = sum((half.cross for half in halves), np.zeros(())) if halves else single.T @ subject.prototypes
    squares = np.linalg.eigvalsh((cross.T @ cross).astype(np.float32))[::-1].astype(np.float64)
    errors, values = _modes_held_out(halves, whole)
    return LayerScores(
        captured=found,
        cosines=cosines,
        modes=(against**2).sum(axis=0),
        modes_held_out=(errors, values),
        correlations=padded(np.sqrt(np.clip(squares, 0.0, 1.0)), k),
        correlations_held_out=_correlations_held_out(halves, k),
    )


class _Part:
    """Functions on some contexts, centered there: ``B − 1 mean`` for B (m, q)."""

    def __init__(self, basis: SinglePrecisionArray, products: FloatArray) -> None:
        self.basis, self.size = basis, len(basis)
        self.mean = basis.mean(axis=0, dtype=np.float64)
        self.normalizer = normalizing(products - self.size * np.outer(self.mean, self.mean))

    @property
    def learns(self) -> bool:
        """Whether not every function on these contexts is a linear one."""
        return bool(self.normalizer.shape[1] < self.size - 1)

    def functions(self, directions: FloatArray) -> FloatArray:
        """(m, r)."""
        return np.asarray(_times(self.basis, directions) - self.mean @ directions)

    def products(self, functions: FloatArray) -> FloatArray:
        """(q, r): with functions of mean 0."""
        return _times(self.basis.T, functions)


def _parts(basis: SinglePrecisionArray, halves: Sequence[Sample]) -> list[_Part]:
    """Of an orthonormal basis on all contexts: products on the second half are what those on the first leave."""
    if not halves:
        return []
    first, second = (basis[half.part] for half in halves)
    products = np.asarray(first.T @ first, np.float64)
    return [_Part(first, products), _Part(second, np.eye(len(products)) - products)]


class _Half:
    """Functions and the similarity on half of the contexts, by ``K B``; beside prototypes on the same contexts."""

    def __init__(
        self, sample: Sample, states: _Part, image: FloatArray | SinglePrecisionArray, prototypes: _Part
    ) -> None:
        self.sample, self.states, self.image, self.prototypes = sample, states, image, prototypes
        basis, mean = states.basis, states.mean
        toward = _times(basis.T, sample.degrees[:, None])[:, 0]
        self.whole_form = np.asarray(basis.T @ image, np.float64)  # before it is centered here
        form = self.whole_form - np.outer(toward, mean) - np.outer(mean, toward)
        self.form = (form + sample.degrees.sum() * np.outer(mean, mean)) / sample.size
        self.cross = np.asarray(basis.T @ prototypes.basis, np.float64)
        """(q, p) with prototypes; not centered here."""

    def applied(self, directions: FloatArray) -> FloatArray:
        """(m, r): the centered similarity on functions."""
        image = _times(self.image, directions) - self.sample.degrees[:, None] * (self.states.mean @ directions)
        return _centered(image) / self.sample.size


def _captured(single: SinglePrecisionArray, subject: Subject) -> tuple[Captured, list[_Half]]:
    K, whole, halves = subject.K, subject.whole, []
    k = len(whole.values)
    if not subject.halves:
        image = subject.of_first(single)
        form = np.asarray(single.T @ image, np.float64)
    else:
        first, second = (half.part for half in subject.halves)
        image, own = subject.of_first(single[first]), subject.of_second(single[second])
        images_of = (image[first], own)
        halves = [
            _Half(*half)
            for half in zip(
                subject.halves, _parts(single, subject.halves), images_of, subject.prototype_parts, strict=True
            )
        ]
        between = np.asarray(single[second].T @ image[second], np.float64)
        form = halves[0].whole_form + halves[1].whole_form + between + between.T
    theta, V = ritz(form / whole.size, k)
    functions = _times(single, V)
    images = _times(image, V)
    if halves:
        images[first] += K.times(first, second, functions[second])
        images[second] += _times(own, V)
    images = _centered(images) / whole.size
    in_sample = np.stack([_scores(whole, theta, functions, images, r) for r in subject.ranks], axis=1)
    held_out = np.full(in_sample.shape, np.nan)
    for fitted, tested in _both_ways(halves):
        _, directions = ritz(fitted.form, k, fitted.states.normalizer, single=True)
        for i, r in enumerate(subject.ranks):
            some = directions[:, :r]
            functions = tested.states.functions(some)
            theta_r, V = ritz(some.T @ tested.form @ some, r, normalizing(functions.T @ functions))
            held_out[tested.sample.part, i] = _scores(
                tested.sample, theta_r, functions @ V, tested.applied(some @ V), r
            )
    return Captured(single.shape[1], theta, float(np.trace(form)) / whole.size, in_sample, held_out), halves


def _both_ways(halves: Sequence[_Half]) -> list[tuple[_Half, _Half]]:
    """What is fitted with, and what it is tested on."""
    ways = [(halves[0], halves[1]), (halves[1], halves[0])] if halves else []
    return [(fitted, tested) for fitted, tested in ways if fitted.states.learns]


def _scores(sample: Sample, theta: FloatArray, functions: FloatArray, images: FloatArray, r: int) -> FloatArray:
    r"""(m,): ``Σ θ / Σ λ`` of the first r, plus what each context adds to it.

    With unit functions f under μ, and ``μ + ε (δ_x − μ)`` for μ: ``dθ = 2 f(x) (M f)(x) − θ f(x)² − θ``.
    """
    most = min(r, len(theta), functions.shape[1])
    total = sample.values[:r].sum()
    share = theta[:most].sum() / total
    f, Mf = functions[:, :most], images[:, :most]
    added = sample.size * (2 * np.einsum("xi,xi->x", f, Mf) - f**2 @ theta[:most]) - theta[:most].sum()
    return np.asarray(share + (added - share * sample.influence(r)) / total)


def _modes_held_out(halves: Sequence[_Half], whole: Sample) -> tuple[FloatArray, FloatArray]:
    """(n, k) each: squared errors of least squares from one half on the other, and squares of what is fitted."""
    errors, values = np.full(whole.vectors.shape, np.nan), np.full(whole.vectors.shape, np.nan)
    for fitted, tested in _both_ways(halves):
        known, wanted = whole.vectors[fitted.sample.part], whole.vectors[tested.sample.part]
        level, own = known.mean(axis=0), fitted.states
        weights = own.normalizer @ (own.normalizer.T @ own.products(known - level))
        guess = level + _times(tested.states.basis, weights) - own.mean @ weights
        errors[tested.sample.part] = whole.size * (wanted - guess) ** 2
        values[tested.sample.part] = whole.size * (wanted - wanted.mean(axis=0)) ** 2
    return errors, values


def _correlations_held_out(halves: Sequence[_Half], k: int) -> FloatArray:
    """(k,): of the leading canonical pairs with prototypes of one half, on the other; means of both ways."""
    found = []
    for fitted, tested in _both_ways(halves):
        own, others = fitted.states, fitted.prototypes
        cross = fitted.cross - own.size * np.outer(own.mean, others.mean)
        _, a, b = canonical_pairs(cross, own.normalizer, others.normalizer, k)
        x, y = tested.states.functions(a), tested.prototypes.functions(b)
        scale = np.sqrt((x * x).sum(axis=0) * (y * y).sum(axis=0))
        found.append(padded((x * y).sum(axis=0) / np.where(scale > 0, scale, 1.0), k))
    return np.mean(found, axis=0) if found else np.full(k, np.nan)


def padded(values: FloatArray, k: int) -> FloatArray:
    """(k,), with zeros where there are fewer."""
    return np.concatenate([values[:k], np.zeros(max(k - len(values), 0))])


def _times(large: FloatArray | SinglePrecisionArray, small: FloatArray) -> FloatArray:
    """In the precision of the large one, which is not copied."""
    return np.asarray(large @ small.astype(large.dtype, copy=False), np.float64)


def _centered(X: FloatArray | SinglePrecisionArray) -> FloatArray:
    X = np.asarray(X, np.float64)
    return np.asarray(X - X.mean(axis=0))
