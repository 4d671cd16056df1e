"""The geometry that a softmax head gives to hidden states: leading directions, traces, averages (theory §8)."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np

from . import _checks, _json, _store
from ._bootstrap import Estimate, bootstrap_mean, require_level
from ._metric import fisher_metric, mean_of, metric_width
from ._softmax import SoftmaxKernel
from .errors import FileFormatError, ShapeError, ValueRangeError
from .typing import ArrayInput, BoolArray, FloatArray, IntArray, Progress, SinglePrecisionArray

__all__ = ["Geometry", "geometry"]

MOST_ROUNDS = 12  # of products of the whole metric with residuals

_SCHEMA = 1
_SCHEMA_KEY = "markovlm.geometry"


@dataclass(frozen=True, repr=False, eq=False)
class Geometry:
    """The metric at ``n`` contexts, as `geometry` found it: in nats per squared unit of the hidden states.

    Effective ranks and anisotropies have no unit; they are NaN where the metric is 0, because one token is certain.
    """

    trace: FloatArray  # (n,)
    eigenvalues: FloatArray  # (n, k) falling; from below, by Courant and Fischer
    eigenvectors: SinglePrecisionArray  # (n, d, k) orthonormal columns, the entry of largest modulus positive
    residual_norms: FloatArray  # (n, k): an eigenvalue of the metric is as near as that
    effective_rank: FloatArray  # (n,) exp(entropy of all eigenvalues over their sum), in [1, d]
    mean_metric: FloatArray  # (d, d)
    mean_eigenvalues: FloatArray  # (d,) of the mean metric, falling
    tol: float  # that residual norms were to reach, relative to the largest eigenvalue
    vocabulary_size: int
    sequence_ids: IntArray | None = None  # (n,)
    weights: FloatArray | None = None  # (n,) the law over contexts, if not uniform
    provenance: dict[str, Any] | None = None  # of what the contexts come from, where someone sets it

    @property
    def model(self) -> str:
        """Name of the model, as it was given."""
        return str((self.provenance or {}).get("model") or "unnamed model")

    @property
    def num_sequences(self) -> int:
        """As far as is known: 1 without sequence ids."""
        return 1 if self.sequence_ids is None else len(np.unique(self.sequence_ids))

    @property
    def shares(self) -> FloatArray:
        """(n, k): eigenvalues over the trace; NaN where the metric is 0."""
        return _ratio(self.eigenvalues, self.trace[:, None])

    @property
    def warnings(self) -> tuple[str, ...]:
        """What did not converge."""
        return () if self.status == "converged" else (f"geometry: {self.status}",)

    @property
    def anisotropy(self) -> FloatArray:
        """(n,) the largest eigenvalue over the trace, in [1/d, 1]."""
        return _ratio(self.eigenvalues[:, 0], self.trace)

    @property
    def converged(self) -> BoolArray:
        """(n,) whether all residual norms are within ``tol`` of the largest eigenvalue."""
        return np.asarray(self.residual_norms.max(axis=1) <= self.tol * self.eigenvalues[:, 0])

    @property
    def mean_effective_rank(self) -> float:
        """Of the mean metric: in how many directions predictions of all contexts together change."""
        return effective_rank(self.mean_eigenvalues)

    @property
    def status(self) -> str:
        """What was reached."""
        n, missing = len(self.trace), int(np.sum(~self.converged))
        if not missing:
            return "converged"
        relative = _ratio(self.residual_norms.max(axis=1), self.eigenvalues[:, 0])
        return (
            f"not converged: at {missing} of {n} contexts residual norms stay above tol · λ₁, up to "
            f"{np.nanmax(relative):.1e} λ₁ for tol = {self.tol:g}; raise tol, which rounding of float32 states and "
            "heads bounds by some 1e-6"
        )

    def averages(self, level: float = 0.95, seed: int = 0) -> dict[str, Estimate]:
        """``trace``, ``anisotropy`` and ``effective_rank`` over contexts, with intervals by a bootstrap over sequences.

        The last two over contexts whose metric is not 0. Without sequence ids intervals are NaN: contexts of one text
        are no independent sample.
        """
        require_level(level)
        values = np.stack([self.trace, self.anisotropy, self.effective_rank], axis=1)
        n = len(values)
        groups = np.zeros(n, np.int64) if self.sequence_ids is None else self.sequence_ids
        law = np.full(n, 1.0 / max(n, 1)) if self.weights is None else self.weights
        known = np.isfinite(values)
        weights = np.where(known, law[:, None], 0.0)
        found = bootstrap_mean(np.where(known, values, 0.0), groups, weights=weights, level=level, seed=seed)
        return dict(zip(("trace", "anisotropy", "effective_rank"), found, strict=True))

    def summary(self, level: float = 0.95, seed: int = 0) -> dict[str, Any]:
        """Numbers as plain values for JSON; arrays over contexts are left out."""
        n, d, k = self.eigenvectors.shape
        plain: dict[str, Any] = _json.plain(
            {
                "num_contexts": n,
                "vocabulary_size": self.vocabulary_size,
                "width": d,
                "k": k,
                "tol": self.tol,
                "status": self.status,
                **self.averages(level, seed),
                "mean_metric_trace": float(self.mean_eigenvalues.sum()),
                "mean_metric_effective_rank": self.mean_effective_rank,
                "mean_metric_eigenvalues": self.mean_eigenvalues[:k],
            }
        )
        return plain

    def __repr__(self) -> str:
        n, d, k = self.eigenvectors.shape
        if not n:
            return f"Geometry(0 contexts, d={d}, k={k})"
        found = self.averages()
        parts = ", ".join(f"{name}={value:.4g}" for name, value in found.items())
        status = self.status.partition(";")[0]
        return f"Geometry({n} contexts, d={d}, k={k}: {parts}, of the mean {self.mean_effective_rank:.4g}; {status})"

    def __str__(self) -> str:
        """The table that `markovlm geometry` prints."""
        from ._report import geometry_table

        return geometry_table(self)

    def to_html(self, path: str | PathLike[str]) -> None:
        """Write one self-contained HTML page that opens offline. Needs ``markovlm[report]``."""
        from ._report import write_geometry

        write_geometry(self, path)

    def save(self, path: str | PathLike[str]) -> None:
        """Write everything to one safetensors file (arrays) with JSON metadata; atomic, never pickle."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        fields = {name: value for name, value in values.items() if name not in arrays}
        _store.write(path, arrays, {_SCHEMA_KEY: str(_SCHEMA), "fields": json.dumps(fields)})

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Geometry:
        """Read what `save` wrote. A file of another kind or of a newer schema is a `FileFormatError`."""
        arrays, metadata = _store.read(path)
        found = metadata.get(_SCHEMA_KEY, "a file of another kind")
        if found != str(_SCHEMA):
            raise FileFormatError(
                f"{path}: expected a geometry of schema {_SCHEMA}, got {found}; make it again with this version"
            )
        fields: dict[str, Any] = json.loads(metadata["fields"])
        return cls(**{**fields, **arrays})


def geometry(
    P: SoftmaxKernel,
    k: int = 16,
    *,
    tol: float = 1e-3,
    sequence_ids: ArrayInput | None = None,
    weights: ArrayInput | None = None,
    seed: int = 0,
    max_memory: int | None = None,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> Geometry:
    r"""The pullback metric at every context: leading eigenpairs, trace, effective rank, anisotropy, and its mean.

    .. math:: g^*(h) = J^\top (\operatorname{diag} p - p p^\top) J = \sum_w p_w\, x_w x_w^\top, \qquad
              x_w = D_w g_w - \sum_v p_v D_v g_v

    with :math:`J = \partial z / \partial h = D W` as in `metric_operator`: directions of h in which the prediction
    changes most, and how many there are.

    Parameters
    ----------
    P : SoftmaxKernel
        ``n`` contexts, ``V`` tokens, width ``d``; with bias, temperature, scale and soft-capping.
    k : int in [1, d]
        Eigenpairs of each context.
    tol : float in (0, 1)
        Of residual norms, ``‖g* u − θ u‖ <= tol · λ₁``. Errors of eigenvalues are at most these, and of the order of
        their squares over the gap. What is reached is in ``residual_norms``; below some 1e-6 rounding keeps them up.
    sequence_ids : (n,) integers, optional
        Which contexts are of one text: what intervals of averages are over.
    weights : (n,) floats >= 0, optional
        The law over contexts for the mean metric and averages, normalised here; default uniform.
    seed : int
        Of random vectors. The same seed gives the same bits, with any number of threads.
    max_memory : int, optional
        Bytes for the blocks of contexts that are worked on. Default: 24 MiB, or what the smallest block takes if that
        is more; each thread has some 10 MiB of its own.
    num_threads : int, optional
        As in `softmax_stats`.
    progress : callable, optional
        ``progress(contexts_done, n)``; Ctrl-C and exceptions from it stop the pass.

    Returns
    -------
    Geometry

    Raises
    ------
    ShapeError, DTypeError, ValueRangeError
        Also where logits overflow float32, naming the row.

    Notes
    -----
    Two phases (ours). First a block Krylov space of a reduced metric: the tokens with the heaviest terms as they are,
    on SmolLM2 a few thousand at most, all others as one token at their mean, with the covariance that rows of the head
    have. Then its ``k`` Ritz vectors are multiplied by the metric of all tokens, ``4 V d k`` flops, contexts side by
    side: residual norms are of these products, and where one is above ``tol`` the space grows by the residuals, up to
    12 times. Eigenvalues are Rayleigh quotients, never above the true ones but for rounding. That none larger was
    missed rests on the random block of 8 vectors or more that the first space starts from, as for any Krylov method.

    All eigenvalues are needed for an effective rank: the leading ones are those found; the others are distributed as
    the first space's quadrature tells, scaled to the exact trace. Its error was 3 % at most, 1 % mostly, at contexts of
    SmolLM2 for k = 16. For ``d <= 64`` or ``d <= 4 k`` the matrix is formed, ``V d²`` flops, and all is exact up to
    rounding of float32. Traces, and through them ratios, have errors of some 1e-6 of ``Σ p |D g|²``, tokens with a
    probability above 1/64 apart, whose rows are taken in float64. Source: arXiv 2507.19247, §6, Prop. 6.3; theory §8.

    Examples
    --------
    >>> import numpy as np, markovlm as mk
    >>> W = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    >>> found = mk.geometry(mk.SoftmaxKernel(np.zeros((1, 2)), W), k=2)  # uniform p: the metric is diag(1/2, 2)
    >>> found.eigenvalues, found.trace, found.anisotropy.round(6)
    (array([[2. , 0.5]]), array([2.5]), array([0.8]))
    >>> float(found.effective_rank[0].round(3)), found.status
    (1.649, 'converged')
    """
    d = metric_width(P)
    n, vocabulary = P.shape
    k = _checks.count("k", k, 1, d)
    tol = _checks.positive("tol", tol)
    if tol >= 1:
        raise ValueRangeError(f"tol: expected a number in (0, 1), relative to the largest eigenvalue, got {tol!r}")
    seed = _checks.count("seed", seed, 0, 2**63 - 1)
    ids = None if sequence_ids is None else _checks.integers("sequence_ids", sequence_ids)
    if ids is not None and ids.shape != (n,):
        raise ShapeError(f"sequence_ids: expected shape ({n},), one for each context, got {ids.shape}")
    found = fisher_metric(P, k, weights, (tol, MOST_ROUNDS, seed), max_memory, num_threads, progress)
    mean, rounding = mean_of(P, found)
    mean_eigenvalues = np.linalg.eigvalsh(mean)[::-1]
    return Geometry(
        trace=found["trace"],
        eigenvalues=found["eigenvalues"],
        eigenvectors=found["eigenvectors"],
        residual_norms=found["residual_norms"],
        effective_rank=np.where(found["trace"] > 0, np.clip(np.exp(found["entropy"]), 1.0, d), np.nan),
        mean_metric=mean,
        mean_eigenvalues=np.where(mean_eigenvalues > rounding, mean_eigenvalues, 0.0),
        tol=tol,
        vocabulary_size=vocabulary,
        sequence_ids=ids,
        weights=None if weights is None else _checks.row_weights(weights, n),
    )


def effective_rank(eigenvalues: FloatArray) -> float:
    """``exp(−Σ q log q)`` with ``q = λ / Σ λ``; NaN where all are 0."""
    total = float(eigenvalues.sum())
    if not total > 0:
        return float("nan")
    shares = eigenvalues[eigenvalues > 0] / total
    return float(np.exp(-np.sum(shares * np.log(shares))))


def _ratio(values: FloatArray, totals: FloatArray) -> FloatArray:
    return np.asarray(np.divide(values, totals, out=np.full(values.shape, np.nan), where=totals > 0))
