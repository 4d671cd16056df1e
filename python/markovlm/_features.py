"""What analyses run on: hidden states, the head that reads them, and where in the text each context stands."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import _store
from .errors import FileFormatError, MarkovLMError, ShapeError, ValueRangeError
from .typing import IntArray, SinglePrecisionArray

if TYPE_CHECKING:
    from ._softmax import SoftmaxKernel

__all__ = ["IGNORED_TARGET", "SOME_LAYERS", "Features", "evenly_spread"]

IGNORED_TARGET = -100
"""Target of a context whose next token is not known (PyTorch's convention)."""

SOME_LAYERS = 8
"""How many layers besides the final one are kept at most where only ``some`` are asked for."""

_FORMAT = "markovlm.features"
_SCHEMA = 1
_FLOATS = ("hidden", "head", "bias", "embedding", "layer_hidden")
_INTS = ("targets", "token_ids", "sequence_ids", "positions", "layer_rows", "text_ids", "target_spans")
_REQUIRED = ("hidden", "head", "targets", "token_ids", "sequence_ids", "positions")
_STRINGS = ("texts", "vocabulary")


@dataclass(frozen=True, repr=False, eq=False)
class Features:
    """Hidden states of ``n`` contexts, the head, and the text they came from.

    Logits of the contexts are ``scale * (W h + bias)``, with soft-capping ``softcap * tanh(scale * (W h + bias) /
    softcap)``. States and head are float32, everything else that counts or points is int64. Arrays that come from
    :meth:`load` are read-only views of the mapped file.

    Raises
    ------
    ShapeError
        The arrays do not fit each other; the message names the field.

    Examples
    --------
    >>> import numpy as np
    >>> from markovlm._features import Features
    >>> count = np.arange(3)
    >>> Features(np.zeros((3, 2), np.float32), np.zeros((5, 2), np.float32), count + 1, count, 0 * count, count)
    Features(3 contexts in 1 sequence, vocabulary 5, hidden size 2, no layers)
    """

    hidden: SinglePrecisionArray  # (n, d) final states: what the head multiplies
    head: SinglePrecisionArray  # (V, d)
    targets: IntArray  # (n,) next token, IGNORED_TARGET where unknown
    token_ids: IntArray  # (n,) last token of each context
    sequence_ids: IntArray  # (n,) non-decreasing
    positions: IntArray  # (n,) place of the context's last token in its sequence, from 0
    bias: SinglePrecisionArray | None = None  # (V,)
    embedding: SinglePrecisionArray | None = None  # (V, e) of the tokens as input; the same array as `head` where tied
    scale: float = 1.0
    softcap: float | None = None
    # z = softcap * tanh(scale * (W h + bias) / softcap), or scale * (W h + bias) without soft-capping
    layers: tuple[int, ...] = ()  # 0 = embedding, l = after layer l; the final layer is `hidden` and not listed here
    layer_rows: IntArray | None = None  # (m,) rows of `hidden` for which the layers were kept, ascending
    layer_hidden: SinglePrecisionArray | None = None  # (len(layers), m, d), final norm already applied
    num_layers: int = 0  # depth L of the model
    texts: tuple[str, ...] = ()  # the source texts
    text_ids: IntArray | None = None  # (n,) which text the target stands in
    target_spans: IntArray | None = None  # (n, 2) characters [start, end) of the target token in that text
    vocabulary: tuple[str, ...] = ()  # (V,) printable form of each token, for people; empty if unknown
    provenance: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """Check that the arrays fit each other; O(1), values are not read."""
        for name in ("hidden", "head"):
            if np.ndim(getattr(self, name)) != 2:
                raise ShapeError(f"Features.{name}: expected two axes, got shape {np.shape(getattr(self, name))}")
        n, V, d = self.num_contexts, self.vocabulary_size, self.hidden_size
        has_layers = self.layer_hidden is not None or bool(self.layers)
        if has_layers and (self.layer_rows is None or self.layer_hidden is None):
            raise ShapeError("Features: layers, layer_rows and layer_hidden go together; give all three or none")
        m = 0 if self.layer_rows is None else np.size(self.layer_rows)
        e = -1 if self.embedding is None or self.embedding.ndim != 2 else self.embedding.shape[1]
        expected: dict[str, tuple[int, ...]] = {
            "head": (V, d),
            "targets": (n,),
            "token_ids": (n,),
            "sequence_ids": (n,),
            "positions": (n,),
            "bias": (V,),
            "embedding": (V, e),
            "layer_rows": (m,),
            "layer_hidden": (len(self.layers), m, d),
            "text_ids": (n,),
            "target_spans": (n, 2),
        }
        for name, shape in expected.items():
            value = getattr(self, name)
            if value is not None and np.shape(value) != shape:
                raise ShapeError(
                    f"Features.{name}: expected shape {shape} (n = {n} contexts, V = {V} tokens, d = {d}), "
                    f"got {np.shape(value)}"
                )
        if self.vocabulary and len(self.vocabulary) != V:
            raise ShapeError(f"Features.vocabulary: expected {V} strings or none, got {len(self.vocabulary)}")

    @property
    def num_contexts(self) -> int:
        """Number of contexts, n."""
        return int(self.hidden.shape[0])

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens that the head knows, V."""
        return int(self.head.shape[0])

    @property
    def hidden_size(self) -> int:
        """Width of the states that the head reads, d."""
        return int(self.hidden.shape[1])

    def __repr__(self) -> str:
        sequences = 1 + int(np.count_nonzero(np.diff(self.sequence_ids))) if self.num_contexts else 0
        depth = f"{len(self.layers)} of {self.num_layers} layers" if self.layers else "no layers"
        model = f"{self.provenance['model']}: " if self.provenance and "model" in self.provenance else ""
        return (
            f"Features({model}{self.num_contexts} contexts in {sequences} sequence{'s' * (sequences != 1)}, "
            f"vocabulary {self.vocabulary_size}, hidden size {self.hidden_size}, {depth})"
        )

    def softmax_kernel(self, layer: int = -1) -> SoftmaxKernel:
        """Next-token kernel of one layer: its states, read out by the model's final norm and head.

        Parameters
        ----------
        layer : int
            0 is the embedding, ``l`` the state after layer ``l``, ``num_layers`` the final layer; negative numbers
            count from the end, -1 is the final layer. The final layer has all ``n`` rows, the others have the ``m``
            rows ``layer_rows``.

        Raises
        ------
        ValueRangeError
            The layer was not kept; the message lists those that were.
        """
        from ._softmax import SoftmaxKernel  # the compiled core; Features can be saved and loaded without it

        states = self._states(layer)
        return SoftmaxKernel(
            states,
            self.head,
            bias=self.bias,
            scale=self.scale,
            softcap=self.softcap,
            domain={"context": len(states)},
            codomain={"token": self.vocabulary_size},
        )

    def _states(self, layer: int) -> SinglePrecisionArray:
        number = layer + self.num_layers + 1 if layer < 0 else layer
        if number == self.num_layers:
            return self.hidden
        if number not in self.layers or self.layer_hidden is None:
            kept = ", ".join(map(str, (*self.layers, self.num_layers)))
            raise ValueRangeError(
                f"layer: {layer} was not kept; available are {kept} ({self.num_layers} is the final layer, also -1). "
                "Extract again with layers='all', or with those that you need"
            )
        states: SinglePrecisionArray = self.layer_hidden[self.layers.index(number)]
        return states

    def target_texts(self) -> tuple[str, ...]:
        """The piece of text that each row's target is, (n,) strings that join up to the text.

        A character of several bytes can be spread over several tokens: the first shows it, the others are ``""``.
        Without spans, the printable form from ``vocabulary``; without that, or for an unknown target, ``""``.
        """
        if self.target_spans is None or self.text_ids is None or not self.texts:
            size = len(self.vocabulary)
            return tuple(self.vocabulary[t] if 0 <= t < size else "" for t in self.targets.tolist())
        pieces = []
        shown, previous = 0, (-1, 0)  # characters of the text already shown; text and start of the row before
        rows = zip(self.text_ids.tolist(), self.target_spans.tolist(), self.targets.tolist(), strict=True)
        for text, (start, end), target in rows:
            if text != previous[0] or start < previous[1]:  # another text, or the same once more
                shown = 0
            pieces.append("" if target == IGNORED_TARGET else self.texts[text][max(start, shown) : end])
            shown, previous = max(shown, end), (text, start)
        return tuple(pieces)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one safetensors file, which appears whole or not at all.

        Raises ``OSError`` where the directory is missing or cannot be written to.
        """
        arrays: dict[str, NDArray[Any]] = {}
        tied = self.embedding is self.head
        for names, dtype in ((_FLOATS, np.dtype(np.float32)), (_INTS, np.dtype(np.int64))):
            for name in names:
                value = getattr(self, name)
                if value is not None and not (name == "embedding" and tied):
                    arrays[name] = np.asarray(value, dtype=dtype)
        for name in _STRINGS:
            arrays[f"{name}.utf8"], arrays[f"{name}.offsets"] = _store.pack_strings(getattr(self, name))
        values = {
            "scale": self.scale,
            "softcap": self.softcap,
            "layers": list(self.layers),
            "num_layers": self.num_layers,
            "tied": tied,
        }
        metadata = {
            "format": _FORMAT,
            "schema": str(_SCHEMA),
            "values": json.dumps(values, default=_plain),
            "provenance": json.dumps(self.provenance, default=_plain),
        }
        _store.write(path, arrays, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Features:
        """Open what :meth:`save` wrote; arrays are read-only views of the mapped file.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        FileFormatError
            The file is truncated, corrupt, of another kind, or of a schema newer than this version knows.
        """
        arrays, metadata = _store.read(path)
        if metadata.get("format") != _FORMAT:
            raise FileFormatError(f"{path}: a safetensors file, but not one that Features.save wrote")
        schema = metadata.get("schema", "")
        if not schema.isdecimal() or int(schema) > _SCHEMA:
            raise FileFormatError(
                f"{path}: schema {schema!r}, this version of markovlm reads up to {_SCHEMA}; upgrade markovlm"
            )
        required = (*_REQUIRED, *(f"{name}.{part}" for name in _STRINGS for part in ("utf8", "offsets")))
        missing = [name for name in required if name not in arrays]
        if missing:
            raise FileFormatError(f"{path}: corrupt: lacks {', '.join(missing)}")
        for names, dtype in ((_FLOATS, np.float32), (_INTS, np.int64)):
            for name in names:
                if name in arrays and arrays[name].dtype != dtype:
                    raise FileFormatError(f"{path}: corrupt: {name} is {arrays[name].dtype}")
        try:
            values = json.loads(metadata["values"])
            fields: dict[str, Any] = {name: arrays.get(name) for name in (*_FLOATS, *_INTS)}
            for name in _STRINGS:
                fields[name] = _store.unpack_strings(arrays[f"{name}.utf8"], arrays[f"{name}.offsets"])
            if dict.get(values, "tied"):  # files of before have no such entry
                fields["embedding"] = fields["head"]
            return cls(
                **fields,
                scale=float(values["scale"]),
                softcap=None if values["softcap"] is None else float(values["softcap"]),
                layers=tuple(int(layer) for layer in values["layers"]),
                num_layers=int(values["num_layers"]),
                provenance=json.loads(metadata["provenance"]),
            )
        except (MarkovLMError, KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"{path}: corrupt: {error}") from None


def evenly_spread(count: int, most: int) -> IntArray:
    """At most so many places of ``count``, both ends among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def _plain(value: object) -> Any:
    """NumPy's scalars and arrays as JSON's."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"provenance: {type(value).__name__} cannot be stored; use numbers, strings, lists and dicts")
