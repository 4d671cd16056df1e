"""Fills the page's template. All numbers are formatted here; the template holds prose and structure."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from importlib.resources import files
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
)
from ._text import exp, plural
from ._tokens import browser_data, surprising_tokens, visible

__all__ = ["render_html"]

MOST_TEXTS = 50

# Entries of the provenance that have a row, or a place, of their own; others are shown as they are.
NAMED = {
    *("model", "model_type", "class", "num_parameters", "texts", "tokens", "dtype", "context_length", "versions"),
    *(
        "created",
        "head",
        "verification",
        "layers",
        "layer_rows",
        "layer_seed",
        "begins_with",
        "seconds",
        "forward_note",
    ),
    *("core", "threads"),
}

COST_PARTS = (
    ("load", "loading the model"),
    ("forward", "forward pass of the model"),
    ("final_layer", "final layer, every token"),
    ("layers", "other layers, on a subsample"),
    ("other", "rest of the profile"),
)


def render_html(profile: Profile, modes: Modes | None = None) -> str:
    """The report as one self-contained HTML document."""
    import jinja2
    from markupsafe import Markup

    if modes is not None:
        require_same_contexts(profile, modes)
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_resource),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters |= {
        "count": count,
        "number": lambda *given, **named: _typeset(number(*given, **named)),
        "percent": percent,
        "visible": visible,
    }
    script = _resource("report.js") + ("" if modes is None else _resource("modes.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("report.html.jinja").render(
        style=Markup(_resource("report.css")),
        script=Markup(script),
        # No source but the page itself: a browser refuses every request, and every script other than ours.
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'",
        figures={name: Markup(svg) for name, svg in figures(profile, modes).items()},
        data=browser_data(profile) | ({} if modes is None else {"modes": mode_data(modes)}),
        modes=None if modes is None else mode_section(modes),
        surprising=surprising_tokens(profile),
        **_headline(profile),
        layers=_layer_rows(profile),
        renyi_legend=_renyi_legend(profile.layers, profile.renyi_orders),
        provenance=_provenance(profile),
        cost=_cost(profile),
    )


def _resource(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _typeset(number_text: str) -> str:
    """The signs that a terminal may lack."""
    return number_text.replace("-", "−").replace("inf", "∞")


def _headline(profile: Profile) -> dict[str, Any]:
    sequences = profile.num_sequences

    def shown(estimate: Estimate, write: Any = number, transform: Any = lambda x: x) -> dict[str, str]:
        return {
            "value": _typeset(write(transform(estimate.value))),
            "interval": _typeset(interval(estimate, sequences, write, transform)),
        }

    nll, verdict = profile.nll, calibration_verdict(profile)
    return {
        "model": visible(profile.model),
        "texts": [visible(name) for name in text_names(profile)],
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
                    "value": _typeset(write(value)),
                    "interval": _typeset(interval(Estimate(value, (low, high)), profile.num_sequences, write)),
                }
            )
        return [*found, {"value": _typeset(number(float(curves.information[i]))), "interval": ""}]

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
    given = profile.provenance
    texts = given.get("texts") or []
    head, check = given.get("head") or {}, given.get("verification") or {}
    rows: list[tuple[str, str]] = [
        ("Model", profile.model),
        ("Architecture", _architecture(given)),
        ("Number type", str(given.get("dtype") or "not recorded")),
        ("Vocabulary, hidden width", f"{count(profile.vocabulary_size)} tokens, {count(profile.hidden_size)}"),
        ("Contexts", f"{count(profile.num_tokens)} in {count(profile.num_sequences)} sequences"),
    ]
    if given.get("context_length"):
        rows.append(("Context length", f"{count(given['context_length'])} tokens"))
    if head:
        rows.append(("Head", _head(head)))
        if head.get("padded_rows") is not None:
            mass = f", with {head['padded_mass']:.1e} of the probability" if head.get("padded_mass") else ""
            rows.append(("Padded vocabulary rows", f"{count(head['padded_rows'])} left out{mass}"))
    if check:
        rows.append(("Check of the logits", _check(check)))
    if given.get("layers"):
        rows.append(("Layers read", f"{_ranges(given['layers'])} and the final one, in {_layer_rows_of(given)}"))
    if given.get("begins_with") is not None:
        rows.append(("Every sequence begins with", f"token {given['begins_with']}, which the tokenizer puts there"))
    versions = given.get("versions")
    if versions:
        written = ", ".join(f"{k} {v}" for k, v in versions.items()) if isinstance(versions, dict) else str(versions)
        rows.append(("Versions", written))
    if given.get("core"):
        rows.append(("Computed by", f"the core's {given['core']} build on {plural(given.get('threads', 1), 'thread')}"))
    rows.append(("Created", str(given.get("created") or "not recorded")))
    rows += [(str(key), json.dumps(given[key], default=str)) for key in given if key not in NAMED]
    return {
        "rows": [(visible(name), visible(value)) for name, value in rows],
        "texts": [
            {
                "name": visible(str(text.get("name") or "unnamed text")),
                "sha256": visible(str(text.get("sha256") or "not recorded")),
                "characters": count(text["characters"]) if text.get("characters") is not None else "n/a",
            }
            for text in texts[:MOST_TEXTS]
        ],
        "more_texts": max(0, len(texts) - MOST_TEXTS),
    }


def _architecture(given: dict[str, Any]) -> str:
    found = [str(given[key]) for key in ("model_type", "class") if given.get(key)]
    if given.get("num_parameters"):
        found.append(f"{count(given['num_parameters'])} parameters")
    return ", ".join(found) or "not recorded"


def _check(check: dict[str, Any]) -> str:
    error = check.get("relative_error")
    if error is None:
        return "the model gives no logits to compare with"
    return (
        f"rebuilt from states and head on {count(check.get('rows', 0))} rows and compared with the model's own: "
        f"they differ by {error:.1e} of their range"
    )


def _ranges(numbers: list[int]) -> str:
    """Ascending numbers with runs drawn together: 0–3, 7."""
    runs: list[list[int]] = []
    for number_ in numbers:
        if runs and number_ == runs[-1][-1] + 1:
            runs[-1].append(number_)
        else:
            runs.append([number_])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)


def _layer_rows_of(given: dict[str, Any]) -> str:
    return f"{count(given.get('layer_rows', 0))} contexts drawn with seed {given.get('layer_seed', 0)}"


def _head(head: dict[str, Any]) -> str:
    scale, softcap = head.get("scale"), head.get("softcap")
    return ", ".join(
        [
            "with bias" if head.get("bias") else "no bias",
            "no logit scale" if scale in (None, 1.0) else f"logit scale {scale:g}",
            "no soft-capping" if softcap is None else f"soft-capping at {softcap:g}",
        ]
    )


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
