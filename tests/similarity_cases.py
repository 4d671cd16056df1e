"""Similarity operators of any kind, what they should be by definition, and how far they may be from that."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume
from hypothesis import strategies as st

import kernel_cases
import markovlm as mk
import reference
from markovlm import _entrywise, _factors
from markovlm._similarity import KINDS
from markovlm.typing import FloatArray
from reference import UNIT, Bounds
from softmax_cases import Case, cases
from test_panels import RUN, TINY, matrices

DOUBLE = 2.0**-53
FACTORISED, ENTRYWISE = KINDS[:3], KINDS[3:]


@dataclass
class Products:
    r"""How products with a factor round.

    ``F X`` for a factor known to within ``error``, element by element, whose products are added in runs of ``run`` in
    an arithmetic of unit roundoff ``unit``, columns being rounded first: each product carries at most ``run + 4``
    roundings, doubled for higher orders, ``|error| <= (E + 2 (run + 4) u |F|) |X|``.
    """

    F: FloatArray  # (n, m)
    error: FloatArray
    run: int
    unit: float

    def right(self, X: FloatArray) -> FloatArray:
        return np.asarray((self.error + 2 * (self.run + 4) * self.unit * np.abs(self.F)) @ np.abs(X))

    def left(self, Y: FloatArray) -> FloatArray:
        return np.asarray((self.error + 2 * (self.run + 4) * self.unit * np.abs(self.F)).T @ np.abs(Y))

    def both(self, X: FloatArray) -> FloatArray:
        """Of ``F (Fᵀ X)``."""
        size = np.abs(self.F) + self.error
        return np.asarray(self.right(self.F.T @ X) + size @ self.left(X))

    def normal(self, X: FloatArray, law: FloatArray) -> FloatArray:
        """Of ``Fᵀ (D F X)``."""
        size, weights = np.abs(self.F) + self.error, law[:, None]
        return np.asarray(self.left(weights * (self.F @ X)) + size.T @ (weights * self.right(X)))


@dataclass
class Subject:
    """An operator, what it should be, and how far it may be from that."""

    P: mk.Kernel
    case: Case | None  # of softmax kernels
    kind: str
    options: dict[str, Any]
    rng: np.random.Generator
    keeps: str  # "rows" of the factor where it is of a softmax kernel, "pairs" (K), or "nothing"
    tile_rows: int = 256
    M: mk.SimilarityOperator = field(init=False)

    def __post_init__(self) -> None:
        n = self.P.shape[0]
        self.side, self.centered = self.options.get("side", "contexts"), self.options.get("centered", False)
        self.beta, weights = self.options.get("beta", 1.0), self.options.get("weights")
        self.law = np.full(n, 1 / n) if weights is None else np.asarray(weights) / np.sum(weights)
        self.root = np.sqrt(self.law)[:, None]
        self.z = None if self.case is None else reference.kernel_logits(self.case.P)
        self.p = self.P.matrix if self.z is None else np.exp(reference.log_softmax(self.z))
        with pytest.MonkeyPatch.context() as patch:
            if self.keeps != "rows":
                patch.setattr(_factors.PowerStore, "bytes", lambda P: 2**60)
            if self.keeps != "pairs":
                patch.setattr(_factors.PowerGram, "bytes", lambda P: 2**60)
            patch.setattr(_factors, "_MOST_CONTEXTS", 2**60)
            patch.setattr(_entrywise, "TILE_ROWS", self.tile_rows)
            patch.setattr(_entrywise, "KEPT_ROWS", self.tile_rows + 1)
            self.M = mk.similarity_operator(self.P, self.kind, **self.options)
        if self.kind in ENTRYWISE and self.keeps == "nothing":
            self.M.storage = "recomputed"  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        return f"Subject({self.M!r}, {self.P!r})"

    def other_face(self) -> Subject:
        side = "tokens" if self.side == "contexts" else "contexts"
        return replace(self, options={**self.options, "side": side})

    @property
    def power(self) -> float:
        return 1.0 if self.kind in ("expected_likelihood", "prototype") else 0.5

    @property
    def powers(self) -> Products:
        """``P^a``."""
        F = self.p**self.power
        if self.case is None:
            return Products(F, 4 * DOUBLE * F, max(F.shape), DOUBLE)
        return Products(F, matrices(self.case, self.power)[1], RUN, UNIT)

    @property
    def float64_error(self) -> FloatArray:
        """(n, 1): relative, of a probability made in float64; of its logit's sum as for float32 but d in one run."""
        if self.case is None:
            return np.zeros((len(self.p), 1))
        size = reference.logit_error(self.case.P) / UNIT
        return np.asarray(DOUBLE * (self.case.P.hidden.shape[1] * size + self.p.shape[1] + 64)[:, None])

    @property
    def factor(self) -> Products:
        powers = self.powers
        if self.kind != "prototype":
            return powers
        assert self.case is not None
        W = self.case.P.head.astype(np.float64)
        return Products(powers.F @ W, powers.right(W), max(*powers.F.shape, *W.shape), DOUBLE)

    def similarity(self) -> FloatArray:
        """K by its definition."""
        if self.kind in FACTORISED:
            F = self.factor.F
            return np.asarray(F @ F.T)
        if self.kind == "hellinger_gaussian":
            distances = ((np.sqrt(self.p)[:, None] - np.sqrt(self.p)[None]) ** 2).sum(axis=2)
            return np.asarray(np.exp(-self.beta * distances))
        with np.errstate(divide="ignore"):
            z = np.log(self.p) if self.z is None else self.z
        D = mk.JensenShannon()
        rows = [reference.divergence(D, np.broadcast_to(row, z.shape), z) for row in z]
        return np.asarray(np.exp(-self.beta * np.array(rows)))

    def exact(self) -> FloatArray:
        if self.side == "tokens":
            F = self.factor.F
            F = F - self.law @ F if self.centered else F
            return np.asarray(F.T @ (self.law[:, None] * F))
        M = self.root * self.similarity() * self.root.T
        projection = np.eye(len(M)) - self.root @ self.root.T
        return np.asarray(projection @ M @ projection) if self.centered else M

    def similarity_error(self) -> FloatArray:
        r"""(n, n): of K, if it is entrywise.

        ``exp(-2 β (1 - BC))`` has a slope of at most 2 β where BC <= 1; its diagonal is 1 by definition. JS is made of
        sums of terms ``s log2 s`` for ``s = p + q``, which have ``12 u`` of themselves at most from rounding (of p and
        q, their sum, its logarithm, the product, and sums in runs of 8) and 2e-7 of s from the logarithm; ``Σ s = 2``.
        From the probabilities' relative errors, JS moves at most by these times ``log 2``.
        """
        m = self.p.shape[1]
        if self.kind == "hellinger_gaussian":
            overlap = self.powers.right(self.powers.F.T)
            return np.asarray(2 * self.beta * np.maximum(overlap, overlap.T) + 16 * DOUBLE * (1 + self.beta))
        sums = np.log(2) * (24 * UNIT * (1 + np.log2(m)) + 4e-7)
        return np.asarray(self.beta * (self.float64_error + self.float64_error.T + sums) + 16 * DOUBLE)

    def plain_error(self, X: FloatArray) -> FloatArray:
        """Of ``D^{1/2} K D^{1/2} X``."""
        if self.kind in FACTORISED:
            return np.asarray(self.root * self.factor.both(self.root * X) * (1 + 8 * DOUBLE) + TINY * TINY)
        rounded = self.similarity_error() + (2 * len(self.p) + 8) * DOUBLE
        return np.asarray(self.root * (rounded @ (self.root * np.abs(X))))

    def error(self, X: FloatArray) -> FloatArray:
        """(size, b): how far ``M X`` may be off."""
        if self.side == "tokens":
            off = self.factor.normal(X, self.law)
            if self.centered:
                off_mean, mean = self.mean_error, np.abs(self.factor.F.T @ self.law)[:, None]
                off_mean = off_mean + 4 * X.shape[0] * DOUBLE * mean
                size = mean + off_mean
                off = off + off_mean * (size.T @ np.abs(X)) + size * (off_mean.T @ np.abs(X))
            return np.asarray(off)
        if not self.centered:
            return self.plain_error(X)
        inner = X - self.root @ (self.root.T @ X)
        off = self.plain_error(inner)
        projections = 8 * len(X) * DOUBLE * (np.abs(X) + self.root @ (self.root.T @ np.abs(X)))  # of both
        similarity = np.abs(self.factor.F) @ np.abs(self.factor.F.T) if self.kind in FACTORISED else np.ones((1, 1))
        off = off + self.root * (similarity @ (self.root * projections) if similarity.size > 1 else projections.sum())
        return np.asarray(off + self.root @ (self.root.T @ off))

    @property
    def mean_error(self) -> FloatArray:
        """(m, 1): of ``Fᵀ μ``."""
        return self.factor.left(self.law[:, None])

    @property
    def mean_square_error(self) -> float:
        """Of ``‖Fᵀ μ‖²``."""
        off = self.mean_error[:, 0]
        return float(off @ (2 * np.abs(self.factor.F.T @ self.law) + off))

    def diagonal_error(self) -> FloatArray:
        factor = self.factor if self.kind in FACTORISED else None
        if self.side == "tokens":
            assert factor is not None
            size = np.abs(factor.F)
            squares = Products(size**2, 2 * size * factor.error + factor.error**2, factor.run, factor.unit)
            if self.case is not None and self.kind != "prototype":
                squares = Products(size**2, matrices(self.case, 2 * self.power)[1], RUN, UNIT)
            off = squares.left(self.law[:, None])[:, 0]
            if self.centered:
                mean = np.abs(factor.F.T @ self.law) + self.mean_error[:, 0]
                off = off + 2 * mean * (self.mean_error[:, 0] + 4 * len(self.law) * DOUBLE * mean)
            return np.asarray(off)
        own = 4 * (self.p.shape[1] + 8) * DOUBLE * np.ones(len(self.law))  # of K(x, x)
        if self.kind == "expected_likelihood" and self.case is not None:
            assert self.z is not None
            own = own + 2 * Bounds(self.z, self.case.delta).renyi(2.0)  # of its logarithm, and K(x, x) <= 1
        if self.kind == "prototype":
            assert factor is not None
            own = 2 * (np.abs(factor.F) * factor.error + factor.error**2).sum(axis=1)
            own = own + own.size * 64 * DOUBLE * (factor.F**2).sum(axis=1)
        off = self.law * own
        if self.centered:
            of_constant = self.plain_error(self.root)[:, 0] + self.projection_slack()
            root = self.root[:, 0]
            off = off + 2 * root * of_constant + self.law * (root @ of_constant)
        return np.asarray(off)

    def projection_slack(self) -> float:
        largest = float(np.abs(np.diagonal(self.similarity())).max())
        return 16 * len(self.law) * DOUBLE * largest

    def columns(self, b: int) -> FloatArray:
        return self.rng.standard_normal((self.M.shape[0], b))


@st.composite
def subjects(
    draw: st.DrawFn,
    kinds: tuple[str, ...] = KINDS,
    sides: tuple[str, ...] = ("contexts", "tokens"),
    max_rows: int = 14,
    **fixed: Any,
) -> Subject:
    kind = draw(st.sampled_from(kinds))
    options: dict[str, Any] = {"centered": draw(st.booleans())}
    keeps, tile_rows = draw(st.sampled_from(["rows", "pairs", "nothing"])), draw(st.sampled_from([1, 3, 256]))
    if kind in FACTORISED:
        options["side"] = draw(st.sampled_from(sides))
    else:
        options["beta"] = draw(st.sampled_from([0.3, 1.0, 7.0]))
    case: Case | None = None
    if kind == "prototype" or draw(st.booleans()):
        case = draw(cases(max_rows=max_rows).filter(lambda case: case.P.shape[0] > 0))
        P: mk.Kernel = case.P
        rng = case.rng
        assume(kind != "prototype" or case.P.head.shape[1] > 0)
    else:
        P = draw(kernel_cases.kernels(makers=(kernel_cases.dense, kernel_cases.sparse, kernel_cases.function)))
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()):
        n = P.shape[0]
        options["weights"] = rng.random(n) * (rng.random(n) < 0.7) + (np.arange(n) == n // 2)
    return Subject(P, case, kind, {**options, **fixed}, rng, keeps, tile_rows)


def softmax_kernel(n: int, V: int, d: int, **options: Any) -> mk.SoftmaxKernel:
    rng = np.random.default_rng(0)
    return mk.SoftmaxKernel(rng.standard_normal((n, d)), rng.standard_normal((V, d)) / np.sqrt(d), **options)
