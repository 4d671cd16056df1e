"""The largest eigenpairs of a symmetric operator, with bounds, and with evidence that none was missed (theory §12)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg

from . import _checks
from ._ext import core
from ._panel_operator import PanelOperator
from ._pencils import Pencil
from .errors import ConvergenceError, ValueRangeError
from .typing import ArrayInput, FloatArray, Progress

__all__ = ["Spectrum", "eigsh"]

_DENSE = 64  # an operator of this size is a matrix
_DENSE_AT_LAST = 4096  # and of this size, where 3 n columns did not do

_CHECKS = {
    "none": "not made",
    "whole": "not needed: all eigenvalues were computed",
    "certified": "passed: one above would have shown, but for 1 of 10^10 random blocks",
    "converged": "passed: the largest eigenvalue of what is left, from a fresh random block, is not above",
    "dense": "not needed: a dense solver computed all eigenvalues",
    "found": "failed: a fresh random block found larger ones, which are not resolved yet",
}


@dataclass(frozen=True)
class Spectrum:
    """The largest eigenvalues of a symmetric operator M, as `eigsh` found them.

    ``eigenvalues`` (k,) fall, in the unit of M; ``eigenvectors`` (n, k) float64 are orthonormal columns;
    ``residual_norms`` (k,) are ``‖M u − θ u‖``, with M applied to these vectors in the end: no recurrence's. With a
    matrix B all of this is in its sense, see `eigsh`.

    ``lower``, ``upper`` (k,) enclose the i-th largest eigenvalue of M, if ``missed_check`` is right: by ``‖R‖`` and,
    where the gap to the rest is known, by ``‖R‖² / gap``. If nothing was checked (a partial result) they enclose
    some eigenvalue.

    ``status`` starts with ``"converged"``, ``"not converged"`` or ``"missed"`` (the check found larger ones than are
    here), and says what to do. ``missed_check`` says how it is known that nothing larger exists, ``num_missed`` how
    often the check had found something that is now included. ``num_applies`` counts columns that M was applied to,
    ``num_panels`` calls. ``norm`` is ``‖M‖``, from below; ``rest`` bounds all eigenvalues that are not here, as far
    as the check goes (NaN if there was none).
    """

    eigenvalues: FloatArray
    eigenvectors: FloatArray
    residual_norms: FloatArray
    lower: FloatArray
    upper: FloatArray
    status: str
    missed_check: str
    num_missed: int
    num_applies: int
    num_panels: int
    block_size: int
    tol: float
    norm: float
    rest: float

    @property
    def converged(self) -> bool:
        """Whether these are the k largest eigenvalues, within the bounds."""
        return self.status.startswith("converged")

    def __repr__(self) -> str:
        k = len(self.eigenvalues)
        span = f", {self.eigenvalues[0]:.6g} … {self.eigenvalues[-1]:.6g}" if k else ""
        residual = f", residuals <= {self.residual_norms.max():.1e}" if k else ""
        return f"Spectrum({k} eigenvalues{span}{residual}, {self.num_applies} applies, {self.status})"


def eigsh(
    M: ArrayInput,
    k: int,
    tol: float = 1e-6,
    block_size: int | None = None,
    *,
    max_applies: int | None = None,
    B: ArrayInput | None = None,
    seed: int = 0,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> Spectrum:
    r"""The k largest eigenvalues (not by modulus) of a symmetric operator: :math:`M u_i = \lambda_i u_i`, or a pencil.

    Block Lanczos with full reorthogonalisation and thick restart. Small residuals do not yet end it: a Krylov space
    sees ``block_size`` copies of a multiple eigenvalue at most. A fresh random block orthogonal to all that was found
    is iterated until nothing larger can be left, and what it finds is included.

    Parameters
    ----------
    M : (n, n) symmetric
        Anything with ``.shape`` and ``M @ X`` for X (n, b) float64: NumPy, SciPy sparse, ``LinearOperator``, PyTorch
        tensors (multiplied in float64 where they are), operators of this package. Without ``@``, ``M.apply(X)``.
    k : int in [1, n]
        Number of eigenpairs.
    tol : float in (0, 1)
        Of residuals: ``‖M u − θ u‖ <= tol · ‖M‖``, where ``‖M‖`` is the largest |Ritz value| or ``‖M x‖`` of a unit
        vector seen. An eigenvalue much smaller than ``‖M‖`` has few digits then. Below ``16 ε √n`` is taken as that.
    block_size : int in [1, n], optional
        Columns per apply. ``min(max(8, k / 4), 32, n)`` if None: an operator that is bound by memory takes little
        longer for 8 columns than for one, and multiplicities up to 8 need no second search; wider blocks take fewer
        products and more columns in all. Operators of this package have 24, and up to 96 where rows are made anew.
    max_applies : int, optional
        Columns that M is applied to, at most; ``max(20000, 10 n)`` if None.
    B : (n, n) symmetric, positive definite, optional
        A dense matrix: of :math:`M v_i = \lambda_i B v_i`, by Cholesky's ``B = L Lᵀ`` and the operator ``L⁻¹ M L⁻ᵀ``,
        whose norm ``tol`` is relative to. Vectors have ``vᵀ B v = 1`` and are orthogonal in that sense; residual norms
        are ``‖M v − θ B v‖`` in the norm of ``B⁻¹``, ``√(rᵀ B⁻¹ r)``; bounds on eigenvalues hold as they do without B.
    seed : int
        Of the random blocks. The same seed gives the same bits, with any number of threads.
    num_threads : int, optional
        For products with the basis.
    progress : callable, optional
        ``progress(applies, estimate)``: columns so far, and foreseen, after each apply, and during those of this
        package's operators. An exception that it raises stops the work; so does Ctrl-C.

    Returns
    -------
    Spectrum

    Raises
    ------
    ShapeError, DTypeError
        M is not square, or returns something of another shape or type; or B is of another shape or type.
    ValueRangeError
        M returns NaN or infinity, is not symmetric as a random block shows it, or an argument is out of range. B is not
        finite, symmetric, positive definite, or its condition number is above ``tol / ε``.
    ConvergenceError
        ``max_applies`` are spent, or rounding of M keeps residuals above ``tol``; ``partial`` is the `Spectrum` so far.

    Notes
    -----
    Lower bounds are Ritz values (Courant–Fischer); upper bounds are Weyl's and the quadratic one for a known gap,
    of blocks of residuals, so that clusters are no exception. "Missed" has a bound of its own: if M restricted to the
    complement had an eigenvalue above, the Rayleigh quotient of a Chebyshev polynomial of it would show in the fresh
    block's Krylov space, but for a share of 1e-10 of blocks; where the gap is too small for that, the largest Ritz
    value of the complement is iterated until it converges, which is evidence and no proof.

    For n <= 64 or k > n / 2, and for n <= 4096 where 3 n columns did not do, M is applied to the identity and given to
    a dense solver. Otherwise memory is ``16 n (2 k + m)`` bytes, m being 512, or what 1 GiB allows, but from 8 to 48
    blocks; time beyond the applies is ``O(n m)`` per column. B takes ``16 n²`` bytes, some ``10 n³`` flops at first and
    ``2 n²`` for each column. Rounding of M, symmetric or not, is multiplied by up to the condition number of B.
    Sources: Golub & Underwood (1977), *The block Lanczos method for computing eigenvalues*; Wu & Simon (2000),
    *Thick-restart Lanczos*; Parlett (1998), *The symmetric eigenvalue problem*, ch. 10–13; Kuczyński & Woźniakowski
    (1992), for random starts.

    Examples
    --------
    >>> import numpy as np, markovlm as mk
    >>> from scipy import sparse
    >>> M = sparse.diags_array(np.repeat([3.0, 2.0, 1.0, -9.0], [20, 20, 60, 100]))
    >>> found = mk.eigsh(M, k=30)
    >>> found.eigenvalues[[0, 19, 20, 29]].round(6)
    array([3., 3., 2., 2.])
    >>> found.status, bool(np.all(found.residual_norms <= 1e-6 * 9))
    ('converged', True)
    """
    operator = PanelOperator(M, progress)
    n = operator.n
    k = _checks.count("k", k, 1, n)
    tol = _checks.positive("tol", tol)
    if tol >= 1:
        raise ValueRangeError(f"tol: expected a number in (0, 1), relative to ‖M‖, got {tol!r}")
    if block_size is None:
        block_size = _block_size(operator, k)
    block_size = _checks.count("block_size", block_size, 1, n)
    most = max(20_000, 10 * n) if max_applies is None else _checks.count("max_applies", max_applies, 1, 2**62)
    rng = np.random.default_rng(_checks.count("seed", seed, 0, 2**63 - 1))
    pencil = None if B is None else Pencil(operator, B, tol)
    apply = operator if pencil is None else pencil
    found: dict[str, Any] = {"columns": 0, "panels": 0, "status": "spent"}
    if most < n + k or (n > _DENSE and 2 * k <= n):
        found = core.eigsh(
            apply,
            lambda columns: rng.standard_normal((n, columns)),
            n,
            k,
            block_size,
            tol,
            operator.largest_asymmetry,
            most if n > _DENSE_AT_LAST else min(most, 3 * n),
            _checks.threads(num_threads),
            None if progress is None else operator.report,
        )
    if found["status"] == "spent" and n <= _DENSE_AT_LAST and most >= found["columns"] + n + k:
        found = _dense(operator, apply, k, tol, block_size, found["columns"], found["panels"])
    if found["status"] == "asymmetric":
        raise ValueRangeError(
            f"M: expected a symmetric operator, got ‖M − Mᵀ‖ / ‖M‖ of about {found['asymmetry']:.1e} (allowed: "
            f"{operator.largest_asymmetry:.0e}); symmetrise it, (M + Mᵀ) / 2, or take M Mᵀ for singular values"
        )
    spectrum = Spectrum(
        eigenvalues=found["eigenvalues"],
        eigenvectors=found["eigenvectors"] if pencil is None else pencil.vectors(found["eigenvectors"]),
        residual_norms=found["residual_norms"],
        lower=found["eigenvalues"] - found["bounds"],
        upper=found["eigenvalues"] + found["bounds"],
        status=_status(found, k, tol, most),
        missed_check=_CHECKS[found["check"]],
        num_missed=found["missed"],
        num_applies=found["columns"],
        num_panels=found["panels"],
        block_size=block_size,
        tol=tol,
        norm=found["norm"],
        rest=found["rest"],
    )
    if not spectrum.converged:
        raise ConvergenceError(f"eigsh: {spectrum.status}", spectrum)
    return spectrum


def _block_size(operator: PanelOperator, k: int) -> int:
    """More columns at a time take fewer products and more columns in all: which of the two costs, operators know."""
    if operator.overhead is None:
        return min(max(8, math.ceil(k / 4)), 32, operator.n)
    groups = round(6 * math.sqrt(operator.overhead) / 12)  # of 12, of which the passes make the best
    return min(12 * min(max(groups, 1), 8), operator.n)


def _dense(
    operator: PanelOperator,
    apply: Callable[[FloatArray], FloatArray],
    k: int,
    tol: float,
    block_size: int,
    columns: int,
    panels: int,
) -> dict[str, Any]:
    """What the core finds, from M as a matrix."""
    n = operator.n
    M = np.empty((n, n))
    for first in range(0, n, block_size):
        last = min(first + block_size, n)
        M[:, first:last] = apply(np.eye(n, last - first, -first))
        panels += 1
        operator.report(columns + last, columns + n + k)
    exponent = int(np.frexp(np.abs(M).max())[1])
    M = np.ldexp(M, -exponent)  # squares stay within range
    size = float(np.linalg.norm(M))
    asymmetry = float(np.linalg.norm(M - M.T)) / size if size else 0.0
    status = "converged" if asymmetry <= operator.largest_asymmetry else "asymmetric"
    values, vectors = scipy.linalg.eigh((M + M.T) / 2, driver="evd")  # evr loses orthogonality in clusters
    norm = float(np.abs(values).max())
    values, vectors = values[::-1], vectors[:, ::-1]
    rounding = 16 * np.finfo(np.float64).eps * math.sqrt(n) * norm
    of_vectors = np.empty((n, k))  # of M itself: its products may round more than this matrix tells
    for first in range(0, k, block_size):
        part = slice(first, min(first + block_size, k))
        of_vectors[:, part] = np.ldexp(apply(np.ascontiguousarray(vectors[:, part])), -exponent)
        panels += 1
    residuals = np.linalg.norm(of_vectors - vectors[:, :k] * values[:k], axis=0)
    if status == "converged" and residuals.max() > max(tol * norm, rounding):
        status = "stagnated"
    rest = values[k] if k < n else -np.inf
    bounds = residuals + rounding
    of_scale = {"eigenvalues": values[:k], "residual_norms": residuals, "bounds": bounds, "norm": norm, "rest": rest}
    return {
        **{name: np.ldexp(value, exponent) for name, value in of_scale.items()},
        "eigenvectors": np.ascontiguousarray(vectors[:, :k]),
        "status": status,
        "check": "dense",
        "asymmetry": asymmetry,
        "columns": columns + n + k,
        "panels": panels,
        "missed": 0,
    }


def _status(found: dict[str, Any], k: int, tol: float, most: int) -> str:
    if found["status"] == "converged":
        return "converged: by a dense solver, M applied to the identity" if found["check"] == "dense" else "converged"
    norms = found["residual_norms"]
    if found["status"] == "stagnated":
        return (
            f"not converged: residuals stay at {norms.max():.1e}, above tol · ‖M‖ = {tol * found['norm']:.1e}, which "
            "rounding of M may not allow; raise tol, or compute products in float64"
        )
    if found["check"] == "found":
        return (
            f"missed: a fresh random block found larger eigenvalues, and max_applies = {most} were spent before all "
            "were resolved; raise max_applies, or block_size above the multiplicity"
        )
    if len(norms) < k:
        state = f"{len(norms)} of {k} vectors"
    elif norms.max() <= tol * found["norm"]:
        state = "the check for missed eigenvalues still to be finished"
    else:
        state = f"residuals up to {norms.max():.1e}, where tol · ‖M‖ = {tol * found['norm']:.1e}"
    return f"not converged: max_applies = {most} spent with {state}; raise max_applies or tol"
