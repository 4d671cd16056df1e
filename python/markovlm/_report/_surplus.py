"""Surplus → one HTML page: numbers, figures, and where in the text drafting works."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._bootstrap import Estimate
from .._surplus_result import Surplus
from ._numbers import count, interval, number, percent, text_names, typeset
from ._provenance import provenance_section
from ._surplus_figures import surplus_figures
from ._surplus_table import decision_of, plain_warning
from ._template import page
from ._text import plural
from ._tokens import visible

__all__ = ["render_surplus"]

PROBABILITIES = ("acceptance", "acceptance_without", "conditional_acceptance")
LENGTHS = ("lengths", "lengths_without")
NATS = ("kl", "kl_without", "usable_steps", "upper_bound_steps")
LOSSES = ("loss", "loss_without", "model_loss", "model_entropy")
AT_EITHER_END = 3  # sequences where drafting works best, and worst, that are open at first


def render_surplus(surplus: Surplus) -> str:
    """The page as one self-contained HTML document."""
    sequences = surplus.num_sequences[2]

    def shown(estimate: Estimate) -> dict[str, str]:
        return {
            "value": typeset(number(estimate.value, 2)),
            "interval": typeset(interval(estimate, sequences, lambda x: number(x, 2))),
        }

    def table(names: tuple[str, ...]) -> list[list[dict[str, str]]]:
        return [[shown(getattr(surplus, name)[i]) for name in names] for i in range(surplus.horizon - 1)]

    layers = surplus.layers
    has_layers = layers is not None and len(layers.layer) > 0
    return page(
        "surplus.html.jinja",
        scripts=("page.js", "surplus.js"),
        figures=surplus_figures(surplus),
        model=visible(surplus.model),
        texts=[visible(name) for name in text_names(surplus.provenance)],
        decision=decision_of(surplus),
        family=surplus.family,
        level=f"{100 * surplus.acceptance.level:g} %",
        steps=surplus.horizon - 1,
        num_sequences=surplus.num_sequences,
        num_rows=surplus.num_rows,
        length=shown(surplus.expected_accepted_length),
        usable=shown(surplus.usable),
        upper_bound=shown(surplus.upper_bound),
        first=shown(surplus.acceptance[0]),
        first_without=shown(surplus.acceptance_without[0]),
        warnings=[plain_warning(message) for message in surplus.warnings],
        probabilities=table(PROBABILITIES),
        lengths=table(LENGTHS),
        nats=table(NATS),
        losses=table(LOSSES),
        layers=_layers(surplus, shown) if has_layers else None,
        sequences=_sequences(surplus),
        at_either_end=AT_EITHER_END,
        text_known=any(surplus.text),
        data={
            "acceptance": [_rounded(row) for row in surplus.row_acceptance],
            "starts": _rounded(surplus.row_starts),
        },
        provenance=_provenance(surplus),
    )


def _layers(surplus: Surplus, shown: Any) -> dict[str, Any]:
    layers = surplus.layers
    assert layers is not None
    return {
        "best": surplus.best_layer,
        "num_rows": layers.num_rows,
        "without": [shown(layers.acceptance_without), shown(layers.kl_without)],
        "rows": [
            {
                "layer": int(layer),
                "cells": [shown(layers.acceptance[i]), shown(layers.kl[i])],
                "share": typeset(percent(float(layers.share[i]))),
            }
            for i, layer in enumerate(layers.layer)
        ],
    }


def _sequences(surplus: Surplus) -> list[dict[str, Any]]:
    """Of each scored sequence its tokens, from where drafting works best to where it works worst."""
    found = []
    for number_ in np.unique(surplus.sequence_ids).tolist():
        rows = np.flatnonzero(surplus.sequence_ids == number_)
        mean = float(surplus.row_acceptance[rows, 0].mean())
        before = np.diff(surplus.rows[rows], prepend=surplus.rows[rows[:1]] - 1)
        tokens = [
            {
                "index": row,
                "text": visible(surplus.text[row], keep_layout=True),
                "share": f"{max(0.0, float(surplus.row_acceptance[row, 0])):.2f}",
                "gap": gap != 1,
            }
            for row, gap in zip(rows.tolist(), before.tolist(), strict=True)
        ]
        found.append({"number": number_, "mean": mean, "count": len(rows), "tokens": tokens})
    return sorted(found, key=lambda sequence: -sequence["mean"])


def _rounded(values: Any) -> list[float | None]:
    return [round(x, 3) if np.isfinite(x) else None for x in values.tolist()]


def _provenance(surplus: Surplus) -> dict[str, Any]:
    parts = zip(("fitted", "chosen by", "scored"), surplus.num_sequences, surplus.num_rows, strict=True)
    written = "; ".join(f"{name}: {plural(s, 'sequence')}, {plural(n, 'context')}" for name, s, n in parts)
    facts = [("Horizon", f"{count(surplus.horizon)} tokens: one by the model, {count(surplus.horizon - 1)} drafted")]
    facts.append(("Split by sequence", written))
    facts.append(("Family of drafts", surplus.family))
    given = dict(surplus.provenance)
    if "surplus_seed" in given:
        facts.append(("Seed of split and bootstrap", str(given.pop("surplus_seed"))))
    return provenance_section(surplus.model, given, facts)
