"""A quadratic surrogate as plain text for the terminal: at most 80 columns unless a name is longer."""

from __future__ import annotations

import textwrap

from .._bootstrap import Estimate
from .._surrogate_result import LinearMaps, Surrogate
from ._numbers import count, interval, number, percent, text_names
from ._text import plural
from ._tokens import visible

__all__ = ["surrogate_table"]

LOSSES = {  # row: field, value of β
    "NLL": ("nll", None),
    "surrogate, calibrated": ("surrogate_calibrated", "beta_calibrated"),
    "surrogate, R²": ("surrogate_ball", "beta_ball"),
    "gap, calibrated": ("gap_calibrated", None),
    "gap, R²": ("gap_ball", None),
}
FOOTNOTES = (
    "least: the smallest expected surrogate of that rank. With R² it bounds a loss; the calibrated one holds at the "
    "sampled states alone, and may fall below 0 at others.",
    "states, scaled: share of that decrease which the model's own states reach in the same directions, scaled by the "
    "best number.",
)


def surrogate_table(surrogate: Surrogate) -> str:
    """Bounds with intervals, what linear maps reach at each rank, the assumptions as they are, warnings.

    Examples
    --------
    >>> print(surrogate_table(surrogate))  # doctest: +SKIP
    """
    names = text_names(surrogate.provenance)
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    sequences = len(set(surrogate.sequence_ids.tolist()))
    lines = [
        visible(surrogate.model + (f" on {shown}" if shown else "")),
        f"layer {surrogate.layer}, {plural(len(surrogate.rows), 'context')}, {plural(sequences, 'sequence')}",
        "",
        f"{'nats':<24}{'value':>10}  {f'{100 * surrogate.nll.level:g} % interval':<24}{'β':>10}",
        "-" * 80,
    ]
    for name, (field, beta) in LOSSES.items():
        estimate: Estimate = getattr(surrogate, field)
        between = interval(estimate, sequences, lambda x: number(x, 3))
        row = f"{name:<24}{number(estimate.value, 3):>10}  {between:<24}"
        lines.append((row + (f"{getattr(surrogate, beta):>10.5g}" if beta else "")).rstrip())
    ball, calibrated = surrogate.violations
    beyond = f"contexts beyond the bound: {count(calibrated)} calibrated, {count(ball)} with R²"
    if surrogate.held_out_violations is not None and surrogate.held_out_factor is not None:
        beyond += (
            f"; calibrated on half of the sequences, {100 * surrogate.held_out_violations:.2g} % of the others' "
            f"contexts, by a factor of {surrogate.held_out_factor:.3g} at most"
        )
    lines += ["", *_wrapped(beyond)]
    for title, maps in (("tokens of the text", surrogate.text_maps), ("the model's predictions", surrogate.model_maps)):
        lines += ["", *_maps(title, maps)] if maps is not None else []
    a = surrogate.assumptions
    lines += [
        "",
        "what theory assumes, and what is",
        "-" * 80,
        *_wrapped(
            f"rows of the head, all of one norm: {a.norm_mean:.4g} ± {a.norm_std:.3g}, from {a.norm_min:.4g} to "
            f"{a.norm_max:.4g}"
        ),
        *_wrapped(
            f"states, white: condition number {a.condition_number:.3g}, effective rank {a.effective_rank:.1f} of "
            f"{len(a.variances)}, ‖C/σ² − 1‖ = {a.whiteness:.3g}"
        ),
        *_wrapped(
            f"log Z, the same everywhere: {a.log_normalizer_mean:.2f} ± {a.log_normalizer_std:.2f}, from "
            f"{a.log_normalizer_min:.2f} to {a.log_normalizer_max:.2f} nats"
        ),
        "",
        *(line for note in FOOTNOTES for line in _wrapped(note)),
    ]
    for message in surrogate.warnings:
        lines += ["", *textwrap.wrap(f"Warning: {visible(message.removeprefix('surrogate: '))}.", 80)]
    return "\n".join(lines)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 80, subsequent_indent="  ")


def _maps(title: str, maps: LinearMaps) -> list[str]:
    header = f"{'rank':>6}{'Σ θ':>12}{'held out':>12}{'least, calibrated':>20}{'R²':>12}{'states, scaled':>18}"
    lines = [f"linear maps, with rows of {title}: Σ θ = {maps.null:.4g} by chance", header, "-" * 80]
    for i, rank in enumerate(maps.ranks.tolist()):
        least = (number(float(maps.minimum[1, i]), 3), number(float(maps.minimum[0, i]), 3))
        row = f"{rank:>6}{float(maps.eigenvalues[:rank].sum()):>12.4g}{float(maps.held_out[i]):>12.4g}"
        lines.append(f"{row}{least[0]:>20}{least[1]:>12}{percent(float(maps.scaled[i])):>18}")
    return lines
