"""The head of a model as arrays, and the proof that with it the model's own logits come out again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ._features import evenly_spread
from .errors import ShapeError, UnsupportedModelError, ValueRangeError
from .typing import FloatArray, IntArray, SinglePrecisionArray

__all__ = ["Head", "as_float32", "input_embedding", "proven", "spread_rows"]

_TOLERANCE = 1e-4  # of the range of the logits; float32 products over d terms err by some 1e-6 of it
_MOST_ROWS = 64
_TILE_BYTES = 1 << 26  # of the head in float64 at a time


@dataclass(frozen=True, eq=False)
class Head:
    """What turns a final state ``h`` into logits: ``softcap * tanh(scale * (W h + bias) / softcap)``.

    Without ``softcap``, ``scale * (W h + bias)``. ``weight`` is (V, d), ``bias`` (V,); arrays or tensors. Pass one as
    ``head=`` to :func:`markovlm.extract` for a module of your own.

    Examples
    --------
    >>> import numpy as np
    >>> from markovlm._head import Head
    >>> Head(np.ones((5, 2), np.float32), softcap=30.0)
    Head(5 tokens, hidden size 2, softcap 30)
    """

    weight: Any
    bias: Any = None
    scale: float = 1.0
    softcap: float | None = None

    def __repr__(self) -> str:
        V, d = self.weight.shape
        extras = ", bias" * (self.bias is not None) + f", scale {self.scale:g}" * (self.scale != 1.0)
        return (
            f"Head({V} tokens, hidden size {d}{extras}{'' if self.softcap is None else f', softcap {self.softcap:g}'})"
        )

    @classmethod
    def of(cls, value: Any) -> Head:
        """A head of float32 arrays from a Head, a linear module, or ``(weight, bias)``; zero-copy where it can be."""
        if isinstance(value, (tuple, list)):
            value = cls(*value)
        weight, bias = as_float32(value.weight), getattr(value, "bias", None)
        if weight.ndim != 2:
            raise ShapeError(f"head: weight must have shape (V, d), got {weight.shape}")
        bias = None if bias is None else as_float32(bias)
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ShapeError(f"head: bias must have shape {weight.shape[:1]}, got {bias.shape}")
        for part, array in (("weight", weight), ("bias", bias)):
            if array is not None and not np.isfinite(array).all():
                raise ValueRangeError(
                    f"head: NaN or infinity in its {part}, row {int(np.argwhere(~np.isfinite(array))[0, 0])}"
                )
        return cls(weight, bias, float(getattr(value, "scale", 1.0)), getattr(value, "softcap", None))

    def cut(self, rows: int) -> Head:
        """The first ``rows`` tokens only; views."""
        return replace(self, weight=self.weight[:rows], bias=None if self.bias is None else self.bias[:rows])

    def copy(self) -> Head:
        """The same in memory of its own."""
        return replace(self, weight=self.weight.copy(), bias=None if self.bias is None else self.bias.copy())

    def products(self, states: SinglePrecisionArray) -> FloatArray:
        """``W h + bias`` in float64 for (r, d) states, (r, V); the head is widened a tile at a time."""
        wide = states.astype(np.float64)
        V, d = self.weight.shape
        step = max(1, _TILE_BYTES // (8 * d))
        tiles = [wide @ self.weight[first : first + step].astype(np.float64).T for first in range(0, V, step)]
        product: FloatArray = np.concatenate(tiles, axis=1)
        return product if self.bias is None else product + self.bias

    def logits(self, products: FloatArray) -> FloatArray:
        """Logits from :meth:`products`."""
        scaled = self.scale * products
        return scaled if self.softcap is None else self.softcap * np.tanh(scaled / self.softcap)


def as_float32(value: Any) -> SinglePrecisionArray:
    """A tensor or array as a float32 array in row-major order; shares memory where it already is one."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().float().numpy()
    return np.ascontiguousarray(value, dtype=np.float32)


def input_embedding(model: Any, head: Head) -> SinglePrecisionArray | None:
    """(V, e) what the model takes in for each token of ``head``; the head's own array where the two are tied.

    None where the model has no table of embeddings, or one that is smaller than the head.
    """
    try:
        weight: Any = getattr(model.get_input_embeddings(), "weight", None)
    except (AttributeError, NotImplementedError):  # not of Transformers; or one of a kind that it cannot tell
        return None
    if getattr(weight, "ndim", 0) != 2 or len(weight) < len(head.weight):
        return None
    embedding = as_float32(weight)[: len(head.weight)]
    same = embedding.shape == head.weight.shape and embedding.ctypes.data == head.weight.ctypes.data
    return head.weight if same else embedding


def spread_rows(count: int) -> IntArray:
    """Up to 64 of ``count`` rows, evenly spread, both ends among them."""
    return evenly_spread(count, _MOST_ROWS)


def proven(
    head: Head, states: SinglePrecisionArray, logits: FloatArray, name: str, resolution: float = 0.0
) -> tuple[Head, float]:
    """``head``, once it has rebuilt ``logits`` (r, V) from ``states`` (r, d) in float64, and the error by their range.

    Where the configuration's scale does not do, one constant factor is fitted: some families have one under a name of
    their own. That is one number against ``r V``, so it proves itself as much as the others. ``resolution`` is that of
    the type in which the model gave its logits.

    Raises
    ------
    UnsupportedModelError
        They differ by more than 1e-4 (or ``resolution``) of the logits' range: the model does something else.
    """
    if logits.shape[1] != len(head.weight):
        raise UnsupportedModelError(
            f"model: {name} gives {logits.shape[1]} logits, its head has {len(head.weight)} rows"
        )
    products = head.products(states)
    allowed = max(_TOLERANCE, resolution)
    spread = max(float(logits.max() - logits.min()), np.finfo(np.float64).tiny)

    def error_of(candidate: Head) -> float:
        return float(np.abs(candidate.logits(products) - logits).max()) / spread

    error = error_of(head)
    if not error <= allowed and head.softcap is None:
        fitted = replace(head, scale=float(np.vdot(products, logits) / np.vdot(products, products)))
        if error_of(fitted) <= allowed:
            return fitted, error_of(fitted)
    if not error <= allowed:
        raise UnsupportedModelError(
            f"model: the logits of {name} cannot be rebuilt from its final states and head: they differ by {error:.1e} "
            f"of their range on {len(states)} rows, allowed is {allowed:g}. The model does something else on the "
            "way, which Features cannot express, so nothing is computed from it"
        )
    return head, error
