"""Models and drafts for speculative decoding, all outcomes of its random decisions, and what a text predicts of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import markovlm as mk
from markovlm._drafting import DraftHead
from markovlm.typing import FloatArray, IntArray
from tiny_models import tiny


def chain_model(M: FloatArray) -> Any:
    """A language model whose every context ends in a token w and is followed by the law ``M[w]``, (V, V)."""
    V = len(M)
    model = tiny("llama", vocab_size=V, num_hidden_layers=1, max_position_embeddings=256)
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        states = model.model(torch.arange(V)[:, None]).last_hidden_state[:, 0].double()
        # The logits wanted, from states that are independent: V of them, and wider than V.
        model.lm_head.weight.copy_(torch.linalg.lstsq(states, torch.from_numpy(np.log(M))).solution.T)
    return model


def chain_draft(model: Any, horizon: int, laws: FloatArray | None = None, by_first: bool = False) -> DraftHead:
    """For a chain model: step k drafts from ``laws[w_{t+k−1}]``, default the model's own, or from ``laws[w_t]``."""
    V = model.config.vocab_size
    features = mk.extract(model, texts=[range(V)] * 2, layers=None)
    assert features.embedding is not None
    W = features.head.astype(np.float64)
    with torch.no_grad():
        states = model.model(torch.arange(V)[:, None]).last_hidden_state[:, 0].numpy()
    if laws is not None:
        states = np.linalg.lstsq(W, np.log(laws).T, rcond=None)[0].T
    E = np.linalg.lstsq(features.embedding.astype(np.float64), states, rcond=None)[0]  # e(w) E = states[w]
    width, e = features.hidden_size, len(E)
    maps = []
    for step in range(1, horizon):
        A = np.zeros((1 + width + step * e, width), np.float32)
        at = 1 + width + (0 if by_first else step - 1) * e
        A[at : at + e] = E
        maps.append(A)
    return DraftHead(tuple(maps), (1.0,) * (horizon - 1), features.embedding, features.softmax_kernel())


def fitted_draft(model: Any, horizon: int, seed: int = 0) -> DraftHead:
    """Ridge regression on random ids: a draft of middling quality."""
    V, T = model.config.vocab_size, 60
    texts = np.random.default_rng(seed).integers(0, V, (16, T))
    features = mk.extract(model, texts=list(texts), layers=None)
    assert features.embedding is not None
    maps = []
    for k in range(1, horizon):
        rows = np.flatnonzero(features.positions < T - 1 - k)
        seen = [features.embedding[features.targets[rows + j]] for j in range(k)]
        X = np.concatenate([np.ones((len(rows), 1)), features.hidden[rows], *seen], axis=1)
        G = X.T @ X + 1e-3 * len(X) * np.eye(X.shape[1])
        maps.append(np.linalg.solve(G, X.T @ features.hidden[rows + k]).astype(np.float32))
    return DraftHead(tuple(maps), (1.0,) * (horizon - 1), features.embedding, features.softmax_kernel())


class Outcome:
    """Random decisions that follow a script, then the first of all possible ones; stands in for ``Chance``."""

    def __init__(self, script: list[int]) -> None:
        self.script, self.options, self.probability = script, list[int](), 1.0

    def _decide(self, values: list[Any], probabilities: list[float]) -> Any:
        possible = [i for i, p in enumerate(probabilities) if p > 0]
        place = len(self.options)
        if place == len(self.script):
            self.script.append(0)
        self.options.append(len(possible))
        which = possible[self.script[place]]
        self.probability *= probabilities[which]
        return values[which]

    def choose(self, law: FloatArray) -> int:
        return int(self._decide(list(range(len(law))), law.tolist()))

    def happens(self, probability: float) -> bool:
        return bool(self._decide([True, False], [probability, 1 - probability]))


def outcomes(run: Callable[[Outcome], Any]) -> Iterator[tuple[Any, float]]:
    """What ``run`` gives for all possible sequences of decisions, with their probabilities."""
    script: list[int] = []
    while True:
        outcome = Outcome(script)
        yield run(outcome), outcome.probability
        while script and script[-1] + 1 == outcome.options[len(script) - 1]:
            script.pop()
        if not script:
            return
        script[-1] += 1


def laws(kernel: mk.SoftmaxKernel, temperature: float = 1.0) -> FloatArray:
    """(n, V) of the kernel at another temperature, by the definition."""
    z = kernel.logits() / temperature
    P = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(P / P.sum(axis=1, keepdims=True))


@dataclass
class Along:
    """Of a round from each context of a text, as far as the text goes on."""

    rows: IntArray  # (m,) contexts
    accepts: FloatArray  # (m, K − 1) probability that w_{t+k} of the text, as an output token, was a draft
    expected_length: FloatArray  # (m,) 1 + Σ_k Π_{j<k} a_j (1 − TV_k)


def along(features: mk.Features, draft: DraftHead) -> Along:
    steps = draft.horizon - 1
    rows = np.flatnonzero(features.sequence_ids[: len(features.hidden) - steps] == features.sequence_ids[steps:])
    P = laws(features.softmax_kernel())
    accepts = np.empty((len(rows), steps))
    overlap = np.empty((len(rows), steps))
    for k in range(1, steps + 1):
        seen = features.targets[rows[:, None] + np.arange(k)]
        p, q = P[rows + k], laws(draft.kernel(k, features.hidden[rows], seen))
        token = features.targets[rows + k][:, None]
        ratio = np.take_along_axis(q, token, axis=1) / np.take_along_axis(p, token, axis=1)
        accepts[:, k - 1] = np.minimum(1.0, ratio[:, 0])
        overlap[:, k - 1] = np.minimum(p, q).sum(axis=1)  # 1 − TV
    reached = np.cumprod(np.column_stack([np.ones(len(rows)), accepts[:, :-1]]), axis=1)
    return Along(rows, accepts, 1.0 + (reached * overlap).sum(axis=1))


def start_probabilities(found: Along, first: IntArray) -> FloatArray:
    """(m,) that a round starts there, if one does at the rows ``first``, one of each sequence."""
    size = int(found.rows[-1]) + found.accepts.shape[1] + 2
    starts = np.zeros(size)
    starts[first] = 1.0
    for row, accepts in zip(found.rows, found.accepts, strict=True):
        reached = starts[row]
        for k, a in enumerate(accepts, start=1):
            starts[row + k] += reached * (1 - a) * (row + k not in first)
            reached *= a
        after = row + len(accepts) + 1
        starts[after] += reached * (after not in first)
    return starts[found.rows]
