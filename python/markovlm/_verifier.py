"""A language model as speculative decoding sees it: fed with tokens, some of which it takes back."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np

from ._anatomy import TransformersParts, blame, dissect
from ._head import as_float32, proven, spread_rows
from ._load import require
from .typing import SinglePrecisionArray

__all__ = ["Verifier"]

_PROBED = (4, 512)  # tokens, at least and at most, on which the head and the cache are proven
_SAME = 1e-4  # of the largest state: float32 rounding of sums in another order; a wrong cache is off by far more


class Verifier:
    """The model, fed with tokens from which it can take back the last ones."""

    def __init__(self, parts: TransformersParts) -> None:
        self.parts, self.head = parts, parts.head
        self.caches = False
        self.begin()

    @classmethod
    def of(cls, model: Any, prompt: list[int]) -> Verifier:
        """With the head proven, and the cache tried, on a prompt.

        Raises
        ------
        UnsupportedModelError
            Not a causal language model, or its logits cannot be rebuilt from its final states and head.
        """
        torch = require("torch")
        least, most = _PROBED
        ids: list[int] = np.resize(prompt, max(least, min(len(prompt), most))).tolist()  # short ones are repeated
        parts = dissect(model, torch.tensor([ids], device=next(model.parameters()).device))
        verifier = cls(parts)
        states = verifier.feed(ids)
        rows = spread_rows(len(ids))
        logits = as_float32(parts.logits[rows.tolist()]).astype(np.float64)
        if not np.isfinite(logits).all():
            raise blame(model, "logits")
        verifier.head, _ = proven(parts.head, states[rows], logits, parts.name, torch.finfo(parts.logits.dtype).eps)
        verifier.caches = verifier._can_cache(ids, states)
        return verifier

    def begin(self) -> None:
        """With no token."""
        self._ids: list[int] = []
        # Without the configuration it keeps all that it is given, also where layers look at a window only.
        self._cache = require("transformers").DynamicCache() if self.caches else None

    def feed(self, tokens: Sequence[int]) -> SinglePrecisionArray:
        """(m, d) states after each of m tokens."""
        torch = require("torch")
        self._ids += tokens
        run = self._ids if self._cache is None else list(tokens)
        options = {} if self._cache is None else {"past_key_values": self._cache, "use_cache": True}
        final = self.parts.states(torch.tensor([run], device=self.parts.device), **options)
        states = as_float32(final)[-len(tokens) :]
        if not np.isfinite(states).all():
            raise blame(self.parts.module, "states")
        return states

    def take_back(self, count: int) -> None:
        """The last tokens."""
        if count:
            del self._ids[-count:]
            if self._cache is not None:
                self._cache.crop(-count)

    def _can_cache(self, ids: list[int], expected: SinglePrecisionArray) -> bool:
        """Whether the model's cache gives the states of ``ids``, in parts and after some were taken back.

        Recurrent models keep what cannot be taken back, others no cache at all, or one of a kind of their own.
        """
        if "past_key_values" not in inspect.signature(self.parts.module.forward).parameters:
            return False
        half = len(ids) // 2
        self.caches = True
        try:
            self.begin()
            found = [self.feed(ids[:half])]
            self.feed(ids[:2])
            self.take_back(2)
            found.append(self.feed(ids[half:]))
        except Exception:  # whatever a model raises that is given a cache of a kind which it does not know
            return False
        return bool(np.abs(np.concatenate(found) - expected).max() <= _SAME * np.abs(expected).max())
