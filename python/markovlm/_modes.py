"""Modes of prediction: eigenpairs of a similarity with both faces, on contexts and on tokens (theory §9)."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np

from . import _checks, _json, _store
from ._bootstrap import Estimate
from ._features import Features
from ._operators import SimilarityOperator
from ._similarity import ENTRYWISE, similarity_operator
from ._softmax import SoftmaxKernel
from ._spectral import Spectrum, eigsh
from ._stability import agreement, halves_of
from ._summaries import spectral_summary
from .errors import FileFormatError, ValueRangeError
from .typing import FloatArray, IntArray, Progress

__all__ = ["NAMED_TOKENS", "Modes", "leading", "modes", "signs"]

HALF_TOL = 1e-4  # of the modes of either half, which are only compared
PROBES, DEGREE = 16, 12  # of the effective rank
NAMED_TOKENS = 24  # of either sign of a mode, whose names are kept
_SCHEMA = 1
_SCHEMA_KEY = "markovlm.modes"


@dataclass(frozen=True, repr=False, eq=False)
class Modes:
    """The leading modes of one model on one text, largest eigenvalue first. Print it for a table.

    Row ``i`` of ``functions`` is context ``rows[i]`` of the features; ``text``, ``sequence_ids`` and ``token_ids`` are
    those of all ``N`` contexts there, so that a place can be shown with the text around it.
    """

    kind: str
    beta: float
    centered: bool
    layer: int
    eigenvalues: FloatArray  # (k,), falling
    lower: FloatArray  # (k,) bounds, as `Spectrum` has them: for the operator as it is, rounded to single precision
    upper: FloatArray
    residual_norms: FloatArray  # (k,)
    trace: float  # the sum of all eigenvalues, by formula
    norm: float
    rest: float  # no eigenvalue that is not here is larger
    status: str
    missed_check: str
    num_applies: int
    tol: float
    seed: int
    functions: FloatArray  # (n, k) eigenfunctions on contexts, mean square 1
    token_functions: FloatArray  # (V, k) the same on tokens, length 1; zeros where the eigenvalue may be 0
    num_splits: int  # of the text into halves, of which the next two are means
    stability: FloatArray  # (k,) in [0, 1]; NaN where not known
    span_stability: FloatArray
    rows: IntArray  # (n,)
    text: tuple[str, ...]  # (N,) target token as it stands in the text
    sequence_ids: IntArray  # (N,)
    token_ids: IntArray  # (N,) last token of the context
    vocabulary: dict[int, str]  # printable form of leading tokens of each mode, and of those that begin a sequence
    provenance: dict[str, Any]
    effective_rank: Estimate | None = None  # of the whole spectrum

    @property
    def num_modes(self) -> int:
        """Number of modes, k."""
        return len(self.eigenvalues)

    @property
    def num_contexts(self) -> int:
        """Number of contexts that the functions live on, n."""
        return len(self.functions)

    @property
    def shares(self) -> FloatArray:
        """(k,): of the trace; NaN if that is 0."""
        nothing = np.full(self.num_modes, np.nan)
        return np.asarray(np.divide(self.eigenvalues, self.trace, out=nothing, where=self.trace > 0))

    @property
    def model(self) -> str:
        """Name of the model, as it was given."""
        return str(self.provenance.get("model") or "unnamed model")

    def top_contexts(self, mode: int, count: int = 8, sign: int = 1) -> IntArray:
        """Rows of ``functions`` where a mode (counted from 0) is most positive or, for ``sign=-1``, most negative.

        At most ``count``, largest first; entries below ``tol`` of the largest modulus have no sign.
        """
        return self._leading("functions", mode, count, sign)

    def top_tokens(self, mode: int, count: int = 12, sign: int = 1) -> tuple[IntArray, FloatArray]:
        """Likewise ids of tokens, and what ``token_functions`` are there."""
        ids = self._leading("token_functions", mode, count, sign)
        return ids, self.token_functions[ids, mode]

    def _leading(self, name: str, mode: int, count: int, sign: int) -> IntArray:
        mode = _checks.count("mode", mode, 0, self.num_modes - 1)
        if sign not in (1, -1):
            raise ValueRangeError(f"sign: expected 1 or -1, got {sign!r}")
        return leading(getattr(self, name)[:, mode], _checks.count("count", count, 0, 2**62), sign, self.tol)

    def __repr__(self) -> str:
        k = self.num_modes
        return (
            f"Modes({self.model!r}: {k} of {self.kind}{', centered' if self.centered else ''}, "
            f"{self.num_contexts} contexts, {100 * self.shares.sum():.1f} % of the trace)"
        )

    def __str__(self) -> str:
        """The table that `markovlm spectrum` prints."""
        from ._report import modes_table

        return modes_table(self)

    def summary(self) -> dict[str, Any]:
        """Numbers and the names of leading tokens as plain values for JSON; functions and texts are left out."""
        arrays = ("eigenvalues", "lower", "upper", "residual_norms", "shares", "stability", "span_stability")
        facts = ("model", "kind", "beta", "centered", "layer", "trace", "rest", "norm", "status", "missed_check")
        names = (*facts, "num_applies", "tol", "seed", "num_splits", "num_contexts", *arrays, "effective_rank")
        tokens = {
            side: [
                [self.vocabulary.get(i, f"token {i}") for i in self.top_tokens(mode, sign=sign)[0].tolist()]
                for mode in range(self.num_modes)
            ]
            for side, sign in (("tokens", 1), ("tokens_of_negative_side", -1))
        }
        return {**{name: _json.plain(getattr(self, name)) for name in names}, **tokens}

    def save(self, path: str | PathLike[str]) -> None:
        """Write everything to one safetensors file (arrays) with JSON metadata; atomic, never pickle."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "text"}
        arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        fields = {name: value for name, value in values.items() if name not in arrays}
        arrays["text.bytes"], arrays["text.offsets"] = _store.pack_strings(self.text)
        _store.write(
            path, arrays, {_SCHEMA_KEY: str(_SCHEMA), "fields": json.dumps(fields, default=dataclasses.asdict)}
        )

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Modes:
        """Read what `save` wrote. A file of another kind or of a newer schema is a `FileFormatError`."""
        arrays, metadata = _store.read(path)
        found = metadata.get(_SCHEMA_KEY, "a file of another kind")
        if found != str(_SCHEMA):
            raise FileFormatError(
                f"{path}: expected modes of schema {_SCHEMA}, got {found}; make them again with this version"
            )
        fields: dict[str, Any] = json.loads(metadata["fields"])
        fields["vocabulary"] = {int(token): name for token, name in fields["vocabulary"].items()}
        if fields["effective_rank"] is not None:
            fields["effective_rank"] = _json.estimate(fields["effective_rank"])
        text = _store.unpack_strings(arrays.pop("text.bytes"), arrays.pop("text.offsets"))
        return cls(text=text, **{**fields, **arrays})


def modes(
    features: Features,
    kind: str = "bhattacharyya",
    k: int = 16,
    *,
    beta: float = 1.0,
    centered: bool = False,
    layer: int = -1,
    tol: float = 1e-6,
    max_memory: int | None = None,
    num_splits: int = 3,
    effective_rank: bool = True,
    level: float = 0.95,
    seed: int = 0,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> Modes:
    r"""The leading modes of prediction: what makes predictions of a model alike, and where in the text.

    .. math:: M_K \varphi_i = \lambda_i \varphi_i, \quad \| \varphi_i \|_{L^2(\mu)} = 1, \qquad
              v_i = F^\top D_\mu \varphi_i / \sqrt{\lambda_i}, \qquad
              \sqrt{\lambda_i}\, \varphi_i(x) = \sum_w F(x, w)\, v_i(w)

    A mode has two faces: a function on contexts (where it is active) and, through the factor ``K = F Fᵀ``, a function
    on tokens (what is predicted there). μ is the uniform law on the contexts. Of each mode the sign is such that the
    entry of largest modulus of its face on tokens is positive.

    Parameters
    ----------
    features : Features
        From `extract`, or made by hand.
    kind, beta, centered
        The similarity, as `similarity_operator` has it. Unless centered, the first mode of the first two kinds is what
        all predictions share: by Perron and Frobenius it is of one sign.
    k : int in [1, n]
        Number of modes.
    layer : int
        Whose predictions, as in `Features.softmax_kernel`.
    tol : float in (0, 1)
        Of residuals, relative to the largest eigenvalue, as in `eigsh`.
    max_memory : int, optional
        Bytes, as in `similarity_operator`: where ``4 n V`` fit, rows are kept, and products are faster.
    num_splits : int >= 0
        How often the text is dealt to two halves whose modes are compared, for ``stability``; each takes about as long
        as the modes do. 0: not at all.
    effective_rank : bool
        Whether to estimate that of the whole spectrum, by `spectral_summary` with the modes taken out: some 200 columns
        more.
    level : float in (0, 1)
        Of the interval of the effective rank.
    seed : int
        Of the halves, and of the solver's random blocks.
    num_threads : int, optional
        Default: all that this process may run on.
    progress : callable, optional
        ``progress(done, foreseen)`` in columns that operators on all contexts were applied to; on a half they count
        half.

    Returns
    -------
    Modes
        ``functions`` (n, k) and ``token_functions`` (V, k) in float64, ``eigenvalues`` with bounds, ``trace``,
        ``stability``. Of prototypes, whose factor has columns for directions v of the states, the function on tokens is
        ``W v`` (made of length 1). Similarities without a factor show that of the Bhattacharyya similarity,
        ``√Pᵀ D_μ φ``, of length 1. An eigenvalue that is 0 within its bounds has no face on tokens: zeros.

    Raises
    ------
    ShapeError, DTypeError, ValueRangeError
        An argument is out of range, or features do not fit together.
    ConvergenceError
        As `eigsh`; ``partial`` is its `Spectrum`.

    Notes
    -----
    Stability: sequences, paired by size, are dealt at random to two halves, ``num_splits`` times. Modes are matched one
    to one with some of the leading ``k' = k + max(4, k / 2)`` of either half, such that squared overlaps of their faces
    on tokens sum to most. ``stability`` is the overlap of the two matches of a mode, ``|⟨v_A, v_B⟩|``, which share no
    context. ``span_stability`` is the length that is left of a mode's face when it is projected onto the span of one
    half's k leading faces and then onto that of the other's, ``‖P_B P_A v‖``, averaged over both orders: it forgives
    rotations among nearly equal eigenvalues. Both are means over splits. For scale: k random directions among V capture
    ``√(k / V)``; the last modes may have their counterparts beyond the k. Both are NaN for less than two sequences and
    for modes that may be 0, the first also where a half has fewer modes.

    Cost: that of `similarity_operator`, of its products with 300 columns or so for 16 modes where rows are kept and
    twice as many in fewer and wider products where they are made anew, and about as much again for each split.
    Source: arXiv 2507.19247, Def. 7.3, 7.5, Thm 7.6; theory §9; the measures of stability are ours.

    Examples
    --------
    >>> import numpy as np, markovlm as mk
    >>> hidden = np.eye(2, dtype="float32")[[0, 1, 0, 0, 0, 1, 0, 0]]  # two kinds of contexts: three, one, ...
    >>> head = np.array([[19, 0], [18, 0], [0, 19], [0, 18]], dtype="float32")  # ... with two likely tokens each
    >>> zeros = np.zeros(8, dtype=int)
    >>> features = mk.Features(hidden, head, zeros, zeros, np.arange(8) // 4, np.arange(8) % 4)
    >>> found = mk.modes(features, k=2)
    >>> found.shares.round(3)
    array([0.75, 0.25])
    >>> found.top_tokens(1, count=2)[0], np.sort(found.top_contexts(1))
    (array([2, 3]), array([1, 5]))
    >>> found.stability.round(3)
    array([1., 1.])
    """
    P = features.softmax_kernel(layer)
    n = P.shape[0]
    k, seed = _checks.count("k", k, 1, max(n, 1)), _checks.count("seed", seed, 0, 2**63 - 1)
    rows = np.arange(n) if features.layer_rows is None or n == features.num_contexts else features.layer_rows
    num_splits = _checks.count("num_splits", num_splits, 0, 2**31)
    deals = [halves_of(features.sequence_ids[rows], [seed, i]) for i in range(num_splits)]
    deals = [halves for halves in deals if halves]
    work = _Work(progress)

    def make(
        which: SoftmaxKernel, k: int, tol: float, report: Progress | None
    ) -> tuple[SimilarityOperator, Spectrum, FloatArray]:
        M = similarity_operator(
            which, kind, beta=beta, centered=centered, max_memory=max_memory, num_threads=num_threads
        )
        found = eigsh(M, min(k, M.shape[0]), tol, seed=seed, num_threads=num_threads, progress=report)
        return M, found, _token_faces(M, which, found, max_memory, num_threads)

    M, found, faces = make(P, k, tol, work.part(1.0, later=float(len(deals))))
    trace, rank = M.trace, None
    if effective_rank:
        rank = spectral_summary(
            M,
            num_probes=PROBES,
            degree=DEGREE,
            spectrum=found,
            level=level,
            seed=seed,
            progress=work.part(1.0, later=float(len(deals))),
        ).effective_rank
    del M  # and what it keeps
    functions = np.sqrt(n) * found.eigenvectors
    positive = signs(faces, functions)
    functions, faces = positive * functions, positive * faces
    stable = spanned = np.full(k, np.nan)
    if deals:
        more, close = k + max(4, k // 2), max(HALF_TOL, tol)  # partners of the last modes may come later in a half
        agreed = []
        for i, (first, second) in enumerate(deals):
            later = len(deals) - i - 1 + len(second) / n
            of_first = make(P[first], more, close, work.part(len(first) / n, later))[2]
            of_second = make(P[second], more, close, work.part(len(second) / n, len(deals) - i - 1.0))[2]
            agreed.append(agreement(faces, of_first, of_second))
        stable, spanned = np.mean(agreed, axis=0)
    work.finish()
    starts = np.flatnonzero(np.diff(features.sequence_ids, prepend=features.sequence_ids[:1] - 1))
    named = [features.token_ids[starts]]
    named += [leading(v, NAMED_TOKENS, sign, found.tol) for v in faces.T for sign in (1, -1)]
    return Modes(
        kind=kind,
        beta=float(beta),
        centered=bool(centered),
        layer=layer,
        eigenvalues=found.eigenvalues,
        lower=found.lower,
        upper=found.upper,
        residual_norms=found.residual_norms,
        trace=trace,
        norm=found.norm,
        rest=found.rest,
        status=found.status,
        missed_check=found.missed_check,
        num_applies=found.num_applies,
        tol=found.tol,
        seed=seed,
        functions=functions,
        token_functions=faces,
        num_splits=len(deals),
        stability=stable,
        span_stability=spanned,
        rows=np.asarray(rows, dtype=np.int64),
        text=features.target_texts(),
        sequence_ids=features.sequence_ids,
        token_ids=features.token_ids,
        vocabulary={
            int(i): features.vocabulary[i] for i in np.unique(np.concatenate(named)) if i < len(features.vocabulary)
        },
        provenance=features.provenance or {},
        effective_rank=rank,
    )


class _Work:
    """The progress of some solvers, one after the other, as one."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress, self.done = progress, 0.0

    def finish(self) -> None:
        """What was foreseen and not needed is not waited for."""
        if self.progress is not None:
            self.progress(round(self.done), round(self.done))

    def part(self, share: float, later: float) -> Progress | None:
        """For a solver whose columns are a share of the whole ones; ``later`` is the share of all that come after."""
        progress, before = self.progress, self.done
        if progress is None:
            return None

        def report(applies: int, estimate: int) -> None:
            self.done = before + share * applies
            progress(round(self.done), round(before + (share + later) * max(estimate, applies)))

        return report


def _token_faces(
    M: SimilarityOperator, P: SoftmaxKernel, found: Spectrum, max_memory: int | None, num_threads: int | None
) -> FloatArray:
    """(V, k): columns of length 1, or zeros."""
    if M.kind in ENTRYWISE:
        M = similarity_operator(P, "bhattacharyya", centered=M.centered, max_memory=max_memory, num_threads=num_threads)
    faces = M.other_face(found.eigenvectors)
    if M.kind == "prototype":
        faces = P.head.astype(np.float64) @ faces
    faces = np.where(found.lower > 0, faces, 0.0)
    lengths = np.linalg.norm(faces, axis=0)
    return np.asarray(np.divide(faces, lengths, out=np.zeros_like(faces), where=lengths > 0))


def signs(faces: FloatArray, functions: FloatArray) -> FloatArray:
    """(k,): what makes the entry of largest modulus positive, of functions where there is no face on tokens."""
    largest = [columns[np.abs(columns).argmax(axis=0), np.arange(columns.shape[1])] for columns in (faces, functions)]
    return np.where(np.where(largest[0] == 0, largest[1], largest[0]) < 0, -1.0, 1.0)


def leading(values: FloatArray, count: int, sign: int, tol: float) -> IntArray:
    """Indices of the largest entries of one sign, but for those within ``tol`` of 0."""
    signed = sign * values
    order: IntArray = np.argsort(-signed, kind="stable")[:count]
    return np.asarray(order[signed[order] > tol * np.abs(values).max(initial=0.0)])
