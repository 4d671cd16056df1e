"""Features: every field survives a file, whatever does not fit is refused, and damage is named."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import markovlm as mk
from markovlm import _store
from markovlm.errors import FileFormatError, ShapeError, ValueRangeError

N, V, D, M, DEPTH = 7, 5, 3, 4, 6


def features(**changes: Any) -> mk.Features:
    random = np.random.default_rng(0)
    fields: dict[str, Any] = {
        "hidden": random.normal(size=(N, D)).astype(np.float32),
        "head": random.normal(size=(V, D)).astype(np.float32),
        "bias": random.normal(size=V).astype(np.float32),
        "embedding": random.normal(size=(V, 2)).astype(np.float32),
        "targets": np.array([1, 2, 0, 4, 3, mk.IGNORED_TARGET, 2]),
        "token_ids": np.array([0, 1, 2, 0, 4, 3, 1]),
        "sequence_ids": np.array([0, 0, 0, 2, 2, 2, 5]),
        "positions": np.array([0, 1, 2, 0, 1, 2, 0]),
        "scale": 0.1 + 0.2,  # no short decimal
        "softcap": 1 / 3,
        "layers": (0, 2),
        "layer_rows": np.array([0, 2, 3, 6]),
        "layer_hidden": random.normal(size=(2, M, D)).astype(np.float32),
        "num_layers": DEPTH,
        "texts": ("abc", "\U0001f30a\nx", ""),
        "text_ids": np.array([0, 0, 0, 1, 1, 1, 1]),
        "target_spans": np.array([[0, 1], [1, 2], [2, 3], [0, 1], [0, 1], [1, 2], [2, 3]]),
        "vocabulary": ("a", " b", "<0xE2>", "\ud800", "\U0001f30a"),
        "provenance": {"model": "tiny", "nested": {"list": [1, 2.5, None, True]}, "key ä": "\ud800"},
    }
    return mk.Features(**{**fields, **changes})


def minimal() -> mk.Features:
    optional = ("bias", "embedding", "softcap", "layer_rows", "layer_hidden", "text_ids", "target_spans", "provenance")
    return features(**dict.fromkeys(optional), scale=1.0, layers=(), texts=(), vocabulary=(), num_layers=0)


def assert_same(a: mk.Features, b: mk.Features) -> None:
    for field in dataclasses.fields(mk.Features):
        ours, theirs = getattr(a, field.name), getattr(b, field.name)
        if isinstance(ours, np.ndarray):
            assert ours.dtype == theirs.dtype, field.name
            np.testing.assert_array_equal(ours, theirs, err_msg=field.name)
        else:
            assert ours == theirs, field.name
            assert type(ours) is type(theirs), field.name


@pytest.mark.parametrize("make", [features, minimal])
def test_every_field_survives_a_file(make: Any, tmp_path: Path) -> None:
    original = make()
    original.save(tmp_path / "f.safetensors")
    loaded = mk.Features.load(str(tmp_path / "f.safetensors"))
    assert_same(original, loaded)
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "f.safetensors").read_bytes()
    loaded.save(tmp_path / "f.safetensors")  # onto the file that its arrays are mapped from
    assert_same(original, mk.Features.load(tmp_path / "f.safetensors"))


def test_a_tied_embedding_is_kept_once(tmp_path: Path) -> None:
    head = features().head
    tied, apart = features(head=head, embedding=head), features(head=head, embedding=head.copy())
    for name, original in (("tied", tied), ("apart", apart)):
        original.save(tmp_path / name)
        assert_same(original, mk.Features.load(tmp_path / name))
    again = mk.Features.load(tmp_path / "tied")
    assert again.embedding is again.head
    assert (tmp_path / "tied").stat().st_size <= (tmp_path / "apart").stat().st_size - head.nbytes


def test_a_file_without_contexts(tmp_path: Path) -> None:
    empty = np.empty(0, np.int64)
    none = mk.Features(np.empty((0, D), np.float32), np.zeros((V, D), np.float32), empty, empty, empty, empty)
    none.save(tmp_path / "f")
    assert_same(none, mk.Features.load(tmp_path / "f"))
    assert repr(none) == "Features(0 contexts in 0 sequences, vocabulary 5, hidden size 3, no layers)"


def test_loaded_arrays_are_read_only_views_of_the_file(tmp_path: Path) -> None:
    features().save(tmp_path / "f")
    loaded = mk.Features.load(tmp_path / "f")
    for name in ("hidden", "head", "layer_hidden", "targets"):
        array = getattr(loaded, name)
        assert not array.flags.writeable
        while not isinstance(array, np.memmap):
            array = array.base
    P = loaded.softmax_kernel()
    assert np.shares_memory(P.hidden, loaded.hidden)


def test_other_types_are_stored_as_the_documented_ones(tmp_path: Path) -> None:
    original = features(
        targets=[1, 2, 0, 4, 3, -100, 2],
        positions=np.arange(N, dtype=np.uint8),
        hidden=np.ones((N, D)),
        provenance={"n": np.int64(3), "x": np.float32(0.5), "a": np.arange(2)},
    )
    original.save(tmp_path / "f")
    loaded = mk.Features.load(tmp_path / "f")
    assert loaded.targets.dtype == loaded.positions.dtype == np.int64
    assert loaded.hidden.dtype == np.float32
    assert loaded.provenance == {"n": 3, "x": 0.5, "a": [0, 1]}
    with pytest.raises(TypeError, match="provenance: set cannot be stored"):
        features(provenance={"x": {1}}).save(tmp_path / "g")
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"hidden": np.zeros(N)}, r"Features.hidden: expected two axes, got shape \(7,\)"),
        ({"head": np.zeros((V, D, 1))}, r"Features.head: expected two axes"),
        ({"head": np.zeros((V, D + 1))}, r"Features.head: expected shape \(5, 3\) .*got \(5, 4\)"),
        ({"targets": np.zeros(N + 1)}, r"Features.targets: expected shape \(7,\) \(n = 7 contexts.*got \(8,\)"),
        ({"token_ids": np.zeros((N, 1))}, r"Features.token_ids: .*got \(7, 1\)"),
        ({"sequence_ids": np.zeros(1)}, r"Features.sequence_ids"),
        ({"positions": np.zeros(0)}, r"Features.positions"),
        ({"bias": np.zeros(V - 1)}, r"Features.bias: expected shape \(5,\)"),
        ({"embedding": np.zeros((V - 1, 2))}, r"Features.embedding: expected shape \(5, 2\)"),
        ({"embedding": np.zeros(V)}, r"Features.embedding: expected shape \(5, -1\)"),
        ({"layer_rows": np.zeros(M + 1)}, r"Features.layer_hidden: expected shape \(2, 5, 3\)"),
        ({"layer_rows": np.zeros((M, 1))}, r"Features.layer_rows: expected shape \(4,\)"),
        ({"layer_hidden": np.zeros((3, M, D))}, r"Features.layer_hidden"),
        ({"layer_hidden": None}, r"layers, layer_rows and layer_hidden go together"),
        ({"layer_rows": None}, r"layers, layer_rows and layer_hidden go together"),
        ({"text_ids": np.zeros(3)}, r"Features.text_ids"),
        ({"target_spans": np.zeros((N, 3))}, r"Features.target_spans: expected shape \(7, 2\)"),
        ({"vocabulary": ("a",)}, r"Features.vocabulary: expected 5 strings or none, got 1"),
    ],
)
def test_what_does_not_fit(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ShapeError, match=match):
        features(**changes)


def test_the_kernel_of_each_layer() -> None:
    f = features()
    assert f.layer_hidden is not None
    for layer, states in ((-1, f.hidden), (DEPTH, f.hidden), (0, f.layer_hidden[0]), (2, f.layer_hidden[1])):
        P = f.softmax_kernel(layer)
        z = f.scale * (states.astype(np.float64) @ f.head.T.astype(np.float64) + f.bias)
        np.testing.assert_allclose(P.logits(), f.softcap * np.tanh(z / f.softcap), rtol=1e-12)
    assert f.softmax_kernel(-5).shape == (M, V)  # 2 of 6
    for layer in (1, -2, DEPTH + 1, -8):
        with pytest.raises(ValueRangeError, match=rf"layer: {layer} was not kept; available are 0, 2, 6"):
            f.softmax_kernel(layer)


def test_repr() -> None:
    assert repr(features()) == "Features(tiny: 7 contexts in 3 sequences, vocabulary 5, hidden size 3, 2 of 6 layers)"


def test_target_texts() -> None:
    assert features().target_texts() == ("a", "b", "c", "\U0001f30a", "", "", "x")
    assert features(target_spans=None).target_texts() == (" b", "<0xE2>", "a", "\U0001f30a", "\ud800", "", "<0xE2>")
    assert features(target_spans=None, vocabulary=()).target_texts() == ("",) * N
    # The same text once more begins again.
    spans, ids = np.array([[0, 1], [1, 3], [0, 1], [1, 3], [0, 3], [0, 1], [1, 3]]), np.array([0, 0, 0, 0, 1, 0, 0])
    repeated = features(texts=("xyz", "uvw"), target_spans=spans, text_ids=ids, targets=np.ones(N, int))
    assert repeated.target_texts() == ("x", "yz", "x", "yz", "uvw", "x", "yz")


def test_unwritable_and_missing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot write"):
        features().save(tmp_path / "file" / "f")
    with pytest.raises(FileNotFoundError, match="make it first"):
        features().save(tmp_path / "nowhere" / "f")
    with pytest.raises(FileNotFoundError, match="no such file"):
        mk.Features.load(tmp_path / "f")


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Path, dict[str, Any], dict[str, str]]:
    features().save(tmp_path / "f")
    arrays, metadata = _store.read(tmp_path / "f")
    return tmp_path / "f", {name: array.copy() for name, array in arrays.items()}, metadata


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"format": "markovlm.profile"}, "not one that Features.save wrote"),
        ({"format": None}, "not one that Features.save wrote"),
        ({"schema": "2"}, "schema '2', this version of markovlm reads up to 1; upgrade"),
        ({"schema": "one"}, "schema 'one'"),
        ({"schema": None}, "schema ''"),
        ({"values": None}, "corrupt: 'values'"),
        ({"values": "{"}, "corrupt"),
        ({"values": "[]"}, "corrupt"),
        ({"values": "{}"}, "corrupt: 'scale'"),
        ({"values": json.dumps({"scale": [], "softcap": None, "layers": [0, 2], "num_layers": 6})}, "corrupt"),
        (
            {"values": json.dumps({"scale": 1, "softcap": None, "layers": [0], "num_layers": 6})},
            "corrupt: .*layer_hidden",
        ),
        ({"values": json.dumps({"scale": 1, "softcap": None, "layers": 5, "num_layers": 6})}, "corrupt"),
        ({"provenance": "["}, "corrupt"),
        ({"provenance": None}, "corrupt: 'provenance'"),
    ],
)
def test_wrong_metadata(changes: dict[str, str | None], match: str, stored: Any) -> None:
    path, arrays, metadata = stored
    changed = {name: value for name, value in {**metadata, **changes}.items() if value is not None}
    _store.write(path, arrays, changed)
    with pytest.raises(FileFormatError, match=match):
        mk.Features.load(path)


def test_wrong_arrays(stored: Any) -> None:
    path, arrays, metadata = stored
    for name in ("hidden", "targets", "texts.offsets", "vocabulary.utf8"):
        _store.write(path, {key: value for key, value in arrays.items() if key != name}, metadata)
        with pytest.raises(FileFormatError, match=f"corrupt: lacks {name}"):
            mk.Features.load(path)
    for name, value in (
        ("hidden", np.zeros((N, D))),
        ("targets", np.zeros(N, np.int32)),
        ("hidden", np.zeros((N, D + 1), np.float32)),
        ("positions", np.zeros(N + 1, np.int64)),
        ("texts.offsets", np.array([0, 99])),
        ("texts.offsets", np.zeros(3)),
        ("texts.utf8", np.zeros(3)),
        ("vocabulary.utf8", np.full_like(arrays["vocabulary.utf8"], 0xFF)),
        ("hidden", np.zeros((), np.float32)),
    ):
        _store.write(path, {**arrays, name: value}, metadata)
        with pytest.raises(FileFormatError, match=str(path)):
            mk.Features.load(path)


def test_another_kind_of_file(tmp_path: Path) -> None:
    _store.write(tmp_path / "model.safetensors", {"lm_head.weight": np.zeros((3, 2))}, {"format": "pt"})
    with pytest.raises(FileFormatError, match=r"not one that Features\.save wrote"):
        mk.Features.load(tmp_path / "model.safetensors")
    (tmp_path / "f.npz").write_bytes(b"PK\x03\x04" + bytes(500))
    with pytest.raises(FileFormatError, match="not a safetensors file"):
        mk.Features.load(tmp_path / "f.npz")


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    path = tmp_path_factory.mktemp("features") / "f"
    features().save(path)
    return path, path.read_bytes()


def load_or_refuse(path: Path, content: bytes) -> mk.Features | None:
    path.write_bytes(content)
    try:
        return mk.Features.load(path)
    except FileFormatError:
        return None


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_changed_bytes_are_refused_or_loaded(content: tuple[Path, bytes], data: st.DataObject) -> None:
    path, original = content
    header = 8 + int.from_bytes(original[:8], "little")
    changed = bytearray(original)
    for _ in range(data.draw(st.integers(1, 3))):
        end = data.draw(st.sampled_from([header, len(original)]))
        changed[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    load_or_refuse(path, bytes(changed))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_cut_and_lengthened_files_are_refused(content: tuple[Path, bytes], data: st.DataObject) -> None:
    path, original = content
    assert load_or_refuse(path, original) is not None
    assert load_or_refuse(path, original[: data.draw(st.integers(0, len(original) - 1))]) is None
    assert load_or_refuse(path, original + data.draw(st.binary(min_size=1, max_size=9))) is None
