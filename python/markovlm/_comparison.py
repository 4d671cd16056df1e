"""What `compare` found: the numbers of several models on one text, their differences, and where these lie."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np

from . import _checks, _json
from ._bootstrap import Estimate, Estimates
from ._profile import Profile
from .errors import ValueRangeError
from .typing import FloatArray, IntArray

__all__ = ["Comparison", "DepthCurve", "Quantity"]


@dataclass(frozen=True, eq=False)
class Quantity:
    """One number of every model, with its interval; one entry for each model."""

    title: str
    unit: str  # "share" of 1, else as it is written behind the number
    estimates: tuple[Estimate | None, ...]  # None where what it comes from was not given
    differences: tuple[Estimate | None, ...]  # to the baseline, on the same tokens; None where those are not the same


@dataclass(frozen=True, eq=False)
class DepthCurve:
    """One number of every kept layer of every model; None for models without layers."""

    title: str
    unit: str
    layers: tuple[IntArray | None, ...]  # 0 = embedding ... L = final, ascending
    estimates: tuple[Estimates | None, ...]

    def depth(self, model: int) -> FloatArray:
        """ℓ / L of the layers of one model, in [0, 1]: models of different depth meet at both ends."""
        layers = self.layers[model]
        if layers is None:
            return np.zeros(0)
        return np.asarray(layers / max(int(layers[-1]), 1), dtype=np.float64)


@dataclass(frozen=True, repr=False, eq=False)
class Comparison:
    """What several models, or checkpoints of one, make of the same text. Print it for a table.

    It is not saved: what it is made of is, and `compare` makes it again from that in less than a second.
    """

    profiles: tuple[Profile, ...]
    names: tuple[str, ...]
    baseline: int  # whom the others are compared with
    steps: FloatArray | None  # (models,) rising
    paired: tuple[bool, ...]  # whether tokens are those of the baseline
    quantities: dict[str, Quantity]
    curves: dict[str, DepthCurve]
    warnings: tuple[str, ...]
    level: float  # of the intervals of differences

    @property
    def others(self) -> tuple[int, ...]:
        """All models but the baseline."""
        return tuple(i for i in range(len(self.profiles)) if i != self.baseline)

    @property
    def sentences(self) -> tuple[str, ...]:
        """One for each of the others: who has the lower loss, by how much, and whether that is outside noise."""
        from ._report import comparison_sentences

        return comparison_sentences(self)

    def token_differences(self, model: int) -> FloatArray:
        """NLL of a model minus that of the baseline on every token, (n,) nats; NaN where the target is not known.

        Raises `ValueRangeError` where the two have other tokens.
        """
        model = _checks.count("model", model, 0, len(self.profiles) - 1)
        if not self.paired[model]:
            raise ValueRangeError(
                f"model: expected one with the tokens of {self.names[self.baseline]!r}, got {self.names[model]!r}, "
                "which cuts the text into others"
            )
        with np.errstate(invalid="ignore"):  # both infinite: NaN
            return np.asarray(self.profiles[model].tokens.nll - self.profiles[self.baseline].tokens.nll)

    def top_contexts(self, model: int, count: int = 20, sign: int = -1) -> IntArray:
        """Rows where a model's NLL is furthest below the baseline's or, for ``sign=1``, furthest above it.

        At most ``count``, the largest difference first.
        """
        if sign not in (1, -1):
            raise ValueRangeError(f"sign: expected 1 or -1, got {sign!r}")
        count = _checks.count("count", count, 0, 2**62)
        signed = sign * self.token_differences(model)
        rows = np.flatnonzero(signed > 0)  # NaN is not
        return np.asarray(rows[np.argsort(-signed[rows], kind="stable")][:count])

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{name!r}: {profile.nll:.3f}" for name, profile in zip(self.names, self.profiles, strict=True)
        )
        return f"Comparison({len(self.profiles)} models, nll {{{shown}}})"

    def __str__(self) -> str:
        """The table that `markovlm compare` prints."""
        from ._report import comparison_table

        return comparison_table(self)

    def summary(self) -> dict[str, Any]:
        """Everything but the tokens as plain values for JSON; NaN and infinity become None."""
        curves = {
            name: {
                **{f.name: getattr(curve, f.name) for f in dataclasses.fields(curve)},
                "depth": [curve.depth(i) for i in range(len(self.profiles))],
            }
            for name, curve in self.curves.items()
        }
        values = {
            "names": self.names,
            "models": [profile.model for profile in self.profiles],
            "baseline": self.baseline,
            "steps": self.steps,
            "paired": self.paired,
            "num_tokens": [profile.num_tokens for profile in self.profiles],
            "level": self.level,
            "quantities": {name: vars(quantity) for name, quantity in self.quantities.items()},
            "layers": curves,
            "sentences": self.sentences,
            "warnings": self.warnings,
        }
        plain: dict[str, Any] = _json.plain(values)
        return plain

    def to_html(self, path: str | PathLike[str]) -> None:
        """Write one self-contained HTML page that opens offline. Needs ``markovlm[report]``."""
        from ._report import write_comparison

        write_comparison(self, path)


def at_most(models: Sequence[int], most: int, always: Sequence[int] = ()) -> list[int]:
    """Evenly spread ones of so many, both ends among them, and those that are always to be there."""
    if len(models) <= most:
        return list(models)
    places = np.unique(np.linspace(0, len(models) - 1, most).round().astype(np.int64))
    chosen = {models[i] for i in places} | set(always)
    free = [i for i in sorted(chosen) if i not in always and i not in (models[0], models[-1])]
    while len(chosen) > most and free:
        chosen.discard(free.pop(len(free) // 2))
    return sorted(chosen)
