"""Made-up profiles of the same text: others that are sharper or blunter, and one whose tokens are others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from markovlm._bootstrap import bootstrap_mean
from markovlm._profile import Profile
from markovlm.typing import FloatArray
from profile_fixture import fake_profile


def with_tokens(profile: Profile, nll: FloatArray, entropy: FloatArray, name: str) -> Profile:
    """The same text, other losses and entropies; means and intervals are those of the tokens."""
    tokens = replace(profile.tokens, nll=nll, entropy=entropy, surprise=nll - entropy)
    columns = np.column_stack([nll, entropy, nll - entropy, tokens.rank == 0])
    known = tokens.rank >= 0
    means = bootstrap_mean(columns[known], tokens.sequence_id[known])
    return replace(
        profile,
        nll=means[0],
        entropy=means[1],
        calibration=means[2],
        accuracy=means[3],
        tokens=tokens,
        provenance={**profile.provenance, "model": name},
    )


def another(profile: Profile, gain: float = 0.1, name: str = "made-up/harbour-24", seed: int = 3) -> Profile:
    """A model that gains so many nats on average, on some tokens more and on some less, and is as much surer."""
    rng = np.random.default_rng(seed)
    change = rng.normal(-gain, 0.4, profile.num_tokens)
    nll = np.maximum(profile.tokens.nll + change, 1e-3)
    entropy = np.maximum(profile.tokens.entropy * (1 - 0.1 * gain), 1e-3)
    found = with_tokens(profile, nll, entropy, name)
    if profile.layers is None:
        return found
    deeper = {
        name: np.repeat(value, 2, axis=0)[1:] for name, value in vars(profile.layers).items() if name != "num_rows"
    }
    layers = replace(profile.layers, **{**deeper, "layer": np.arange(2 * len(profile.layers.layer) - 1)})
    return replace(found, layers=layers)


def recut(profile: Profile, name: str = "made-up/pairs") -> Profile:
    """Each two tokens of a sequence drawn together: another tokenizer, the same text and the same loss of it."""
    tokens, half = profile.tokens, profile.num_tokens // 2
    rows = 2 * np.arange(half) + 1
    assert (tokens.sequence_id[rows] == tokens.sequence_id[rows - 1]).all()
    columns = {n: value[rows] for n, value in vars(tokens).items() if isinstance(value, np.ndarray)}
    text = tuple(tokens.text[i - 1] + tokens.text[i] for i in rows.tolist())
    cut = replace(profile, num_tokens=half, tokens=replace(tokens, **{**columns, "text": text}))
    return with_tokens(cut, tokens.nll[rows] + tokens.nll[rows - 1], tokens.entropy[rows], name)


def checkpoints(count: int, **options: Any) -> list[Profile]:
    first = fake_profile(600, 6, hostile=False, **options)
    return [first, *(another(first, 0.1 * i, "made-up/harbour-12", seed=i) for i in range(1, count))]
