"""Runs a language model over texts and keeps its states: ``extract``."""

from __future__ import annotations

import operator
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import numpy as np

from . import _load
from ._anatomy import Parts, blame, dissect, evaluating, family, longest_context, of_callable
from ._features import SOME_LAYERS, Features
from ._head import Head, as_float32, input_embedding, proven, spread_rows
from ._text import Windows, cut_windows, printable_vocabulary, vocabulary_rows
from .errors import DTypeError, ShapeError, UnsupportedModelError, ValueRangeError
from .typing import IntArray, Progress, SinglePrecisionArray

__all__ = ["Head", "extract", "loaded"]

_MOST_PROBED = 512  # tokens whose full logits are formed once, to prove the head: 512 * V * 4 bytes


def extract(
    model: Any,
    tokenizer: Any = None,
    texts: str | Sequence[Any] | None = None,
    *,
    layers: Literal["all", "some"] | Sequence[int] | None = "all",
    max_tokens: int = 8192,
    context_length: int = 512,
    layer_tokens: int | None = None,
    batch_size: int = 1,
    states: Callable[[Any, Any], Any] | None = None,
    head: Any = None,
    padded_rows: Literal["cut", "keep"] = "cut",
    trust_remote_code: bool = False,
    device: str = "cpu",
    text_names: Sequence[str] | None = None,
    progress: Progress | None = None,
    seed: int = 0,
) -> Features:
    r"""Hidden states of ``model`` on ``texts``, with its head, as :class:`Features`.

    The head is proven before anything is computed with it: on up to 64 rows of the first window, the model's own logits
    must come out of the states and the head in float64, within 1e-4 of their range.

    Parameters
    ----------
    model
        A Hugging Face id, a directory, a ``.gguf`` file, or ``"smollm2-135m"``; these are loaded in float32. Or a
        loaded Transformers causal language model in float32. Or any ``torch.nn.Module``, together with ``states`` and
        ``head``.
    tokenizer
        Needed for strings with a loaded model; otherwise the model's own. An object, an id or a directory.
    texts
        Strings, or sequences of token ids, which are used as they are. Gone through in order, until there are
        ``max_tokens`` contexts.
    layers
        Which layers to keep besides the final one: ``"all"``, ``"some"`` (12 at most, evenly spread), numbers (0 =
        embedding, ``l`` = after layer ``l``, negative from the end, -1 = final), or ``None``.
    max_tokens, context_length
        Contexts in all, and at most in one window, clipped to what the model can take. Windows are the sequences that
        error bars are resampled from: 512 leaves 16 of them in 8192 contexts, where 1024 would leave 8.
    layer_tokens
        Keep layer states for that many contexts (one drawn from each of as many equal stretches, by ``seed``) instead
        of for all of them.
    batch_size
        Windows of equal length to run at once; there is no padding.
    states, head
        For a module of your own: ``states(module, ids)`` with (1, T) int64 ids gives the final states (T, d), or a list
        of states, layer by layer with the final ones last, each ready for the head; ``head`` is a linear module,
        ``(weight, bias)`` or a :class:`Head`. If ``module(ids)`` gives logits, they are what the head is proven with.
    trust_remote_code
        Let a model run Python code from its own repository. Read that code first.
    device
        Where a model that is given by name runs; a loaded one stays where it is.
    text_names
        One name per text, such as its file's, for ``provenance["texts"]``.
    padded_rows
        Rows of the head beyond the tokenizer's ids, which no text contains, are cut. Their mean probability is kept in
        ``provenance["head"]``.
    progress
        Called as ``progress(contexts done, contexts in all)``; what it raises ends the work, and leaves no hooks.
    seed
        Of the choice of rows for ``layer_tokens``; nothing else is random.

    Returns
    -------
    Features
        ``n * d`` floats for the final states, and that times the number of layers for ``layer_tokens=None``.

    Raises
    ------
    UnsupportedModelError
        Not a causal language model, or its logits cannot be rebuilt; names the family and the error found.
    ValueRangeError, ShapeError, DTypeError
        An argument that cannot be used: an empty text, an id beyond the vocabulary, a model in half precision or with
        NaN in a weight, which is named.
    FileFormatError, FileNotFoundError, MissingDependencyError
        Loading failed; the message says what is wrong with which file or package.

    Examples
    --------
    >>> import markovlm as mk
    >>> mk.extract("smollm2-135m", texts=["The sea is calm tonight."], layers=None)  # doctest: +SKIP
    Features(smollm2-135m: 5 contexts in 1 sequence, vocabulary 49152, hidden size 576, no layers)
    """
    texts = _checked_texts(texts, text_names)
    layers = _checked_layers(layers)
    numbers = {"max_tokens": max_tokens, "context_length": context_length, "batch_size": batch_size}
    for argument, value in {**numbers, "layer_tokens": 1 if layer_tokens is None else layer_tokens}.items():
        if not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueRangeError(f"{argument}: expected an integer of at least 1, got {value!r}")
    if padded_rows not in ("cut", "keep"):
        raise ValueRangeError(f"padded_rows: expected 'cut' or 'keep', got {padded_rows!r}")
    torch = _load.require("torch")

    start = time.perf_counter()
    by_name = isinstance(model, (str, os.PathLike))
    name = os.fspath(model) if by_name else _name_of(model)
    model, tokenizer = loaded(model, tokenizer, texts, trust_remote_code, device, custom=states is not None)
    seconds = {"load": time.perf_counter() - start}

    start = time.perf_counter()
    most = None if states is not None else longest_context(model)
    context_length = context_length if most is None else min(context_length, most)
    windows = cut_windows(texts, tokenizer, max_tokens=max_tokens, context_length=context_length, names=text_names)
    seconds["tokenize"] = time.perf_counter() - start

    with evaluating(model):
        start = time.perf_counter()
        parts = _dissected(model, windows, states, head, device)
        wanted = _chosen_layers(layers, parts)
        size = len(parts.head.weight)
        if tokenizer is not None and padded_rows == "cut":
            size = min(size, vocabulary_rows(tokenizer))
            _check_ids(windows, size, "the tokenizer's ids end there; padded_rows='keep' keeps the rows beyond them")
        seconds["verify"] = time.perf_counter() - start
        rows = _stratified(windows.num_contexts, layer_tokens, seed) if wanted else None
        states_of = _collect(parts, windows, wanted, rows, size, 1 if states is not None else batch_size, progress)
    seconds["verify"] += states_of.verify_seconds
    seconds["forward"] = states_of.forward_seconds

    proof = states_of.proof
    kept = proof.head.cut(size)
    embedding = input_embedding(model, kept)
    if not by_name:  # the caller may go on training it
        tied, kept = embedding is kept.weight, kept.copy()
        embedding = kept.weight if tied else embedding if embedding is None else embedding.copy()
    provenance = {
        "model": name,
        "model_type": getattr(getattr(model, "config", None), "model_type", None),
        "class": type(model).__name__,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "texts": windows.described,
        "tokens": windows.num_contexts,
        "context_length": context_length,
        "begins_with": windows.begins_with,
        "dtype": "float32",
        "layers": list(wanted),
        "layer_rows": 0 if rows is None else len(rows),
        "layer_seed": seed,
        "head": {
            "bias": kept.bias is not None,
            "scale": kept.scale,
            "softcap": kept.softcap,
            "padded_rows": len(proof.head.weight) - size,
            "padded_mass": proof.padded_mass,
        },
        "verification": {"rows": proof.rows, "relative_error": proof.relative_error},
        "forward_note": parts.note,
        "versions": _versions(torch),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": seconds,
    }
    return Features(
        hidden=states_of.hidden,
        head=kept.weight,
        bias=kept.bias,
        embedding=embedding,
        scale=kept.scale,
        softcap=kept.softcap,
        layers=wanted,
        layer_rows=rows,
        layer_hidden=states_of.layer_hidden,
        num_layers=parts.depth,
        vocabulary=() if tokenizer is None else printable_vocabulary(tokenizer, size),
        provenance=provenance,
        **windows.columns(),
    )


@dataclass
class _Proof:
    head: Head
    rows: int = 0
    relative_error: float | None = None  # None: there are no logits to compare with
    padded_mass: float | None = None  # mean probability of the rows that are cut


@dataclass
class _Collected:
    hidden: SinglePrecisionArray
    layer_hidden: SinglePrecisionArray | None
    proof: _Proof
    forward_seconds: float = 0.0
    verify_seconds: float = 0.0


def _collect(
    parts: Parts,
    windows: Windows,
    wanted: tuple[int, ...],
    layer_rows: IntArray | None,
    size: int,
    batch_size: int,
    progress: Progress | None,
) -> _Collected:
    """Run every window and keep its states; the head is proven on the first ones, before time is spent on the rest."""
    torch = _load.require("torch")
    n, d = windows.num_contexts, parts.head.weight.shape[1]
    layer_hidden = None if layer_rows is None else np.empty((len(wanted), len(layer_rows), d), np.float32)
    found = _Collected(np.empty((n, d), np.float32), layer_hidden, _Proof(parts.head))
    first = 0
    for batch in _batches(windows, batch_size):
        stop = first + batch.size
        begin, end = (0, 0) if layer_rows is None else np.searchsorted(layer_rows, [first, stop]).tolist()
        local = torch.from_numpy(np.arange(0) if layer_rows is None else layer_rows[begin:end] - first)
        ids = torch.from_numpy(batch).to(parts.device)
        final, kept, seconds = parts.run(ids, wanted if end > begin else (), local.to(parts.device))
        found.hidden[first:stop] = _usable(final, (batch.size, d), parts)
        for place, value in enumerate(kept):
            assert layer_hidden is not None
            layer_hidden[place, begin:end] = _usable(value, (end - begin, d), parts)
        found.forward_seconds += seconds
        if first == 0 and parts.logits is not None:
            start = time.perf_counter()
            found.proof = _prove(parts, found.hidden, size)
            found.verify_seconds = time.perf_counter() - start
        first = stop
        if progress is not None:
            progress(first, n)
    return found


def _prove(parts: Parts, hidden: SinglePrecisionArray, size: int) -> _Proof:
    rows = spread_rows(len(parts.logits))
    logits = as_float32(parts.logits[rows.tolist()]).astype(np.float64)
    if not np.isfinite(logits).all():
        raise blame(parts.module, "logits")
    resolution = _load.require("torch").finfo(parts.logits.dtype).eps
    parts.logits = None  # as large as rows times the vocabulary: not needed again
    head, error = proven(parts.head, hidden[rows], logits, parts.name, resolution)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    mass = float((weights[:, size:].sum(axis=1) / weights.sum(axis=1)).mean())
    return _Proof(head, len(rows), error, mass)


def _usable(states: Any, shape: tuple[int, int], parts: Parts) -> SinglePrecisionArray:
    array = as_float32(states)
    if array.shape != shape:
        raise ShapeError(
            f"states: {parts.name} gave {array.shape}, expected {shape}: one row per token, as wide as the head"
        )
    if not np.isfinite(array).all():
        raise blame(parts.module, "states")
    return array


def _dissected(model: Any, windows: Windows, states: Any, head: Any, device: str) -> Parts:
    torch = _load.require("torch")
    parameter = next(model.parameters(), None)
    where = device if parameter is None else parameter.device
    ids = torch.from_numpy(windows.sequences[0][:-1][:_MOST_PROBED]).to(where)[None]
    if states is not None:
        if head is None:
            raise ValueRangeError("head: states= needs head= as well: a linear module, (weight, bias) or a Head")
        readable = Head.of(head)
        _check_ids(windows, len(readable.weight), "the head has no more rows")
        return of_callable(model, states, readable, ids)
    if not (hasattr(model, "config") and hasattr(model, "get_input_embeddings")):
        raise UnsupportedModelError(
            f"model: {type(model).__name__} is not a Transformers model; pass states= and head= for a module of your "
            "own"
        )
    embedding = model.get_input_embeddings()
    _check_ids(windows, embedding.weight.shape[0], f"{family(model)} embeds no more")
    return dissect(model, ids)


def _checked_texts(texts: Any, names: Sequence[str] | None) -> Sequence[Any]:
    if isinstance(texts, (bytes, os.PathLike)) or not isinstance(texts, Iterable):
        raise DTypeError(
            "texts: expected a string, a list of strings, or a list of sequences of token ids, got "
            f"{type(texts).__name__}"
        )
    found = [texts] if isinstance(texts, str) else list(texts)
    if not found:
        raise ValueRangeError("texts: expected at least one text, got none")
    if names is not None and len(names) != len(found):
        raise ShapeError(f"text_names: expected {len(found)} names, one per text, got {len(names)}")
    return found


def loaded(
    model: Any, tokenizer: Any, texts: Sequence[Any], trust_remote_code: bool, device: str, *, custom: bool
) -> tuple[Any, Any]:
    """The model as a module and the tokenizer as an object, whatever they were given as."""
    as_text = isinstance(texts[0], str)
    if isinstance(tokenizer, (str, os.PathLike)):
        tokenizer = _load.load_tokenizer(*_load.locate(tokenizer), trust_remote_code=trust_remote_code)
    if isinstance(model, (str, os.PathLike)):
        found = _load.locate(model)
        with _load.parsed_once(found[1]):
            if tokenizer is None:
                try:
                    tokenizer = _load.load_tokenizer(*found, trust_remote_code=trust_remote_code)
                except Exception:
                    if as_text:  # ids need no tokenizer; what is wrong with the model itself shows below
                        raise
            return _load.load_model(*found, trust_remote_code=trust_remote_code).to(device), tokenizer
    if not hasattr(model, "named_modules"):
        raise DTypeError(f"model: expected a name, a path or a torch.nn.Module, got {type(model).__name__}")
    if as_text and tokenizer is None:
        raise ValueRangeError("tokenizer: a loaded model needs one for strings; pass it, or pass token ids instead")
    other = {str(p.dtype) for p in model.parameters() if p.is_floating_point() and str(p.dtype) != "torch.float32"}
    if other and not custom:
        raise DTypeError(
            f"model: expected float32 weights, got {', '.join(sorted(other))}; call model.float() first. Rounded "
            "logits would put entropies off"
        )
    return model, tokenizer


def _name_of(model: Any) -> str:
    return getattr(getattr(model, "config", None), "_name_or_path", None) or type(model).__name__


def _check_ids(windows: Windows, size: int, why: str) -> None:
    lowest = min(int(ids.min()) for ids in windows.sequences)
    highest = max(int(ids.max()) for ids in windows.sequences)
    if lowest < 0 or highest >= size:
        raise ValueRangeError(f"texts: token ids must lie in 0 ... {size - 1}, got {lowest} ... {highest}; {why}")


def _checked_layers(layers: Any) -> Literal["all", "some"] | tuple[int, ...]:
    if isinstance(layers, str) and layers in ("all", "some"):
        return "all" if layers == "all" else "some"
    try:
        return () if layers is None else tuple(map(operator.index, layers))
    except TypeError:
        raise DTypeError(f"layers: expected 'all', 'some', a list of layer numbers or None, got {layers!r}") from None


def _chosen_layers(layers: Literal["all", "some"] | tuple[int, ...], parts: Parts) -> tuple[int, ...]:
    """Ascending, without the final layer, which is always kept."""
    if not layers:
        return ()
    if parts.no_layers_because:
        raise UnsupportedModelError(
            f"layers: those of {parts.name} cannot be read: {parts.no_layers_because}. Pass layers=None; the final "
            "states can still be extracted"
        )
    if layers == "all" or layers == "some":
        most = parts.depth if layers == "all" else min(parts.depth, SOME_LAYERS)
        return tuple(np.unique(np.linspace(0, parts.depth - 1, most).astype(np.int64)).tolist())
    numbers = {layer + parts.depth + 1 if layer < 0 else layer for layer in layers}
    if min(numbers) < 0 or max(numbers) > parts.depth:
        raise ValueRangeError(
            f"layers: {parts.name} has layers 0 ... {parts.depth} (or -{parts.depth + 1} ... -1), got {list(layers)}"
        )
    return tuple(sorted(numbers - {parts.depth}))


def _stratified(n: int, count: int | None, seed: int) -> IntArray:
    """One row from each of ``count`` equal stretches of ``n``: even, yet not in step with the windows."""
    if count is None or count >= n:
        return np.arange(n, dtype=np.int64)
    edges = np.arange(count + 1, dtype=np.int64) * n // count
    return np.random.default_rng(seed).integers(edges[:-1], edges[1:])


def _batches(windows: Windows, batch_size: int) -> Iterator[IntArray]:
    """Contexts (B, T) of consecutive windows of equal length, so that nothing is padded."""
    group: list[IntArray] = []
    for ids in windows.sequences:
        if group and (len(group) == batch_size or len(ids) != len(group[0])):
            yield np.stack(group)[:, :-1].copy()
            group = []
        group.append(ids)
    yield np.stack(group)[:, :-1].copy()


def _versions(torch: Any) -> dict[str, str]:
    found = {"python": platform.python_version(), "numpy": np.__version__, "torch": str(torch.__version__)}
    for package in ("markovlm", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found
