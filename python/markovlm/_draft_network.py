"""A small network on top of a linear draft head, trained by PyTorch: a second family of predictors (theory §7)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ._drafting import DraftHead, Residual, Starts
from .typing import SinglePrecisionArray

__all__ = ["with_networks"]

_UNITS = 256
_EPOCHS = 12
_BATCH = 256
_RATE, _DECAY = 1e-3, 0.05  # of AdamW


def with_networks(
    head: DraftHead, train: Starts, validation: Starts, seed: int, report: Callable[[], None]
) -> DraftHead:
    """The head with a network for each step that adds what its map misses of the future state.

    One hidden layer, least squares by AdamW; of all epochs the one with the least error on the validation is kept, and
    none where the map alone is better. The same for a seed, on one machine with as many threads.
    """
    found = []
    for k in range(1, head.horizon):
        found.append(_fitted(replace(head, residuals=()), k, train, validation, seed))
        report()
    return replace(head, residuals=tuple(found))


def _fitted(head: DraftHead, k: int, train: Starts, validation: Starts, seed: int) -> Residual | None:
    from ._load import require

    torch = require("torch")
    X, Y = _examples(head, k, train)
    center, spread = X.mean(axis=0), X.std(axis=0)
    scale = np.where(spread > 1e-5 * np.abs(center), 1 / np.maximum(spread, 1e-30), 0.0).astype(np.float32)
    unit = max(float(Y.std()), 1e-30)  # so that the rate fits
    inputs, targets = torch.from_numpy((X - center) * scale), torch.from_numpy(Y / np.float32(unit))
    seen, wanted = _examples(head, k, validation)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        first, second = torch.nn.Linear(X.shape[1], _UNITS), torch.nn.Linear(_UNITS, Y.shape[1], bias=False)
        torch.nn.init.zeros_(second.weight)  # at first the map alone
        parameters = [*first.parameters(), *second.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=_RATE, weight_decay=_DECAY)
        best, least = None, float(np.square(wanted).mean())
        for _ in range(_EPOCHS):
            for rows in torch.randperm(len(inputs)).split(_BATCH):
                optimizer.zero_grad()
                (second(first(inputs[rows]).relu()) - targets[rows]).square().mean().backward()
                optimizer.step()
            weights = (first.weight.T, first.bias, unit * second.weight.T)
            now = Residual(center, scale, *(np.ascontiguousarray(w.detach().numpy()).copy() for w in weights))
            error = float(np.square(wanted - now(seen)).mean())
            if error < least:
                best, least = now, error
    return best


def _examples(head: DraftHead, k: int, starts: Starts) -> tuple[SinglePrecisionArray, SinglePrecisionArray]:
    """What the head sees, and what its map misses."""
    states, tokens = starts.states(), starts.tokens(k)
    return head.inputs(k, states, tokens), starts.futures(k) - head.states(k, states, tokens)
