"""Reads and writes safetensors files with NumPy alone, so that saved results open without any extra, memory-mapped.

The format (https://huggingface.co/docs/safetensors): eight bytes, the little-endian length of the header; the header,
a JSON object ``{"__metadata__": {str: str}, name: {"dtype", "shape", "data_offsets"}}``; then the arrays, end to end,
row-major, little-endian. Nothing in a file is ever executed, and nothing in it is believed before it was checked.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from .errors import DTypeError, FileFormatError
from .typing import IntArray

__all__ = ["pack_strings", "read", "unpack_strings", "write"]

_NAMES = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "F16": "<f2",
    "U32": "<u4",
    "I32": "<i4",
    "F32": "<f4",
    "U64": "<u8",
    "I64": "<i8",
    "F64": "<f8",
}
_DTYPES = {name: np.dtype(code) for name, code in _NAMES.items()}
_CODES = {dtype: name for name, dtype in _DTYPES.items()}

_MOST_HEADER_BYTES = 100_000_000  # the reference library's limit: a longer header is an attack or another file
_MOST_AXES = 32
_ALIGNMENT = 64  # of the first array, a cache line; wider items come first, so that every array lies aligned
_BLOCK_BYTES = 1 << 24  # what a strided array is copied by on its way out


def write(path: str | os.PathLike[str], arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Write ``arrays`` and ``metadata`` to ``path``; the file appears whole or not at all.

    Everything goes to a temporary file in the same directory, which then takes the name. It is opened before anything
    else, so a directory that cannot be written to is known at once. Contiguous arrays are written from where they lie.

    Raises
    ------
    OSError
        ``path`` cannot be written to; the message says why. An older file of that name is then untouched.
    DTypeError
        An array has a dtype that the format cannot hold.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    if target.is_dir():
        raise IsADirectoryError(f"cannot write {target}: it is a directory; give the name of a file in it")
    try:
        file = open(temporary, "xb")  # noqa: SIM115 - the error of opening needs words of its own
    except FileNotFoundError:
        raise FileNotFoundError(
            f"cannot write {target}: the directory {target.parent} does not exist; make it first"
        ) from None
    except OSError as error:
        raise type(error)(error.errno, f"cannot write {target}: {target.parent}: {error.strerror}") from None
    try:
        with file:
            _write(file, {name: np.asarray(array) for name, array in arrays.items()}, metadata)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:  # Ctrl-C as well: no half file stays behind
        temporary.unlink(missing_ok=True)
        raise


def _write(file: BinaryIO, arrays: dict[str, NDArray[Any]], metadata: Mapping[str, str]) -> None:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    offset = 0
    for name in order:
        array = arrays[name]
        code = _CODES.get(array.dtype.newbyteorder("<"))
        if code is None or name == "__metadata__":
            raise DTypeError(f"array {name!r} of dtype {array.dtype} cannot be stored; the format has {list(_NAMES)}")
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for name in order:
        for block in _blocks(arrays[name]):
            file.write(block.data)


def _blocks(array: NDArray[Any]) -> Iterator[NDArray[np.uint8]]:
    """The bytes of ``array``, little-endian and row-major: in one piece where they lie so, else copied by blocks."""
    stored = array.dtype.newbyteorder("<")
    if array.size == 0:
        return
    if array.flags.c_contiguous and array.dtype == stored:
        yield array.reshape(-1).view(np.uint8)
        return
    rows = array.reshape(1) if array.ndim == 0 else array
    step = max(1, _BLOCK_BYTES // max(1, rows[0].nbytes))
    for start in range(0, len(rows), step):
        block = np.ascontiguousarray(rows[start : start + step], dtype=stored)
        yield block.reshape(-1).view(np.uint8)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Open a safetensors file: ``(arrays, metadata)``, the arrays read-only views of the mapped file.

    Cost: the header only; the system reads an array's pages when they are first touched.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    FileFormatError
        The file is truncated, corrupt, or of another kind; the message says what is wrong.
    """
    source = Path(path)
    try:
        size = source.stat().st_size
        if size < 8:
            raise FileFormatError(f"{source}: not a safetensors file: {size} bytes, where a header needs at least 8")
        mapped: NDArray[np.uint8] = np.memmap(source, dtype=np.uint8, mode="r")
    except FileNotFoundError:
        raise FileNotFoundError(f"{source}: there is no such file") from None
    except IsADirectoryError:
        raise IsADirectoryError(f"{source}: is a directory; give the name of a file in it") from None
    length = int.from_bytes(mapped[:8].tobytes(), "little")
    if length > _MOST_HEADER_BYTES or mapped[8:9].tobytes() != b"{":
        raise FileFormatError(f"{source}: not a safetensors file: there is no header at its beginning")
    if 8 + length > size:
        raise FileFormatError(f"{source}: truncated: the header takes {length} bytes, the file has {size - 8} after it")
    header = _parse(source, mapped[8 : 8 + length].tobytes())
    metadata = header.pop("__metadata__", {})
    if not (isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())):
        raise FileFormatError(f"{source}: corrupt: __metadata__ must map strings to strings")
    spans = {name: _span(source, name, entry) for name, entry in header.items()}
    _check_layout(source, spans, size - 8 - length)
    data = mapped[8 + length :]
    try:
        arrays = {name: _view(data, *span) for name, span in spans.items()}
    except ValueError as error:  # an empty array whose other axes are beyond what NumPy can describe
        raise FileFormatError(f"{source}: corrupt: {error}") from None
    return arrays, metadata


_Span = tuple["np.dtype[Any]", tuple[int, ...], int, int]  # dtype, shape, begin, end


def _parse(source: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name occurs twice")
        return found

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{source}: not a safetensors file, or corrupt: header is not JSON ({error})") from None
    return cast(dict[str, Any], header)  # it begins with a brace


def _counts(values: object, most: int) -> list[int] | None:
    """``values`` if it is a list of at most ``most`` integers that can be lengths or offsets."""
    if not isinstance(values, list) or len(values) > most:
        return None
    return values if all(type(value) is int and 0 <= value < 2**63 for value in values) else None


def _span(source: Path, name: str, entry: object) -> _Span:
    if not isinstance(entry, dict):
        raise FileFormatError(f"{source}: corrupt: the entry of array {name!r} must be an object")
    code = entry.get("dtype")
    shape, offsets = _counts(entry.get("shape"), _MOST_AXES), _counts(entry.get("data_offsets"), 2)
    dtype = _DTYPES.get(code) if isinstance(code, str) else None
    if dtype is None:
        raise FileFormatError(f"{source}: array {name!r} has dtype {code!r}; readable are {', '.join(_NAMES)}")
    if shape is None or offsets is None or len(offsets) != 2:
        raise FileFormatError(f"{source}: corrupt: the entry of array {name!r} is {str(entry)[:200]}")
    count = 1
    for extent in shape:
        count *= extent
    begin, end = offsets
    if end - begin != count * dtype.itemsize:
        raise FileFormatError(
            f"{source}: corrupt: array {name!r} of shape {shape} needs {count * dtype.itemsize} bytes, "
            f"its data_offsets {offsets} hold {end - begin}"
        )
    return dtype, tuple(shape), begin, end


def _check_layout(source: Path, spans: Mapping[str, _Span], available: int) -> None:
    """The arrays must follow one another without gap or overlap and fill the file."""
    previous_end = 0
    for name, (_, _, begin, end) in sorted(spans.items(), key=lambda item: item[1][2:]):
        if begin != previous_end:
            what = "overlaps the one before it" if begin < previous_end else "leaves a gap before it"
            raise FileFormatError(f"{source}: corrupt: array {name!r} at byte {begin} {what} (ends at {previous_end})")
        previous_end = end
    if previous_end > available:
        raise FileFormatError(f"{source}: truncated: the arrays take {previous_end} bytes, the file holds {available}")
    if previous_end < available:
        raise FileFormatError(f"{source}: corrupt: {available - previous_end} bytes after the last array")


def _view(data: NDArray[np.uint8], dtype: np.dtype[Any], shape: tuple[int, ...], begin: int, end: int) -> NDArray[Any]:
    view = data[begin:end].view(dtype).reshape(shape)
    if not view.flags.aligned:  # allowed by the format, but not what a compiled loop may be handed
        view = view.copy()
        view.flags.writeable = False
    return view


def pack_strings(strings: Iterable[str]) -> tuple[NDArray[np.uint8], IntArray]:
    """Strings as one UTF-8 blob and the ``len + 1`` offsets between them; lone surrogates survive."""
    encoded = [string.encode("utf-8", "surrogatepass") for string in strings]
    offsets = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(item) for item in encoded], out=offsets[1:])
    return np.frombuffer(b"".join(encoded), np.uint8), offsets


def unpack_strings(blob: NDArray[np.uint8], offsets: IntArray) -> tuple[str, ...]:
    """Inverse of :func:`pack_strings`; ``FileFormatError`` where the two do not fit each other."""
    edges = offsets.tolist()
    if blob.ndim != 1 or offsets.ndim != 1 or not edges or edges[0] != 0 or edges[-1] != len(blob):
        raise FileFormatError(f"corrupt strings: offsets must run from 0 to the {blob.size} bytes stored")
    if any(after < before for before, after in pairwise(edges)):
        raise FileFormatError("corrupt strings: offsets must not decrease")
    data = blob.tobytes()
    try:
        return tuple(data[begin:end].decode("utf-8", "surrogatepass") for begin, end in pairwise(edges))
    except UnicodeDecodeError as error:
        raise FileFormatError(f"corrupt strings: {error}") from None
