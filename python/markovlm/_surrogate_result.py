"""What `quadratic_surrogate` found: bounds with their gaps, linear maps, assumptions; a table, a file."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np

from . import _json, _store
from ._bootstrap import Estimate
from .errors import FileFormatError
from .typing import FloatArray, IntArray

__all__ = ["Assumptions", "LinearMaps", "Surrogate"]

_SCHEMA = 1
_SCHEMA_KEY = "markovlm.surrogate"
_ESTIMATES = ("nll", "surrogate_ball", "surrogate_calibrated", "gap_ball", "gap_calibrated")
_NESTED = ("assumptions", "text_maps", "model_maps")


@dataclass(frozen=True, eq=False)
class Assumptions:
    """What theorems on spectral alignment assume, as this model has it: rows of one norm, white states, one log Z."""

    norm_mean: float  # of ‖g_w‖ over tokens that are not masked, scale included
    norm_std: float
    norm_min: float
    norm_max: float
    head_rank: int  # of the differences of rows, which is all that predictions see; at most min(d, V − 1)
    variances: FloatArray  # (d,) eigenvalues of the covariance of states, falling
    condition_number: float  # largest of them / smallest that is not rounding; 1 if states are white
    effective_rank: float  # exp of the entropy of their shares, in [1, d]; d if states are white
    whiteness: float  # ‖C/σ² − I‖, the largest |eigenvalue|, with σ² their mean; 0 if states are white
    log_normalizer_mean: float  # of log Z over contexts, in nats
    log_normalizer_std: float
    log_normalizer_min: float
    log_normalizer_max: float


@dataclass(frozen=True, eq=False)
class LinearMaps:
    """The smallest expected surrogate that linear maps of whitened states reach, by rank. Rows: R², then calibrated β.

    The last rank is the full one.
    """

    eigenvalues: FloatArray  # (k,) θ, falling
    directions: FloatArray  # (d, r) of states, ⟨v, h⟩ has variance 1; up to the largest rank that was asked for
    ranks: IntArray  # (m,)
    constant: float  # nats: the expected surrogate of the reference alone
    minimum: FloatArray  # (2, m) nats: constant − Σ_{i ≤ r} θ_i / 2β
    reached: FloatArray  # (2, m) share of the decrease that the model's own states reach, in those r directions; ≤ 1
    scaled: FloatArray  # (m,) the same for t (h − E h) with the best t >= 0: in [0, 1], the same for both β
    held_out: FloatArray  # (m,) Σ_{i ≤ r} θ_i as maps fitted on half of the sequences give on the other; NaN with one
    null: float  # Σ θ, all of it, in expectation if states and rows had nothing in common: k tr C_gg / (n − 1)

    @property
    def decrease(self) -> FloatArray:
        """(2, m) nats, what the best map takes off the surrogate of the reference alone."""
        return np.asarray(self.constant - self.minimum)


@dataclass(frozen=True, repr=False, eq=False)
class Surrogate:
    """The quadratic surrogate of one layer's loss: nats, with intervals from a bootstrap over sequences. Print it.

    Means are over contexts whose target is known; β, violations and assumptions are of all.
    """

    model: str
    layer: int
    nll: Estimate
    surrogate_ball: Estimate  # with β = R²
    surrogate_calibrated: Estimate  # with the calibrated β
    gap_ball: Estimate  # surrogate − NLL
    gap_calibrated: Estimate
    beta_ball: float  # R², the upper bound of it
    beta_calibrated: float  # the smallest β for which the bound holds at every context
    radius_lower: float  # R is at least this
    ball_passes: int  # over the head
    support: IntArray  # tokens whose rows hold the ball in place
    violations: tuple[int, int]  # contexts with a computed gap below 0, with R² and with the calibrated β
    held_out_violations: float | None  # share of contexts, β being calibrated on the other half of the sequences
    held_out_factor: float | None  # by which that β would have to grow for there to be none
    assumptions: Assumptions
    text_maps: LinearMaps | None  # g is the row of the token that follows in the text; None without two targets
    model_maps: LinearMaps  # g is the mean row under the model's own prediction
    reference: FloatArray  # (d,) h₀
    rows: IntArray  # (n,) contexts, by their rows in the features
    sequence_ids: IntArray  # (n,)
    row_nll: FloatArray  # (n,) NaN where the target is unknown
    bregman: FloatArray  # (n,) A(h) − A(h₀) − ⟨ḡ₀, h − h₀⟩ = KL(p_{h₀} ‖ p_h)
    squared_distances: FloatArray  # (n,) ‖h − h₀‖²
    warnings: tuple[str, ...]
    provenance: dict[str, Any]

    def row_gaps(self) -> FloatArray:
        """(n, 2) surrogate − NLL of each context, whatever its target, with R² and with the calibrated β."""
        betas = np.array([self.beta_ball, self.beta_calibrated])
        return np.asarray(0.5 * betas * self.squared_distances[:, None] - self.bregman[:, None])

    def __repr__(self) -> str:
        return (
            f"Surrogate({self.model!r}, layer {self.layer}: nll={self.nll}, "
            f"surrogate_calibrated={self.surrogate_calibrated} with β={self.beta_calibrated:.4g}, "
            f"surrogate_ball={self.surrogate_ball} with R²={self.beta_ball:.4g}, {len(self.rows)} contexts)"
        )

    def __str__(self) -> str:
        """The bounds, what linear maps reach, and the assumptions, as a table."""
        from ._report import surrogate_table

        return surrogate_table(self)

    def summary(self) -> dict[str, Any]:
        """Numbers as plain values for JSON; rows and directions are left out."""
        left_out = ("rows", "sequence_ids", "row_nll", "bregman", "squared_distances", "reference", "provenance")
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in left_out}
        for name in _NESTED:
            part = values[name]
            values[name] = part and {key: value for key, value in vars(part).items() if key != "directions"}
        plain: dict[str, Any] = _json.plain(values)
        return plain

    def save(self, path: str | PathLike[str]) -> None:
        """Write everything to one safetensors file with JSON metadata; atomic, never pickle."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        estimates = [values.pop(name) for name in _ESTIMATES]
        for name in _NESTED:
            part = values.pop(name)
            values |= {} if part is None else {f"{name}.{key}": value for key, value in vars(part).items()}
        arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        floats = {n: v for n, v in values.items() if isinstance(v, float)}  # as an array, which may hold infinities
        fields = {n: v for n, v in values.items() if n not in arrays and n not in floats}
        arrays["floats"] = np.array(list(floats.values()))
        arrays["estimates"] = np.array([[e.value, *e.interval] for e in estimates])
        fields |= {"floats": list(floats), "level": estimates[0].level}
        _store.write(path, arrays, {_SCHEMA_KEY: str(_SCHEMA), "fields": json.dumps(_json.plain(fields))})

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Surrogate:
        """Read what `save` wrote. A file of another kind or of a newer schema is a `FileFormatError`."""
        arrays, metadata = _store.read(path)
        found = metadata.get(_SCHEMA_KEY, "a file of another kind")
        if found != str(_SCHEMA):
            raise FileFormatError(
                f"{path}: expected a surrogate of schema {_SCHEMA}, got {found}; make it again with this version"
            )
        fields: dict[str, Any] = json.loads(metadata["fields"])
        level, names = fields.pop("level"), fields.pop("floats")
        values = {**fields, **dict(zip(names, arrays.pop("floats").tolist(), strict=True))}
        for name, (value, low, high) in zip(_ESTIMATES, arrays.pop("estimates").tolist(), strict=True):
            values[name] = Estimate(value, (low, high), level)
        values |= {**arrays, "violations": tuple(fields["violations"]), "warnings": tuple(fields["warnings"])}
        for name in _NESTED:
            kind = Assumptions if name == "assumptions" else LinearMaps
            part = {key[len(name) + 1 :]: values.pop(key) for key in list(values) if key.startswith(f"{name}.")}
            values[name] = kind(**part) if part else None
        return cls(**values)
