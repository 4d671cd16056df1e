"""The loss per character of text, for models that cut the text into different tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ._bootstrap import Estimate, bootstrap_mean
from ._profile import Profile
from .typing import BoolArray, IntArray

__all__ = ["nll_per_character"]


def nll_per_character(profiles: Sequence[Profile], *, level: float, seed: int) -> tuple[Estimate | None, ...]:
    """Sum of the NLL over the characters scored, nats; intervals over each model's own sequences.

    Models stop at different places of a text where that is cut off after so many tokens: of each text, what lies beyond
    the first of these places is left out. None where the text of tokens is not known.
    """
    pieces = [_ends(profile) for profile in profiles]
    reached = {
        text: min(int(each[text][1][-1]) for each in pieces)
        for text in pieces[0]
        if all(text in each for each in pieces)
    }
    found: list[Estimate | None] = []
    for profile, each in zip(profiles, pieces, strict=True):
        kept: BoolArray = np.zeros(profile.num_tokens, dtype=bool)
        for text, end in reached.items():
            rows, ends = each[text]
            kept[rows[ends <= end]] = True
        tokens = profile.tokens
        kept &= tokens.rank >= 0
        sequences, index = np.unique(tokens.sequence_id[kept], return_inverse=True)
        characters = np.bincount(index, weights=_lengths(profile)[kept], minlength=len(sequences))
        losses = np.bincount(index, weights=tokens.nll[kept], minlength=len(sequences))
        some = characters > 0
        if not some.any():
            found.append(None)
            continue
        ratio = losses[some] / characters[some]
        found += bootstrap_mean(
            ratio[:, None], sequences[some], weights=np.asarray(characters[some], np.float64), level=level, seed=seed
        )
    return tuple(found)


def _lengths(profile: Profile) -> IntArray:
    return np.array([len(text) for text in profile.tokens.text], dtype=np.int64)


def _ends(profile: Profile) -> dict[tuple[str, int], tuple[IntArray, IntArray]]:
    """(SHA-256, how many of these came before) of a text → its rows, and how many characters each reaches up to."""
    texts = profile.provenance.get("texts") or []
    lengths = _lengths(profile)
    found: dict[tuple[str, int], tuple[IntArray, IntArray]] = {}
    seen: dict[str, int] = {}
    for number, text in enumerate(texts):
        name = str(text.get("sha256"))
        rows = np.flatnonzero(profile.tokens.text_id == number)
        if len(rows):
            found[name, seen.get(name, 0)] = rows, np.cumsum(lengths[rows])
        seen[name] = seen.get(name, 0) + 1
    return found
