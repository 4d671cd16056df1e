"""States and heads that the questions share: real ones, and random ones of any size."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import markovlm as mk
from harness import RESULTS

Array = np.ndarray[Any, Any]


def smollm2() -> mk.Features:
    """4,096 contexts of SmolLM2-135M on the standard library's docstrings, with layer 27; kept between runs."""
    path = RESULTS / "smollm2-features.safetensors"
    if not path.exists():
        from markovlm._sample_text import standard_library_docstrings

        texts, names = standard_library_docstrings(8 * 4096)
        features = mk.extract(
            "smollm2-135m", texts=texts, text_names=names, max_tokens=4096, layers=[27], layer_tokens=4096
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        features.save(path)
    return mk.Features.load(path)


def random(n: int, vocabulary: int, d: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, Array]:
    """States (n, d) and a head (V, d) whose logits have a standard deviation of 3, in float32, and targets (n,)."""
    rng = np.random.default_rng(seed)
    hidden = rng.standard_normal((n, d), dtype=np.float32)
    head = rng.standard_normal((vocabulary, d), dtype=np.float32) * np.float32(3 / np.sqrt(d))
    return torch.from_numpy(hidden), torch.from_numpy(head), rng.integers(0, vocabulary, n)


def as_type(dtype: str, *tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.to(getattr(torch, dtype)) for tensor in tensors]


def wide(tensor: torch.Tensor) -> Array:
    """The same numbers in float64."""
    return tensor.double().numpy()


def log_probabilities(state: torch.Tensor, head: Array) -> Array:
    """(V,) by their definition in float64, from a state (d,) and a transposed head (d, V) in float64."""
    z = wide(state) @ head
    z -= z.max()
    return np.asarray(z - np.log(np.exp(z).sum()))
