"""A surplus as plain text for the terminal: at most 80 columns unless a name is longer."""

from __future__ import annotations

import textwrap

from .._bootstrap import Estimate
from .._layer_surplus import LayerSurplus
from .._surplus_result import Surplus
from ._numbers import count, interval, number, percent, text_names
from ._text import aligned, plural, thinned
from ._tokens import visible

__all__ = ["decision_of", "plain_warning", "surplus_table"]

PROBABILITIES = {  # column: field
    "acceptance": "acceptance",
    "without the state": "acceptance_without",
    "if reached": "conditional_acceptance",
}
LENGTHS = {"tokens per pass": "lengths", "without the state": "lengths_without"}
NATS = {
    "KL, nats": "kl",
    "KL without state": "kl_without",
    "usable, nats": "usable_steps",
    "upper bound, nats": "upper_bound_steps",
}
FOOTNOTES = (
    "without the state: a draft that sees the drawn and drafted tokens, but not the hidden state.",
    "if reached: averaged over rounds whose earlier drafts were all accepted.",
    "KL: from the model's own prediction of that token to the draft's.",
    "usable: what the state takes off the loss on the text, given the tokens in between.",
    "upper bound: on what any predictor could gain from the state, with what tokens and their counts would also tell "
    "if they were used better.",
)


def surplus_table(surplus: Surplus, *, with_warnings: bool = True) -> str:
    """The decision, what each step of a draft is worth with intervals, sample sizes and warnings.

    Examples
    --------
    >>> print(surplus_table(surplus))  # doctest: +SKIP
    """
    names = text_names(surplus.provenance)
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    sequences = surplus.num_sequences[2]
    level = f"{100 * surplus.acceptance.level:g} %"
    lines = [
        visible(surplus.model + (f" on {shown}" if shown else "")),
        *textwrap.wrap(decision_of(surplus), 80),
        "",
        f"{'tokens per pass of the model':<30}{_with_interval(surplus.expected_accepted_length, sequences)}",
        f"{'usable, all steps':<30}{_with_interval(surplus.usable, sequences)} nats",
        f"{'upper bound, all steps':<30}{_with_interval(surplus.upper_bound, sequences)} nats",
        f"[low, high]: {level} intervals, from {plural(sequences, 'scored sequence')}",
        "",
        *_steps(surplus, PROBABILITIES),
        "",
        *_steps(surplus, LENGTHS, "drafted"),
        "",
        *_steps(surplus, NATS),
    ]
    if surplus.layers is not None and len(surplus.layers.layer):
        lines += ["", *_layers(surplus.layers, sequences)]
    lines += ["", *(line for note in FOOTNOTES for line in textwrap.wrap(note, 80, subsequent_indent="  "))]
    fitted, chosen, scored = (
        f"{plural(s, 'sequence')} ({plural(n, 'context')})"
        for s, n in zip(surplus.num_sequences, surplus.num_rows, strict=True)
    )
    lines += ["", *textwrap.wrap(f"Fitted on {fitted}, chosen by {chosen}, scored on {scored}.", 80)]
    if with_warnings and surplus.warnings:
        lines += ["", *(line for w in surplus.warnings for line in textwrap.wrap(f"Warning: {plain_warning(w)}.", 80))]
    return "\n".join(lines)


def decision_of(surplus: Surplus) -> str:
    """The sentence, in characters that can be shown."""
    return visible(surplus.decision)


def plain_warning(message: str) -> str:
    """Without the function's name in front, which stands where a warning is about a call."""
    return visible(message.removeprefix("surplus: ").rstrip("."))


def _with_interval(estimate: Estimate, sequences: int) -> str:
    return f"{number(estimate.value, 2)} {interval(estimate, sequences, lambda x: number(x, 2))}"


def _steps(surplus: Surplus, columns: dict[str, str], counted: str = "step") -> list[str]:
    rows = [
        [
            str(i + 1),
            *(_with_interval(getattr(surplus, name)[i], surplus.num_sequences[2]) for name in columns.values()),
        ]
        for i in range(surplus.horizon - 1)
    ]
    return aligned([counted, *columns], rows)


def _layers(layers: LayerSurplus, sequences: int) -> list[str]:
    kept = thinned(len(layers.layer))
    note = "" if len(kept) == len(layers.layer) else f"; {len(kept)} of {len(layers.layer)} shown"
    rows = [
        ["none", _with_interval(layers.acceptance_without, sequences), _with_interval(layers.kl_without, sequences), ""]
    ]
    for i in kept:
        estimates = (_with_interval(part[i], sequences) for part in (layers.acceptance, layers.kl))
        rows.append([str(layers.layer[i]), *estimates, percent(float(layers.share[i]))])
    return [
        f"Step 1 drafted from the state after each layer ({plural(layers.num_rows[1], 'context')}{note});",
        f"maps were fitted on {count(layers.num_rows[0])} contexts: compare layers with each other only",
        *aligned(["layer", "acceptance", "KL, nats", "share of the gain in KL"], rows),
    ]
