"""Spectral alignment: whether hidden states line up with the modes of predictive similarity (theory §11)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Literal

import numpy as np
from scipy.special import stdtrit
from threadpoolctl import threadpool_limits

from . import _checks
from ._alignment_result import Alignment
from ._alignment_scores import LayerScores, Sample, Subject, captured, layer_scores, padded
from ._bootstrap import bootstrap_mean, require_level
from ._ext import build_info
from ._features import Features, evenly_spread
from ._modes import NAMED_TOKENS, leading, signs
from ._pairs import Pairs, pairs_of
from ._panels import adjoint_product
from ._similarity import DEFAULT_MEMORY, KINDS, POWERS
from ._softmax import SoftmaxKernel
from ._stability import halves_of
from ._subspaces import orthonormal
from .errors import SampleWarning, ValueRangeError
from .typing import FloatArray, IntArray, Progress

__all__ = ["alignment"]

_NAMED_MODES = 16
_NAMING_CONTEXTS = 2048  # that modes take their tokens from, at most
_MOST_WORKERS = 4  # each has some arrays of states
_CONTEXTS_PER_DIMENSION = 4  # below: random functions capture a quarter of every mode, and more of their best ones
_FEW_SEQUENCES = 10  # percentile intervals of fewer are too short


def alignment(
    features: Features,
    similarity: str = "bhattacharyya",
    ranks: Sequence[int] = (16, 64),
    layers: Literal["all"] | Sequence[int] = "all",
    *,
    beta: float = 1.0,
    num_null: int = 4,
    level: float = 0.95,
    seed: int = 0,
    max_memory: int | None = None,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> Alignment:
    r"""How much of the leading modes of predictive similarity linear functions of hidden states capture, by layer.

    .. math:: \text{captured}_r = \sum_{i \le r} \theta_i \Big/ \sum_{i \le r} \lambda_i \in [0, 1], \qquad
              \theta_i = \lambda_i(U^\top M_K U) \le \lambda_i(M_K)

    ``M_K`` is the centered similarity of the final layer's predictions on ``n`` contexts under the uniform law, with
    eigenfunctions φ; ``U`` an orthonormal basis of the linear functions of the centered states of a layer, in
    :math:`L^2(\mu)`. 1: the r functions of contexts that carry most of the similarity are linear in the states.

    Parameters
    ----------
    features : Features
        With the states of layers, as ``extract(..., layers="all", layer_tokens=n)`` keeps them. All layers are scored
        on the contexts for which layers were kept; without layers the final one is, on all contexts.
    similarity, beta
        As `similarity_operator` has them.
    ranks : sequence of int >= 1
        How many leading modes; each gives a score.
    layers : "all" or sequence of int
        As in `Features.softmax_kernel`; the final one is always there.
    num_null : int >= 2
        Draws of random functions for the null.
    level : float in (0, 1)
        Of intervals and of the null's band.
    seed : int
        Of halves, null, solver and bootstrap.
    max_memory : int, optional
        Bytes, default 1 GiB: where ``4 n²`` are within it, the similarity of all pairs is formed once for all layers;
        else it is applied anew for each of them (theory §9), which takes ``4 n V d`` flops a layer.
    num_threads : int, optional
        Of our own passes; NumPy's products follow their library.
    progress : callable, optional
        ``progress(parts done, parts in all)``; what it raises ends the work.

    Returns
    -------
    Alignment
        Scores of every layer with an interval, its value by chance, and its held-out value.

    Raises
    ------
    ValueRangeError
        Not more contexts than dimensions, where every function is a linear one; states that do not vary, by layer;
        predictions that do not vary; a rank that the contexts do not have.

    Warns
    -----
    SampleWarning
        Fewer than 4 contexts per dimension, one sequence, or few of them. The messages are kept in ``warnings``.

    Notes
    -----
    All scores are unchanged by invertible linear maps and shifts of states. ``cosines`` are of the principal angles
    between linear functions of states and the first r modes; ``modes`` is ``‖Uᵀ φ_i‖²``, the share of each mode's
    variance that is linear in the states; ``correlations`` are canonical ones between states and prototypes ``ḡ_x``.

    In sample, d functions on n contexts capture some of anything: the null is what random functions do, as many as the
    layer has. ``random_share`` is exact, ``null`` the mean of draws with a Student band for one more. Held-out scores
    take directions from one half of the sequences and score them on the other, both ways, where the eigenvalues are
    those of that half; modes are fitted by least squares on one half and tested on the other. Real states overfit more
    than random functions do: a score in sample flatters even after its null is taken off.

    Intervals resample sequences. A bootstrap sample repeats contexts, so that a score of it is flattered like that of
    a smaller sample; we resample the score's influence function instead, the derivative with respect to the weight of
    each context (the infinitesimal jackknife, Efron 1982): for unit f with ``M f = θ f`` on the states' functions,
    ``dθ(x) = 2 f(x) (M f)(x) − θ f(x)² − θ``, ours; for eigenfunctions it is ``λ (φ(x)² − 1)``. They are for the
    directions that were found.

    Cost: ``n T (n + 2 d) + 6 n V d`` flops once, T being V less the rarest tokens, some ``2 n² d + 16 n d² + 30 d³``
    for each layer and draw; ``6 n²`` bytes and 256 MiB, and some ten arrays of n × d for each of up to four layers at
    work. K is off by 1e-5 of ``√(K(x, x) K(x', x'))`` at random, being made in fixed point of 16 bits; and where rare
    tokens, with less than 1 % of the probability, share columns with random signs, by 1e-4 of the trace in the root
    mean square over pairs. On SmolLM2 these move scores by 1e-5 in sample and 4e-5 held out, and single modes, which
    mix where eigenvalues are close, by up to 5e-3. Modes take their tokens from 2,048 contexts at most.

    Source: arXiv 2507.19247, §7, in the form that its later versions condition; Ritz values and principal angles:
    Parlett (1998), Björck & Golub (1973); theory §11.

    Examples
    --------
    >>> import numpy as np, markovlm as mk
    >>> rng = np.random.default_rng(0)
    >>> hidden = rng.normal(size=(400, 3)).astype("float32")
    >>> features = mk.Features(
    ...     hidden=hidden, head=rng.normal(size=(50, 3)).astype("float32"), targets=np.zeros(400, int),
    ...     token_ids=np.zeros(400, int), sequence_ids=np.arange(400) // 20, positions=np.arange(400) % 20)
    >>> found = mk.alignment(features, ranks=[2])
    >>> print(f"{found.score():.2f}, held out {found.score(held_out=True):.2f}, by chance {found.null[-1, 0]:.2f}")
    0.93 [0.91, 0.94], held out 0.93 [0.91, 0.94], by chance 0.01
    """
    similarity, beta = _checks.choice("similarity", similarity, KINDS), _checks.positive("beta", beta)
    require_level(level)
    num_null, seed = _checks.count("num_null", num_null, 2, 2**20), _checks.count("seed", seed, 0, 2**62)
    memory, threads = _checks.memory(max_memory) or DEFAULT_MEMORY, _checks.threads(num_threads)
    numbers, rows = _layers_and_rows(features, layers)
    n, d = len(rows), features.hidden_size
    if n <= d + 1:
        raise ValueRangeError(
            f"features: expected more contexts than dimensions of states, got {n} contexts with layers for {d} "
            "dimensions, where every function is a linear one and alignment is 1 for any states; extract more, with "
            "layer_tokens as large"
        )
    wanted = tuple(sorted({_checks.count("ranks", r, 1, max(n // 2 - 1, 1)) for r in ranks}))
    if not wanted:
        raise ValueRangeError("ranks: expected at least one, got none")
    sequences = features.sequence_ids[rows]
    halves = halves_of(sequences, [seed])
    order = np.concatenate(halves) if halves else np.arange(n)
    rows, groups = rows[order], sequences[order]
    done, total = 0, 4 + len(numbers) + num_null

    def report(part: int = 0, parts: int = 1) -> None:
        if progress is not None:
            progress(round(1000 * (done + part / parts)), 1000 * total)

    P = features.softmax_kernel()[rows]
    K = pairs_of(P, similarity, beta, memory, num_threads, lambda part, parts: report(2 * part, parts))
    done += 2
    workers = min(threads, len(numbers), _MOST_WORKERS)
    subject = _subject(K, [len(half) for half in halves], wanted, seed, num_threads, 1 if workers > 1 else threads)
    doubts = _doubts(n, d, len(np.unique(sequences)), [half.size for half in subject.halves])
    for message in doubts:
        warnings.warn(message, SampleWarning, stacklevel=2)
    done += 1
    tokens = _names(features, P, subject, similarity, num_threads)
    done += 1
    with _pool(workers) as pool:
        at_work = pool.map(lambda number: _scored(features, number, rows, subject), numbers)
        draws = _Draws(pool, subject, num_null, seed)
        draws.begin(d)  # behind the layers, most of which have d functions
        found = []
        for scores in at_work:
            found.append(scores)
            done += 1
            report()
        by_chance = _null(draws, [scores.captured.dimension for scores in found], level)
    done = total
    report()
    result = _Estimated(found, groups, level, seed)
    provenance = {**(features.provenance or {}), "core": build_info()["isa"], "threads": threads}
    return Alignment(
        model=str(provenance.get("model") or "unnamed model"),
        similarity=similarity,
        beta=beta,
        ranks=wanted,
        layers=np.array(numbers, dtype=np.int64),
        num_layers=features.num_layers,
        num_contexts=n,
        num_sequences=len(np.unique(sequences)),
        hidden_size=d,
        dimension=np.array([f.captured.dimension for f in found]),
        prototype_dimension=subject.prototypes.shape[1],
        eigenvalues=subject.whole.values,
        trace=subject.whole.trace,
        ritz_values=np.stack([padded(f.captured.theta, wanted[-1]) for f in found]),
        trace_share=np.array([f.captured.trace for f in found]) / subject.whole.trace,
        captured_value=result.value("in_sample"),
        captured_interval=result.interval("in_sample"),
        held_out_value=result.value("held_out"),
        held_out_interval=result.interval("held_out"),
        null=by_chance[0],
        null_band=by_chance[1],
        null_held_out=by_chance[2],
        null_held_out_band=by_chance[3],
        cosines=np.stack([f.cosines for f in found]),
        modes=np.stack([f.modes for f in found]),
        modes_held_out=1.0 - result.value("modes"),
        modes_held_out_interval=1.0 - result.interval("modes")[..., ::-1],
        correlations=np.stack([f.correlations for f in found]),
        correlations_held_out=np.stack([f.correlations_held_out for f in found]),
        tokens=tokens,
        level=level,
        seed=seed,
        num_null=num_null,
        warnings=doubts,
        provenance=provenance,
    )


class _Estimated:
    """Means over contexts with intervals over sequences: (L, …) and (L, …, 2)."""

    def __init__(self, found: Sequence[LayerScores], groups: IntArray, level: float, seed: int) -> None:
        self.found, self.groups, self.level, self.seed = found, groups, level, seed
        self._of: dict[str, tuple[FloatArray, FloatArray]] = {}

    def _estimates(self, name: str) -> tuple[FloatArray, FloatArray]:
        if name not in self._of:
            each = []
            for scores in self.found:
                weights = None
                if name != "modes":
                    values = getattr(scores.captured, name)
                else:  # errors as shares of what there is to explain
                    errors, weights = scores.modes_held_out
                    values = np.divide(errors, weights, out=np.zeros_like(errors), where=weights > 0)
                    values[np.isnan(weights)] = weights[np.isnan(weights)] = np.nan
                each.append(bootstrap_mean(values, self.groups, weights=weights, level=self.level, seed=self.seed))
            self._of[name] = (
                np.array([[e.value for e in row] for row in each]),
                np.array([[e.interval for e in row] for row in each]),
            )
        return self._of[name]

    def value(self, name: str) -> FloatArray:
        return self._estimates(name)[0]

    def interval(self, name: str) -> FloatArray:
        return self._estimates(name)[1]


def _layers_and_rows(features: Features, layers: Literal["all"] | Sequence[int]) -> tuple[list[int], IntArray]:
    """Numbers of the layers, the final one last, and the contexts on which all of them are known."""
    depth = features.num_layers
    if isinstance(layers, str):
        _checks.choice("layers", layers, ("all",))
        numbers = [*features.layers]
    else:
        numbers = sorted({layer + depth + 1 if layer < 0 else layer for layer in layers} - {depth})
        for number in numbers:
            features.softmax_kernel(number)  # says which there are
    if not numbers or features.layer_rows is None:
        return [depth], np.arange(features.num_contexts)
    return [*numbers, depth], features.layer_rows


def _scored(features: Features, number: int, rows: IntArray, subject: Subject) -> LayerScores:
    states = features.softmax_kernel(number).hidden  # which are finite
    if number != features.num_layers:
        assert features.layer_rows is not None  # for the type checker: layers come with their rows
        rows = np.searchsorted(features.layer_rows, rows)
    states = states[rows]
    basis = orthonormal(np.asarray(states, np.float64))
    if basis.shape[1] == 0:
        raise ValueRangeError(
            f"features: expected states that differ between contexts, got the same everywhere at layer {number}; "
            "leave that layer out"
        )
    return layer_scores(basis, subject)


def _subject(
    K: Pairs, sizes: Sequence[int], ranks: tuple[int, ...], seed: int, num_threads: int | None, layer_threads: int
) -> Subject:
    whole = Sample.of(K, slice(0, K.n), ranks[-1], seed, num_threads)
    ends = np.cumsum([0, *sizes]).tolist()
    each_half = "contexts of each half of the sequences, on which scores are held out"
    halves = [Sample.of(K, slice(a, b), ranks[-1], seed, num_threads, each_half) for a, b in pairwise(ends)]
    return Subject(K, whole, halves, ranks, layer_threads)


def _names(
    features: Features, P: SoftmaxKernel, subject: Subject, similarity: str, num_threads: int | None
) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
    """Leading tokens, of either sign, of the first modes' faces on tokens."""
    some = evenly_spread(P.shape[0], _NAMING_CONTEXTS)
    functions = subject.whole.vectors[some, :_NAMED_MODES]
    if similarity == "prototype":
        faces = P.head.astype(np.float64) @ (subject.K.prototypes[some].T @ functions)
    else:
        known = subject.K.log_normalizer
        known = None if known is None else known[some]
        faces = adjoint_product(
            P[some], functions, POWERS.get(similarity, 0.5), log_normalizer=known, num_threads=num_threads
        )
    faces = faces * signs(faces, functions)

    def names(face: FloatArray, sign: int) -> tuple[str, ...]:
        ids = leading(face, NAMED_TOKENS, sign, 1e-6).tolist()
        return tuple(features.vocabulary[i] if features.vocabulary else f"token {i}" for i in ids)

    return tuple((names(face, 1), names(face, -1)) for face in faces.T)


@contextmanager
def _pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """One BLAS thread for each layer at work, as solvers of small eigenproblems make little use of more.

    An error or an interrupt leaves nothing in the queue.
    """
    with threadpool_limits(1 if workers > 1 else None, user_api="blas"):
        pool = ThreadPoolExecutor(workers)
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)


class _Draws:
    """What random functions capture in sample and held out, by their number."""

    def __init__(self, pool: ThreadPoolExecutor, subject: Subject, count: int, seed: int) -> None:
        self.pool, self.subject, self.count, self.seed = pool, subject, count, seed
        self.of: dict[int, list[Future[FloatArray]]] = {}

    def begin(self, q: int) -> None:
        if q not in self.of:
            self.of[q] = [self.pool.submit(self._one, i, q) for i in range(self.count)]

    def _one(self, i: int, q: int) -> FloatArray:
        random = np.random.default_rng([self.seed, i]).standard_normal((self.subject.whole.size, q))
        scores = captured(orthonormal(random), self.subject)
        return np.stack([scores.in_sample.mean(axis=0), scores.held_out.mean(axis=0)])


def _null(
    draws: _Draws, dimension_of: Sequence[int], level: float
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Of each layer: mean and band of what as many random functions capture in sample, and held out."""
    for q in dimension_of:
        draws.begin(q)
    drawn = np.array([[draw.result() for draw in draws.of[q]] for q in dimension_of])  # (L, draws, 2, R)
    width = float(stdtrit(draws.count - 1, (1 + level) / 2)) * np.sqrt(1 + 1 / draws.count)  # Student's
    mean, spread = drawn.mean(axis=1), width * drawn.std(axis=1, ddof=1)
    band = np.stack([mean - spread, mean + spread], axis=-1)
    return mean[:, 0], band[:, 0], mean[:, 1], band[:, 1]


def _doubts(n: int, d: int, sequences: int, halves: Sequence[int]) -> tuple[str, ...]:
    """What the sample cannot carry."""
    found = []
    if n < _CONTEXTS_PER_DIMENSION * d:
        found.append(
            f"alignment: {n} contexts for {d} dimensions flatter every score in sample; compare with the null and with "
            f"what is held out, or take {_CONTEXTS_PER_DIMENSION * d} contexts or more"
        )
    if sequences < 2:
        found.append("alignment: a single sequence leaves no interval and nothing to hold out; take more text")
    elif sequences < _FEW_SEQUENCES:
        found.append(f"alignment: intervals rest on {sequences} sequences and are too short; take more text")
    if halves and min(halves) <= d + 1:
        found.append(
            f"alignment: nothing is held out, since half of the text has {min(halves)} contexts for {d} dimensions; "
            "take more"
        )
    return tuple(found)
