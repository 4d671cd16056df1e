"""The largest singular values of a factor, with both faces: functions on its rows and on its columns (theory §9)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from . import _checks
from ._operators import SimilarityOperator
from ._panel_operator import CheckedProduct, product_of
from ._similarity import FactorOperator, TokenOperator
from ._spectral import Spectrum, eigsh
from .errors import ConvergenceError, DTypeError, ShapeError, ValueRangeError
from .typing import ArrayInput, FloatArray, Progress

__all__ = ["SingularSpectrum", "svds"]

EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class SingularSpectrum:
    """The largest singular values of a factor F (n, m) and their faces, as `svds` found them.

    ``values`` (k,) fall, in the unit of F; ``left`` (n, k) and ``right`` (m, k) float64 have orthonormal columns.
    ``residual_norms`` (k, 2) are ``‖F v − σ u‖`` and ``‖Fᵀ u − σ v‖``, with F applied to these vectors in the end.

    ``lower``, ``upper`` (k,) enclose the i-th largest singular value, as far as ``spectrum`` encloses its square and
    products are rounded to float64. ``status`` and ``spectrum`` are those of `eigsh` on the smaller normal operator.
    """

    values: FloatArray
    left: FloatArray
    right: FloatArray
    lower: FloatArray
    upper: FloatArray
    residual_norms: FloatArray
    status: str
    spectrum: Spectrum

    @property
    def converged(self) -> bool:
        """Whether these are the k largest singular values, within the bounds."""
        return self.spectrum.converged

    def __repr__(self) -> str:
        k = len(self.values)
        span = f", {self.values[0]:.6g} … {self.values[-1]:.6g}" if k else ""
        residual = f", residuals <= {self.residual_norms.max():.1e}" if k else ""
        return f"SingularSpectrum({k} singular values{span}{residual}, {self.status})"


@dataclass(frozen=True)
class Factor:
    """F (n, m), and the normal operator of its left or right side, which is not formed."""

    shape: tuple[int, int]
    times: Callable[[FloatArray], FloatArray]
    adjoint: Callable[[FloatArray], FloatArray]
    normal: Any
    on_left: bool


class Normal:
    """``F Fᵀ`` or ``Fᵀ F``."""

    dtype = np.dtype(np.float64)

    def __init__(self, first: Callable[[FloatArray], FloatArray], then: Callable[[FloatArray], FloatArray], n: int):
        self.first, self.then, self.shape = first, then, (n, n)

    def __matmul__(self, X: FloatArray) -> FloatArray:
        return self.then(self.first(X))


def svds(
    F: ArrayInput,
    k: int,
    tol: float = 1e-6,
    block_size: int | None = None,
    *,
    max_applies: int | None = None,
    seed: int = 0,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> SingularSpectrum:
    r"""The k largest singular values of a factor, with both faces.

    .. math:: F v_i = \sigma_i u_i, \qquad F^\top u_i = \sigma_i v_i, \qquad \sigma_1 \ge \dots \ge \sigma_k \ge 0

    Parameters
    ----------
    F : (n, m), or SimilarityOperator
        Anything with ``.shape``, ``F @ X`` for X (m, b) float64, and ``F.T`` likewise: NumPy, SciPy sparse,
        ``LinearOperator``, PyTorch tensors. Of a similarity operator, on either side, it is the factor
        ``A = D_μ^{1/2} F`` that `SimilarityOperator.other_face` names, between contexts (``left``) and its columns
        (``right``): tokens, or directions of prototypes. Similarities without a factor, and sums, have none.
    k : int in [1, min(n, m)]
        Number of singular values.
    tol, block_size, max_applies, seed, num_threads, progress
        As in `eigsh`, which is applied to ``F Fᵀ`` or ``Fᵀ F``, whichever is smaller, or to the similarity operator as
        it is. An apply is a product with that.

    Returns
    -------
    SingularSpectrum

    Raises
    ------
    ShapeError, DTypeError
        F is not a matrix, has no ``.T``, or returns something of another shape or type.
    ValueRangeError
        F returns NaN or infinity, its squares overflow, it has no factor, or an argument is out of range.
    ConvergenceError
        As `eigsh`; ``partial`` is the `SingularSpectrum` so far.

    Notes
    -----
    The normal operator is never formed. With U from `eigsh`, the small problem ``Fᵀ U = V S Zᵀ`` is solved densely:
    S and the faces ``U Z``, V are orthonormal and satisfy the second equation up to rounding, and the residual of the
    first says how far they are off. The cost is that of `eigsh`, three more products of k columns, and
    ``O((n + m) k²)``.

    An eigenvalue that is off by δ puts its root off by ``min(√δ, δ / σ)``. Singular values below ``√ε ‖F‖``, 1e-8 of
    the largest (some 1e-3 with products in float32, as similarity operators make them), are square roots of
    eigenvalues that have no digits: all that is known of them is that they are not above their ``upper``. A singular
    value that vanishes has no other face: orthonormal vectors are put in its place. Sources: `eigsh`; Golub & Van
    Loan (2013), *Matrix computations*, §8.6.

    Examples
    --------
    >>> import numpy as np, markovlm as mk
    >>> found = mk.svds(np.array([[3.0, 0.0, 0.0], [0.0, 0.0, -2.0]]), 2)
    >>> found.values.round(6), (found.left * found.values @ found.right.T).round(6) + 0.0
    (array([3., 2.]), array([[ 3.,  0.,  0.],
           [ 0.,  0., -2.]]))
    """
    factor = _factor_of(F)
    k = _checks.count("k", k, 1, min(factor.shape))
    options: dict[str, Any] = {"max_applies": max_applies, "seed": seed, "num_threads": num_threads}
    try:
        return _with_faces(factor, eigsh(factor.normal, k, tol, block_size, progress=progress, **options))
    except ConvergenceError as error:
        partial = _with_faces(factor, cast(Spectrum, error.partial))
        raise ConvergenceError(f"svds: {partial.status}", partial) from None


def _factor_of(F: Any) -> Factor:
    if isinstance(F, SimilarityOperator):
        if not isinstance(F, (FactorOperator, TokenOperator)):
            raise ValueRangeError(f"F: expected a similarity operator with a factor, got {F!r}, which has none")
        parts = (F.P, F.kind, F.law, F.centered, F.factor)
        contexts, tokens = FactorOperator(*parts), TokenOperator(*parts)
        contexts._most_columns = tokens._most_columns = F._most_columns
        shape = (contexts.shape[0], tokens.shape[0])
        return Factor(shape, tokens.other_face, contexts.other_face, F, F.side == "contexts")
    shape = tuple(getattr(F, "shape", ()))
    if len(shape) != 2 or min(shape) < 1:
        raise ShapeError(
            f"F: expected something with .shape == (n, m), n, m >= 1, got {type(F).__name__} "
            + (f"of shape {shape}" if hasattr(F, "shape") else "without .shape")
        )
    if not hasattr(F, "T"):
        raise DTypeError(f"F: expected something with @ and .T, got {type(F).__name__}")
    if "complex" in str(getattr(F, "dtype", None)):
        raise DTypeError(f"F: expected real numbers, got {F.dtype}")
    n, m = (int(size) for size in shape)
    times = CheckedProduct("F", "F @ X", product_of("F", F), n)
    adjoint = CheckedProduct("F", "F.T @ X", product_of("F", F.T), m)
    on_left = n <= m
    normal = Normal(adjoint, times, n) if on_left else Normal(times, adjoint, m)
    return Factor((n, m), times, adjoint, normal, on_left)


def _with_faces(factor: Factor, spectrum: Spectrum) -> SingularSpectrum:
    forth, back = (factor.adjoint, factor.times) if factor.on_left else (factor.times, factor.adjoint)
    other, values, rotation = np.linalg.svd(forth(spectrum.eigenvectors), full_matrices=False)
    own = spectrum.eigenvectors @ rotation.T
    residuals = [
        np.linalg.norm(back(other) - values * own, axis=0),
        np.linalg.norm(forth(own) - values * other, axis=0),
    ]
    if not factor.on_left:
        own, other = other, own
        residuals.reverse()
    slack = 16 * EPS * np.sqrt(len(spectrum.eigenvectors)) * spectrum.norm  # of an eigenvalue by rounding
    lower = np.sqrt(np.maximum(spectrum.lower - slack, 0.0))
    upper = np.sqrt(np.maximum(spectrum.upper, 0.0) + slack)
    return SingularSpectrum(
        values=values,
        left=own,
        right=other,
        lower=np.minimum(lower, values),
        upper=np.maximum(upper, values),
        residual_norms=np.stack(residuals, axis=1),
        status=spectrum.status,
        spectrum=spectrum,
    )
