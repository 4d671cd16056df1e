"""Alignment → one HTML page: what is captured at each depth, next to chance, and mode by mode."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._alignment_result import Alignment
from .._bootstrap import Estimate
from ._alignment_figures import alignment_figures, shown_layers
from ._alignment_table import alignment_sentences
from ._numbers import interval, number, percent, text_names, typeset
from ._provenance import provenance_section
from ._template import page
from ._text import plural
from ._tokens import visible

__all__ = ["render_alignment"]

NAMED_TOKENS = 6


def render_alignment(alignment: Alignment) -> str:
    """The page as one self-contained HTML document."""

    def shown(estimate: Estimate) -> dict[str, str]:
        return {
            "value": typeset(number(estimate.value, 2)),
            "interval": typeset(interval(estimate, alignment.num_sequences, lambda x: number(x, 2))),
        }

    places = [place for place, _ in shown_layers(alignment)]
    return page(
        "alignment.html.jinja",
        scripts=("page.js",),
        figures=alignment_figures(alignment),
        model=visible(alignment.model),
        texts=[visible(name) for name in text_names(alignment.provenance)],
        sentences=[visible(sentence) for sentence in alignment_sentences(alignment)],
        similarity=alignment.similarity.replace("_", " "),
        ranks=alignment.ranks,
        level=f"{100 * alignment.level:g} %",
        num_contexts=alignment.num_contexts,
        num_sequences=alignment.num_sequences,
        num_null=alignment.num_null,
        dimension=int(alignment.dimension[-1]),
        random_share=percent(float(alignment.random_share[-1])),
        num_layers=len(alignment.layers),
        captured=shown(alignment.score()),
        held_out=shown(alignment.score(held_out=True)),
        chance=[number(float(x[-1, -1]), 2) for x in (alignment.null, alignment.null_held_out)],
        best_layer=alignment.best_layer,
        warnings=[visible(message.removeprefix("alignment: ")) for message in alignment.warnings],
        rows=[_row(alignment, i, shown) for i in range(len(alignment.layers))],
        shown_layers=[(colour, f"layer {alignment.layers[place]}") for place, colour in shown_layers(alignment)],
        modes=[_mode(alignment, mode, places) for mode in range(len(alignment.tokens))],
        held_out_known=bool(np.isfinite(alignment.modes_held_out).any()),
        provenance=_provenance(alignment),
    )


def _row(alignment: Alignment, i: int, shown: Any) -> dict[str, Any]:
    return {
        "layer": int(alignment.layers[i]),
        "cells": [
            (shown(alignment.captured[rank][i]), shown(alignment.held_out[rank][i]), number(alignment.null[i, j], 3))
            for j, rank in enumerate(alignment.ranks)
        ],
        "trace": percent(float(alignment.trace_share[i])),
        "correlation": typeset(number(float(alignment.correlations[i].mean()), 2)),
        "correlation_held_out": typeset(number(float(alignment.correlations_held_out[i].mean()), 2)),
    }


def _mode(alignment: Alignment, mode: int, places: list[int]) -> dict[str, Any]:
    return {
        "number": mode + 1,
        "eigenvalue": f"{alignment.eigenvalues[mode]:.3g}",
        "share": percent(float(alignment.eigenvalues[mode] / alignment.trace)),
        "captured": [
            (percent(float(alignment.modes[i, mode])), typeset(percent(float(alignment.modes_held_out[i, mode]))))
            for i in places
        ],
        "sides": [[visible(token) for token in side[:NAMED_TOKENS]] for side in alignment.tokens[mode]],
    }


def _provenance(alignment: Alignment) -> dict[str, Any]:
    name = alignment.similarity.replace("_", " ")
    facts = [
        ("Similarity", name + (f", β = {alignment.beta:g}" if "gaussian" in name or "jensen" in name else "")),
        ("Contexts", f"{plural(alignment.num_contexts, 'context')} of {plural(alignment.num_sequences, 'sequence')}"),
        ("Draws of random functions", str(alignment.num_null)),
        ("Seed of halves, null and bootstrap", str(alignment.seed)),
    ]
    return provenance_section(alignment.model, dict(alignment.provenance), facts)
