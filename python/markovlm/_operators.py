"""What a similarity operator is: something symmetric that can be applied to columns; and sums and multiples of such."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property

import numpy as np
from scipy.sparse.linalg import LinearOperator

from . import _checks
from ._kernels import Kernel
from ._rows import require_room
from .errors import DTypeError, ShapeError, ValueRangeError
from .typing import ArrayInput, FloatArray, Progress

__all__ = ["ContextOperator", "LinearCombination", "SimilarityOperator", "share", "terms_of"]

STORED_OVERHEAD = 12.0  # columns that take as long as the reading of what is kept


class SimilarityOperator(ABC):
    r"""A symmetric operator that is never formed as a matrix, as `similarity_operator` makes it.

    ``M.apply(X)`` or ``M @ X`` for ``X`` of shape (size,) or (size, b) gives float64 of the same shape. Operators of
    the same size can be added and multiplied by numbers: ``0.5 * (M1 + M2)``.

    On contexts it is the symmetric matrix :math:`M_K = D_\mu^{1/2} K D_\mu^{1/2}`. An eigenvector ``u`` of length 1
    stands for the eigenfunction :math:`D_\mu^{-1/2} u` of unit :math:`L^2(\mu)` norm (``√n u`` for the uniform law),
    and a function φ for the vector :math:`D_\mu^{1/2} \varphi`.

    Attributes
    ----------
    kind : str
        Which similarity, as `similarity_operator` has it; of sums all of them.
    side : "contexts" or "tokens"
    shape : (size, size)
    dtype : float64
    centered : bool
        Whether the constant function is projected out.
    law : (n,) float64 or None
        The law μ over contexts; None for a sum of operators of several laws.

    Examples
    --------
    >>> import numpy as np, markovlm as mk
    >>> P = mk.SoftmaxKernel(np.array([[0.0], [np.log(3.0)]]), np.array([[0.0], [1.0]]))  # (1/2, 1/2) and (1/4, 3/4)
    >>> M = mk.similarity_operator(P, "expected_likelihood")
    >>> (M @ np.array([1.0, 1.0])).round(5)
    array([0.5    , 0.5625])
    >>> (2 * M + M) @ np.array([1.0, 1.0]) - 3 * (M @ np.array([1.0, 1.0]))
    array([0., 0.])
    """

    __array_ufunc__ = None  # NumPy leaves operators to us

    dtype = np.dtype(np.float64)
    kind: str
    side: str
    centered: bool
    law: FloatArray | None
    _size: int
    _most_columns: int = 256
    """That are multiplied at a time: what is in between is as long as a vocabulary."""
    _overhead: float = STORED_OVERHEAD
    """Of a product: so many columns take as long to multiply as all the rest takes."""

    @property
    def shape(self) -> tuple[int, int]:
        """``(size, size)``."""
        return self._size, self._size

    def apply(self, X: ArrayInput, *, progress: Progress | None = None) -> FloatArray:
        """``M X`` for X of shape (size,) or (size, b): float64 of the same shape. NaN and infinities are refused.

        ``progress(done, total)`` is called in between where a product takes long; an exception in it stops the work.
        """
        columns = _checks.columns("X", X, self._size, "element that M acts on")
        return self._by_parts(self._product, columns, progress)

    def _by_parts(
        self, product: Callable[[FloatArray, Progress | None], FloatArray], X: FloatArray, progress: Progress | None
    ) -> FloatArray:
        """No more columns at a time than memory allows."""
        if X.ndim == 1:
            return np.ascontiguousarray(product(X[:, None], progress)[:, 0])
        most = self._most_columns
        if X.shape[1] <= most:
            return product(X, progress)
        parts = [slice(first, first + most) for first in range(0, X.shape[1], most)]
        return np.hstack([product(X[:, part], share(progress, i, len(parts))) for i, part in enumerate(parts)])

    @abstractmethod
    def _product(self, X: FloatArray, progress: Progress | None = None) -> FloatArray:
        """(size, b) for (size, b)."""

    @abstractmethod
    def diagonal(self) -> FloatArray:
        """(size,) float64: the diagonal of the matrix, without forming it."""

    def other_face(self, X: ArrayInput) -> FloatArray:
        r"""The other side's view of vectors: ``Aᵀ X`` of contexts, ``A X`` of tokens, if ``M = A Aᵀ`` and ``C = Aᵀ A``.

        ``A = D_μ^{1/2} F`` (n, m), and orthogonal to the constant function where centered. An eigenvector u of length 1
        on one side becomes ``√λ`` times the one on the other. Similarities without a factor, and sums, have no other
        side: `ValueRangeError`.

        X of shape (size,) or (size, b) gives float64 of as many columns, one row for each element of the other side.
        """
        columns = _checks.columns("X", X, self._size, "element that M acts on")
        return self._by_parts(lambda part, _: self._other_face(part), columns, None)

    def _other_face(self, X: FloatArray) -> FloatArray:
        raise ValueRangeError(f"other_face: expected an operator with a factor, got {self!r}, which has no other side")

    @property
    @abstractmethod
    def trace(self) -> float:
        """The sum of all eigenvalues, from formulas for the diagonal; no estimate."""

    @abstractmethod
    def dense(self) -> FloatArray:
        """(size, size) float64, formed in float64 by definition, for small ones: what `apply` is tested against."""

    def to_scipy(self) -> LinearOperator:
        """The same for SciPy: a ``LinearOperator`` with ``matvec`` and ``matmat``."""
        return LinearOperator(
            self.shape, matvec=self.apply, rmatvec=self.apply, matmat=self.apply, rmatmat=self.apply, dtype=self.dtype
        )

    def __matmul__(self, X: ArrayInput) -> FloatArray:
        if isinstance(X, SimilarityOperator):
            raise DTypeError("X: expected an array, got another operator; apply one after the other: M1 @ (M2 @ X)")
        return self.apply(X)

    def __add__(self, other: SimilarityOperator) -> SimilarityOperator:
        if not isinstance(other, SimilarityOperator):
            return NotImplemented
        return LinearCombination([*terms_of(self), *terms_of(other)])

    def __sub__(self, other: SimilarityOperator) -> SimilarityOperator:
        if not isinstance(other, SimilarityOperator):
            return NotImplemented
        return self + -1.0 * other

    def __mul__(self, factor: float) -> SimilarityOperator:
        if isinstance(factor, bool) or not isinstance(factor, (int, float, np.integer, np.floating)):
            return NotImplemented
        return LinearCombination([(float(factor) * c, M) for c, M in terms_of(self)])

    def __rmul__(self, factor: float) -> SimilarityOperator:
        return self * factor

    def __neg__(self) -> SimilarityOperator:
        return self * -1.0

    def _details(self) -> list[str]:
        """What else a `repr` says."""
        return ["centered"] if self.centered else []

    def __repr__(self) -> str:
        parts = [self.kind, f"{self._size} x {self._size} on {self.side}", *self._details()]
        return f"SimilarityOperator({', '.join(parts)})"


Term = tuple[float, SimilarityOperator]


def share(progress: Progress | None, part: int, parts: int) -> Progress | None:
    """The progress of one of some passes of the same length."""
    return None if progress is None else lambda done, total: progress(part * total + done, parts * total)


def terms_of(M: SimilarityOperator) -> list[Term]:
    """What an operator is a sum of; itself, if it is none."""
    return M.terms if isinstance(M, LinearCombination) else [(1.0, M)]


class LinearCombination(SimilarityOperator):
    """``Σ c_i M_i``; each part is applied in its own way."""

    def __init__(self, terms: list[Term]) -> None:
        (_, first), *others = terms
        for _, M in others:
            if (M.side, M.shape) != (first.side, first.shape):
                raise ShapeError(
                    f"M1 + M2: expected operators on the same set, got {first.shape} on {first.side} and {M.shape} "
                    f"on {M.side}"
                )
        self.terms = terms
        self.kind = " + ".join(dict.fromkeys(M.kind for _, M in terms))
        self.side, self._size = first.side, first.shape[0]
        self._most_columns = min(M._most_columns for _, M in terms)
        self._overhead = max(M._overhead for _, M in terms)
        self.centered = all(M.centered for _, M in terms)
        same = all(M.law is not None and first.law is not None and np.array_equal(M.law, first.law) for _, M in terms)
        self.law = first.law if same else None

    def _product(self, X: FloatArray, progress: Progress | None = None) -> FloatArray:
        products = (M._product(X, share(progress, i, len(self.terms))) for i, (_, M) in enumerate(self.terms))
        return self._summed([c * product for (c, _), product in zip(self.terms, products, strict=True)])

    def diagonal(self) -> FloatArray:
        return self._summed([c * M.diagonal() for c, M in self.terms])

    @property
    def trace(self) -> float:
        return float(sum(c * M.trace for c, M in self.terms))

    def dense(self) -> FloatArray:
        return self._summed([c * M.dense() for c, M in self.terms])

    @staticmethod
    def _summed(parts: list[FloatArray]) -> FloatArray:
        total, *others = parts
        for part in others:
            total += part
        return total

    def __repr__(self) -> str:
        return " + ".join(f"{c:g} * {M!r}" for c, M in self.terms)


class ContextOperator(SimilarityOperator):
    """``D_μ^{1/2} K D_μ^{1/2}``, and between two projections where centered."""

    side = "contexts"
    law: FloatArray
    storage: str

    def __init__(self, P: Kernel, kind: str, law: FloatArray, centered: bool) -> None:
        self.P, self.kind, self.law, self.centered = P, kind, law, bool(centered)
        self._size = len(law)
        self._root = np.sqrt(law)[:, None]  # (n, 1): the constant function, of length 1

    @abstractmethod
    def _similar(self, X: FloatArray, progress: Progress | None = None) -> FloatArray:
        """``K X``."""

    @property
    @abstractmethod
    def _own(self) -> FloatArray:
        """(n,): ``K(x, x)``."""

    @abstractmethod
    def _formed(self) -> FloatArray:
        """K in float64, by definition."""

    def _weighted(self, X: FloatArray, progress: Progress | None = None) -> FloatArray:
        return self._root * self._similar(self._root * X, progress)

    def _projected(self, X: FloatArray) -> FloatArray:
        return np.asarray(X - self._root * (self._root.T @ X))

    def _product(self, X: FloatArray, progress: Progress | None = None) -> FloatArray:
        if not self.centered:
            return self._weighted(X, progress)
        return self._projected(self._weighted(self._projected(X), progress))

    @cached_property
    def _of_constant(self) -> FloatArray:
        """(n,): what the operator that is not centered makes of the constant function."""
        return self._weighted(self._root)[:, 0]

    def diagonal(self) -> FloatArray:
        plain = self.law * self._own
        if not self.centered:
            return plain
        root = self._root[:, 0]
        return np.asarray(plain - 2 * root * self._of_constant + self.law * (root @ self._of_constant))

    @property
    def trace(self) -> float:
        full = float(self.law @ self._own)
        return full - float(self._root[:, 0] @ self._of_constant) if self.centered else full

    def dense(self) -> FloatArray:
        require_room(self._size**2)
        formed = self._root * self._formed() * self._root.T
        return self._projected(self._projected(formed).T) if self.centered else formed

    def _details(self) -> list[str]:
        return [*super()._details(), self.storage]
