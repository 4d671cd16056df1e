"""GGUF files: what comes out of them, and what is refused."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import markovlm as mk
from markovlm import _load
from markovlm.errors import FileFormatError, UnsupportedModelError
from tiny_models import SENTENCES, mini_tokenizer, some_ids, tiny

IDS = some_ids(30)
ROUNDING = 3e-5  # of states up to 3: loaded by name, a model has another implementation of attention


def load(path: Path) -> Any:
    return _load.load_model(*_load.locate(path), trust_remote_code=False)


def write_gguf(path: Path, model: Any, *, leave_out: str = "", **changes: Any) -> None:
    """``model`` (a Llama) as llama.cpp stores it, with a byte-level tokenizer."""
    c, values = model.config, {}
    writer = gguf.GGUFWriter(path, "llama")
    values |= {"block_count": c.num_hidden_layers, "embedding_length": c.hidden_size}
    values |= {"feed_forward_length": c.intermediate_size, "head_count": c.num_attention_heads}
    values |= {"head_count_kv": c.num_key_value_heads, "context_length": c.max_position_embeddings} | changes
    writer.add_name("tiny")
    for name in (
        "block_count",
        "embedding_length",
        "feed_forward_length",
        "head_count",
        "head_count_kv",
        "context_length",
    ):
        getattr(writer, f"add_{name}")(values[name])
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(c.vocab_size)
    tokenizer = mini_tokenizer()
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*tokens, *(f"<extra{i}>" for i in range(len(tokens), c.vocab_size))])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, c.num_hidden_layers)
    for name, weight in model.state_dict().items():
        stem, suffix = name.rsplit(".", 1)
        if stem == leave_out:
            continue
        array = weight.numpy()
        if stem.endswith(("q_proj", "k_proj")):  # llama.cpp pairs the halves of a head otherwise
            heads = c.num_attention_heads if stem.endswith("q_proj") else c.num_key_value_heads
            array = array.reshape(heads, 2, -1, array.shape[-1]).swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny(vocab_size=328)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, model: Any) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, model)
    return path


def test_a_gguf_file_gives_the_same_model(file: Path, model: Any) -> None:
    by_name = mk.extract(file, texts=[IDS], context_length=16)
    by_hand = mk.extract(model, mini_tokenizer(), texts=[IDS], context_length=16, padded_rows="keep")
    np.testing.assert_allclose(by_name.hidden, by_hand.hidden, atol=ROUNDING)
    np.testing.assert_array_equal(by_name.head, by_hand.head)
    # Older versions of Transformers decode a space that stands alone otherwise.
    assert sum(a == b for a, b in zip(by_name.vocabulary[:320], by_hand.vocabulary[:320], strict=True)) > 300
    of_text = mk.extract(file, texts=SENTENCES[0], layers=None)
    assert len("".join(of_text.target_texts())) > 50
    assert SENTENCES[0].endswith("".join(of_text.target_texts()))


def test_a_tied_gguf_file_needs_no_head_of_its_own(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tied.gguf", tiny("llama-tied", vocab_size=328), leave_out="lm_head")
    loaded = load(tmp_path / "tied.gguf")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_a_gguf_file_is_parsed_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = []

    class Counted(gguf.GGUFReader):
        def __init__(self, *arguments: Any) -> None:
            parsed.append(arguments)
            super().__init__(*arguments)

    monkeypatch.setattr(gguf, "GGUFReader", Counted)
    names = gguf.get_tensor_name_map
    mk.extract(file, texts=["The sea"])
    assert len(parsed) == 1
    assert gguf.GGUFReader is Counted
    assert gguf.get_tensor_name_map is names


def test_a_gguf_file_is_read_as_plain_arrays(file: Path) -> None:
    expected = gguf.GGUFReader(str(file))
    with _load.parsed_once(file):
        found = gguf.GGUFReader(str(file))
    assert isinstance(expected.data, np.memmap)
    assert type(found.data) is type(found.tensors[0].data) is np.ndarray
    assert {name: field.contents() for name, field in found.fields.items()} == {
        name: field.contents() for name, field in expected.fields.items()
    }
    for mine, theirs in zip(found.tensors, expected.tensors, strict=True):
        assert mine.name == theirs.name
        np.testing.assert_array_equal(mine.data, theirs.data)


def test_parsing_is_given_back_after_an_error_and_by_every_thread(file: Path) -> None:
    before = gguf.GGUFReader, gguf.get_tensor_name_map
    with suppress(ZeroDivisionError), _load.parsed_once(file):
        assert gguf.GGUFReader is not before[0]
        raise ZeroDivisionError
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before
    threads = [threading.Thread(target=load, args=(file,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before


def test_missing_gguf_weights_are_refused(tmp_path: Path, model: Any) -> None:
    write_gguf(tmp_path / "part.gguf", model, leave_out="model.layers.1.mlp.up_proj")
    with pytest.raises(FileFormatError, match=r"part.gguf.*lacks 1 weights .* model.layers.1.mlp.up_proj.weight"):
        load(tmp_path / "part.gguf")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"block_count": 2**31}, "its header tells of 2147483648 layers, the file has 30 tensors"),
        ({"block_count": 4}, "lacks 9 weights"),
        ({"embedding_length": 2**20}, "shape"),
        ({"feed_forward_length": 2**31}, r"has shape \(.*\), its header implies \(.*2147483648"),
        ({"head_count": 2}, "wide.gguf"),
        ({"head_count_kv": 3}, "wide.gguf"),
    ],
    ids=str,
)
def test_sizes_in_a_gguf_header_are_not_believed(
    changes: dict[str, int], match: str, tmp_path: Path, model: Any
) -> None:
    write_gguf(tmp_path / "wide.gguf", model, **changes)
    with pytest.raises(FileFormatError, match=match):
        load(tmp_path / "wide.gguf")


def test_other_files_named_gguf(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    for content, match in (
        (b"", "not a GGUF file: 0 bytes"),
        (b"GGUF", "not a GGUF file: 4 bytes"),
        (b"PK\x03\x04" + bytes(100), r"not a GGUF file: it begins with b'PK"),
        (b"GGUF" + bytes([1, 0, 0, 0]) + bytes(100), "GGUF version 1; versions 2 and 3"),
        (b"GGUF" + bytes([0, 0, 0, 3]) + bytes(100), "GGUF version"),  # the other byte order
        (b"GGUF" + bytes([3, 0, 0, 0]) + b"\xff" * 16, "runs past its end"),
        (b"GGUF" + bytes([3, 0, 0, 0]) + bytes(16), "x.gguf"),
        (
            b"GGUF" + bytes([3, 0, 0, 0]) + bytes(8) + b"\x01" + bytes(7) + bytes(8) + b"\x99" * 20,
            "corrupt GGUF header",
        ),
    ):
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match=match) as caught:
            mk.extract(path, texts=["The sea"])
        assert "x.gguf" in str(caught.value)


def header_end(file: Path) -> int:
    return int(min(tensor.data_offset for tensor in gguf.GGUFReader(file).tensors))


def test_every_truncation_of_a_gguf_file_is_refused(file: Path, tmp_path: Path) -> None:
    content, path = file.read_bytes(), tmp_path / "cut.gguf"
    end = header_end(file)
    _load.check_gguf(file)
    for length in [*range(0, end, 37), end, end + 1, *np.linspace(end, len(content) - 1, 20).astype(int)]:
        path.write_bytes(content[:length])
        with pytest.raises(FileFormatError, match=r"truncated|not a GGUF"):
            _load.check_gguf(path)
    with pytest.raises(FileFormatError, match=r"cut.gguf: truncated: its tensors take \d+ bytes, .* get it again"):
        load(path)


def load_or_refuse(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        loaded = load(path)
        _load.load_tokenizer(*_load.locate(path), trust_remote_code=False)
    except (FileFormatError, UnsupportedModelError):  # the latter where another family's name comes out
        return
    assert loaded.config.num_hidden_layers <= 40


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_changed_gguf_header_is_refused_or_loaded(
    file: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(file.read_bytes())
    # The keys' part before the vocabulary, and the tensors' names, shapes and types: most of a header is strings.
    head, tail = content.index(b"tokenizer.ggml.tokens"), content.rindex(b"token_embd.weight")
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.one_of(st.integers(4, head), st.integers(tail, header_end(file) - 1)))
        content[place] = data.draw(st.integers(0, 255))
    load_or_refuse(tmp_path_factory.getbasetemp() / "changed.gguf", bytes(content))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_changed_gguf_header_is_walked_to_an_end(
    file: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(file.read_bytes())
    end = header_end(file)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, end - 8))
        content[place : place + 8] = data.draw(st.binary(min_size=1, max_size=8))
    path = tmp_path_factory.getbasetemp() / "walked.gguf"
    path.write_bytes(content[: data.draw(st.sampled_from([end, len(content)]))])
    with suppress(FileFormatError):
        _load.check_gguf(path)


def test_deep_nesting_in_a_gguf_header_ends(tmp_path: Path) -> None:
    nested = (9).to_bytes(4, "little") + (1).to_bytes(8, "little")
    key = (1).to_bytes(8, "little") + b"k" + (9).to_bytes(4, "little")
    counts = (0).to_bytes(8, "little") + (1).to_bytes(8, "little")
    (tmp_path / "deep.gguf").write_bytes(b"GGUF" + (3).to_bytes(4, "little") + counts + key + nested * 100_000)
    with pytest.raises(FileFormatError, match="corrupt GGUF header: RecursionError"):
        _load.check_gguf(tmp_path / "deep.gguf")
