"""The store: what goes in comes out, others can read it, and no damage is ever believed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from markovlm import _store
from markovlm.errors import DTypeError, FileFormatError

RANDOM = np.random.default_rng(0)
DTYPES = ["?", "u1", "i1", "u2", "i2", "f2", "u4", "i4", "f4", "u8", "i8", "f8"]


def some_arrays() -> dict[str, Any]:
    arrays = {f"of {code}": (RANDOM.normal(size=(3, 4)) * 5).astype(code) for code in DTYPES}
    return {
        **arrays,
        "empty": np.empty((0, 7), np.float32),
        "no axes": np.float64(3.5),
        "odd bytes": np.arange(3, dtype=np.uint8),
        "äöü": np.arange(5),
    }


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        np.array_equal(a[name], b[name])
        and np.asarray(a[name]).dtype == b[name].dtype
        and np.shape(a[name]) == b[name].shape
        for name in a
    )


def test_round_trip(tmp_path: Path) -> None:
    path, arrays, metadata = tmp_path / "a.safetensors", some_arrays(), {"key": "värde", "": "\n"}
    _store.write(path, arrays, metadata)
    found, told = _store.read(path)
    assert equal(arrays, found)
    assert told == metadata
    assert os.listdir(tmp_path) == ["a.safetensors"]
    _store.write(path, {}, {})
    assert _store.read(path) == ({}, {})


def test_arrays_are_aligned_read_only_views_of_the_mapped_file(tmp_path: Path) -> None:
    _store.write(tmp_path / "a", some_arrays(), {})
    for name, array in _store.read(tmp_path / "a")[0].items():
        assert not array.flags.writeable, name
        assert array.flags.aligned, name
        base = array
        while not isinstance(base, np.memmap):
            assert base.base is not None, name
            base = base.base
    with pytest.raises(ValueError, match="read-only"):
        _store.read(tmp_path / "a")[0]["of f4"][0] = 0


def test_strided_and_foreign_arrays_are_stored_by_value(tmp_path: Path) -> None:
    wide = RANDOM.normal(size=(40, 60))
    arrays = {
        "columns": wide[:, ::2],
        "transposed": wide.T,
        "backwards": wide[::-1],
        "big-endian": wide.astype(">f4"),
        "one": np.asarray(wide)[3, 4],
        "big-endian one": np.array(2.5, ">f8"),
    }
    before = _store._BLOCK_BYTES
    try:
        _store._BLOCK_BYTES = 1000  # so that several blocks are needed
        _store.write(tmp_path / "a", arrays, {})
    finally:
        _store._BLOCK_BYTES = before
    for name, array in _store.read(tmp_path / "a")[0].items():
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)


def test_the_reference_library_reads_ours_and_we_read_its(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy", reason="reads and writes the same files")
    arrays = {name: np.asarray(array) for name, array in some_arrays().items()}
    _store.write(tmp_path / "ours", arrays, {"a": "b"})
    assert equal(arrays, safetensors.load_file(tmp_path / "ours"))
    with pytest.importorskip("safetensors", reason="reads and writes the same files").safe_open(
        tmp_path / "ours", "np"
    ) as file:
        assert file.metadata() == {"a": "b"}
    safetensors.save_file(arrays, tmp_path / "theirs", metadata={"c": "d"})
    found, metadata = _store.read(tmp_path / "theirs")
    assert equal(arrays, found)
    assert metadata == {"c": "d"}


class Breaks:
    """Goes wrong in the middle of writing."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __call__(self, array: Any) -> Any:
        yield np.zeros(3, np.uint8)
        raise self.error


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, MemoryError])
def test_a_file_appears_whole_or_not_at_all(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = {"old": np.arange(3)}
    _store.write(tmp_path / "a", old, {})
    monkeypatch.setattr(_store, "_blocks", Breaks(error))
    for name in ("a", "b"):
        with pytest.raises(error):
            _store.write(tmp_path / name, {"new": np.arange(9)}, {})
    assert os.listdir(tmp_path) == ["a"]
    assert equal(_store.read(tmp_path / "a")[0], old)


def test_an_open_mapping_survives_a_new_file_of_its_name(tmp_path: Path) -> None:
    _store.write(tmp_path / "a", {"x": np.arange(1000)}, {})
    mapped = _store.read(tmp_path / "a")[0]["x"]
    _store.write(tmp_path / "a", {"x": np.zeros(10)}, {})
    np.testing.assert_array_equal(mapped, np.arange(1000))


def test_what_cannot_be_written(tmp_path: Path) -> None:
    for array in (np.array(["text"]), np.array([1j]), np.array([object()]), np.array(["2020"], "M8[D]")):
        with pytest.raises(DTypeError, match=r"array 'x' of dtype .* cannot be stored"):
            _store.write(tmp_path / "a", {"x": array}, {})
    with pytest.raises(DTypeError, match="__metadata__"):
        _store.write(tmp_path / "a", {"__metadata__": np.arange(3)}, {})
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="cannot write"):
        _store.write(tmp_path / "file" / "a", {}, {})
    with pytest.raises(FileNotFoundError, match=r"directory .*nowhere does not exist; make it first"):
        _store.write(tmp_path / "nowhere" / "a", {}, {})
    with pytest.raises(IsADirectoryError, match="is a directory"):
        _store.write(tmp_path, {}, {})
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a directory that root cannot write to either")
def test_a_directory_that_takes_no_files() -> None:
    with pytest.raises(OSError, match="cannot write /proc/self/a"):
        _store.write("/proc/self/a", {}, {})


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        _store.read(tmp_path / "a")
    with pytest.raises(IsADirectoryError, match="is a directory"):
        _store.read(tmp_path)


def of_header(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "not a safetensors file: 0 bytes"),
        (b"1234567", "7 bytes"),
        (b"\xff" * 20, "there is no header at its beginning"),
        ((100).to_bytes(8, "little") + b"{}", "truncated: the header takes 100 bytes, the file has 2"),
        (of_header(b"{oops"), "header is not JSON"),
        (of_header(b"{\xff\xfe"), "header is not JSON"),
        (of_header(b'{"x":' * 100_000), "header is not JSON"),
        (of_header(b"{}{}"), "header is not JSON"),
        (of_header(b'{"x": 1, "x": 2}'), "a name occurs twice"),
        (of_header([]), "there is no header at its beginning"),
        (bytes(8), "there is no header at its beginning"),
        (of_header({"__metadata__": {"a": 1}}), "must map strings to strings"),
        (of_header({"__metadata__": "a"}), "must map strings to strings"),
        (of_header({"x": 3}), "entry of array 'x' must be an object"),
        (of_header({"x": entry("F31")}, bytes(8)), "dtype 'F31'; readable are BOOL"),
        (of_header({"x": entry("BF16")}, bytes(8)), "dtype 'BF16'"),
        (of_header({"x": entry([])}, bytes(8)), r"dtype \[\]"),
        (of_header({"x": entry(shape=[-2])}, bytes(8)), "the entry of array 'x' is"),
        (of_header({"x": entry(shape=[2.0])}, bytes(8)), "the entry of array 'x' is"),
        (of_header({"x": entry(shape=[True, 2])}, bytes(8)), "the entry of array 'x' is"),
        (of_header({"x": entry(shape="2")}, bytes(8)), "the entry of array 'x' is"),
        (of_header({"x": entry(shape=[1] * 33)}, bytes(8)), "the entry of array 'x' is"),
        (of_header({"x": entry(offsets=[0])}, bytes(8)), "the entry of array 'x' is"),
        (of_header({"x": entry(offsets=[8, 0])}, bytes(8)), "hold -8"),
        (of_header({"x": entry(shape=[3])}, bytes(8)), "needs 12 bytes, its data_offsets .* hold 8"),
        (of_header({"x": entry(shape=[2**62, 2**62])}, bytes(8)), "needs"),
        (of_header({"x": entry(shape=[0, 2**62, 2**62], offsets=[0, 0])}), "corrupt"),
        (of_header({"x": entry()}, bytes(7)), "truncated: the arrays take 8 bytes, the file holds 7"),
        (of_header({"x": entry()}, bytes(9)), "1 bytes after the last array"),
        (of_header({"x": entry(offsets=[1, 9])}, bytes(9)), "leaves a gap"),
        (of_header({"x": entry(), "y": entry(offsets=[4, 12])}, bytes(12)), "overlaps"),
        (of_header({"x": entry(), "y": entry(offsets=[9, 17])}, bytes(17)), "leaves a gap"),
        (b"PK\x03\x04" + bytes(100), "not a safetensors file"),
    ],
)
def test_damage_is_named(content: bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(FileFormatError, match=match) as caught:
        _store.read(tmp_path / "a")
    assert str(caught.value).startswith(f"{tmp_path / 'a'}: ")


def test_a_misaligned_array_is_copied(tmp_path: Path) -> None:
    data = np.arange(2, dtype="<f4").tobytes()
    header = {"x": entry("U8", [3], [0, 3]), "y": entry(offsets=[3, 11])}
    (tmp_path / "a").write_bytes(of_header(header, b"abc" + data))
    found = _store.read(tmp_path / "a")[0]["y"]
    assert found.tolist() == [0, 1]
    assert found.flags.aligned
    assert not found.flags.writeable


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, int]:
    path = tmp_path_factory.mktemp("store") / "a"
    _store.write(path, {"x": np.arange(12.0).reshape(3, 4), "y": np.arange(3, dtype=np.int8)}, {"a": "b"})
    content = path.read_bytes()
    return path, content, 8 + int.from_bytes(content[:8], "little")


def read_or_refuse(path: Path, content: bytes) -> bool:
    """Whether it was read; anything but a reading or a FileFormatError fails the test."""
    path.write_bytes(content)
    try:
        arrays, _ = _store.read(path)
    except FileFormatError:
        return False
    for array in arrays.values():
        array.sum()  # every byte is there
    return True


def test_every_truncation_is_refused(intact: tuple[Path, bytes, int]) -> None:
    path, content, _ = intact
    assert read_or_refuse(path, content)
    for length in range(len(content)):
        assert not read_or_refuse(path, content[:length]), length


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_a_changed_header_is_refused_or_read(intact: tuple[Path, bytes, int], data: st.DataObject) -> None:
    path, content, end = intact
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    read_or_refuse(path, bytes(changed))


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_refused(intact: tuple[Path, bytes, int], content: bytes) -> None:
    read_or_refuse(intact[0], content)
    read_or_refuse(intact[0], of_header(content))


@settings(max_examples=50, deadline=None)
@given(array=hnp.arrays(st.sampled_from([np.dtype(code) for code in DTYPES]), hnp.array_shapes(min_dims=0, min_side=0)))
def test_any_array_comes_back(tmp_path_factory: pytest.TempPathFactory, array: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    _store.write(path, {"x": array}, {})
    found = _store.read(path)[0]["x"]
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    assert found.tobytes() == array.tobytes()


@settings(deadline=None)
@given(strings=st.lists(st.text(st.characters())))
@example([])
@example(["", "", "\ud800", "a\udfffb", "\U0001f30a", "\x00", "\ud83c\udf0a"])
def test_strings_come_back(strings: list[str]) -> None:
    blob, offsets = _store.pack_strings(strings)
    assert blob.dtype == np.uint8
    assert offsets.dtype == np.int64
    assert _store.unpack_strings(blob, offsets) == tuple(strings)


@settings(deadline=None)
@given(
    blob=hnp.arrays(np.uint8, st.integers(0, 6)),
    offsets=hnp.arrays(np.int64, st.integers(0, 4), elements=st.integers(-2, 8)),
)
def test_any_strings_are_read_or_refused(blob: Any, offsets: Any) -> None:
    try:
        strings = _store.unpack_strings(blob, offsets)
    except FileFormatError:
        return
    again = _store.pack_strings(strings)
    assert np.array_equal(again[0], blob)
    assert np.array_equal(again[1], offsets)


@pytest.mark.parametrize(
    ("blob", "offsets", "match"),
    [
        (b"abc", [], "from 0 to the 3 bytes"),
        (b"abc", [0, 2], "from 0 to the 3 bytes"),
        (b"abc", [1, 3], "from 0 to the 3 bytes"),
        (b"abc", [0, 2, 1, 3], "must not decrease"),
        (b"\xff", [0, 1], "corrupt strings: .*decode"),
        (b"abc", [[0, 3]], "from 0 to the 3 bytes"),
    ],
)
def test_strings_that_do_not_fit(blob: bytes, offsets: Any, match: str) -> None:
    with pytest.raises(FileFormatError, match=match):
        _store.unpack_strings(np.frombuffer(blob, np.uint8), np.array(offsets, np.int64))
