"""What likelihood training has learned and what is left: KL from the data and the data's own entropy (theory §6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, overload

import numpy as np

from . import _checks
from ._axes import matched
from ._bootstrap import Estimate, bootstrap_mean
from ._cross_entropy import cross_entropies
from ._divergences import KL, Divergence, as_divergence
from ._features import IGNORED_TARGET, Features
from ._kernels import Kernel, law_of
from ._nll_terms import NLLCurves, NLLDecomposition, curves_of
from ._rowwise import categorical_entropies, divergence
from ._softmax import SoftmaxStats, softmax_of, softmax_stats
from .errors import DTypeError, ShapeError, ValueRangeError
from .typing import ArrayInput, FloatArray, IntArray, Progress

__all__ = ["nll_decomposition"]


@overload
def nll_decomposition(
    model: Kernel | Features,
    data: Kernel | Features | None = ...,
    weights: Kernel | ArrayInput | None = ...,
    *,
    groups: ArrayInput | None = ...,
    divergences: Sequence[Divergence] = ...,
    level: float = ...,
    seed: int = ...,
    max_memory: int | None = ...,
    num_threads: int | None = ...,
    progress: Progress | None = ...,
) -> NLLDecomposition: ...


@overload
def nll_decomposition(
    model: Sequence[Kernel | Features],
    data: Kernel | Features | None = ...,
    weights: Kernel | ArrayInput | None = ...,
    *,
    groups: ArrayInput | None = ...,
    steps: ArrayInput | None = ...,
    divergences: Sequence[Divergence] = ...,
    level: float = ...,
    seed: int = ...,
    max_memory: int | None = ...,
    num_threads: int | None = ...,
    progress: Progress | None = ...,
) -> NLLCurves: ...


def nll_decomposition(
    model: Kernel | Features | Sequence[Kernel | Features],
    data: Kernel | Features | None = None,
    weights: Kernel | ArrayInput | None = None,
    *,
    groups: ArrayInput | None = None,
    steps: ArrayInput | None = None,
    divergences: Sequence[Divergence] = (),
    level: float = 0.95,
    seed: int = 0,
    max_memory: int | None = None,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> NLLDecomposition | NLLCurves:
    r"""The loss as what is left to learn plus what cannot be learned.

    .. math:: -\mathbb{E}_x \sum_w k_{data}(w|x) \log k_θ(w|x)
              = \mathbb{E}_x\, KL\bigl(k_{data}(x) \,\|\, k_θ(x)\bigr) + \bar H(k_{data})

    The three terms are computed apart, each by a route of its own, so that ``residual`` shows that they agree.

    What is known decides what comes out. With a **data kernel** (a language that is known exactly; a teacher, whose
    kernel is data by definition) all three terms. On **text alone** (`Features` and no ``data``) nobody knows the KL or
    the data's entropy: they are None, and what is left are the loss, the model's own entropy and their difference,
    **calibration**: 0 where the model is as uncertain as the text requires, positive where it is over-confident. With
    both, both. **Several models** are checkpoints of one training run and give curves.

    Parameters
    ----------
    model : Kernel, Features, or a sequence of them
        From ``n`` contexts to tokens, in any representation.
    data : Kernel or Features, optional
        Between the same sets. Features hold the same contexts if their token ids and sequence ids agree.
    weights : state or (n,) floats >= 0, optional
        The law over contexts, normalised here; default uniform. Contexts without weight do not count, nor do those of
        ``model``'s features whose target is not known.
    groups : (n,) integers, optional
        Of the bootstrap (2,000 resamples): sequence ids. Default those of the features; without any, intervals are NaN.
    steps : (C,) rising numbers, optional
        Of checkpoints; default 0, 1, 2 ...
    divergences : sequence of divergences, optional
        Whose average categorical entropies are wanted, of model and data: they approach each other in training. Those
        that see the support alone (χ², Rényi of order 2) are the same for all softmax kernels without masks.
    level, seed
        Of the bootstrap.
    max_memory, num_threads, progress
        As in `softmax_stats`.

    Returns
    -------
    NLLDecomposition, or NLLCurves for a sequence of models

    Raises
    ------
    ShapeError
        Kernels between other sets; weights, groups or steps of another length.
    ValueRangeError
        Features of other contexts, naming the first; a kernel alone, without text or data; steps that do not rise.
    DTypeError

    Notes
    -----
    Cross-entropy and KL are infinite where the model forbids what the data does.
    Of two softmax kernels nothing of size ``n × V`` is made: entropies come from one pass over each, KL from one over
    both, cross-entropy from a panel product of the data's kernel and the model's head, or from float64 tiles of logits
    if the model has soft-capping (about four times the cost): ``6 n V (d + d')`` flops in all.
    How small the residual can be depends on what rounding does to each term. From dense and sparse matrices of float64
    it is some ``m 2^-53`` times the largest ``|log p|``; rows that came in float32 sum to 1 within 1e-7 or so only, and
    the residual shows it. A softmax kernel has float32 logits, off by η = 1e-7 to 1e-6 of ``|W| |h|``: a row's terms
    are off by about η, of either sign, their mean by less. KL alone is exact beyond that for a model with the data's
    own head (`divergence`).
    Source: arXiv 2507.19247, Thm 5.1 and 5.2, Eq. 4.4; theory §6.

    Examples
    --------
    >>> import markovlm as mk
    >>> language = mk.Kernel([[0.5, 0.5], [0.9, 0.1]])
    >>> model = mk.Kernel([[0.75, 0.25], [0.9, 0.1]])
    >>> found = mk.nll_decomposition(model, language, [0.2, 0.8])
    >>> print(f"{found.cross_entropy.value:.4f} = {found.kl.value:.4f} + {found.entropy.value:.4f}")
    0.4275 = 0.0288 + 0.3987
    >>> curves = mk.nll_decomposition([model, language], language, [0.2, 0.8], divergences=[mk.TotalVariation()])
    >>> curves.kl.round(4), curves.entropies[mk.TotalVariation()].round(4)
    (array([0.0288, 0.    ]), array([0.219, 0.244]))
    """
    models = [model] if isinstance(model, (Kernel, Features)) else list(model)
    if not models:
        raise ValueRangeError("model: expected at least one checkpoint, got none")
    if isinstance(model, (Kernel, Features)) and steps is not None:
        raise ValueRangeError("steps: expected none for a single model; pass several checkpoints as a list")
    times = _rising("steps", np.arange(len(models)) if steps is None else steps, len(models))
    if data is None and not all(isinstance(one, Features) for one in models):
        raise ValueRangeError("data: expected a kernel, since a kernel without text has no loss; or pass mk.Features")
    if len({isinstance(one, Features) for one in models}) > 1:
        raise DTypeError("model: expected checkpoints of one kind, got kernels and features; pass either")
    for one in models[1:]:
        _require_same_contexts("model", models[0], one, ("token_ids", "sequence_ids", "targets"))
    if data is not None:
        _require_same_contexts("data", models[0], data, ("token_ids", "sequence_ids"))

    kernels = [_kernel_of(one) for one in models]
    truth = None if data is None else _kernel_of(data)
    first = kernels[0] if truth is None else truth
    for k in (first, *kernels):
        matched(first.domain, k.domain, "model: domain")
        matched(first.codomain, k.codomain, "model: codomain")
        k.evaluate(max_memory=max_memory, num_threads=num_threads)
    n = first.shape[0]
    law = np.ones(n)
    if weights is not None:
        state = isinstance(weights, Kernel)
        law = law_of("weights", weights, first.domain) if state else _checks.row_weights(weights, n)
    sequences = _sequences(groups, n, (models[0], data))
    wanted = [as_divergence(D) for D in divergences]

    passes = _Passes(progress, n, 2 * (truth is not None) + len(models) * (2 if truth is None else 4))
    options = {"max_memory": max_memory, "num_threads": num_threads}
    theirs = None if truth is None else _entropies(truth, None, wanted, passes, options)
    points = []
    for one, k in zip(models, kernels, strict=True):
        ours = _entropies(k, one.targets if isinstance(one, Features) else None, wanted, passes, options)
        terms = _terms(ours, theirs, passes, options)
        counted = law > 0
        if isinstance(one, Features):
            counted &= one.targets != IGNORED_TARGET
        columns = np.column_stack([*terms.values()])[counted]
        averages = bootstrap_mean(
            columns,
            sequences[counted],
            weights=None if weights is None else law[counted],
            level=level,
            seed=seed,
        )
        points.append(_point(dict(zip(terms, averages, strict=True)), wanted, int(counted.sum())))
    passes.end()
    return points[0] if isinstance(model, (Kernel, Features)) else curves_of(times, points)


@dataclass(frozen=True)
class _Entropies:
    """Of each context, as one kernel has them."""

    kernel: Kernel
    stats: SoftmaxStats | None  # of a softmax kernel
    rows: dict[Divergence, FloatArray]  # D -> (n,), KL among them

    @property
    def log_normalizer(self) -> FloatArray | None:
        return None if self.stats is None else self.stats.log_normalizer


def _entropies(
    k: Kernel, targets: IntArray | None, wanted: Sequence[Divergence], passes: _Passes, options: dict[str, Any]
) -> _Entropies:
    softmax, stats, rows = softmax_of(k), None, dict[Divergence, FloatArray]()
    fused, others = passes.next(), passes.next()
    if softmax is not None:
        stats = softmax_stats(softmax, targets, ignore_index=IGNORED_TARGET, progress=fused, **options)
        rows[KL()] = stats.entropy
    missing = [D for D in (KL(), *wanted) if D not in rows]
    if missing:
        rows |= categorical_entropies(k, missing, progress=others, **options)
    return _Entropies(k, stats, rows)


Term: TypeAlias = "str | tuple[str, Divergence]"


def _terms(
    ours: _Entropies, theirs: _Entropies | None, passes: _Passes, options: dict[str, Any]
) -> dict[Term, FloatArray]:
    """Columns to be averaged, (n,) each; those that are known."""
    terms: dict[Term, FloatArray] = {"model_entropy": ours.rows[KL()]}
    if theirs is not None:
        terms["cross_entropy"] = loss = cross_entropies(
            theirs.kernel,
            ours.kernel,
            (theirs.log_normalizer, ours.log_normalizer),
            progress=passes.next(),
            **options,
        )
        terms["kl"] = divergence(theirs.kernel, ours.kernel, KL(), progress=passes.next(), **options)
        terms["entropy"] = theirs.rows[KL()]
        terms |= {("data", D): rows for D, rows in theirs.rows.items()}
    if ours.stats is not None and ours.stats.nll is not None:
        terms["nll"] = loss = ours.stats.nll
    terms["calibration"] = loss - terms["model_entropy"]
    return terms | {("model", D): rows for D, rows in ours.rows.items()}


def _point(averages: dict[Term, Estimate], wanted: Sequence[Divergence], num_contexts: int) -> NLLDecomposition:
    known = {name: averages.get(name) for name in ("cross_entropy", "kl", "entropy", "nll")}
    loss, kl, entropy, _ = known.values()
    residual = None
    if loss is not None and kl is not None and entropy is not None:
        residual = loss.value - kl.value - entropy.value
    return NLLDecomposition(
        **known,
        residual=residual,
        model_entropy=averages["model_entropy"],
        calibration=averages["calibration"],
        entropies={D: averages["model", D] for D in wanted},
        data_entropies={D: averages["data", D] for D in wanted if loss is not None},
        num_contexts=num_contexts,
    )


class _Passes:
    """Progress of several passes over the same contexts as of one."""

    def __init__(self, report: Progress | None, num_contexts: int, count: int) -> None:
        self.report, self.num_contexts, self.total, self.begun = report, num_contexts, count * num_contexts, 0

    def next(self) -> Progress | None:
        """What the next pass is to call."""
        report, total, before = self.report, self.total, self.begun * self.num_contexts
        self.begun += 1
        return None if report is None else lambda done, _: report(before + done, total)

    def end(self) -> None:
        """Say that all is done, though the last pass may have been none."""
        if self.report is not None:
            self.report(self.total, self.total)


def _kernel_of(one: Kernel | Features) -> Kernel:
    return one.softmax_kernel() if isinstance(one, Features) else one


def _require_same_contexts(name: str, first: object, other: object, fields: Sequence[str]) -> None:
    """Of two Features; a kernel says nothing about the text."""
    if not (isinstance(first, Features) and isinstance(other, Features)):
        return
    if other.num_contexts != first.num_contexts:
        raise ShapeError(
            f"{name}: expected the same {first.num_contexts} contexts, got {other.num_contexts}; extract both from the "
            "same texts, with the same tokens and max_tokens"
        )
    for field in fields:
        left, right = (np.asarray(getattr(one, field)) for one in (first, other))
        bad = np.flatnonzero(left != right)
        if bad.size:
            raise ValueRangeError(
                f"{name}: expected the same contexts, but {field} differ first at row {bad[0]}: {left[bad[0]]} and "
                f"{right[bad[0]]}; extract both from the same texts, with the same tokens"
            )


def _sequences(groups: ArrayInput | None, n: int, sources: Sequence[object]) -> IntArray:
    """(n,) sequence ids: those given, those of the first features, or one sequence for all."""
    if groups is None:
        found = [one.sequence_ids for one in sources if isinstance(one, Features)]
        return found[0] if found else np.zeros(n, np.int64)
    ids = _checks.integers("groups", groups)
    if ids.shape != (n,):
        raise ShapeError(f"groups: expected shape ({n},), one per context, got {ids.shape}")
    return ids


def _rising(name: str, value: ArrayInput, length: int) -> FloatArray:
    """(length,) finite float64, each larger than the one before."""
    if np.shape(value) != (length,):
        raise ShapeError(f"{name}: expected shape ({length},), one per checkpoint, got {np.shape(value)}")
    numbers: FloatArray = _checks.columns(name, value, length, "checkpoint")
    bad = np.flatnonzero(np.diff(numbers) <= 0)
    if bad.size:
        raise ValueRangeError(f"{name}: expected rising numbers, got {numbers[bad[0] + 1]:g} after {numbers[bad[0]]:g}")
    return numbers
