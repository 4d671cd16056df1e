"""What `surplus` found: numbers with intervals, a sentence, a table, a page, a file."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np

from . import _json, _store
from ._bootstrap import Estimate, Estimates
from ._drafting import DraftHead
from ._layer_surplus import LayerSurplus
from .errors import FileFormatError
from .typing import FloatArray, IntArray

__all__ = ["Surplus"]

_SCHEMA = 1
_SCHEMA_KEY = "markovlm.surplus"


@dataclass(frozen=True, repr=False, eq=False)
class Surplus:
    r"""What `surplus` found for a horizon of K tokens: nats, and probabilities of acceptance. Print it for a table.

    Curves are over the steps k = 1 … K − 1 of a draft: step k is about ``W_{t+k}``, the k-th token after the next one.
    """

    model: str
    horizon: int
    usable: Estimate  # Σ_k of what the state takes off the held-out loss
    upper_bound: Estimate  # on the surplus
    acceptance: Estimates  # α_k = E[1 − TV(p_{t+k}, q_k)] over all positions
    expected_accepted_length: Estimate  # tokens per round, with the one that the model itself draws
    lengths: Estimates  # the same if 1 … K − 1 tokens are drafted
    lengths_without: Estimates  # of drafts that see tokens only
    acceptance_without: Estimates  # likewise
    conditional_acceptance: Estimates  # of step k in rounds that come to it
    kl: Estimates  # E KL(p_{t+k} ‖ q_k)
    kl_without: Estimates
    usable_steps: Estimates
    upper_bound_steps: Estimates
    loss: Estimates  # −log q(w_{t+k}) of the best mixture of predictors that see the state, tokens, or counts of tokens
    loss_without: Estimates  # of those without the state
    model_loss: Estimates  # −log p_{t+k}(w_{t+k})
    model_entropy: Estimates  # H(p_{t+k})
    layers: LayerSurplus | None
    rows: IntArray  # (m,) contexts that were scored, by their rows in the features
    sequence_ids: IntArray  # (m,)
    row_acceptance: FloatArray  # (m, K − 1): 1 − TV at each
    row_starts: FloatArray  # (m,) probability that a round starts there
    text: tuple[str, ...]  # (m,) w_{t+1}, the first token that is drafted, as it stands in the text
    num_sequences: tuple[int, int, int]  # to fit, to choose by, to score
    num_rows: tuple[int, int, int]
    warnings: tuple[str, ...]
    provenance: dict[str, Any]
    family: str = "linear"  # of the draft
    other_states: bool = False  # than the final ones were what the draft saw
    draft: DraftHead | None = None  # is not saved

    @property
    def best_layer(self) -> int | None:
        """The first layer that takes 90 % off the KL of step 1 that the final one does; None where not known."""
        if self.layers is None:
            return None
        enough = np.flatnonzero(self.layers.share >= 0.9)
        return int(self.layers.layer[enough[0]]) if enough.size else None

    @property
    def decision(self) -> str:
        """One sentence for who asks whether to train a draft head."""
        steps = self.horizon - 1
        source = "other states" if self.other_states else "the last layer"
        kind = "A linear draft head" if self.family == "linear" else "A draft head with one hidden layer"
        one = f", {self.lengths[0].value:.2f} with one" if steps > 1 else ""
        return (
            f"{kind} on {source}, {steps} token{'s' * (steps != 1)} ahead, would give "
            f"{self.expected_accepted_length:.2f} tokens for each pass of the model on this text{one} (the first "
            f"drafted token is accepted with probability {self.acceptance[0]:.2f}, without the state "
            f"{self.acceptance_without[0].value:.2f}){self._depth}."
        )

    @property
    def _depth(self) -> str:
        """Where 90 % is reached, as far as layers were kept."""
        layer = self.best_layer
        if self.layers is None or layer is None:
            return ""
        before = self.layers.layer[self.layers.layer < layer].max(initial=-1)
        where = f"layer {layer}" if before == layer - 1 else f"a layer between {before} and {layer}"
        return f"; {where} already carries 90 % of what the last one does"

    def __repr__(self) -> str:
        return (
            f"Surplus({self.model!r}, horizon {self.horizon}: usable={self.usable}, upper_bound={self.upper_bound}, "
            f"acceptance={self.acceptance}, expected_accepted_length={self.expected_accepted_length}, "
            f"{len(self.rows)} contexts of {self.num_sequences[2]} sequences)"
        )

    def __str__(self) -> str:
        """The table that `markovlm surplus` prints."""
        from ._report import surplus_table

        return surplus_table(self)

    def to_html(self, path: str | PathLike[str]) -> None:
        """Write one self-contained HTML page that opens offline. Needs ``markovlm[report]``."""
        from ._report import write_surplus

        write_surplus(self, path)

    def summary(self) -> dict[str, Any]:
        """Numbers as plain values for JSON; rows and texts are left out."""
        left_out = ("layers", "rows", "sequence_ids", "row_acceptance", "row_starts", "text", "provenance", "draft")
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in left_out}
        layers = None if self.layers is None else {**vars(self.layers), "share": self.layers.share}
        more = {"layers": layers, "best_layer": self.best_layer, "decision": self.decision}
        plain: dict[str, Any] = _json.plain({**values, **more})
        return plain

    def save(self, path: str | PathLike[str]) -> None:
        """Write all but the draft head to one safetensors file with JSON metadata; atomic, never pickle."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("text", "draft")}
        arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        fields = {name: value for name, value in values.items() if name not in arrays}
        fields["layers"] = None if self.layers is None else vars(self.layers)
        arrays["text.bytes"], arrays["text.offsets"] = _store.pack_strings(self.text)
        _store.write(path, arrays, {_SCHEMA_KEY: str(_SCHEMA), "fields": json.dumps(_json.plain(fields))})

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Surplus:
        """Read what `save` wrote. A file of another kind or of a newer schema is a `FileFormatError`."""
        arrays, metadata = _store.read(path)
        found = metadata.get(_SCHEMA_KEY, "a file of another kind")
        if found != str(_SCHEMA):
            raise FileFormatError(
                f"{path}: expected a surplus of schema {_SCHEMA}, got {found}; make it again with this version"
            )
        fields: dict[str, Any] = json.loads(metadata["fields"])
        text = _store.unpack_strings(arrays.pop("text.bytes"), arrays.pop("text.offsets"))
        if fields["layers"] is not None:
            fields["layers"] = LayerSurplus.of_plain(fields["layers"])
        for f in dataclasses.fields(cls):
            if f.type in ("Estimate", "Estimates"):
                fields[f.name] = (_json.estimate if f.type == "Estimate" else _json.estimates)(fields[f.name])
            elif str(f.type).startswith("tuple") and f.name in fields:
                fields[f.name] = tuple(fields[f.name])
        return cls(text=text, **{**fields, **arrays})
