"""The profile as a plain table for the terminal: at most 80 columns unless a name is longer."""

from __future__ import annotations

import math

import numpy as np

from .._profile import LayerCurves, Profile
from ._numbers import (
    BITS_PER_NAT,
    calibration_verdict,
    cost_sentence,
    count,
    interval,
    number,
    order,
    percent,
    text_names,
)
from ._tokens import visible

__all__ = ["aligned", "plural", "text_table", "thinned"]

MOST_LAYERS = 13


def text_table(profile: Profile) -> str:
    """Headline numbers, Rényi entropies and layer curves as text, with intervals and units.

    Examples
    --------
    >>> print(text_table(profile))  # doctest: +SKIP
    """
    names = text_names(profile.provenance)
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    lines = [
        visible(profile.model + (f" on {shown}" if shown else "")),
        f"{plural(profile.num_tokens, 'token')}, {plural(profile.num_sequences, 'sequence')}, "
        f"vocabulary {count(profile.vocabulary_size)}, width {count(profile.hidden_size)}",
        "",
        *_headline(profile),
    ]
    if profile.layers is not None and len(profile.layers.layer):
        lines += ["", *_layers(profile.layers)]
    sentence = cost_sentence(profile.cost)
    return "\n".join([*lines, *(["", sentence] if sentence else [])])


def _headline(profile: Profile) -> list[str]:
    sequences = profile.num_sequences

    def row(name: str, value: str, between: str, unit: str) -> str:
        return f"{name:<32}{value:>10}  {between:<20}  {unit}".rstrip()

    level = f"{100 * profile.nll.level:g} % interval"
    nll = profile.nll
    lines = [
        row("quantity", "value", level, "unit"),
        "-" * 80,
        row("negative log-likelihood (NLL)", number(nll.value), interval(nll, sequences), "nats/token"),
        row(
            "",
            number(nll.value * BITS_PER_NAT),
            interval(nll, sequences, number, lambda x: x * BITS_PER_NAT),
            "bits/token",
        ),
        row(
            "perplexity",
            number(exp(nll.value), 2),
            interval(nll, sequences, lambda x: number(x, 2), exp),
            "tokens",
        ),
        row("model's own entropy", number(profile.entropy.value), interval(profile.entropy, sequences), "nats/token"),
        row(
            "calibration, NLL - entropy",
            number(profile.calibration.value, sign=True),
            interval(profile.calibration, sequences, lambda x: number(x, sign=True)),
            "nats/token",
        ),
        f"  {calibration_verdict(profile)}",
        row("accuracy", percent(profile.accuracy.value), interval(profile.accuracy, sequences, percent), ""),
        row("state-prediction information", number(profile.information), "", "nats"),
        f"  at most log n = {number(math.log(max(profile.num_tokens, 1)))} with n = {count(profile.num_tokens)}",
    ]
    for alpha, estimate in zip(profile.renyi_orders, profile.renyi, strict=True):
        name = f"Renyi entropy, order {order(alpha)}"
        lines.append(row(name, number(estimate.value), interval(estimate, sequences), "nats"))
    return lines


def _layers(curves: LayerCurves) -> list[str]:
    kept = thinned(len(curves.layer))
    note = "" if len(kept) == len(curves.layer) else f", {len(kept)} of {len(curves.layer)} shown"
    lines = [
        f"By layer (means over {count(curves.num_rows)} contexts{note}; nats, 0 = embedding, last = final)",
        f"{'layer':>5}{'NLL':>9}{'entropy':>9}{'calibration':>13}"
        f"{'KL to final':>13}{'information':>13}{'accuracy':>10}",
        "-" * 80,
    ]
    for i in kept:
        lines.append(
            f"{curves.layer[i]:>5}{number(float(curves.nll[i])):>9}{number(float(curves.entropy[i])):>9}"
            f"{number(float(curves.calibration[i]), sign=True):>13}{number(float(curves.kl_from_final[i])):>13}"
            f"{number(float(curves.information[i])):>13}{percent(float(curves.accuracy[i])):>10}"
        )
    return lines


def thinned(num_layers: int, most: int = MOST_LAYERS) -> list[int]:
    """Evenly spread indices that keep the first and the last."""
    if num_layers <= most:
        return list(range(num_layers))
    return sorted({round(x) for x in np.linspace(0, num_layers - 1, most)})


def plural(how_many: int, word: str) -> str:
    return f"{count(how_many)} {word}{'' if how_many == 1 else 's'}"


def exp(value: float) -> float:
    """``math.exp`` that overflows to infinity."""
    return math.exp(value) if value < 709.0 else (value if math.isnan(value) else math.inf)


def aligned(header: list[str], rows: list[list[str]]) -> list[str]:
    """Columns two spaces apart, each as wide as it must be."""
    widths = [max(map(len, column)) + 2 for column in zip(header, *rows, strict=True)]
    lines = ["".join(map(str.ljust, row, widths)).rstrip() for row in [header, *rows]]
    return [lines[0], "-" * 80, *lines[1:]]
