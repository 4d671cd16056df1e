"""Fills the page's template. All numbers are formatted here; the template holds prose and structure."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._bootstrap import Estimate
from .._modes import Modes
from .._profile import LayerCurves, Profile
from ._figures import figures, renyi_is_flat, step
from ._modes import mode_data, mode_section, require_same_contexts
from ._numbers import (
    BITS_PER_NAT,
    calibration_verdict,
    cost_sentence,
    count,
    interval,
    number,
    order,
    percent,
    seconds,
    text_names,
    typeset,
)
from ._provenance import provenance_section
from ._template import page
from ._text import exp
from ._tokens import browser_data, surprising_tokens, visible

__all__ = ["render_html"]

COST_PARTS = (
    ("load", "loading the model"),
    ("forward", "forward pass of the model"),
    ("final_layer", "final layer, every token"),
    ("layers", "other layers, on a subsample"),
    ("other", "rest of the profile"),
)


def render_html(profile: Profile, modes: Modes | None = None) -> str:
    """The report as one self-contained HTML document."""
    if modes is not None:
        require_same_contexts(profile, modes)
    return page(
        "report.html.jinja",
        scripts=("page.js", "report.js", *(() if modes is None else ("modes.js",))),
        figures=figures(profile, modes),
        data=browser_data(profile) | ({} if modes is None else {"modes": mode_data(modes)}),
        modes=None if modes is None else mode_section(modes),
        surprising=surprising_tokens(profile),
        **_headline(profile),
        layers=_layer_rows(profile),
        renyi_legend=_renyi_legend(profile.layers, profile.renyi_orders),
        provenance=_provenance(profile),
        cost=_cost(profile),
    )


def _headline(profile: Profile) -> dict[str, Any]:
    sequences = profile.num_sequences

    def shown(estimate: Estimate, write: Any = number, transform: Any = lambda x: x) -> dict[str, str]:
        return {
            "value": typeset(write(transform(estimate.value))),
            "interval": typeset(interval(estimate, sequences, write, transform)),
        }

    nll, verdict = profile.nll, calibration_verdict(profile)
    return {
        "model": visible(profile.model),
        "texts": [visible(name) for name in text_names(profile.provenance)],
        "n": profile.num_tokens,
        "num_sequences": sequences,
        "vocabulary_size": profile.vocabulary_size,
        "hidden_size": profile.hidden_size,
        "level": f"{100 * nll.level:g} %",
        "nll": shown(nll),
        "bits": shown(nll, number, lambda x: x * BITS_PER_NAT),
        "perplexity": shown(nll, lambda x: number(x, 2), exp),
        "entropy": shown(profile.entropy),
        "calibration": shown(profile.calibration, lambda x: number(x, sign=True)),
        "calibration_size": number(abs(profile.calibration.value)),
        "verdict": verdict,
        "accuracy": shown(profile.accuracy, percent),
        "information": profile.information,
        "entropy_of_mean": profile.entropy_of_mean,
        "log_n": math.log(max(profile.num_tokens, 1)),
        "log_v": math.log(max(profile.vocabulary_size, 1)),
        "text_known": any(profile.tokens.text),
        "targets_known": not math.isnan(nll.value),
        "costliest": _costliest(profile),
        "infinite": int(sum(math.isinf(x) for x in profile.tokens.nll.tolist())),
        "renyi": [
            {"order": "∞" if math.isinf(alpha) else order(alpha), **shown(estimate)}
            for alpha, estimate in zip(profile.renyi_orders, profile.renyi, strict=True)
        ],
    }


def _costliest(profile: Profile) -> str | None:
    """Percentage of the summed NLL that the costliest tenth of the tokens makes up."""
    nll = profile.tokens.nll[~np.isnan(profile.tokens.nll)]
    if len(nll) < 100 or not 0.0 < nll.sum() < math.inf:
        return None
    return f"{100 * np.sort(nll)[-(len(nll) // 10) :].sum() / nll.sum():.0f}"


def _layer_rows(profile: Profile) -> dict[str, Any] | None:
    curves = profile.layers
    if curves is None or not len(curves.layer):
        return None
    columns = ("nll", "entropy", "calibration", "kl_from_final", "accuracy")

    def cells(i: int) -> list[dict[str, str]]:
        found = []
        for name in columns:
            value = float(getattr(curves, name)[i])
            low, high = getattr(curves, name + "_interval")[i].tolist()
            write = percent if name == "accuracy" else number
            found.append(
                {
                    "value": typeset(write(value)),
                    "interval": typeset(interval(Estimate(value, (low, high)), profile.num_sequences, write)),
                }
            )
        return [*found, {"value": typeset(number(float(curves.information[i]))), "interval": ""}]

    return {
        "num_rows": curves.num_rows,
        "rows": [{"layer": int(layer), "cells": cells(i)} for i, layer in enumerate(curves.layer)],
    }


def _renyi_legend(curves: LayerCurves | None, orders: tuple[float, ...]) -> list[tuple[str, str]]:
    if curves is None or curves.renyi.ndim != 2:
        return []
    lines = curves.renyi.shape[1]
    return [
        (f"step{step(index, lines)}", f"α = {'∞' if math.isinf(alpha) else order(alpha)}")
        for index, alpha in enumerate(orders[:lines])
        if not renyi_is_flat(curves.renyi[:, index])
    ]


def _provenance(profile: Profile) -> dict[str, Any]:
    sizes = [
        ("Vocabulary, hidden width", f"{count(profile.vocabulary_size)} tokens, {count(profile.hidden_size)}"),
        ("Contexts", f"{count(profile.num_tokens)} in {count(profile.num_sequences)} sequences"),
    ]
    return provenance_section(profile.model, profile.provenance, sizes)


def _cost(profile: Profile) -> dict[str, Any]:
    cost = profile.cost
    parts = {name: cost[name] for name, _ in COST_PARTS if cost.get(name)}
    inside = sum(parts.get(name, 0.0) for name in ("final_layer", "layers"))
    rest = cost.get("total_profile", 0.0) - inside
    if rest > 0.005:
        parts["other"] = rest
    total = sum(parts.values())
    memory, speed = cost.get("peak_memory_mib"), cost.get("tokens_per_second")
    facts = []
    if memory is not None:
        facts.append(f"Peak memory {count(memory)} MiB.")
    if speed is not None:
        note = profile.provenance.get("forward_note")
        facts.append(f"The forward pass ran at {count(speed)} tokens per second{f' ({note})' if note else ''}.")
    return {
        "sentence": cost_sentence(profile.cost),
        "facts": " ".join(facts),
        "parts": [
            {"name": name, "label": label, "share": f"{100 * parts[name] / total:.2f}", "time": seconds(parts[name])}
            for name, label in COST_PARTS
            if name in parts
        ],
    }
