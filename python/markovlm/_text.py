"""From texts to windows of token ids, each with known targets, and from token ids back to something to show people."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .errors import ShapeError, ValueRangeError
from .typing import IntArray

__all__ = ["Windows", "cut_windows", "printable_vocabulary", "vocabulary_rows"]

_GENEROUS_CHARACTERS = 16  # per token: more than any tokenizer needs on real text, so one short pass mostly suffices
_CUT_MARGIN = 64  # tokens at a cut that may differ from those of the whole text


@dataclass
class Windows:
    """Sequences to run through the model, and where the ``n`` targets in them came from."""

    sequences: list[IntArray] = field(default_factory=list)  # (T + 1,) ids each: T contexts with known targets
    text_ids: list[int] = field(default_factory=list)  # text of each sequence
    spans: list[IntArray] | None = None  # (T, 2) characters of the targets of each sequence
    texts: list[str] = field(default_factory=list)  # the texts that were reached; empty for token ids
    described: list[dict[str, Any]] = field(default_factory=list)  # provenance of the texts that were reached
    begins_with: int | None = None  # id put at the front of every window

    @property
    def num_contexts(self) -> int:
        """Contexts in all."""
        return sum(len(ids) - 1 for ids in self.sequences)

    def columns(self) -> dict[str, Any]:
        """The fields of Features that say where each context and its target stand."""
        lengths = [len(ids) - 1 for ids in self.sequences]
        return {
            "targets": np.concatenate([ids[1:] for ids in self.sequences]),
            "token_ids": np.concatenate([ids[:-1] for ids in self.sequences]),
            "sequence_ids": np.repeat(np.arange(len(lengths), dtype=np.int64), lengths),
            "positions": np.concatenate([np.arange(length, dtype=np.int64) for length in lengths]),
            "texts": tuple(self.texts),
            "text_ids": np.repeat(np.asarray(self.text_ids, np.int64), lengths),
            "target_spans": None if self.spans is None else np.concatenate(self.spans),
        }


def cut_windows(
    texts: Sequence[Any], tokenizer: Any, *, max_tokens: int, context_length: int, names: Sequence[str] | None = None
) -> Windows:
    """Cut ``texts`` in order into windows of up to ``context_length`` contexts, ``max_tokens`` contexts in all.

    Where the tokenizer begins its texts with a token of its own (BOS), so does every window, and a window predicts
    the ids after it. Otherwise windows overlap by one id, the last target of one being the first context of the next.
    Either way each id of a text is a target at most once. Texts beyond ``max_tokens`` are not even tokenised.

    Raises
    ------
    ValueRangeError
        A text gives no target (empty, or a single token), or is not Unicode.
    """
    as_text = isinstance(texts[0], str)
    if any(isinstance(text, str) != as_text for text in texts):
        raise ValueRangeError("texts: expected either strings or sequences of token ids, got a mixture")
    windows = Windows()
    if as_text:
        windows.begins_with = _first_token(tokenizer)
        windows.spans = [] if getattr(tokenizer, "is_fast", False) else None
    remaining = max_tokens
    for index, text in enumerate(texts):
        if remaining <= 0:
            break
        name = names[index] if names is not None else None
        spans: IntArray | None = None
        if as_text:
            facts: dict[str, Any] = {"sha256": hashlib.sha256(_utf8(text, index)).hexdigest(), "characters": len(text)}
            ids, spans = _tokenize(tokenizer, text, remaining + 1)
            windows.texts.append(text)
        else:
            ids = _as_ids(text, index)
            facts = {"sha256": hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest(), "tokens": len(ids)}
        windows.described.append({"name": name, **facts} if name is not None else facts)
        front = [] if windows.begins_with is None else [windows.begins_with]
        count = min(len(ids) - 1 + len(front), remaining)
        if count < 1:
            found = "no token" if len(ids) == 0 else "a single token, so there is no next one to predict"
            label = f"text {index}" if name is None else f"text {index} ({name})"
            raise ValueRangeError(f"texts: {label} has {found}; leave it out or give a longer one")
        first = 1 - len(front)  # the first id of the text that is a target
        for start in range(first, first + count, context_length):
            stop = min(start + context_length, first + count)
            before = np.asarray(front, np.int64) if front else ids[start - 1 : start]
            windows.sequences.append(np.concatenate([before, ids[start:stop]]))
            windows.text_ids.append(index)
            if windows.spans is not None and spans is not None:
                windows.spans.append(spans[start:stop])
        remaining -= count
    return windows


def _utf8(text: str, index: int) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueRangeError(
            f"texts: text {index} has half a surrogate pair at character {error.start}, which is no character; read it "
            "with errors='replace'"
        ) from None


def _first_token(tokenizer: Any) -> int | None:
    """The token that ``tokenizer`` puts before every text by default, if it does."""
    bos = getattr(tokenizer, "bos_token_id", None)
    if bos is None:
        return None
    ids = tokenizer("a")["input_ids"]
    return int(bos) if len(ids) and ids[0] == bos else None


def _tokenize(tokenizer: Any, text: str, needed: int) -> tuple[IntArray, IntArray | None]:
    """Ids of ``text`` (at least the first ``needed``, if it has so many) and their spans, if the tokenizer tells."""
    limit = _GENEROUS_CHARACTERS * (needed + _CUT_MARGIN)
    if len(text) > 2 * limit:
        ids, spans = _encode(tokenizer, text[:limit])
        if len(ids) >= needed + _CUT_MARGIN:
            return ids[:needed], None if spans is None else spans[:needed]
    return _encode(tokenizer, text)


def _encode(tokenizer: Any, text: str) -> tuple[IntArray, IntArray | None]:
    if not getattr(tokenizer, "is_fast", False):
        return np.asarray(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], np.int64), None
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    spans = np.asarray(encoded["offset_mapping"], np.int64).reshape(-1, 2)
    # Some tokenizers leave the space before a word out of its span: give it back, so that the pieces join up.
    previous_ends = np.concatenate([[0], spans[:-1, 1]])
    for i in np.flatnonzero(spans[:, 0] > previous_ends):
        if text[previous_ends[i] : spans[i, 0]].isspace():
            spans[i, 0] = previous_ends[i]
    if len(spans) and text[spans[-1, 1] :].isspace():
        spans[-1, 1] = len(text)
    return np.asarray(encoded["input_ids"], np.int64), spans


def _as_ids(text: Any, index: int) -> IntArray:
    try:
        ids = np.asarray(text)
    except Exception:  # whatever a stranger's __array__ raises, the message is the same
        ids = np.asarray(None)
    if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
        raise ShapeError(
            f"texts: item {index} must be a string or a one-dimensional sequence of integer token ids, "
            f"got {type(text).__name__} of shape {ids.shape} and dtype {ids.dtype}"
        )
    return ids.astype(np.int64)


def vocabulary_rows(tokenizer: Any) -> int:
    """How many rows of a head the tokenizer can ask for: its largest id + 1."""
    return max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=-1))


def printable_vocabulary(tokenizer: Any, size: int) -> tuple[str, ...]:
    """What each of the first ``size`` ids adds to a text, (size,); parts of characters are spelled ``<0xE2>``."""
    known = min(size, vocabulary_rows(tokenizer))
    raw = tokenizer.convert_ids_to_tokens(list(range(known)))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:  # one call into Rust: 50,000 ids take some tenths of a second instead of seconds
        shown = backend.decode_batch([[i] for i in range(known)], skip_special_tokens=False)
    else:
        shown = [tokenizer.decode([i]) for i in range(known)]
    pieces = [_printable(i, piece, token) for i, (piece, token) in enumerate(zip(shown, raw, strict=True))]
    return tuple(pieces) + tuple(f"<{i}>" for i in range(known, size))


def _printable(index: int, piece: str, token: str | bytes | None) -> str:
    if isinstance(token, bytes):
        return _spell(token)
    if token is None:
        return f"<{index}>"
    if "\ufffd" in piece:
        data = [_BYTE_OF.get(character) for character in token]
        whole = None not in data and not re.fullmatch("<0x[0-9A-F]{2}>", token)
        return _spell(bytes(byte for byte in data if byte is not None)) if whole else token
    if token.startswith("\u2581") and not piece.startswith(" "):  # decoding alone drops the space before a word
        return " " + piece
    return piece or token


def _spell(data: bytes) -> str:
    """UTF-8 where it is, ``<0xE2>`` for bytes that are only a part of a character."""
    text = data.decode("utf-8", "surrogateescape")
    return re.sub("[\udc80-\udcff]", lambda match: f"<0x{ord(match[0]) - 0xDC00:02X}>", text)


def _byte_characters() -> dict[str, int]:
    """GPT-2's alphabet for bytes: printable Latin-1 stands for itself, the others follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_characters()
