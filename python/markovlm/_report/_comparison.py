"""Comparison → one HTML page: who has the lower loss and where, layers and checkpoints over one another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._bootstrap import Estimate
from .._comparison import Comparison, DepthCurve, Quantity
from ._comparison_figures import comparison_figures, featured, model_colours
from ._comparison_table import (
    ABOUT_TOKENS,
    difference_unit,
    excludes_zero,
    label,
    plain_warning,
    sample_of,
    written,
    written_interval,
)
from ._comparison_tokens import difference_text, extreme_tokens
from ._numbers import count, text_names, typeset
from ._provenance import provenance_section
from ._template import page
from ._tokens import visible

__all__ = ["render_comparison"]

CARDS = {
    "nll": ("Loss (NLL)", "nats per token"),
    "nll_per_character": ("Loss per character", "nats"),
    "calibration": ("Calibration", "nats per token"),
    "accuracy": ("Accuracy", ""),
}


def render_comparison(comparison: Comparison) -> str:
    """The page as one self-contained HTML document."""
    colours, model = model_colours(comparison), featured(comparison)
    figures = comparison_figures(comparison)
    shown = [i for i in colours if i == comparison.baseline or comparison.paired[i]]
    first = comparison.profiles[comparison.baseline]
    section: dict[str, Any] | None = None
    data: dict[str, Any] = {}
    if model is not None and any(first.tokens.text):
        section, data = difference_text(comparison, model, shown)
        if not (section["gains"] or section["losses"]):
            section, data = None, {}
    return page(
        "comparison.html.jinja",
        scripts=("page.js", "comparison.js"),
        figures=figures,
        names=[visible(name) for name in comparison.names],
        texts=[visible(name) for name in text_names(first.provenance)],
        models=[
            {
                "label": label(i),
                "name": visible(name),
                "colour": colours.get(i),
                "sample": sample_of(comparison, i),
                "step": _step(comparison, i),
            }
            for i, name in enumerate(comparison.names)
        ],
        steps=comparison.steps is not None,
        baseline=label(comparison.baseline),
        model=None if model is None else label(model),
        level=f"{100 * comparison.level:g} %",
        sentences=comparison.sentences,
        warnings=[plain_warning(message) for message in comparison.warnings],
        cards=_cards(comparison, colours),
        quantities=_quantities(comparison),
        differences=_differences(comparison),
        compared=[label(i) for i in comparison.others if comparison.paired[i]],
        legend=[(colour, label(i)) for i, colour in colours.items()],
        layers=_curves(figures, "layers", comparison.curves),
        along=_along(comparison, figures),
        rows_of_layers=sorted({p.layers.num_rows for p in comparison.profiles if p.layers is not None}),
        text=section,
        ticks=[] if section is None else _ticks(section["scale"]),
        coloured=[(shown.index(i), label(i)) for i in shown if i != comparison.baseline],
        extremes=None if model is None else [extreme_tokens(comparison, model, sign) for sign in (-1, 1)],
        data=data,
        provenances=_provenances(comparison),
    )


def _shown(estimate: Estimate | None, unit: str, *, sign: bool = False) -> dict[str, Any]:
    if estimate is None:
        return {"value": "–", "interval": "", "outside": False}
    return {
        "value": typeset(written(estimate.value, unit, sign=sign)),
        "interval": typeset(written_interval(estimate, unit, sign=sign)),
        "outside": sign and excludes_zero(estimate),
    }


def _step(comparison: Comparison, i: int) -> str | None:
    """Where a model stands on the axis, unless its name tells."""
    step = "" if comparison.steps is None else f"{comparison.steps[i]:g}"
    return None if not step or comparison.names[i] == f"step {step}" else step


def _ticks(scale: float) -> list[dict[str, Any]]:
    """Of the scale of colours: from as deep a blue as there is to as deep an orange."""
    return [
        {"share": share, "name": typeset(f"{share * scale:+.2g}") if share else "0"}
        for share in (-1.0, -0.5, 0.0, 0.5, 1.0)
    ]


def _cards(comparison: Comparison, colours: dict[int, str]) -> list[dict[str, Any]]:
    """Loss, calibration, accuracy: the values, and the difference where there is only one."""
    names = ["nll" if all(comparison.paired) else "nll_per_character", "calibration", "accuracy"]
    found = []
    for name in names:
        quantity = comparison.quantities[name]
        title, unit = CARDS[name]
        (*_, last) = comparison.others
        difference = quantity.differences[last] if len(comparison.others) == 1 else None
        found.append(
            {
                "title": title,
                "unit": "points" if quantity.unit == "share" else unit,
                "difference": None if difference is None else _shown(difference, quantity.unit, sign=True),
                "models": [
                    {"label": label(i), "colour": colour, **_shown(quantity.estimates[i], quantity.unit)}
                    for i, colour in colours.items()
                ],
            }
        )
    return found


def _quantities(comparison: Comparison) -> list[dict[str, Any]]:
    return [
        {
            "title": quantity.title.replace(" - ", " − ").replace("Renyi", "Rényi"),
            "unit": "" if quantity.unit == "share" else quantity.unit,
            "cells": [_shown(estimate, quantity.unit) for estimate in quantity.estimates],
        }
        for quantity in comparison.quantities.values()
    ]


def _differences(comparison: Comparison) -> list[dict[str, Any]]:
    compared = [i for i in comparison.others if comparison.paired[i]]
    return [
        {
            "title": quantity.title.replace(" - ", " − "),
            "unit": difference_unit(quantity),
            "cells": [_shown(quantity.differences[i], quantity.unit, sign=True) for i in compared],
        }
        for quantity in (comparison.quantities[name] for name in ABOUT_TOKENS)
    ]


def _curves(figures: dict[str, str], prefix: str, found: Mapping[str, Quantity | DepthCurve]) -> list[tuple[str, str]]:
    """(name of the figure, its title), of those that are drawn."""

    def titled(quantity: Quantity | DepthCurve) -> str:
        unit = "" if quantity.unit in ("share", "") else f", {quantity.unit}"
        title = quantity.title.replace(" - ", " − ").replace("Renyi", "Rényi")
        return f"{title[:1].upper()}{title[1:]}{unit}"

    return [(f"{prefix}-{name}", titled(each)) for name, each in found.items() if f"{prefix}-{name}" in figures]


def _along(comparison: Comparison, figures: dict[str, str]) -> list[tuple[str, str]]:
    """Curves along the steps; the change of the loss comes first, since its intervals are the narrowest."""
    change = [("steps-difference", f"NLL − NLL of {label(comparison.baseline)}, nats/token")]
    return [*(change if "steps-difference" in figures else []), *_curves(figures, "steps", comparison.quantities)]


def _provenances(comparison: Comparison) -> list[dict[str, Any]]:
    found = []
    for i, profile in enumerate(comparison.profiles):
        facts = [
            ("Vocabulary, hidden width", f"{count(profile.vocabulary_size)} tokens, {count(profile.hidden_size)}"),
            ("Contexts", sample_of(comparison, i)),
            ("Intervals", f"{100 * profile.nll.level:g} %, by a bootstrap over sequences"),
        ]
        found.append(
            {
                "label": label(i),
                "name": visible(comparison.names[i]),
                **provenance_section(profile.model, profile.provenance, facts),
            }
        )
    return found
