"""Information surplus: what states know about tokens beyond the next one, and what a draft head gains (theory §7)."""

from __future__ import annotations

import warnings

import numpy as np

from . import _checks
from ._bootstrap import Estimates, bootstrap_mean, require_level
from ._drafting import DraftHead, Starts, fitted_heads, with_temperatures
from ._ext import build_info
from ._features import IGNORED_TARGET, Features, evenly_spread
from ._layer_surplus import layer_surplus
from ._scores import reached_and_lengths, round_starts, score, tokens_of
from ._surplus_result import Surplus
from .errors import SampleWarning, ShapeError, ValueRangeError
from .typing import ArrayInput, FloatArray, IntArray, Progress

__all__ = ["FAMILIES", "FEWEST_SEQUENCES", "surplus"]

FAMILIES = ("linear", "mlp")

FEWEST_SEQUENCES = 4  # one to fit, one to choose by, two whose spread is seen
_FEW_SEQUENCES = 10  # that are scored: with less, percentile intervals are too short
_ROWS_PER_INPUT = 4
_MOST_INPUTS = 2**14  # of a map: their moments take 2 GiB, several times over
_VALIDATION_ROWS = 192  # that temperatures and mixtures are chosen by


def surplus(
    features: Features,
    horizon: int = 4,
    *,
    states: ArrayInput | None = None,
    family: str = FAMILIES[0],
    max_rows: int = 1024,
    layer_rows: int = 192,
    level: float = 0.95,
    seed: int = 0,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> Surplus:
    r"""What a draft head could gain on this model and this text, before one is trained; and what states know at most.

    .. math:: I(H_t; W_{t:t+K-1}) = I(H_t; W_t) + \mathrm{Surplus}_K, \qquad
              \mathrm{Surplus}_K = I(H_t; F \mid W_t), \quad F = W_{t+1:t+K-1}

    ``H_t`` is the state that ``W_t`` is predicted from, and ``p_t`` that prediction. Three levels:

    .. math:: \text{upper bound} = \sum_{k=1}^{K-1} \mathbb{E}\bigl[ -\log r_k(w_{t+k} \mid w_t \dots w_{t+k-1})
              - H(p_{t+k}) \bigr]

    .. math:: \text{usable} = \sum_{k=1}^{K-1} \mathbb{E}\bigl[ \log q'_k(w_{t+k} \mid h_t, w_t \dots w_{t+k-1})
              - \log r_k(w_{t+k} \mid w_t \dots w_{t+k-1}) \bigr]

    .. math:: \alpha_k = \mathbb{E}[1 - \mathrm{TV}(p_{t+k}, q_k)], \qquad
              \text{tokens per round} = 1 + \sum_{k=1}^{K-1} \prod_{j \le k} \alpha_{j \mid \text{accepted so far}}

    ``q_k`` is a `DraftHead`: ridge regression to the state ``h_{t+k}``, then the model's own head and one temperature.
    ``r_k`` is the best mixture of the same without ``h_t`` and of interpolated counts of up to k + 1 tokens; ``q'_k``
    that of ``q_k`` and both. All is fitted on some sequences, chosen on others, and scored on yet others.

    Parameters
    ----------
    features : Features
        With ``embedding``, as `extract` makes them. Step 1 is also drafted from each layer that was kept, on the
        contexts that it was kept for.
    horizon : int >= 2
        K, the tokens of a round: one drawn by the model, K − 1 drafted. A sequence needs K contexts or more.
    states : (n, any) floating point, optional
        What the draft sees instead of the final states: of another layer, model, or shuffled ones.
    family : "linear" or "mlp"
        Of predictors. With ``"mlp"`` a network with one hidden layer of 256 units is added to each map of the draft and
        trained by PyTorch for 12 epochs, with early stopping; layers are still read by maps alone.
    max_rows, layer_rows : int
        Contexts to score, in stretches of consecutive ones, as many of each sequence; and for the curve over layers.
    level, seed
        Of the intervals, and of the split and the bootstrap over scored sequences (2,000 resamples).
    num_threads : int, optional
        For passes over the head; NumPy's own products follow their library.
    progress : callable, optional
        ``progress(parts done, parts in all)``; what it raises ends the work.

    Returns
    -------
    Surplus

    Raises
    ------
    ValueRangeError, ShapeError
        No embeddings; fewer than 4 sequences of K contexts; states that do not fit.

    Warns
    -----
    SampleWarning
        Fewer than 10 sequences are scored, or fewer than 4 contexts per input of the largest map are fitted. The
        messages are kept in ``warnings``.

    Notes
    -----
    The upper bound holds for any ``r_k``, in expectation over text that the model itself would write: ``H(p_{t+k})``
    stands for the loss of the best predictor that knows the context, which on other text it is only as far as the
    model is calibrated (`nll`). Usable is what these predictors use (Xu et al. 2020, predictive V-information): another
    family may use more. Both may come out below 0 by chance, and are not cut off. ``kl`` has less variance than losses.

    Rounds of speculative sampling do not start everywhere alike: more of them start where drafts fail. Given a text
    that the model wrote, step j is accepted with probability ``min(1, q_j / p_j)`` of the text's own token, so that
    rounds along the text are a Markov chain, whose expectation is taken exactly: ``expected_accepted_length`` and
    ``conditional_acceptance`` are averages over its rounds, the last step of each by its TV. On text by others the
    tokens are the text's in the place of the model's: `expected_accepted_length` does the same along any other text.

    Intervals are for the fitted head: they do not cover what another split would have fitted. Sequences of one text may
    be on both sides of the split, which flatters a draft as far as they are alike. Cost: ``n p²`` flops for
    ``p = d + (K − 1) e`` inputs and their solution, ``O(p³)`` for each penalty; then some 40 (K − 1) passes over 192
    contexts, 6 (K − 1) over those that are scored, each ``2 V d`` flops per context. Memory ``8 p²`` bytes a few times.
    Source: arXiv 2507.19247, Eq. 4.1–4.2; Leviathan et al. (2023), *Fast inference from transformers via speculative
    decoding*, for acceptances; theory §7.

    Examples
    --------
    >>> import numpy as np, markovlm as mk
    >>> rng = np.random.default_rng(0)  # 0 1 2 3 0 1 2 3 … from anywhere: the next token tells all, the state no more
    >>> tokens = (rng.integers(0, 4, (40, 1)) + np.arange(13)) % 4
    >>> ids, one = tokens[:, :-1].ravel(), np.eye(4, dtype="float32")
    >>> features = mk.Features(
    ...     hidden=9 * one[(ids + 1) % 4], head=one, embedding=one, targets=tokens[:, 1:].ravel(), token_ids=ids,
    ...     sequence_ids=np.repeat(np.arange(40), 12), positions=np.tile(np.arange(12), 40))
    >>> found = mk.surplus(features, horizon=3)
    >>> found.acceptance.value.round(2), round(found.expected_accepted_length.value, 2)
    (array([1., 1.]), 3.0)
    >>> abs(found.usable.value) < 0.01
    True
    """
    horizon, family = _checks.count("horizon", horizon, 2, 2**31), _checks.choice("family", family, FAMILIES)
    for name, value in (("max_rows", max_rows), ("layer_rows", layer_rows)):
        _checks.count(name, value, 1, 2**62)
    require_level(level)
    rng = np.random.default_rng(_checks.count("seed", seed, 0, 2**63 - 1))
    if features.embedding is None:
        raise ValueRangeError(
            "features: expected embeddings of the tokens, which drafts are made from, got none; extract again, or set "
            "them: dataclasses.replace(features, embedding=...) of shape (V, e)"
        )
    _checks.model_matrix("features.embedding", features.embedding, "(V, e)")
    _checks.target_ids(features.targets, features.num_contexts, features.vocabulary_size, IGNORED_TARGET)
    seen = features.hidden if states is None else _checks.model_matrix("states", states, "(n, d)")
    if len(seen) != features.num_contexts:
        raise ShapeError(f"states: expected {features.num_contexts} rows, one for each context, got {len(seen)}")
    starts = Starts.of(features, horizon, seen)
    inputs = 1 + seen.shape[1] + (horizon - 1) * features.embedding.shape[1]
    if inputs > _MOST_INPUTS:
        raise ValueRangeError(
            f"horizon: {horizon} tokens make maps of {inputs} inputs, expected at most {_MOST_INPUTS}, whose products "
            "fill 2 GiB; look less far"
        )
    parts = _split(starts.sequences, horizon, rng)
    train, validation, test = (starts.of_sequences(part) for part in parts)
    scored = test[_stretches(test.sequences, max_rows, rng)]
    steps, networks = range(1, horizon), family == "mlp"
    has_layers = features.layer_hidden is not None and bool(features.layers)
    work = _Work(progress, 2 + (7 + 2 * networks) * len(steps) + (len(features.layers) + 2 if has_layers else 0))
    heads, penalties = fitted_heads(
        train, validation, horizon, (True, False), _VALIDATION_ROWS, num_threads, work.report
    )
    if networks:
        from ._draft_network import with_networks

        for i, head in enumerate(heads):
            head = with_networks(head, train, validation, seed, work.report)
            heads[i] = with_temperatures(head, validation, _VALIDATION_ROWS, num_threads, lambda: None)
    chosen = validation[evenly_spread(len(validation), _VALIDATION_ROWS)]
    fitted = [tokens_of(features, number) for number in parts[0]]
    scores = [score(heads, scored, chosen, k, fitted, num_threads, work.report) for k in steps]
    layers = None
    if has_layers:
        layers = layer_surplus(features, parts, layer_rows, penalties, level, seed, num_threads, work.report)
    work.finish()

    groups = scored.sequences

    def column(name: str) -> FloatArray:
        return np.stack([getattr(step, name) for step in scores], axis=1)

    def means(values: FloatArray, weights: FloatArray | None = None) -> Estimates:
        return Estimates.of(bootstrap_mean(values, groups, weights=weights, level=level, seed=seed))

    accepted, tokens = column("accepted"), column("accepted_token")
    reached, _ = reached_and_lengths(accepted, tokens)
    row_starts = round_starts(tokens, scored.rows)

    def drafting(accepted: FloatArray, tokens: FloatArray) -> Estimates:
        found = []
        for k in steps:
            weights = round_starts(tokens[:, :k], scored.rows)
            found.append(means(reached_and_lengths(accepted[:, :k], tokens[:, :k])[1][:, None], weights)[0])
        return Estimates.of(found)

    drafted = drafting(accepted, tokens)
    gain, bound = column("loss_without") - column("loss"), column("loss_without") - column("entropy")
    doubts = _doubts((len(parts[2]), len(train)), heads[0])
    for message in doubts:
        warnings.warn(message, SampleWarning, stacklevel=2)
    texts = features.target_texts()
    provenance = {**(features.provenance or {}), "core": build_info()["isa"], "threads": _checks.threads(num_threads)}
    provenance["surplus_seed"] = seed
    return Surplus(
        model=str(provenance.get("model") or "unnamed model"),
        horizon=horizon,
        usable=means(gain.sum(axis=1, keepdims=True))[0],
        upper_bound=means(bound.sum(axis=1, keepdims=True))[0],
        acceptance=means(accepted),
        expected_accepted_length=drafted[-1],
        lengths=drafted,
        lengths_without=drafting(column("accepted_without"), column("accepted_token_without")),
        acceptance_without=means(column("accepted_without")),
        conditional_acceptance=means(accepted, row_starts[:, None] * reached),
        kl=means(column("kl")),
        kl_without=means(column("kl_without")),
        usable_steps=means(gain),
        upper_bound_steps=means(bound),
        loss=means(column("loss")),
        loss_without=means(column("loss_without")),
        model_loss=means(column("model_loss")),
        model_entropy=means(column("entropy")),
        layers=layers,
        rows=scored.rows,
        sequence_ids=groups,
        row_acceptance=accepted,
        row_starts=row_starts,
        text=tuple(texts[row + 1] for row in scored.rows.tolist()),
        num_sequences=(len(parts[0]), len(parts[1]), len(parts[2])),
        num_rows=(len(train), len(validation), len(scored)),
        warnings=doubts,
        provenance=provenance,
        family=family,
        other_states=states is not None,
        draft=heads[0],
    )


def _split(sequences: IntArray, horizon: int, rng: np.random.Generator) -> tuple[IntArray, IntArray, IntArray]:
    """Sequences to fit with (a half), to choose by (a sixth) and to score (a third)."""
    numbers = rng.permutation(np.unique(sequences))
    if len(numbers) < FEWEST_SEQUENCES:
        raise ValueRangeError(
            f"features: expected at least {FEWEST_SEQUENCES} sequences of {horizon} contexts or more, of which some "
            f"are fitted and others scored, got {len(numbers)}; take more text, or extract with a smaller "
            "context_length"
        )
    test, validation = max(2, round(len(numbers) / 3)), max(1, round(len(numbers) / 6))
    return np.sort(numbers[test + validation :]), np.sort(numbers[test : test + validation]), np.sort(numbers[:test])


def _stretches(sequences: IntArray, most: int, rng: np.random.Generator) -> IntArray:
    """Of each sequence as many consecutive contexts, at a random place; indices."""
    numbers = np.unique(sequences)
    length = max(1, most // len(numbers))
    found = []
    for number in numbers:
        own = np.flatnonzero(sequences == number)
        first = int(rng.integers(0, max(len(own) - length, 0) + 1))
        found.append(own[first : first + length])
    return np.concatenate(found)


def _doubts(sizes: tuple[int, int], head: DraftHead) -> tuple[str, ...]:
    """What the sample cannot carry."""
    (sequences, rows), inputs = sizes, len(head.maps[-1])
    found = []
    if sequences < _FEW_SEQUENCES:
        found.append(
            f"surplus: intervals rest on {sequences} sequences and are too short for less than {_FEW_SEQUENCES}; take "
            "more text, or a smaller context_length"
        )
    if rows < _ROWS_PER_INPUT * inputs:
        found.append(
            f"surplus: maps of up to {inputs} inputs were fitted on {rows} contexts; on more than "
            f"{_ROWS_PER_INPUT * inputs} a draft head would do better"
        )
    return tuple(found)


class _Work:
    """Parts done, of all."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.done, self.total = progress, 0, total

    def report(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(min(self.done, self.total), self.total)

    def finish(self) -> None:
        if self.progress is not None:
            self.progress(self.total, self.total)
