"""Every family's own logits come out of its Features again, and what cannot be had is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

import markovlm as mk
import tiny_models
from markovlm.errors import ShapeError, UnsupportedModelError, ValueRangeError
from tiny_models import FAMILIES, NO_LAYERS, VOCABULARY, build, configuration, some_ids, tiny

LENGTH, CONTEXT = 41, 16  # windows of 16, 16 and 8 contexts
KNOWN = [family for family in FAMILIES if hasattr(transformers, FAMILIES[family][0])]  # to this Transformers
READABLE = [family for family in KNOWN if family not in NO_LAYERS]

# The final norm, and what else stands before the head, under the names that the families give them.
READOUTS = (
    ("model.norm",),
    ("model.final_layernorm",),
    ("model.final_norm",),
    ("model.decoder.final_layer_norm", "model.decoder.project_out"),
    ("model.layer_norm",),
    ("gpt_neox.final_layer_norm",),
    ("transformer.ln_f",),
    ("transformer.norm_f",),
    ("transformer.layernorm",),
    ("backbone.norm_f",),
    ("backbone.out_norm",),
    ("biogpt.layer_norm",),
    ("rwkv.ln_out",),
    ("cls.predictions.transform",),
)
RECORDED_AFTER = ("mamba", "mamba2", "rwkv")  # output_hidden_states holds what layers give, not what they take
NO_READOUT = ("openai-gpt", "bart-decoder")  # the head stands on the last layer itself


def windows() -> list[Any]:
    ids = some_ids(LENGTH)
    return [
        torch.from_numpy(ids[start : min(start + CONTEXT, LENGTH - 1)])[None] for start in range(0, LENGTH - 1, CONTEXT)
    ]


def own_logits(model: Any) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        return np.concatenate([model(input_ids=ids).logits[0].double().numpy() for ids in windows()])


def formula(features: mk.Features, states: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    z = states.astype(np.float64) @ features.head.astype(np.float64).T
    if features.bias is not None:
        z = z + features.bias.astype(np.float64)
    z = features.scale * z
    return z if features.softcap is None else features.softcap * np.tanh(z / features.softcap)


def relative_error(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.ptp(expected))


def submodule(model: Any, path: str) -> Any:
    for name in path.split("."):
        model = getattr(model, name, None)
    return model


def readout(family: str, model: Any) -> list[Any]:
    if family in NO_READOUT:
        return []
    for paths in READOUTS:
        found = [module for module in (submodule(model, path) for path in paths) if module is not None]
        if found:
            return found
    raise AssertionError(f"the test does not know the readout of {family}")


# float32 states and products over d terms err by sqrt(d) * 2^-24, some 1e-6 of the range, and the model's own as much
TOLERANCE = 1e-5


@pytest.mark.parametrize("family", KNOWN)
def test_logits_come_out_again(family: str) -> None:
    model = tiny(family)
    features = mk.extract(model, texts=[some_ids(LENGTH)], context_length=CONTEXT, layers=None)
    expected = own_logits(model)
    assert expected.shape == (LENGTH - 1, VOCABULARY)
    assert np.ptp(expected) > 0.1  # else any head would do
    assert relative_error(formula(features, features.hidden), expected) < TOLERANCE
    assert relative_error(features.softmax_kernel().logits(), expected) < TOLERANCE
    assert features.provenance is not None
    assert features.provenance["verification"]["relative_error"] < TOLERANCE
    assert features.provenance["model_type"] == model.config.model_type


@pytest.mark.parametrize("family", READABLE)
def test_layers_are_read_out_by_the_models_own_norm_and_head(family: str) -> None:
    model = tiny(family)
    features = mk.extract(model, texts=[some_ids(LENGTH)], context_length=CONTEXT, layers="all")
    depth = model.config.num_hidden_layers
    assert features.layers == tuple(range(depth))
    assert features.num_layers == depth
    # What is stored under layer l is the input of the model's layer l + 1, as Transformers hands it out itself.
    chain, states = readout(family, model), []
    with torch.no_grad():
        for ids in windows():
            hidden = model(input_ids=ids, output_hidden_states=True).hidden_states
            if family in RECORDED_AFTER:
                hidden = (model.get_input_embeddings()(ids), *hidden)
            assert len(hidden) >= depth
            states.append(torch.stack([h[0] for h in hidden[:depth]]))  # the last entry is already normed: left out
        expected = torch.cat(states, dim=1)
        for module in chain:
            expected = module(expected)
        for layer in range(depth):
            by_model = formula(features, expected[layer].numpy())
            assert relative_error(features.softmax_kernel(layer).logits(), by_model) < TOLERANCE, layer
    assert relative_error(features.softmax_kernel(depth).logits(), own_logits(model)) < TOLERANCE
    assert relative_error(features.softmax_kernel(0).logits(), own_logits(model)) > 0.01  # layers do differ


@pytest.mark.parametrize("family", [family for family in NO_LAYERS if family in KNOWN])
def test_layers_that_cannot_be_read_are_refused(family: str) -> None:
    model = tiny(family)
    with pytest.raises(UnsupportedModelError, match=rf"layers: .*{model.config.model_type}.*layers=None"):
        mk.extract(model, texts=[some_ids(LENGTH)], layers="all")


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "cohere", "gpt-neox"])
def test_tied_and_untied_heads(family: str, tie: bool) -> None:
    model = tiny(family, tie_word_embeddings=tie)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tie
    features = mk.extract(model, texts=[some_ids(LENGTH)], context_length=CONTEXT)
    assert relative_error(formula(features, features.hidden), own_logits(model)) < TOLERANCE


def test_head_transformations_are_found() -> None:
    ids = [some_ids(20)]
    gemma = mk.extract(tiny("gemma2"), texts=ids)
    assert (gemma.scale, gemma.softcap, gemma.bias) == (1.0, 2.0, None)
    cohere = mk.extract(tiny("cohere"), texts=ids)
    assert (cohere.scale, cohere.softcap, cohere.bias) == (0.0625, None, None)
    assert mk.extract(tiny("granite"), texts=ids).scale == 1 / 8
    phi = tiny("phi")
    bias = mk.extract(phi, texts=ids).bias
    assert bias is not None
    np.testing.assert_array_equal(bias, phi.lm_head.bias.detach().numpy())
    assert np.abs(bias).max() > 0.1


class Multiplied(transformers.LlamaForCausalLM):
    """Multiplies its logits by a constant that its configuration keeps to itself."""

    def forward(self, input_ids: Any = None, **options: Any) -> Any:
        output = super().forward(input_ids=input_ids, **options)
        output.logits = 3.0 * output.logits
        return output


class Bent(transformers.LlamaForCausalLM):
    """Does something to its logits that no scale, bias or soft-cap can express."""

    def forward(self, input_ids: Any = None, **options: Any) -> Any:
        output = super().forward(input_ids=input_ids, **options)
        output.logits = output.logits + 0.01 * output.logits**2
        return output


class Shifted(transformers.LlamaForCausalLM):
    """Changes its last state on the way to the head, where no module shows it."""

    def forward(self, input_ids: Any = None, **options: Any) -> Any:
        states = self.model(input_ids=input_ids, use_cache=False).last_hidden_state
        logits = self.lm_head(states.roll(1, dims=-1))
        return transformers.modeling_outputs.CausalLMOutputWithPast(logits=logits)


def llama_like(kind: type, **changes: Any) -> Any:
    model = tiny("llama", **changes)
    other = kind(model.config)
    other.load_state_dict(model.state_dict())
    return other.eval()


def test_an_unknown_constant_factor_is_fitted() -> None:
    model = llama_like(Multiplied)
    features = mk.extract(model, texts=[some_ids(LENGTH)], context_length=CONTEXT)
    assert features.scale == pytest.approx(3.0, rel=1e-6)
    assert relative_error(formula(features, features.hidden), own_logits(model)) < TOLERANCE


def test_logits_that_cannot_be_rebuilt_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"llama \(Bent\) cannot be rebuilt .*differ by \d"):
        mk.extract(llama_like(Bent), texts=[some_ids(LENGTH)], layers=None)


def test_states_changed_between_readout_and_head_still_give_the_logits() -> None:
    model = llama_like(Shifted)
    features = mk.extract(model, texts=[some_ids(LENGTH)], context_length=CONTEXT, layers=None)
    assert relative_error(formula(features, features.hidden), own_logits(model)) < TOLERANCE
    with pytest.raises(UnsupportedModelError, match=r"readout .*does not reproduce what its head is given"):
        mk.extract(model, texts=[some_ids(LENGTH)], layers=[1])


def test_encoder_decoder_is_refused() -> None:
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    with pytest.raises(UnsupportedModelError, match=r"t5 \(T5ForConditionalGeneration\) is an encoder-decoder"):
        mk.extract(transformers.T5ForConditionalGeneration(config), texts=[some_ids(20)])


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("length", [2, 20])
def test_encoder_is_refused(length: int, fresh: bool) -> None:
    config = configuration("bert-decoder", is_decoder=False)
    torch.manual_seed(0)
    model = transformers.BertLMHeadModel(config) if fresh else build(config)
    with pytest.raises(UnsupportedModelError, match=r"bert \(BertLMHeadModel\) depend on later tokens"):
        mk.extract(model, texts=[some_ids(length)], layers=None)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: transformers.LlamaModel(configuration("llama")), r"llama \(LlamaModel\) has no linear head"),
        (lambda: transformers.BertModel(configuration("bert-decoder")), r"bert \(BertModel\) has no linear head"),
        (
            lambda: transformers.LlamaForSequenceClassification(configuration("llama")),
            r"llama \(LlamaForSequenceClassification\) has no linear head",
        ),
        (lambda: torch.nn.Linear(3, 3), r"Linear is not a Transformers model; pass states= and head="),
    ],
)
def test_model_without_a_head_is_refused(make: Any, named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=named):
        mk.extract(make(), texts=[some_ids(20)])


class Own(torch.nn.Module):
    """A model that is not of Transformers: the running mean of embeddings, through two layers."""

    def __init__(self, dtype: Any = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(VOCABULARY, 16, dtype=dtype)
        self.inner = torch.nn.Linear(16, 16, dtype=dtype)
        self.read = torch.nn.Linear(16, VOCABULARY, dtype=dtype)

    def states(self, ids: Any) -> list[Any]:
        embedded = self.embedding(ids)
        count = torch.arange(1, ids.shape[1] + 1)[None, :, None]
        mean = embedded.cumsum(dim=1) / count
        return [embedded[0], mean[0].tanh(), self.inner(mean)[0].tanh().to(self.read.weight.dtype)]

    def forward(self, ids: Any) -> Any:
        return self.read(self.states(ids)[-1])


class Silent(Own):
    def forward(self, ids: Any) -> Any:
        raise NotImplementedError


def test_any_module_with_states_and_head() -> None:
    module = Own()
    features = mk.extract(module, texts=[some_ids(30)], context_length=16, states=Own.states, head=module.read)
    assert features.layers == (0, 1)
    assert features.num_layers == 2
    with torch.no_grad():
        ids = torch.from_numpy(features.token_ids)
        expected = torch.cat([module(ids[None, :16]), module(ids[None, 16:])]).double().numpy()
        first = torch.cat([module.states(ids[None, :16])[1], module.states(ids[None, 16:])[1]])
    assert relative_error(formula(features, features.hidden), expected) < TOLERANCE
    assert features.layer_hidden is not None
    np.testing.assert_array_equal(features.layer_hidden[1], first.numpy())
    assert features.provenance is not None
    assert features.provenance["verification"] == {
        "rows": 16,
        "relative_error": pytest.approx(0, abs=TOLERANCE),
    }


def test_states_of_one_layer_only() -> None:
    module = Own()
    features = mk.extract(module, texts=[some_ids(30)], states=lambda m, ids: m.states(ids)[-1], head=module.read)
    assert features.layers == ()
    assert features.num_contexts == 29


@pytest.mark.parametrize("kind", ["tuple", "weight only", "Head", "softcap"])
def test_forms_of_a_head(kind: str) -> None:
    module = Silent()
    weight, bias = module.read.weight.detach(), module.read.bias.detach().numpy()
    head: Any = {
        "tuple": (weight, bias),
        "weight only": (weight,),
        "Head": mk.Head(weight, bias, scale=0.5),
        "softcap": mk.Head(weight, softcap=4.0),
    }[kind]
    features = mk.extract(module, texts=[some_ids(30)], states=Own.states, head=head)
    assert (features.bias is None) == (kind in ("weight only", "softcap"))
    assert features.scale == (0.5 if kind == "Head" else 1.0)
    assert features.softcap == (4.0 if kind == "softcap" else None)
    assert features.provenance is not None  # it gives no logits, so that nothing was proven, and that is said
    assert features.provenance["verification"] == {"rows": 0, "relative_error": None}


def test_wrong_head_of_an_own_module_is_refused() -> None:
    module = Own()
    wrong = torch.nn.Linear(16, VOCABULARY)
    with pytest.raises(UnsupportedModelError, match="logits of Own cannot be rebuilt"):
        mk.extract(module, texts=[some_ids(30)], states=Own.states, head=wrong)
    with pytest.raises(ValueRangeError, match="head: states= needs head="):
        mk.extract(module, texts=[some_ids(30)], states=Own.states)
    with pytest.raises(ShapeError, match=r"states: Own gave \(29, 16\), expected \(29, 8\)"):
        mk.extract(Own(), texts=[some_ids(30)], states=Own.states, head=torch.nn.Linear(8, VOCABULARY))
    with pytest.raises(ShapeError, match=r"head: weight must have shape \(V, d\), got \(128,\)"):
        mk.extract(module, texts=[some_ids(30)], states=Own.states, head=(module.read.bias,))
    with pytest.raises(ShapeError, match=r"head: bias must have shape \(128,\), got \(3,\)"):
        mk.extract(module, texts=[some_ids(30)], states=Own.states, head=(module.read.weight, np.zeros(3)))


def test_own_module_may_be_in_half_precision() -> None:
    module = Own(torch.bfloat16)
    features = mk.extract(module, texts=[some_ids(30)], states=Own.states, head=module.read)
    np.testing.assert_array_equal(features.head, module.read.weight.detach().float().numpy())
    assert features.provenance is not None
    assert 1e-4 < features.provenance["verification"]["relative_error"] < 2**-8  # what its own logits are rounded by


def test_the_test_helper_sees_an_error() -> None:
    z = np.linspace(-1, 1, 20).reshape(4, 5)
    assert relative_error(z + 1e-3, z) == pytest.approx(5e-4)


def test_the_families_that_every_transformers_has_are_tested() -> None:
    assert len(KNOWN) >= 35
    for family in ("llama", "mistral", "gpt2", "gpt-neox", "opt", "phi", "gemma2", "cohere", "granite", "gptj", "mpt"):
        assert family in KNOWN


def test_random_models_differ_by_seed() -> None:
    config = configuration("llama")
    a, b, c = (build(config, seed).lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert set(tiny_models.NO_LAYERS) <= set(FAMILIES)
