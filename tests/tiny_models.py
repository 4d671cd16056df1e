"""Random language models of every family that the head or the layers of one differ in, and tokenizers for them.

Nothing is read or fetched: configurations and a byte-level tokenizer are made here, in memory.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

torch.set_num_threads(1)  # for models of this size threads only wait for each other, for seconds on a busy machine

VOCABULARY = 128
"""Rows of a model's head unless a test asks for more."""

SENTENCES = (
    "The sea is calm tonight, the tide is full, and the moon lies fair upon the straits.",
    "A kernel sends every context to a distribution over what comes next.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "She sells sea shells; the shells that she sells are sea shells, I am sure.",
)

SHARED = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_ROPE = {
    **SHARED,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_GPT = {**SHARED, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
_GEMMA = {**_ROPE, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16}
_OPT = {
    **SHARED,
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "word_embed_proj_dim": 32,
}
_NO_GROUPS = {**_ROPE, "num_key_value_heads": 4}
_MIXTURE = {**_ROPE, "num_local_experts": 4, "num_experts_per_tok": 2}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _ROPE),
    "llama-tied": ("LlamaConfig", {**_ROPE, "tie_word_embeddings": True}),
    "mistral": ("MistralConfig", {**_ROPE, "sliding_window": 16}),
    "mixtral": ("MixtralConfig", _MIXTURE),
    "qwen2": ("Qwen2Config", _ROPE),
    "qwen3": ("Qwen3Config", {**_ROPE, "head_dim": 8}),
    "smollm3": ("SmolLM3Config", _ROPE),
    "olmo2": ("Olmo2Config", _ROPE),
    "phi3": ("Phi3Config", _ROPE),
    "starcoder2": ("Starcoder2Config", _ROPE),
    "stablelm": ("StableLmConfig", _ROPE),
    "nemotron": ("NemotronConfig", _ROPE),
    "glm": ("GlmConfig", {**_ROPE, "head_dim": 8}),
    "gpt2": ("GPT2Config", _GPT),
    "gpt-neo": (
        "GPTNeoConfig",
        {
            **SHARED,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "max_position_embeddings": 64,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 16,
        },
    ),
    "gpt-neox": ("GPTNeoXConfig", _NO_GROUPS),
    "gptj": ("GPTJConfig", {**_GPT, "rotary_dim": 4}),
    "codegen": ("CodeGenConfig", {**_GPT, "rotary_dim": 4}),
    "phi": ("PhiConfig", _NO_GROUPS),
    "opt": ("OPTConfig", _OPT),
    "opt-projected": ("OPTConfig", {**_OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "gemma": ("GemmaConfig", {**_ROPE, "head_dim": 8}),
    "gemma2": ("Gemma2Config", {**_GEMMA, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 5.0}),
    "gemma3": ("Gemma3TextConfig", {**_GEMMA, "final_logit_softcapping": None}),
    "cohere": ("CohereConfig", {**_ROPE, "logit_scale": 0.0625}),
    "cohere2": ("Cohere2Config", {**_ROPE, "logit_scale": 0.25, "sliding_window": 16}),
    "granite": (
        "GraniteConfig",
        {**_ROPE, "logits_scaling": 8.0, "embedding_multiplier": 12.0, "residual_multiplier": 0.22},
    ),
    "falcon": ("FalconConfig", {**SHARED, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}),
    "bloom": ("BloomConfig", {**SHARED, "hidden_size": 32, "n_layer": 3, "n_head": 4}),
    "mpt": ("MptConfig", {**SHARED, "d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 64}),
    "mamba": (
        "MambaConfig",
        {**SHARED, "hidden_size": 32, "state_size": 4, "num_hidden_layers": 2, "use_mambapy": False},
    ),
    "recurrent-gemma": (
        "RecurrentGemmaConfig",
        {
            **SHARED,
            "hidden_size": 32,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "lru_width": 32,
            "attention_window_size": 16,
            "logits_soft_cap": 2.0,
        },
    ),
    "ctrl": ("CTRLConfig", {**_GPT, "dff": 48}),
    "openai-gpt": ("OpenAIGPTConfig", _GPT),
    "xglm": ("XGLMConfig", {**SHARED, "d_model": 32, "ffn_dim": 48, "num_layers": 3, "attention_heads": 4}),
    "biogpt": ("BioGptConfig", _NO_GROUPS),
    "bart-decoder": (
        "BartConfig",
        {
            **SHARED,
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "decoder_attention_heads": 4,
            "encoder_attention_heads": 4,
            "decoder_ffn_dim": 48,
            "encoder_ffn_dim": 48,
            "is_encoder_decoder": False,
            "is_decoder": True,
            "max_position_embeddings": 64,
        },
    ),
    "gpt-oss": ("GptOssConfig", {**_MIXTURE, "head_dim": 8}),
    "mamba2": (
        "Mamba2Config",
        {
            **SHARED,
            "hidden_size": 32,
            "num_heads": 4,
            "head_dim": 16,
            "state_size": 8,
            "n_groups": 1,
            "num_hidden_layers": 2,
        },
    ),
    "rwkv": ("RwkvConfig", {**SHARED, "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32}),
    "xlstm": (
        "xLSTMConfig",
        {
            **SHARED,
            "hidden_size": 32,
            "num_heads": 4,
            "num_blocks": 2,
            "num_hidden_layers": 2,
            "output_logit_soft_cap": 2.0,
            "use_cache": False,
        },
    ),
    "roberta-decoder": ("RobertaConfig", {**_NO_GROUPS, "is_decoder": True, "max_position_embeddings": 70}),
    "gemma3n": (
        "Gemma3nTextConfig",
        {
            **_ROPE,
            "head_dim": 8,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 8,
            "num_kv_shared_layers": 0,
            "laurel_rank": 4,
            "layer_types": ["full_attention"] * 3,
            "final_logit_softcapping": 2.0,
        },
    ),
    "bert-decoder": ("BertConfig", {**_NO_GROUPS, "is_decoder": True}),
    "falcon-h1": (
        "FalconH1Config",
        {
            **_ROPE,
            "head_dim": 8,
            "lm_head_multiplier": 0.0390625,
            "mamba_d_ssm": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
        },
    ),
}
"""Configuration class and its arguments; not every version of Transformers has every class."""


def configuration(family: str, **changes: Any) -> Any:
    """The configuration of ``family``."""
    name, arguments = FAMILIES[family]
    return getattr(transformers, name)(**{"attn_implementation": "eager", **arguments, **changes})


def build(config: Any, seed: int = 0) -> Any:
    """A random model for ``config``; weights are larger than fresh ones, so that its logits vary and soft-caps bite."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # norms and biases, which begin as ones and zeros
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif "norm" not in name:
                parameter.copy_(torch.randn_like(parameter) * (3.0 / parameter.shape[-1]) ** 0.5)
    return model.eval()


def tiny(family: str = "llama", **changes: Any) -> Any:
    """A random model of ``family``."""
    return build(configuration(family, **changes))


@functools.cache
def _backend(*, begins: bool, trim: bool, words: bool) -> Tokenizer:
    specials = ["<pad>", "<s>", "</s>"]
    if words:  # as SentencePiece does: spaces become part of the words after them, other bytes have tokens of their own
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<pad>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()])
        specials += [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=specials, show_progress=False)
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=trim)
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=specials,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if begins:
        front = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        old = tokenizer.post_processor
        tokenizer.post_processor = front if old is None else processors.Sequence([old, front])
    return tokenizer


def mini_tokenizer(*, begins: bool = False, trim: bool = False, words: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer of 320 ids (340 with ``words``) that knows every byte; with ``begins`` it puts BOS before a text."""
    return PreTrainedTokenizerFast(
        tokenizer_object=_backend(begins=begins, trim=trim, words=words),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )


NO_LAYERS = ("roberta-decoder", "gemma3n")
"""Families whose final states can be read, but whose other layers cannot: a function stands between layer and head."""


def some_ids(count: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Random token ids that every model knows."""
    return np.random.default_rng(seed).integers(3, VOCABULARY, count)
