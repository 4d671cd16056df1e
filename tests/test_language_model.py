"""A small network trained on a language that is known: losses split up exactly, and what is learnt comes near it."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import markovlm as mk
import reference
from markovlm import synthetic
from markovlm.errors import DTypeError, MarkovLMError, ValueRangeError
from markovlm.synthetic import TrainedLanguageModel
from reference import Bounds

LANGUAGE = synthetic.mess3()
TINY: dict[str, Any] = {"length": 8, "batch_size": 4, "hidden_size": 4, "embedding_size": 3, "context_length": 3}


@pytest.fixture(scope="module")
def trained() -> TrainedLanguageModel:
    return synthetic.train_language_model(
        LANGUAGE, steps=160, checkpoints=[0, 20, 60], length=16, batch_size=32, hidden_size=16, context_length=5
    )


def test_it_says_what_it_is(trained: TrainedLanguageModel) -> None:
    assert [one.step for one in trained.checkpoints] == [0, 20, 60, 160]
    assert trained.contexts.shape == (3**5, 5)
    words, probabilities = LANGUAGE.words(5)
    assert np.array_equal(trained.contexts, words)
    assert np.array_equal(trained.weights, probabilities)
    assert np.array_equal(trained.k_data.matrix, LANGUAGE.next_token_kernel(words).matrix)
    assert trained.losses.shape == (160,)
    assert repr(trained).startswith("TrainedLanguageModel(1731 parameters, 160 steps, 4 checkpoints, 243 evaluation")
    features = trained.checkpoints[1].features
    assert features.provenance == {
        "model": "RecurrentLanguageModel of HiddenMarkovLanguage(3 states, 3 tokens)",
        "step": 20,
    }
    assert np.array_equal(features.token_ids, words[:, -1])
    assert set(features.positions) == {4}


def test_loss_is_divergence_and_entropy_of_the_data(trained: TrainedLanguageModel) -> None:
    """Thm 5.1, at each checkpoint, with the loss and the divergence from definitions in float64 and from the core."""
    data, weights = trained.k_data.matrix, trained.weights
    entropy = mk.average_categorical_entropy(trained.k_data, mk.KL(), weights)
    for one in trained.checkpoints:
        z = reference.kernel_logits(one.kernel)
        loss = float(weights @ -(data * reference.log_softmax(z)).sum(axis=1))
        kl = float(weights @ (data * (np.log(data) - reference.log_softmax(z))).sum(axis=1))
        rounding = 64 * np.finfo(np.float64).eps * (1 + float(np.abs(z).max()) + 10)  # of sums of 3 terms, log p >= -10
        assert abs(loss - (kl + entropy)) <= rounding
        found = mk.average_divergence(trained.k_data, one.kernel, mk.KL(), weights)
        # the core's log-probabilities enter with weights that sum to 1
        assert abs(found - kl) <= float(Bounds(z, reference.logit_error(one.kernel)).nll.max()) + rounding


def test_what_is_learnt_comes_near_the_language(trained: TrainedLanguageModel) -> None:
    kl = [mk.average_divergence(trained.k_data, c.kernel, mk.KL(), trained.weights) for c in trained.checkpoints]
    assert sorted(kl, reverse=True) == kl
    assert kl[-1] < kl[0] / 20
    best = LANGUAGE.conditional_entropy(8)  # of a token with half the context of a sequence
    assert best - 0.1 < trained.losses[-20:].mean() < best + 0.1  # 20 batches of 512 tokens, spread about 0.6


@pytest.mark.parametrize(
    "D",
    [mk.KL(), mk.TotalVariation(), mk.SquaredHellinger(), mk.JensenShannon(), mk.Renyi(0.5), mk.Renyi(1.5)],
    ids=repr,
)
def test_the_entropy_of_the_model_goes_to_that_of_the_language(trained: TrainedLanguageModel, D: mk.Divergence) -> None:
    """Thm 5.2, for every divergence whose categorical entropy is not a count."""
    goal = mk.average_categorical_entropy(trained.k_data, D, trained.weights)
    gaps = [abs(mk.average_categorical_entropy(c.kernel, D, trained.weights) - goal) for c in trained.checkpoints]
    assert gaps[-1] < gaps[0] / 5


def test_targets_are_drawn_from_the_language() -> None:
    one = synthetic.train_language_model(LANGUAGE, steps=1, checkpoints=1, num_contexts=4000, **TINY)
    (checkpoint,) = one.checkpoints
    assert checkpoint.step == 1
    assert np.array_equal(one.weights, np.full(4000, 1 / 4000))
    data, targets = one.k_data.matrix, checkpoint.features.targets
    surprise = -np.log(np.take_along_axis(data, targets[:, None], axis=1)[:, 0])
    expected = -(data * np.log(data)).sum(axis=1)
    spread = np.sqrt(((data * np.log(data) ** 2).sum(axis=1) - expected**2).sum()) / 4000
    assert abs((surprise - expected).mean()) <= 4 * spread
    seen = np.bincount(one.contexts @ [9, 3, 1], minlength=27) / 4000
    words, p = LANGUAGE.words(3)
    assert np.abs(seen[words @ [9, 3, 1]] - p).max() <= 5 * math.sqrt(p.max() / 4000)


def test_extraction_gives_the_same_states(trained: TrainedLanguageModel) -> None:
    words = trained.contexts[:20]
    ids = np.column_stack([words, trained.checkpoints[-1].features.targets[:20]])
    features = mk.extract(
        trained.module, texts=list(ids), layers=None, states=trained.states, head=trained.head, max_tokens=100
    )
    assert features.num_contexts == 100
    data = LANGUAGE.next_token_kernel(words, every_prefix=True)
    assert np.array_equal(features.token_ids, words.ravel())
    assert data.shape == features.softmax_kernel().shape
    last = features.positions == 4
    assert np.array_equal(features.targets[last], ids[:, -1])
    final = trained.checkpoints[-1].features
    # states are in [-1, 1]; PyTorch's products for another batch size differ by rounding, carried through five steps
    assert np.abs(features.hidden[last] - final.hidden[:20]).max() <= 5 * 64 * 2.0**-24
    assert np.array_equal(features.head, final.head)
    kl = mk.average_divergence(data, features.softmax_kernel(), mk.KL())
    assert kl < 0.05


def test_the_same_seed_gives_the_same_model() -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    one, same, other = (synthetic.train_language_model(LANGUAGE, steps=5, seed=s, **TINY) for s in (1, 1, 2))
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(one.losses, same.losses)
    assert not np.array_equal(one.losses, other.losses)
    for a, b in zip(one.checkpoints, same.checkpoints, strict=True):
        assert a.step == b.step
        for field in ("hidden", "head", "bias", "targets"):
            assert np.array_equal(getattr(a.features, field), getattr(b.features, field))
    first, last = one.checkpoints[0].features, one.checkpoints[-1].features
    assert not np.array_equal(first.head, last.head)  # memory of its own
    assert np.array_equal(first.targets, last.targets)


@pytest.mark.parametrize(
    ("checkpoints", "steps", "kept"),
    [
        (1, 10, [10]),
        (2, 10, [0, 10]),
        (3, 10, [0, 1, 10]),
        (4, 100, [0, 1, 10, 100]),
        (50, 5, [0, 1, 2, 3, 4, 5]),
        ([3, 1], 4, [1, 3, 4]),
        ([], 4, [4]),
    ],
)
def test_checkpoints(checkpoints: Any, steps: int, kept: list[int]) -> None:
    one = synthetic.train_language_model(LANGUAGE, steps=steps, checkpoints=checkpoints, **TINY)
    assert [checkpoint.step for checkpoint in one.checkpoints] == kept


def test_progress_and_its_way_out() -> None:
    calls: list[tuple[int, int]] = []
    synthetic.train_language_model(LANGUAGE, steps=4, progress=lambda *done: calls.append(done), **TINY)
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    threads = torch.get_num_threads()

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthetic.train_language_model(LANGUAGE, steps=4, progress=stop, **TINY)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"language": mk.uniform(3)}, DTypeError, "language: expected a HiddenMarkovLanguage, got Kernel"),
        ({"steps": 0}, ValueRangeError, "steps: "),
        ({"hidden_size": 1.5}, DTypeError, "hidden_size: "),
        ({"learning_rate": -1.0}, ValueRangeError, "learning_rate: "),
        ({"checkpoints": 0}, ValueRangeError, "checkpoints: "),
        ({"checkpoints": [0, 700]}, ValueRangeError, r"checkpoints: expected an integer in \[0, 600\], got 700"),
        ({"num_contexts": 0}, ValueRangeError, "num_contexts: "),
        ({"context_length": 30}, ValueRangeError, "context_length: expected at most 1048576 words"),
    ],
)
def test_what_is_refused(options: dict[str, Any], error: type[MarkovLMError], words: str) -> None:
    with pytest.raises(error, match=words):
        synthetic.train_language_model(**{"language": LANGUAGE, **options})


def test_without_torch_it_says_what_to_install(tmp_path: Path) -> None:
    program = """
import sys
sys.modules["torch"] = None
import markovlm as mk
print(mk.synthetic.cycle(3).exact_surplus(1, 2))
try:
    mk.synthetic.train_language_model(mk.synthetic.cycle(3))
except mk.errors.MissingDependencyError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "needs torch" in done.stdout
    assert "pip install 'markovlm[lm]'" in done.stdout
