"""What `alignment` found: scores with intervals, nulls and held-out values, layer by layer; a table, a page, a file."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np

from . import _json, _store
from ._bootstrap import Estimate, Estimates
from .errors import FileFormatError, ValueRangeError
from .typing import FloatArray, IntArray

__all__ = ["Alignment"]

_SCHEMA = 1
_SCHEMA_KEY = "markovlm.alignment"


@dataclass(frozen=True, repr=False, eq=False)
class Alignment:
    """How far linear functions of states reach the leading modes of predictive similarity. Print it for a table.

    Of L layers, R ranks and the k leading modes, k being the largest rank. All numbers are in [0, 1] and without unit,
    but for eigenvalues, and but for what is held out, which may fall below 0.
    """

    model: str
    similarity: str
    beta: float
    ranks: tuple[int, ...]
    layers: IntArray  # (L,) 0 = embedding … num_layers = final, which is the last one
    num_layers: int
    num_contexts: int  # n
    num_sequences: int
    hidden_size: int
    dimension: IntArray  # (L,) of the linear functions of the centered states
    prototype_dimension: int  # likewise
    eigenvalues: FloatArray  # (k,) λ of the centered similarity, falling
    trace: float  # the sum of all
    ritz_values: FloatArray  # (L, k) θ on linear functions of states; θ_i <= λ_i
    trace_share: FloatArray  # (L,) the sum of all θ, of the trace
    captured_value: FloatArray  # (L, R) Σ θ / Σ λ over the first r
    captured_interval: FloatArray  # (L, R, 2)
    held_out_value: FloatArray  # (L, R) with directions of one half on the other, both ways; NaN where not known
    held_out_interval: FloatArray
    null: FloatArray  # (L, R) captured by random functions, as many
    null_band: FloatArray  # (L, R, 2) where a share `level` of such are
    null_held_out: FloatArray
    null_held_out_band: FloatArray
    cosines: FloatArray  # (L, R, k) of principal angles with the first r modes; NaN from there on
    modes: FloatArray  # (L, k) share of each mode's variance that is linear in states
    modes_held_out: FloatArray  # (L, k) by least squares on one half, tested on the other, both ways
    modes_held_out_interval: FloatArray  # (L, k, 2)
    correlations: FloatArray  # (L, k) leading canonical correlations of states and prototypes
    correlations_held_out: FloatArray  # (L, k)
    tokens: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]  # of the first modes: leading tokens of either sign
    level: float
    seed: int
    num_null: int
    warnings: tuple[str, ...]
    provenance: dict[str, Any]

    @property
    def captured(self) -> dict[int, Estimates]:
        """Of each rank, over the layers."""
        return self._by_rank(self.captured_value, self.captured_interval)

    @property
    def held_out(self) -> dict[int, Estimates]:
        """Of each rank, over the layers."""
        return self._by_rank(self.held_out_value, self.held_out_interval)

    @property
    def random_share(self) -> FloatArray:
        """(L,): ``dim / (n − 1)``, exactly what random functions have in expectation of any ``modes``, of
        ``trace_share``, and as the mean of squared ``cosines`` (over as many modes as there are).
        """
        return np.asarray(self.dimension / (self.num_contexts - 1))

    @property
    def random_correlation(self) -> FloatArray:
        """(L,): ``√(max(dim, p) / (n − 1))``, the root of the mean of all squared correlations of random functions."""
        return np.asarray(np.sqrt(np.maximum(self.dimension, self.prototype_dimension) / (self.num_contexts - 1)))

    @property
    def best_layer(self) -> int:
        """That captures most at the largest rank, held out where that is known."""
        scores = self.held_out_value[:, -1]
        scores = self.captured_value[:, -1] if np.isnan(scores).all() else scores
        return int(self.layers[np.nanargmax(scores)])

    def score(self, layer: int = -1, rank: int | None = None, *, held_out: bool = False) -> Estimate:
        """One score: of a layer by its number (negative: from the end), at a rank, the largest one by default."""
        number = layer + self.num_layers + 1 if layer < 0 else layer
        rank = self.ranks[-1] if rank is None else rank
        if number not in self.layers or rank not in self.ranks:
            raise ValueRangeError(
                f"layer, rank: expected one of {self.layers.tolist()} and of {list(self.ranks)}, got {layer}, {rank}"
            )
        found = (self.held_out if held_out else self.captured)[rank]
        return found[int(np.flatnonzero(self.layers == number)[0])]

    def _by_rank(self, value: FloatArray, interval: FloatArray) -> dict[int, Estimates]:
        return {rank: Estimates(value[:, i], interval[:, i], self.level) for i, rank in enumerate(self.ranks)}

    def __repr__(self) -> str:
        rank = self.ranks[-1]
        return (
            f"Alignment({self.model!r}: {self.similarity}, {self.num_contexts} contexts, {len(self.layers)} layers, "
            f"rank {rank}: {self.captured[rank][-1]:.3f} at the last, {self.null[-1, -1]:.3f} by chance)"
        )

    def __str__(self) -> str:
        """The table that `markovlm alignment` prints."""
        from ._report import alignment_table

        return alignment_table(self)

    def to_html(self, path: str | PathLike[str]) -> None:
        """Write one self-contained HTML page that opens offline. Needs ``markovlm[report]``."""
        from ._report import write_alignment

        write_alignment(self, path)

    def summary(self) -> dict[str, Any]:
        """Numbers as plain values for JSON."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "provenance"}
        more = {name: getattr(self, name) for name in ("random_share", "random_correlation", "best_layer")}
        plain: dict[str, Any] = _json.plain({**values, **more})
        return plain

    def save(self, path: str | PathLike[str]) -> None:
        """Write everything to one safetensors file with JSON metadata; atomic, never pickle."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        fields = {name: value for name, value in values.items() if name not in arrays}
        _store.write(path, arrays, {_SCHEMA_KEY: str(_SCHEMA), "fields": json.dumps(_json.plain(fields))})

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Alignment:
        """Read what `save` wrote. A file of another kind or of a newer schema is a `FileFormatError`."""
        arrays, metadata = _store.read(path)
        found = metadata.get(_SCHEMA_KEY, "a file of another kind")
        if found != str(_SCHEMA):
            raise FileFormatError(
                f"{path}: expected an alignment of schema {_SCHEMA}, got {found}; make it again with this version"
            )
        fields: dict[str, Any] = json.loads(metadata["fields"])
        fields["tokens"] = tuple((tuple(some), tuple(others)) for some, others in fields["tokens"])
        for name in ("ranks", "warnings"):
            fields[name] = tuple(fields[name])
        return cls(**{**fields, **arrays})
