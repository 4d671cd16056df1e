"""How rough functions of contexts are, as a similarity sees it (theory §10)."""

from __future__ import annotations

import numpy as np

from . import _checks
from ._operators import SimilarityOperator, terms_of
from .errors import DTypeError, ValueRangeError
from .typing import ArrayInput, FloatArray

__all__ = ["dirichlet_energy"]


def dirichlet_energy(
    M: SimilarityOperator, functions: ArrayInput, *, normalized: bool = False
) -> FloatArray | np.float64:
    r"""How much functions differ between contexts that are alike, from one product of the operator.

    .. math:: E_K(\varphi) = \tfrac12 \sum_{x, x'} \mu(x) \mu(x') K(x, x') (\varphi(x) - \varphi(x'))^2
              = \langle \varphi, (D - M_K) \varphi \rangle, \qquad D(x) = \sum_{x'} \mu(x') K(x, x')

    Parameters
    ----------
    M : SimilarityOperator
        On contexts, not centered; sums and multiples too, where all have the same weights.
    functions : (n,) or (n, b) floats
        Values at the contexts.
    normalized : bool
        Divide by the variance of each function under μ: 0 for what varies between dissimilar contexts alone, at most
        ``max K``, and ``E K(x, x')`` or so for what has nothing to do with the similarity.

    Returns
    -------
    float64, or (b,) float64
        In squared units of the functions, or without unit where normalized. Not negative where K is not (prototypes may
        have ``K < 0``), up to rounding.

    Raises
    ------
    ShapeError, DTypeError, ValueRangeError
        Also for a function without variance, by name of its column, where normalized.

    Notes
    -----
    The cost of ``M @ X`` for ``b + 1`` columns. Functions are centred and scaled first, which changes nothing but
    rounding. The error is that of the product: some 1e-6 of ``E K φ²``, so that energies that are smaller than that
    next to the variance are not resolved. Source: arXiv 2507.19247, Eq. 7.6; theory §10.

    Examples
    --------
    >>> import numpy as np, markovlm as mk
    >>> k = mk.Kernel([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # the first two contexts predict the same
    >>> M = mk.similarity_operator(k, "bhattacharyya")
    >>> mk.dirichlet_energy(M, [[1.0, 1.0], [1.0, -1.0], [5.0, 0.0]]).round(6) + 0.0  # (1/9) (φ(0) − φ(1))²
    array([0.      , 0.444444])
    """
    if not isinstance(M, SimilarityOperator):
        raise DTypeError(f"M: expected a similarity operator, got {type(M).__name__}; mk.similarity_operator makes one")
    if M.side != "contexts":
        raise ValueRangeError(f"M: expected an operator on contexts, got one on {M.side}; make it with side='contexts'")
    if any(part.centered for _, part in terms_of(M)):
        raise ValueRangeError("M: expected a similarity that is not centered, got a centered one, whose degrees are 0")
    if M.law is None:
        raise ValueRangeError("M: expected an operator with one law over contexts, got a sum of several weights")
    given = _checks.columns("functions", functions, len(M.law), "context")
    values = given.reshape(len(M.law), -1)
    exponents = np.frexp(np.abs(values).max(axis=0, initial=0.0))[1]
    values = np.ldexp(values, -exponents)  # squares stay within range
    values = values - values[np.argmax(M.law)]  # exactly 0 where a function is constant
    values = values - M.law @ values
    variance = M.law @ values**2
    root = np.sqrt(M.law)[:, None]
    product = M.apply(np.hstack([root, root * values]))
    degree = root[:, 0] * product[:, 0]  # μ D
    energy = degree @ values**2 - np.einsum("xj,xj->j", root * values, product[:, 1:])
    if normalized:
        flat = np.flatnonzero(variance == 0)
        if flat.size:
            raise ValueRangeError(
                f"functions: expected some variance to normalise by, got a constant function in column {flat[0]}"
            )
        energy = energy / variance
    else:
        energy = np.ldexp(energy, 2 * exponents)
    return np.float64(energy[0]) if given.ndim == 1 else np.asarray(energy)
