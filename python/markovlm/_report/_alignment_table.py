"""An alignment as plain text for the terminal: at most 80 columns unless a name is longer."""

from __future__ import annotations

import textwrap

import numpy as np

from .._alignment_result import Alignment
from .._bootstrap import Estimate
from ._numbers import count, interval, number, percent, text_names
from ._text import aligned, plural, thinned
from ._tokens import visible

__all__ = ["alignment_sentences", "alignment_table", "mode_name"]

MODES_SHOWN = 8
FOOTNOTES = (
    "captured: of the sum of the first r eigenvalues, what linear functions of the states reach.",
    "held out: directions from one half of the sequences, scored on the other, both ways.",
    "by chance: what as many random functions capture of the same contexts.",
    "share: of a mode's variance, what is linear in the states; in brackets held out.",
)


def alignment_table(alignment: Alignment, *, with_warnings: bool = True) -> str:
    """What is captured at each layer with intervals, next to chance; and the modes by name.

    Examples
    --------
    >>> print(alignment_table(alignment))  # doctest: +SKIP
    """
    names = text_names(alignment.provenance)
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    lines = [
        visible(alignment.model + (f" on {shown}" if shown else "")),
        f"{alignment.similarity.replace('_', ' ').capitalize()} similarity of "
        f"{plural(alignment.num_contexts, 'context')}, {plural(alignment.num_sequences, 'sequence')}; states of width "
        f"{count(alignment.hidden_size)}",
        *textwrap.wrap(" ".join(alignment_sentences(alignment)), 80),
    ]
    for rank in alignment.ranks:
        lines += ["", *_layers(alignment, rank)]
    lines += ["", *_modes(alignment)]
    lines += ["", *(line for note in FOOTNOTES for line in textwrap.wrap(note, 80, subsequent_indent="  "))]
    for message in alignment.warnings if with_warnings else ():
        lines += ["", *textwrap.wrap(f"Warning: {visible(message.removeprefix('alignment: '))}.", 80)]
    return "\n".join(lines)


def alignment_sentences(alignment: Alignment) -> list[str]:
    """What it comes to, at the largest rank."""
    rank, last = alignment.ranks[-1], alignment.score()
    held_out = alignment.score(held_out=True)
    outside = "" if np.isnan(held_out.value) else f", held out {held_out:.2f}"
    found = [
        f"Linear functions of the last states capture {last:.2f} of the first {plural(rank, 'mode')} of prediction"
        f"{outside}; {alignment.null[-1, -1]:.2f} by chance."
    ]
    if len(alignment.layers) > 1:
        first = alignment.captured[rank][0]
        found.append(
            f"At layer {alignment.layers[0]} it is {first.value:.2f}; the most is reached at layer "
            f"{alignment.best_layer}."
        )
    return found


def mode_name(alignment: Alignment, mode: int, count: int = 4) -> str:
    """Its leading tokens of either sign: ``. , | the a``."""
    if mode >= len(alignment.tokens):
        return ""
    sides = [" ".join(visible(token) for token in side[:count]) for side in alignment.tokens[mode]]
    return " | ".join(side for side in sides if side)


def _layers(alignment: Alignment, rank: int) -> list[str]:
    i, sequences = alignment.ranks.index(rank), alignment.num_sequences
    captured, held_out = alignment.captured[rank], alignment.held_out[rank]
    kept = thinned(len(alignment.layers))
    note = "" if len(kept) == len(alignment.layers) else f" ({len(kept)} of {len(alignment.layers)} layers shown)"
    rows = [
        [
            str(alignment.layers[j]),
            _with_interval(captured[j], sequences),
            _with_interval(held_out[j], sequences),
            f"{number(float(alignment.null[j, i]), 3)}, {number(float(alignment.null_held_out[j, i]), 3)}",
        ]
        for j in kept
    ]
    return [
        f"First {plural(rank, 'mode')}{note}",
        *aligned(["layer", "captured", "held out", "by chance, held out"], rows),
    ]


def _modes(alignment: Alignment) -> list[str]:
    places = sorted({0, len(alignment.layers) // 2, len(alignment.layers) - 1})
    shown = min(MODES_SHOWN, len(alignment.eigenvalues))
    rows = []
    for mode in range(shown):
        shares = [
            f"{percent(float(alignment.modes[j, mode]))} ({percent(float(alignment.modes_held_out[j, mode]))})"
            for j in places
        ]
        rows.append([str(mode + 1), *shares, mode_name(alignment, mode, 3)])
    header = ["mode", *(f"share, layer {alignment.layers[j]}" for j in places), "predicts | against"]
    return aligned(header, rows)


def _with_interval(estimate: Estimate, sequences: int) -> str:
    return f"{number(estimate.value, 2)} {interval(estimate, sequences, lambda x: number(x, 2))}"
