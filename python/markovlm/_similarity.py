"""Predictive similarity of contexts and of tokens as operators: five similarities, never formed (theory §9)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from functools import cached_property

import numpy as np

from . import _checks
from ._factors import Factor, most_columns, power_factor, prototype_factor, slices
from ._formulas import FullRows, jensen_shannon
from ._kernels import Kernel
from ._operators import SimilarityOperator
from ._rows import require_room
from ._softmax import softmax_of
from .errors import DTypeError, ShapeError, ValueRangeError
from .typing import ArrayInput, FloatArray, Progress

__all__ = ["similarity_operator"]

POWERS = {"bhattacharyya": 0.5, "expected_likelihood": 1.0}
ENTRYWISE = ("hellinger_gaussian", "jensen_shannon")
KINDS = ("bhattacharyya", "expected_likelihood", "prototype", *ENTRYWISE)
SIDES = ("contexts", "tokens")

DEFAULT_MEMORY = 2**30
TILE_ROWS = 256  # of an entrywise similarity that are made at a time, at most
TILE_TOKENS = 2048  # that rows are compared on at a time: their mixtures stay in a cache
ROW_BYTES = 48  # that comparing a row takes for each of its entries
LEAST = float(np.finfo(np.float64).tiny)


def similarity_operator(
    P: Kernel,
    kind: str,
    *,
    beta: float = 1.0,
    centered: bool = False,
    weights: ArrayInput | None = None,
    side: str = "contexts",
    max_memory: int | None = None,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> SimilarityOperator:
    r"""How alike the predictions of contexts are, or the contexts of tokens, as an operator: :math:`M_K` or :math:`C`.

    .. math:: M_K = D_\mu^{1/2} K D_\mu^{1/2} \;\; (K / n \text{ for the uniform law}), \qquad
              C = F^\top D_\mu F \;\; \text{where } K = F F^\top

    =======================  =============================================  ==============
    ``kind``                 ``K(x, x')``                                   factor ``F``
    =======================  =============================================  ==============
    ``bhattacharyya``        :math:`\sum_w \sqrt{p_x(w)\, p_{x'}(w)}`       ``√P`` (n, V)
    ``expected_likelihood``  :math:`\langle p_x, p_{x'} \rangle`            ``P`` (n, V)
    ``prototype``            :math:`\langle \bar g_x, \bar g_{x'} \rangle`  ``P W`` (n, d)
    ``hellinger_gaussian``   :math:`\exp(-2 \beta (1 - BC(p_x, p_{x'})))`   none
    ``jensen_shannon``       :math:`\exp(-\beta JS(p_x, p_{x'}))`           none
    =======================  =============================================  ==============

    All are symmetric and positive semidefinite. :math:`M_K` and :math:`C` have the same non-zero eigenvalues, and those
    of the Bhattacharyya similarity are in [0, 1] and sum to 1.

    Parameters
    ----------
    P : Kernel
        ``n`` contexts, ``V`` tokens. A `SoftmaxKernel` is never formed; of other kernels the entries are used.
        Prototypes need a softmax kernel.
    kind : str
        See the table.
    beta : float > 0
        The sharpness of the last two; the others have none.
    centered : bool
        Project out the constant function, in :math:`L^2(\mu)`: ``K`` becomes the similarity of ``F − μᵀF``, and
        ``C`` becomes ``C − (Fᵀμ)(Fᵀμ)ᵀ``.
    weights : (n,) floats >= 0, optional
        The law μ over contexts, normalised here; default uniform.
    side : "contexts" or "tokens"
        ``M_K`` (n, n), or ``C``: (V, V), and (d, d) for prototypes, whose factor has a column for each direction of
        the states: the covariance (second moment, unless centered) of prototypes. The last two kinds have no factor,
        and so no operator on tokens.
    max_memory : int, optional
        Bytes, default 1 GiB. Of a softmax kernel, rows of the factor are kept in float32 where ``4 n V`` is within it;
        else, for an operator on contexts, ``K`` itself where ``8 n² + 4 n (d + 770)`` is and n is at most ``8 d``; else
        rows are made anew for each product. All three agree to rounding, and ``repr`` says which it is. Of the last
        two kinds ``K`` is kept where ``16 n²`` is within it, else made anew, tile by tile, for each product.
    num_threads : int, optional
        Of the passes, as in `softmax_stats`; the results are the same, bit for bit, for any number.
    progress : callable, optional
        ``progress(done, total)`` in contexts, of the pass that creation takes. Products have their own, see `apply`.

    Returns
    -------
    SimilarityOperator
        With ``apply``, ``@``, ``trace``, ``diagonal``, ``to_scipy``; sums and multiples of operators are operators.

    Raises
    ------
    ShapeError, DTypeError, ValueRangeError
        Unknown kinds and sides by name; and ``side="tokens"`` for what has no factor.

    Notes
    -----
    Creation takes one pass over the kernel, ``2 n V d`` flops (prototypes: two), in which rows that are kept are made
    and summed at once, or ``K`` is, by ``n² V`` more; that of the last two kinds is made by the first product. A
    product with ``b`` columns takes one pass on either side, ``2 n V (d + 2 b)`` flops, ``4 n V b`` where rows are kept
    and ``2 n² b`` where ``K`` is; ``4 n d b`` for prototypes. Where ``4 n d + 256 n b`` bytes, all states and sums, are
    not to be had, a product on contexts takes two passes.
    ``hellinger_gaussian`` takes some ``n² V (d / B + 1)`` flops for ``K``, by blocks of ``B`` rows, at most 256 and
    ``max_memory / (48 V)``, and ``2 n² V`` where rows are kept. ``jensen_shannon`` looks at all pairs, ``n² V / 2``
    logarithms in one thread: some three minutes for a thousand contexts and 50,000 tokens.

    Columns are rounded to float32 for a pass, before each of the two products, relative to the largest entry of each
    column; sums are kept in float64. With the factor's own error, that of float32 logits and exponentials, an entry
    of ``M X`` is off by some 1e-6 of ``Σ F Fᵀ |X|``: the operator is symmetric, positive semidefinite and linear up to
    that. Prototypes are rounded once, and then applied in float64. ``trace`` and ``diagonal`` come from the pass of the
    creation (``Σ_w p_x(w) = 1``, and ``Σ_w p_x(w)²``). Entries of ``hellinger_gaussian`` are off by some 2e-6 β, on the
    diagonal they are 1. Source: arXiv 2507.19247, Def. 7.3, 7.5, Thm 7.6; theory §9.

    Examples
    --------
    >>> import numpy as np, markovlm as mk
    >>> P = mk.SoftmaxKernel(np.array([[0.0], [np.log(3.0)]]), np.array([[0.0], [1.0]]))  # (1/2, 1/2) and (1/4, 3/4)
    >>> M = mk.similarity_operator(P, "bhattacharyya")
    >>> M
    SimilarityOperator(bhattacharyya, 2 x 2 on contexts, stored)
    >>> (M @ np.eye(2)).round(5)
    array([[0.5    , 0.48296],
           [0.48296, 0.5    ]])
    >>> M.trace
    1.0
    >>> C = mk.similarity_operator(P, "bhattacharyya", side="tokens")
    >>> np.linalg.eigvalsh(M @ np.eye(2)).round(5), np.linalg.eigvalsh(C @ np.eye(2)).round(5)
    (array([0.01704, 0.98296]), array([0.01704, 0.98296]))
    """
    if not isinstance(P, Kernel):
        raise DTypeError(f"P: expected a kernel, got {type(P).__name__}; make one by mk.Kernel or mk.SoftmaxKernel")
    kind, side = _checks.choice("kind", kind, KINDS), _checks.choice("side", side, SIDES)
    beta = _checks.positive("beta", beta)
    n = P.shape[0]
    if n == 0:
        raise ShapeError("P: expected at least one context, got none")
    law = np.full(n, 1.0 / n) if weights is None else _checks.row_weights(weights, n)
    memory = _checks.memory(max_memory) or DEFAULT_MEMORY
    P.evaluate(max_memory=max_memory, num_threads=num_threads)
    if kind in ENTRYWISE and side == "tokens":
        raise ValueRangeError(
            f"side: expected 'contexts' for the similarity {kind!r}, which has no factor and so no operator on tokens, "
            "got 'tokens'; the Bhattacharyya and expected-likelihood similarities have one"
        )
    if kind == "jensen_shannon":
        return JensenShannonOperator(P, kind, law, centered, beta, memory)
    if kind == "prototype":
        factor = prototype_factor(P, memory, num_threads, progress)
    elif kind == "hellinger_gaussian":
        return HellingerOperator(P, kind, law, centered, beta, memory, num_threads, progress)
    else:
        factor = power_factor(P, POWERS[kind], memory, num_threads, progress, side == "contexts")
    M = (FactorOperator if side == "contexts" else TokenOperator)(P, kind, law, centered, factor)
    M._overhead = factor.overhead
    M._most_columns = most_columns(memory)
    return M


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


class FactorOperator(ContextOperator):
    """``K = F Fᵀ``."""

    def __init__(self, P: Kernel, kind: str, law: FloatArray, centered: bool, factor: Factor) -> None:
        super().__init__(P, kind, law, centered)
        self.factor, self.storage = factor, factor.storage

    def _similar(self, X: FloatArray, progress: Progress | None = None) -> FloatArray:
        return self.factor.round_trip(X, progress)

    def _other_face(self, X: FloatArray) -> FloatArray:
        return self.factor.left(self._root * (self._projected(X) if self.centered else X))

    @property
    def _own(self) -> FloatArray:
        return self.factor.squares

    def _formed(self) -> FloatArray:
        F = _exact_factor(self.P, self.kind)
        return np.asarray(F @ F.T)


class TokenOperator(SimilarityOperator):
    """``Fᵀ D_μ F``, less the part of the mean row where centered."""

    side = "tokens"
    law: FloatArray

    def __init__(self, P: Kernel, kind: str, law: FloatArray, centered: bool, factor: Factor) -> None:
        self.P, self.kind, self.law, self.centered, self.factor = P, kind, law, bool(centered), factor
        self._size = factor.shape[1]

    @cached_property
    def _mean(self) -> FloatArray:
        """(m,): ``Fᵀ μ``."""
        return self.factor.left(self.law[:, None])[:, 0]

    def _product(self, X: FloatArray, progress: Progress | None = None) -> FloatArray:
        plain = self.factor.normal(X, self.law, progress)
        return plain - self._mean[:, None] * (self._mean @ X) if self.centered else plain

    def _other_face(self, X: FloatArray) -> FloatArray:
        image = self.factor.right(X)
        return np.asarray(np.sqrt(self.law)[:, None] * (image - self.law @ image if self.centered else image))

    def diagonal(self) -> FloatArray:
        plain = self.factor.mean_squares(self.law)
        return plain - self._mean**2 if self.centered else plain

    @property
    def trace(self) -> float:
        full = float(self.law @ self.factor.squares)
        return full - float(self._mean @ self._mean) if self.centered else full

    def dense(self) -> FloatArray:
        require_room(self._size**2)
        F = _exact_factor(self.P, self.kind)
        F = F - self.law @ F if self.centered else F
        return np.asarray(F.T @ (self.law[:, None] * F))

    def _details(self) -> list[str]:
        return [*super()._details(), self.factor.storage]


class EntrywiseOperator(ContextOperator):
    """K from functions of pairs of rows, tile by tile; kept where there is room."""

    def __init__(self, P: Kernel, kind: str, law: FloatArray, centered: bool, beta: float, max_memory: int) -> None:
        super().__init__(P, kind, law, centered)
        self.beta = beta
        rows = min(max_memory // (ROW_BYTES * max(P.shape[1], 1)), most_columns(max_memory), TILE_ROWS)
        self._tile_rows = max(1, rows)
        self._kept: FloatArray | None = None
        self.storage = "stored" if 16 * self._size**2 <= max_memory else "recomputed"

    @abstractmethod
    def _tile(self, which: slice) -> FloatArray:
        """``K[which.start:, which]``."""

    def _release(self) -> None:
        """Lets go of what is not needed once K is kept."""

    def _tiles(self, progress: Progress | None) -> Iterator[tuple[slice, FloatArray]]:
        """On and below the diagonal, which is 1; blocks on it are made symmetric."""
        pairs = self._size * (self._size + 1) // 2
        for which in slices(self._size, self._tile_rows):
            tile = self._tile(which)
            size = tile.shape[1]
            below = np.tril(tile[:size], -1)
            tile[:size] = below + below.T + np.eye(size)
            yield which, tile
            if progress is not None:
                left = self._size - which.stop
                progress(pairs - left * (left + 1) // 2, pairs)

    def _similar(self, X: FloatArray, progress: Progress | None = None) -> FloatArray:
        if self.storage == "stored":
            if self._kept is None:
                kept = np.empty(self.shape)
                for which, tile in self._tiles(progress):
                    kept[which.start :, which] = tile
                    kept[which, which.start :] = tile.T
                self._kept = kept
                self._release()
            return np.asarray(self._kept @ X)
        out = np.zeros_like(X)
        for which, tile in self._tiles(progress):
            out[which.start :] += tile @ X[which]
            out[which] += tile[tile.shape[1] :].T @ X[which.stop :]
        return out

    @property
    def _own(self) -> FloatArray:
        return np.ones(self._size)

    def _details(self) -> list[str]:
        return [f"beta={self.beta:g}", *super()._details()]


class HellingerOperator(EntrywiseOperator):
    """A Gaussian of the distance of square roots, ``‖√p − √q‖² = 2 (1 − BC)``."""

    def __init__(
        self,
        P: Kernel,
        kind: str,
        law: FloatArray,
        centered: bool,
        beta: float,
        max_memory: int,
        num_threads: int | None,
        progress: Progress | None,
    ) -> None:
        super().__init__(P, kind, law, centered, beta, max_memory)
        self.factor = power_factor(P, 0.5, max_memory // 2, num_threads, progress)  # the other half is for K

    def _tile(self, which: slice) -> FloatArray:
        return self._of_overlap(self.factor.similarities(which))

    def _release(self) -> None:
        del self.factor

    def _of_overlap(self, overlap: FloatArray) -> FloatArray:
        return np.asarray(np.exp(-2 * self.beta * (1 - np.minimum(overlap, 1.0))))

    def _formed(self) -> FloatArray:
        F = _exact_factor(self.P, "bhattacharyya")
        return self._of_overlap(F @ F.T)


class JensenShannonOperator(EntrywiseOperator):
    """``JS = ½ Σ p log p + ½ Σ q log q − Σ m log m``, m being the mean of p and q: exact enough for its exponential."""

    def _tile(self, which: slice) -> FloatArray:
        q = self.P._rows.part(which).dense()
        of_q = _sum_of_logs(q)
        tile = np.empty((self._size - which.start, len(q)))
        for some in slices(len(tile), self._tile_rows):
            rows = slice(which.start + some.start, which.start + some.stop)
            p = q if rows == which else self.P._rows.part(rows).dense()
            divergence = (_sum_of_logs(p)[:, None] + of_q) / 2
            for tokens in slices(p.shape[1], TILE_TOKENS):
                half_p, half_q = p[:, tokens] / 2, q[:, tokens] / 2
                for j, row in enumerate(half_q):
                    divergence[:, j] -= _sum_of_logs(half_p + row)
            tile[some] = np.exp(-self.beta * np.maximum(divergence, 0.0))
        return tile

    def _formed(self) -> FloatArray:
        p = self.P.matrix
        rows = [jensen_shannon(FullRows(), np.broadcast_to(row, p.shape), p) for row in p]
        return np.asarray(np.exp(-self.beta * np.array(rows)))


def _sum_of_logs(p: FloatArray) -> FloatArray:
    """(n,): ``Σ p log p``."""
    return np.asarray(np.einsum("xw,xw->x", p, np.log(np.maximum(p, LEAST))))


def _exact_factor(P: Kernel, kind: str) -> FloatArray:
    """(n, m) float64, by definition."""
    require_room(P.shape[0] * P.shape[1])
    p = P.matrix
    if kind == "prototype":
        softmax = softmax_of(P)
        assert softmax is not None  # for the type checker: the factor was made of it
        return np.asarray(p @ softmax.head.astype(np.float64))
    return np.sqrt(p) if kind == "bhattacharyya" else p
