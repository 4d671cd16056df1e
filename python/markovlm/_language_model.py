"""A small network trained on a language that is known exactly: what likelihood learns, measured (theory §6)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _checks
from ._features import Features
from ._hidden_markov import HiddenMarkovLanguage
from ._kernels import Kernel
from ._sampling import cumulative, draw
from ._softmax import SoftmaxKernel
from .errors import DTypeError
from .typing import FloatArray, IntArray, Progress

__all__ = ["Checkpoint", "TrainedLanguageModel", "train_language_model"]

CONTEXTS_AT_A_TIME = 4096  # run through the network for a checkpoint


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The model after ``step`` steps of training, on the evaluation contexts."""

    step: int
    features: Features  # one row per evaluation context, each a sequence of its own; targets drawn from k_data

    @property
    def kernel(self) -> SoftmaxKernel:
        """The model's next-token kernel on the evaluation contexts, to be compared with ``k_data`` row by row."""
        return self.features.softmax_kernel()


@dataclass(frozen=True, repr=False, eq=False)
class TrainedLanguageModel:
    """A trained network, what it was on the way, and what it should have learnt.

    For `extract`, also with layers and windows: ``mk.extract(trained.module, texts=list(tokens), layers=None,
    states=trained.states, head=trained.head)``.
    """

    language: HiddenMarkovLanguage
    contexts: IntArray  # (n, T) evaluation contexts
    weights: FloatArray  # (n,) μ: their probabilities, or 1/n where they were sampled
    k_data: Kernel  # (n, V) exact next-token laws after them
    checkpoints: tuple[Checkpoint, ...]  # by step; the last one is the trained model
    losses: FloatArray  # (steps,) nats per token, each step's batch before the step
    module: Any  # torch.nn.Module; module(ids) gives the logits (B, T, V) of (B, T) ids

    def __repr__(self) -> str:
        size = sum(parameter.numel() for parameter in self.module.parameters())
        return (
            f"TrainedLanguageModel({size} parameters, {len(self.losses)} steps, {len(self.checkpoints)} checkpoints, "
            f"{len(self.weights)} evaluation contexts)"
        )

    @staticmethod
    def states(module: Any, ids: Any) -> Any:
        """(T, d) final states for (1, T) ids: the ``states`` of `extract`."""
        return module.states(ids)[0]

    @property
    def head(self) -> tuple[Any, Any]:
        """``(weight, bias)`` of the trained module: the ``head`` of `extract`."""
        return self.module.head.weight, self.module.head.bias


def train_language_model(
    language: HiddenMarkovLanguage,
    *,
    steps: int = 600,
    checkpoints: int | Sequence[int] = 8,
    context_length: int = 8,
    num_contexts: int | None = None,
    length: int = 32,
    batch_size: int = 64,
    hidden_size: int = 32,
    embedding_size: int = 16,
    learning_rate: float = 1e-2,
    seed: int = 0,
    progress: Progress | None = None,
) -> TrainedLanguageModel:
    r"""Train a gated recurrent network on fresh samples of a language, keeping checkpoints on fixed contexts.

    At each checkpoint, exactly, with ``μ = weights`` (Thm 5.1):

    .. math:: \mathbb{E}_{x \sim \mu}\, \mathbb{E}_{w \sim k_{data}(x)} [-\log k_\theta(w \mid x)]
              = \mathbb{E}_x\, KL(k_{data}(x) \| k_\theta(x)) + \bar H(k_{data})

    and as the left side falls, the average categorical entropy of the model goes to that of the data, for every
    divergence (Thm 5.2).

    Parameters
    ----------
    language : HiddenMarkovLanguage
        What to learn.
    steps, batch_size, length : int
        Each step sees ``batch_size`` new sequences of ``length`` contexts. Training loss is an estimate of the
        population's: no sequence is used again.
    checkpoints : int or sequence of int
        How many, in equal ratios of steps with the untrained and the trained model among them; or at which steps, to
        which the last is added.
    context_length, num_contexts : int
        Evaluation contexts are all words of ``context_length`` tokens, weighted by their probability; or
        ``num_contexts`` of them, sampled, with equal weights.
    hidden_size, embedding_size : int
        Widths; the default has some 5,000 parameters.
    learning_rate : float
        Of Adam, reached after a tenth of the steps and lowered to 0 in a line.
    seed : int
        Of weights, samples and targets: the same seed gives the same model on the same machine.
    progress
        Called as ``progress(steps done, steps)``; what it raises ends the training.

    Returns
    -------
    TrainedLanguageModel

    Raises
    ------
    MissingDependencyError
        PyTorch is not installed.
    ValueRangeError, DTypeError
        The message names the argument.

    Notes
    -----
    On one thread, whatever PyTorch's setting, which is put back, as is its random state: some 5 s with the defaults.

    Examples
    --------
    >>> import markovlm as mk
    >>> trained = mk.synthetic.train_language_model(mk.synthetic.mess3())  # doctest: +SKIP
    >>> P = trained.checkpoints[-1].kernel  # doctest: +SKIP
    >>> mk.average_divergence(trained.k_data, P, mk.KL(), trained.weights)  # doctest: +SKIP
    0.0002
    """
    if not isinstance(language, HiddenMarkovLanguage):
        raise DTypeError(f"language: expected a HiddenMarkovLanguage, got {type(language).__name__}")
    numbers = {
        "steps": steps,
        "context_length": context_length,
        "length": length,
        "batch_size": batch_size,
        "hidden_size": hidden_size,
        "embedding_size": embedding_size,
    }
    for name, value in numbers.items():
        _checks.count(name, value, 1, 2**31)
    learning_rate = _checks.positive("learning_rate", learning_rate)
    kept = _steps_kept(checkpoints, steps)
    sampled, drawn = (np.random.default_rng([seed, stream]) for stream in range(2))  # batches; contexts and targets

    from ._load import require

    torch = require("torch")
    contexts, weights = _evaluation_contexts(language, context_length, num_contexts, drawn)
    k_data = language.next_token_kernel(contexts)
    shared = _fields(language, contexts, k_data.matrix, drawn)
    losses = np.empty(steps)
    found = []
    with _reproducible(torch, seed):
        module = _network(torch, language.vocabulary_size, embedding_size, hidden_size)
        optimizer = torch.optim.Adam(module.parameters(), lr=learning_rate)
        warmup = max(1, steps // 10)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / warmup, (steps - step) / max(steps - warmup, 1))
        )
        for step in range(steps + 1):
            if step in kept:
                provenance = {"model": f"{type(module).__name__} of {language!r}", "step": step}
                fields = {**shared, **_read_out(torch, module, contexts), "provenance": provenance}
                found.append(Checkpoint(step, Features(**fields)))
            if step == steps:
                break
            tokens = torch.from_numpy(language._sample(sampled, batch_size, length + 1))
            logits = module(tokens[:, :-1])
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses[step] = loss.item()
            if progress is not None:
                progress(step + 1, steps)
    return TrainedLanguageModel(language, contexts, weights, k_data, tuple(found), losses, module.eval())


def _steps_kept(checkpoints: int | Sequence[int], steps: int) -> set[int]:
    if isinstance(checkpoints, (int, np.integer)):
        number = _checks.count("checkpoints", checkpoints, 1, 2**31)
        spread = np.rint(np.geomspace(1, steps, number - 1)).astype(int).tolist() if number > 2 else []
        return {*spread, *([0] if number > 1 else []), steps}
    return {*(_checks.count("checkpoints", step, 0, steps) for step in checkpoints), steps}


def _evaluation_contexts(
    language: HiddenMarkovLanguage, length: int, number: int | None, rng: np.random.Generator
) -> tuple[IntArray, FloatArray]:
    if number is None:
        words, law, _ = language._enumerate(length, "context_length")
        return words, law
    number = _checks.count("num_contexts", number, 1, 2**31)
    return language._sample(rng, number, length), np.full(number, 1 / number)


def _fields(
    language: HiddenMarkovLanguage, contexts: IntArray, laws: FloatArray, rng: np.random.Generator
) -> dict[str, Any]:
    """What the Features of all checkpoints share: each context is a sequence, its target drawn from its law."""
    n, T = contexts.shape
    each = np.arange(n, dtype=np.int64)
    return {
        "targets": draw(rng, cumulative(laws), each),
        "token_ids": contexts[:, -1].copy(),
        "sequence_ids": each,
        "positions": np.full(n, T - 1, np.int64),
        "text_ids": each,
        "vocabulary": tuple(map(str, range(language.vocabulary_size))),
    }


def _read_out(torch: Any, module: Any, contexts: IntArray) -> dict[str, Any]:
    """The model's part of Features as it is now, in memory of its own."""
    with torch.no_grad():
        blocks = [
            module.states(torch.from_numpy(contexts[first : first + CONTEXTS_AT_A_TIME]))[:, -1].numpy()
            for first in range(0, len(contexts), CONTEXTS_AT_A_TIME)
        ]
        return {
            "hidden": np.concatenate(blocks),
            "head": module.head.weight.numpy().copy(),
            "bias": module.head.bias.numpy().copy(),
            "embedding": module.embedding.weight.numpy().copy(),
        }


@contextmanager
def _reproducible(torch: Any, seed: int) -> Iterator[None]:
    """Random state and number of threads of this training's own; for layers this small threads only wait."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _network(torch: Any, vocabulary: int, embedding_size: int, hidden_size: int) -> Any:
    class RecurrentLanguageModel(torch.nn.Module):  # type: ignore[misc]
        """Embedding, one gated recurrent layer, linear head."""

        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(vocabulary, embedding_size)
            self.recurrent = torch.nn.GRU(embedding_size, hidden_size, batch_first=True)
            self.head = torch.nn.Linear(hidden_size, vocabulary)

        def states(self, ids: Any) -> Any:
            return self.recurrent(self.embedding(ids))[0]

        def forward(self, ids: Any) -> Any:
            return self.head(self.states(ids))

    return RecurrentLanguageModel()
