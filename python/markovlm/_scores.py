"""How drafts do at the contexts of a text, step by step, and where rounds of drafting start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from . import _checks
from ._bootstrap import Estimate, bootstrap_mean
from ._divergences import KL, TotalVariation
from ._drafting import DraftHead, Starts
from ._features import IGNORED_TARGET, Features
from ._ngrams import ngram_losses
from ._operators import share
from ._softmax import softmax_stats
from .errors import ValueRangeError
from .typing import FloatArray, IntArray, Progress

__all__ = [
    "Score",
    "expected_accepted_length",
    "mixed",
    "mixture",
    "reached_and_lengths",
    "round_starts",
    "score",
    "tokens_of",
]


@dataclass(frozen=True)
class Score:
    """Of the rows that are scored, at one step; (m,) each."""

    kl: FloatArray
    kl_without: FloatArray
    accepted: FloatArray  # 1 − TV
    accepted_without: FloatArray
    accepted_token: FloatArray  # min(1, q / p) of the text's own token
    accepted_token_without: FloatArray
    loss: FloatArray
    loss_without: FloatArray
    model_loss: FloatArray
    entropy: FloatArray


def score(
    heads: Sequence[DraftHead],
    scored: Starts,
    chosen: Starts,
    k: int,
    fitted: Sequence[IntArray],
    num_threads: int | None,
    report: Callable[[], None],
) -> Score:
    """Step k of a head that sees the state and of one that does not; mixtures are of ``chosen`` contexts."""
    P = scored.features.softmax_kernel()[scored.rows + k]
    own = softmax_stats(P, scored.targets(k), num_threads=num_threads)
    assert own.nll is not None  # for the type checker
    losses, losses_chosen, divergences = [], [], []
    report()
    for head in heads:
        Q = head.kernel(k, scored.states(), scored.tokens(k))
        D = [KL(), TotalVariation()]
        stats = softmax_stats(Q, scored.targets(k), reference=P, divergences=D, num_threads=num_threads)
        Q = head.kernel(k, chosen.states(), chosen.tokens(k))
        of_chosen = softmax_stats(Q, chosen.targets(k), num_threads=num_threads).nll
        assert stats.nll is not None
        assert of_chosen is not None
        losses.append(stats.nll)
        losses_chosen.append(of_chosen)
        divergences.append([stats.divergences[d] for d in D])
        report()
    for rows, columns in ((scored, losses), (chosen, losses_chosen)):
        columns.append(ngram_losses(fitted, rows.tokens(k), rows.targets(k), P.shape[1]))
    loss, chooses = np.column_stack(losses), np.column_stack(losses_chosen)
    return Score(
        kl=divergences[0][0],
        kl_without=divergences[1][0],
        accepted=1 - divergences[0][1],
        accepted_without=1 - divergences[1][1],
        accepted_token=np.exp(np.minimum(0.0, own.nll - losses[0])),
        accepted_token_without=np.exp(np.minimum(0.0, own.nll - losses[1])),
        loss=mixed(loss, mixture(chooses)),
        loss_without=mixed(loss[:, 1:], mixture(chooses[:, 1:])),
        model_loss=own.nll,
        entropy=own.entropy,
    )


def round_starts(tokens: FloatArray, rows: IntArray) -> FloatArray:
    r"""(m,) probability that a round of drafting starts at each of some contexts, in stretches of consecutive ``rows``.

    From a start, step j of the draft is accepted with probability ``tokens[:, j − 1]`` if those before it were; the
    next round starts at the token after the last accepted one. The first context of a stretch is a start.
    """
    m, steps = tokens.shape
    out = np.zeros(m)
    begins = np.concatenate([[True], np.diff(rows) != 1])
    for i in range(m):
        if begins[i]:
            out[i] = 1.0
        here = out[i]
        for j in range(steps + 1):
            following = i + j + 1
            if following >= m or begins[following]:
                break
            accepted = tokens[i, j] if j < steps else 0.0
            out[following] += here * (1 - accepted)
            here *= accepted
    return out


def reached_and_lengths(accepted: FloatArray, tokens: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Of a round from each context: (m, K − 1) whether it comes to a step, and (m,) tokens that are expected.

    ``accepted`` is 1 − TV of each step, ``tokens`` what round_starts takes. The text stands for what the model would
    have written in all steps but the last.
    """
    reached = np.cumprod(np.column_stack([np.ones(len(tokens)), tokens[:, :-1]]), axis=1)
    return np.asarray(reached), np.asarray(1 + (reached * accepted).sum(axis=1))


def expected_accepted_length(
    draft: DraftHead,
    features: Features,
    *,
    first_position: int = 0,
    level: float = 0.95,
    seed: int = 0,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> Estimate:
    r"""Tokens per pass of the model that speculative sampling with a draft head would give along a text.

    .. math:: \frac{\sum_t s_t L_t}{\sum_t s_t}, \qquad
              L_t = 1 + \sum_{k=1}^{K-1} \bigl( 1 - \mathrm{TV}(p_{t+k}, q_k) \bigr) \prod_{j<k} a_{tj}, \qquad
              a_{tj} = \min \Bigl( 1, \frac{q_j(w_{t+j})}{p_{t+j}(w_{t+j})} \Bigr)

    ``s_t`` is the probability that a round starts at t: the first context of a sequence starts one, and ``a_{tj}`` is
    the probability that a draft was accepted, given the token that is there. Exact for a text that the model drew, such
    as what `speculative_decode` returns; on other text its tokens stand for the model's.

    Parameters
    ----------
    draft : DraftHead
        As `surplus` fits it, on other text.
    features : Features
        Of the model and text; contexts with K known tokens after them count.
    first_position : int
        Of the contexts that count in each sequence: after a prompt of m tokens, m − 1 is where drafting starts.
    level, seed
        Of the bootstrap over sequences (2,000 resamples).
    num_threads, progress
        As in `softmax_stats`; progress counts contexts × steps.

    Returns
    -------
    Estimate
        In [1, K]. Cost: ``6 n (K − 1) V d`` flops.

    Examples
    --------
    >>> import markovlm as mk
    >>> language = mk.synthetic.copy_language(length=2)
    >>> draft = mk.surplus(language.features(200, 12), horizon=2).draft
    >>> round(mk.expected_accepted_length(draft, language.features(20, 12, seed=1)).value, 2)
    2.0
    """
    starts = Starts.of(features, draft.horizon, features.hidden)
    starts = starts[features.positions[starts.rows] >= _checks.count("first_position", first_position, 0, 2**62)]
    if not len(starts):
        raise ValueRangeError(
            f"first_position: expected one with {draft.horizon} contexts or more after it in some sequence, got "
            f"{first_position}"
        )
    model, steps = features.softmax_kernel(), draft.horizon - 1
    columns = []
    for k in range(1, draft.horizon):
        P, Q = model[starts.rows + k], draft.kernel(k, starts.states(), starts.tokens(k))
        own = softmax_stats(P, starts.targets(k), num_threads=num_threads).nll
        stats = softmax_stats(
            Q,
            starts.targets(k),
            reference=P,
            divergences=[TotalVariation()],
            num_threads=num_threads,
            progress=share(progress, k - 1, steps),
        )
        assert own is not None  # for the type checker: targets were given
        assert stats.nll is not None
        columns.append((1 - stats.divergences[TotalVariation()], np.exp(np.minimum(0.0, own - stats.nll))))
    accepted, tokens = (np.stack(part, axis=1) for part in zip(*columns, strict=True))
    expected = reached_and_lengths(accepted, tokens)[1][:, None]
    weights = round_starts(tokens, starts.rows)
    return bootstrap_mean(expected, starts.sequences, weights=weights, level=level, seed=seed)[0]


def tokens_of(features: Features, number: int) -> IntArray:
    """All tokens of a sequence, the last target too where it is known."""
    rows = np.flatnonzero(features.sequence_ids == number)
    last = features.targets[rows[-1:]]
    return np.concatenate([features.token_ids[rows], last[last != IGNORED_TARGET]])


def mixture(losses: FloatArray, steps: int = 100) -> FloatArray:
    """(c,) weights of predictors whose mixture has the least loss on some rows (m, c): expectation–maximisation."""
    q = np.exp(losses.min(axis=1, keepdims=True) - losses)
    weights = np.full(losses.shape[1], 1 / losses.shape[1])
    for _ in range(steps):
        shares = weights * q
        weights = (shares / shares.sum(axis=1, keepdims=True)).mean(axis=0)
    return weights


def mixed(losses: FloatArray, weights: FloatArray) -> FloatArray:
    least = losses.min(axis=1, keepdims=True)
    return np.asarray(least[:, 0] - np.log(np.exp(least - losses) @ weights))
