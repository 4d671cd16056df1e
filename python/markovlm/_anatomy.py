"""Finds the parts of a language model by watching it run, so that no list of architectures is needed.

Between the last decoder layer and the head stands the *readout*: the final norm, in some families a projection too. It
is whatever modules the model calls there, and it is proven to be that: applied to the last layer's output it must give
what the head was given. Extraction then applies it to every other layer as well.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from ._head import Head
from ._load import require
from .errors import UnsupportedModelError, ValueRangeError

__all__ = [
    "Parts",
    "TransformersParts",
    "blame",
    "dissect",
    "evaluating",
    "family",
    "longest_context",
    "of_callable",
    "text_config",
]

_SAME = 1e-5  # of the largest state: float32 rounding of one norm or projection, with a generous factor
_SPARED = "the head was run on one row per window only"
_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # Gemma, RecurrentGemma, xLSTM
_CAUSAL = 1e-3  # of the largest state: float32 rounding through a whole model; a bidirectional one is off by far more


class Parts(Protocol):
    """A model taken apart: what extraction needs to know of it, whatever kind it is."""

    name: str
    head: Head
    depth: int  # layers besides the embedding
    no_layers_because: str  # why layers cannot be read, empty where they can
    logits: Any  # (T, V) tensor of the first tokens, None where the model gives none
    device: Any
    note: str  # what the forward time contains
    module: Any  # the model itself

    def run(self, ids: Any, layers: Sequence[int], rows: Any) -> tuple[Any, list[Any], float]:
        """Run ids (B, T): final states (B*T, d), ready states (r, d) of ``layers`` at flat ``rows``, and seconds."""


@dataclass
class Probe:
    """What one watched run of the whole model showed."""

    head_input: Any = None  # (T, d) tensor
    logits: Any = None  # (T, V) tensor
    head_calls: int = 0
    layer_order: list[int] = field(default_factory=list)
    last_layer: Any = None  # (1, T, d) output of the last layer
    chain: list[Any] = field(default_factory=list)  # outermost modules without the head, from last layer to head


@dataclass
class TransformersParts:
    """Parts of a Transformers model."""

    name: str
    head: Head
    depth: int
    no_layers_because: str
    logits: Any
    device: Any
    note: str
    module: Any
    head_module: Any
    layers: Sequence[Any]
    chain: list[Any]  # the proven readout
    spares_head: bool  # the last readout module gives the final states, so the head need not see every row
    options: dict[str, Any]  # of the model's forward

    def run(self, ids: Any, layers: Sequence[int], rows: Any) -> tuple[Any, list[Any], float]:
        """See :class:`Parts`."""
        kept: dict[int, Any] = {}

        def keeper(layer: int) -> Callable[[Any], None]:
            def keep(value: Any) -> None:
                kept[layer] = value.reshape(-1, value.shape[-1])[rows]  # indexing copies

            return keep

        with ExitStack() as hooks:
            for layer in layers:
                if layer == 0:
                    _on_input(hooks, self.layers[0], keeper(0))
                else:
                    _on_output(hooks, self.layers[layer - 1], keeper(layer))
            final, seconds = _timed(lambda: self.states(ids), ids.device)
        return final, [_read_out(self.chain, kept[layer][None])[0] for layer in layers], seconds

    def states(self, ids: Any, **options: Any) -> Any:
        """Final states (B*T, d) of ids (B, T), with options of the model's forward, such as a cache."""
        final: list[Any] = []

        def keep(value: Any) -> None:
            final.append(value.reshape(-1, value.shape[-1]).clone())  # the model may go on to change it in place

        with ExitStack() as hooks:
            if self.spares_head:
                _on_output(hooks, self.chain[-1], keep)
            else:
                _on_input(hooks, self.head_module, keep)
            self.module(input_ids=ids, **{**self.options, **options})
        return final[-1]


@dataclass
class CallableParts:
    """Parts of any module whose states a function of the caller's tells."""

    name: str
    head: Head
    depth: int
    logits: Any
    device: Any
    module: Any
    states: Callable[[Any, Any], Any]
    no_layers_because: str = ""
    note: str = "time inside states(module, ids)"

    def run(self, ids: Any, layers: Sequence[int], rows: Any) -> tuple[Any, list[Any], float]:
        """See :class:`Parts`."""
        found, seconds = _timed(lambda: self.states(self.module, ids), ids.device)
        found = [_rows(value) for value in (found if isinstance(found, (list, tuple)) else [found])]
        return found[-1], [found[layer][rows] for layer in layers], seconds


def family(model: Any) -> str:
    """How to name a model in messages: its type and its class."""
    kind = getattr(getattr(model, "config", None), "model_type", None)
    return f"{kind} ({type(model).__name__})" if kind else type(model).__name__


def text_config(model: Any) -> Any:
    """The configuration of the language model in ``model``, which may be nested in that of a larger one."""
    config = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        # Not inference_mode: what a model caches under it, such as rotary tables, could not be trained with later.
        with require("torch").no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def blame(module: Any, what: str) -> ValueRangeError:
    """The error for NaN or infinity in ``what``, which names the first weight that has some, if one does."""
    torch = require("torch")
    for name, weight in module.named_parameters():
        if not torch.isfinite(weight).all():
            return ValueRangeError(f"model: {family(module)} has NaN or infinity in its weight {name}")
    return ValueRangeError(
        f"model: {family(module)} gives NaN or infinity in its {what}, though its weights are finite"
    )


def dissect(model: Any, ids: Any) -> TransformersParts:
    """Run ``model`` on ``ids`` (1, T) while watching it, and tell its parts apart.

    Raises
    ------
    UnsupportedModelError
        The model is not a causal language model with one linear head, by its own word or by what it does.
    """
    name = family(model)
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"model: {name} is an encoder-decoder; a causal language model is needed")
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None or getattr(getattr(head, "weight", None), "ndim", 0) != 2:
        raise UnsupportedModelError(
            f"model: {name} has no linear head (get_output_embeddings() gave {type(head).__name__}); load it with "
            "AutoModelForCausalLM, or pass states= and head="
        )
    accepted = inspect.signature(model.forward).parameters
    if "input_ids" not in accepted:
        raise UnsupportedModelError(f"model: {name} does not take token ids; a causal language model is needed")
    layers, why = _decoder_layers(model)
    options: dict[str, Any] = {"use_cache": False} if "use_cache" in accepted else {}
    probe = _watch(model, head, layers, ids, options)
    if probe.head_input is not None and not require("torch").isfinite(probe.head_input).all():
        raise blame(model, "states")
    _check_causal(model, head, ids, options, probe, name)
    why = why or _doubt_readout(probe, len(layers))
    sparing = {**options, "logits_to_keep": 1}
    spares_head = not why and "logits_to_keep" in accepted and _spares_head(model, probe.chain, ids, sparing)
    return TransformersParts(
        name=name,
        head=_head_of_config(head, text_config(model)),
        depth=int(getattr(text_config(model), "num_hidden_layers", 0)),
        no_layers_because=why,
        logits=probe.logits,
        device=ids.device,
        note="time inside the model's forward; " + (_SPARED if spares_head else "the head was run on every row"),
        module=model,
        head_module=head,
        layers=layers,
        chain=[] if why else probe.chain,
        spares_head=spares_head,
        options=sparing if spares_head else options,
    )


def of_callable(module: Any, states: Callable[[Any, Any], Any], head: Head, ids: Any) -> CallableParts:
    """Parts of ``module``; its own logits, if calling it on ids (1, T) gives them, are there to prove the head."""
    found = states(module, ids)
    depth = len(found) - 1 if isinstance(found, (list, tuple)) else 0
    logits = None
    with suppress(Exception):  # a module that cannot be called so just has no logits to compare with
        logits = module(ids)
    logits = _rows(getattr(logits, "logits", logits))
    if getattr(logits, "shape", None) != (ids.shape[1], len(head.weight)):
        logits = None
    return CallableParts(type(module).__name__, head, depth, logits, ids.device, module, states)


def longest_context(model: Any) -> int | None:
    """The most tokens that ``model`` takes at once, where its configuration tells."""
    config = text_config(model) if hasattr(model, "config") else None
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def _head_of_config(module: Any, config: Any) -> Head:
    """The head of a Transformers model, with the transformations that its configuration names."""
    scale = 1.0
    multiplier, divisor = getattr(config, "logit_scale", None), getattr(config, "logits_scaling", None)
    if isinstance(multiplier, (int, float)):  # Cohere; MPT allows a name here, and does not use it
        scale *= multiplier
    if isinstance(divisor, (int, float)):  # Granite
        scale /= divisor
    softcap = next(filter(None, (getattr(config, name, None) for name in _SOFTCAPS)), None)
    return replace(Head.of(module), scale=scale, softcap=float(softcap) if softcap else None)


def _decoder_layers(model: Any) -> tuple[Sequence[Any], str]:
    """The outermost list of as many modules as the model has layers."""
    torch = require("torch")
    depth = getattr(text_config(model), "num_hidden_layers", None)
    lists = [
        (path.count("."), module)
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == depth
    ]
    if not lists:
        return [], f"it has no list of {depth} layers"
    return min(lists, key=lambda found: found[0])[1], ""


def _watch(model: Any, head: Any, layers: Sequence[Any], ids: Any, options: dict[str, Any]) -> Probe:
    probe = Probe()
    index = {id(layer): number for number, layer in enumerate(layers)}
    last = len(index) - 1
    inside: list[Any] = []  # the module of the chain that is running
    containers = {id(module) for module in model.modules() if any(part is head for part in module.modules())}

    def before(module: Any, args: Any, kwargs: Any) -> None:
        if module is head:
            probe.head_calls += 1
            states = _tensor(args or tuple(kwargs.values()))
            probe.head_input = states.reshape(-1, states.shape[-1]).clone()
        elif probe.last_layer is not None and not inside and not probe.head_calls and id(module) not in containers:
            inside.append(module)

    def after(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        number = index.get(id(module))
        if number is not None:
            probe.layer_order.append(number)
            if number == last:
                probe.last_layer = _tensor(output).clone()
        elif inside and module is inside[0]:
            probe.chain.append(inside.pop())

    with ExitStack() as hooks:
        for module in model.modules():
            hooks.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(after, with_kwargs=True).remove)
        output = model(input_ids=ids, **options)
    logits = output.logits if hasattr(output, "logits") else output[0]
    probe.logits = logits.reshape(-1, logits.shape[-1])
    return probe


def _check_causal(model: Any, head: Any, ids: Any, options: dict[str, Any], probe: Probe, name: str) -> None:
    """The head is called once on every position, and what it sees does not depend on later tokens."""
    torch = require("torch")
    length = ids.shape[1]
    if probe.head_calls != 1 or probe.head_input.shape[0] != length or probe.logits.shape[0] != length:
        raise UnsupportedModelError(
            f"model: {name} called its head {probe.head_calls} times for {length} tokens and gave logits of shape "
            f"{tuple(probe.logits.shape)}; expected one call and one row per token. Pass states= and head= instead"
        )
    other = ids[:, : length // 2] if length > 1 else torch.cat([ids, ids], dim=1)
    common = min(length, other.shape[1])
    seen: list[Any] = []
    with ExitStack() as hooks:
        _on_input(hooks, head, lambda value: seen.append(value.reshape(-1, value.shape[-1]).clone()))
        model(input_ids=other, **options)
    if not _difference(seen[0][:common], probe.head_input[:common]) <= _CAUSAL:
        raise UnsupportedModelError(
            f"model: the states of {name} depend on later tokens, so it is not a causal language model "
            "(an encoder, or a decoder whose config lacks is_decoder=True)"
        )


def _doubt_readout(probe: Probe, depth: int) -> str:
    """Why the chain of modules after the last layer is not the readout; empty where it is."""
    if probe.layer_order != list(range(depth)):
        return f"its {depth} layers ran in the order {probe.layer_order[:8]}"
    try:
        states = _read_out(probe.chain, probe.last_layer)
    except Exception as problem:  # a module that needs more than the states: whatever it raises, it is no readout
        return f"what stands between its last layer and its head cannot be applied alone ({problem})"
    if states.shape[-1] != probe.head_input.shape[-1] or states.numel() != probe.head_input.numel():
        return f"its readout gives shape {tuple(states.shape)}, its head takes {tuple(probe.head_input.shape)}"
    error = _difference(states.reshape(probe.head_input.shape), probe.head_input)
    if not error <= _SAME:
        names = [type(module).__name__ for module in probe.chain]
        return f"its readout {names} does not reproduce what its head is given (relative error {error:.1e})"
    return ""


def _spares_head(model: Any, chain: Sequence[Any], ids: Any, options: dict[str, Any]) -> bool:
    """Whether the readout ends in a module that, with ``options``, still runs on every row."""
    if not chain:
        return False
    rows: list[int] = []
    with ExitStack() as hooks:
        _on_output(hooks, chain[-1], lambda value: rows.append(value.numel() // value.shape[-1]))
        model(input_ids=require("torch").cat([ids, ids], dim=1)[:, :2], **options)
    return rows == [2]


def _difference(a: Any, b: Any) -> float:
    """Largest difference, relative to the largest entry of ``b``."""
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))


def _timed(work: Callable[[], Any], device: Any) -> tuple[Any, float]:
    """What ``work`` gives, and the seconds until the device has done it."""
    synchronize = getattr(require("torch"), device.type).synchronize
    synchronize()
    start = time.perf_counter()
    result = work()
    synchronize()
    return result, time.perf_counter() - start


def _read_out(chain: Sequence[Any], states: Any) -> Any:
    for module in chain:
        states = _tensor(module(states))
    return states


def _rows(value: Any) -> Any:
    """A tensor (1, T, d) as (T, d); the first of several; anything else as it is."""
    value = _tensor(value)
    return value[0] if getattr(value, "ndim", 0) == 3 and value.shape[0] == 1 else value


def _tensor(value: Any) -> Any:
    """The states in what a module takes or gives: itself, or the first of several."""
    return value[0] if isinstance(value, (tuple, list)) else value


def _on_output(hooks: ExitStack, module: Any, use: Callable[[Any], None]) -> None:
    handle = module.register_forward_hook(lambda _module, _args, output: use(_tensor(output)))
    hooks.callback(handle.remove)


def _on_input(hooks: ExitStack, module: Any, use: Callable[[Any], None]) -> None:
    def hook(_module: Any, args: Any, kwargs: Any) -> None:
        use(_tensor(args or (kwargs.get("hidden_states", next(iter(kwargs.values()), None)),)))

    hooks.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
