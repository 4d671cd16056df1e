"""Predictive similarity of contexts and of tokens as operators: five similarities, never formed (theory §9)."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from . import _checks
from ._entrywise import HellingerOperator, JensenShannonOperator
from ._factors import Factor, exact_factor, most_columns, power_factor, prototype_factor
from ._kernels import Kernel
from ._operators import ContextOperator, SimilarityOperator
from ._rows import require_room
from .errors import DTypeError, ShapeError, ValueRangeError
from .typing import ArrayInput, FloatArray, Progress

__all__ = ["similarity_operator"]

POWERS = {"bhattacharyya": 0.5, "expected_likelihood": 1.0}
ENTRYWISE = ("hellinger_gaussian", "jensen_shannon")
KINDS = ("bhattacharyya", "expected_likelihood", "prototype", *ENTRYWISE)
SIDES = ("contexts", "tokens")

DEFAULT_MEMORY = 2**30


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
    and summed at once, or ``K`` is, by ``n² V`` more; that of ``jensen_shannon`` is made by the first product. A
    product with ``b`` columns takes one pass on either side, ``2 n V (d + 2 b)`` flops, ``4 n V b`` where rows are kept
    and ``2 n² b`` where ``K`` is; ``4 n d b`` for prototypes. Where ``4 n d + 256 n b`` bytes, all states and sums, are
    not to be had, a product on contexts takes two passes.
    ``hellinger_gaussian`` takes what the Bhattacharyya similarity takes where pairs are kept, and some ``n² V (d / B +
    1)`` flops for ``K`` where it is made anew, by blocks of ``B`` rows, at most 256 and ``max_memory / (48 V)``.
    ``jensen_shannon`` takes ``n² V / 2`` logarithms: some ten seconds for a thousand contexts and 50,000
    tokens, two minutes for four thousand.

    Columns are rounded to float32 for a pass, before each of the two products, relative to the largest entry of each
    column; sums are kept in float64. With the factor's own error, that of float32 logits and exponentials, an entry
    of ``M X`` is off by some 1e-6 of ``Σ F Fᵀ |X|``: the operator is symmetric, positive semidefinite and linear up to
    that. Prototypes are rounded once, and then applied in float64. ``trace`` and ``diagonal`` come from the pass of the
    creation (``Σ_w p_x(w) = 1``, and ``Σ_w p_x(w)²``). Entries of ``hellinger_gaussian`` are off by some 2e-6 β, on the
    diagonal they are 1; those of ``jensen_shannon``, of rows in float32, by some 1e-6 β. Source: arXiv 2507.19247, Def.
    7.3, 7.5, Thm 7.6; theory §9.

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
    if kind in ENTRYWISE:
        made = HellingerOperator if kind == "hellinger_gaussian" else JensenShannonOperator
        return made(P, kind, law, centered, beta, memory, num_threads, progress)
    if kind == "prototype":
        factor = prototype_factor(P, memory, num_threads, progress)
    else:
        factor = power_factor(P, POWERS[kind], memory, num_threads, progress, side == "contexts")
    M = (FactorOperator if side == "contexts" else TokenOperator)(P, kind, law, centered, factor)
    M._overhead = factor.overhead
    M._most_columns = most_columns(memory)
    return M


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
        F = exact_factor(self.P, self.kind)
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
        F = exact_factor(self.P, self.kind)
        F = F - self.law @ F if self.centered else F
        return np.asarray(F.T @ (self.law[:, None] * F))

    def _details(self) -> list[str]:
        return [*super()._details(), self.factor.storage]
