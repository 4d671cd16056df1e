"""From what a command is given, a model and texts or kept features, to features; and where its results go."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import typer

from ._features import SOME_LAYERS, Features, evenly_spread
from .errors import ValueRangeError

__all__ = [
    "Layers",
    "are_features",
    "load_features",
    "output_directory",
    "parse_layers",
    "read_source",
    "results_directory",
    "with_layers",
]

Layers = Literal["all", "some"] | tuple[int, ...]


def parse_layers(text: str) -> Layers:
    """``all``, ``some``, ``none``, or numbers."""
    if text in ("all", "some"):
        return "all" if text == "all" else "some"
    if text == "none":
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"expected all, some, none, or numbers such as 0,10,20, got {text!r}", param_hint="--layers"
        ) from None


def are_features(model: str) -> bool:
    """Whether MODEL is a file of kept features."""
    return model.endswith(".safetensors")


def with_layers(features: Features, layers: Layers) -> Features:
    """Features with those layers only, of the ones that they hold; ``some`` are as many as `extract` would keep."""
    held = features.layers
    if layers == "all" or (layers == "some" and len(held) <= SOME_LAYERS):
        return features
    if layers == "some":
        wanted = [held[i] for i in evenly_spread(len(held), SOME_LAYERS)]
    else:
        numbers = {layer + features.num_layers + 1 if layer < 0 else layer for layer in layers}
        wanted = sorted(numbers - {features.num_layers})
    missing = [layer for layer in wanted if layer not in held]
    if missing:
        raise ValueRangeError(
            f"--layers: expected some of {', '.join(map(str, held)) or 'none'}, which the features hold, got "
            f"{', '.join(map(str, missing))}"
        )
    if not wanted or features.layer_hidden is None:
        return dataclasses.replace(features, layers=(), layer_rows=None, layer_hidden=None)
    states = features.layer_hidden[[held.index(layer) for layer in wanted]]
    return dataclasses.replace(features, layers=tuple(wanted), layer_hidden=states)


def read_source(model: str, text: list[Path] | None, tokens: int) -> tuple[list[str], list[str]] | None:
    """Texts and their names, or None where features hold them."""
    if not are_features(model):
        return _read_texts(text, tokens)
    if text:
        raise typer.BadParameter("kept features hold their text; leave it out", param_hint="--text")
    return None


def load_features(
    model: str,
    source: tuple[list[str], list[str]] | None,
    tokens: int,
    threads: int | None,
    stage: Callable[[str], Callable[[int, int], None]],
    **options: Any,
) -> Features:
    """Those that were kept, or extracted from a model."""
    if source is None:
        return Features.load(model)
    from ._extract import extract

    _limit_torch(threads)
    texts, names = source
    progress = stage("forward pass (tokens)")
    return extract(model, texts=texts, text_names=names, max_tokens=tokens, progress=progress, **options)


def results_directory(model: str, out: Path | None) -> Path:
    """Where results go."""
    return out or (Path(model).parent if are_features(model) else Path(f"markovlm-{_stem(model)}"))


def _read_texts(files: list[Path] | None, tokens: int) -> tuple[list[str], list[str]]:
    if files:
        try:
            texts = [file.read_text(encoding="utf-8") for file in files]
        except UnicodeDecodeError as error:
            raise ValueRangeError(
                f"--text: expected UTF-8, got a byte that is not ({error}); convert the file first"
            ) from None
        return texts, [file.name for file in files]
    from ._sample_text import standard_library_docstrings

    return standard_library_docstrings(
        8 * tokens
    )  # characters: twice what English needs, extraction stops when it has enough


def _stem(model: str) -> str:
    name = Path(model).stem if model.endswith(".gguf") else model.rstrip("/").rsplit("/", 1)[-1]
    return re.sub(r"[^\w.-]+", "-", name) or "model"


@contextmanager
def output_directory(path: Path) -> Iterator[None]:
    """Made and tried before the work, so that no hour is lost to a typing error; removed again if it stays empty."""
    existed = path.exists()
    path.mkdir(parents=True, exist_ok=True)
    probe = path / ".markovlm-write-test"
    try:
        probe.touch()
        probe.unlink()
        yield
    finally:
        if not existed and not any(path.iterdir()):
            path.rmdir()


def _limit_torch(threads: int | None) -> None:
    if threads is not None and "torch" not in sys.modules:
        try:
            import torch
        except ImportError:
            return  # extraction says what to install
        torch.set_num_threads(threads)
