"""Where numbers come from: the table of model, text, versions and checks at the end of a page."""

from __future__ import annotations

import json
from typing import Any

from ._numbers import count
from ._text import plural
from ._tokens import visible

__all__ = ["provenance_section"]

MOST_TEXTS = 50

# Entries of the provenance that have a row, or a place, of their own; others are shown as they are.
NAMED = {
    *("model", "model_type", "class", "num_parameters", "texts", "tokens", "dtype", "context_length", "versions"),
    *("created", "head", "verification", "layers", "layer_rows", "layer_seed", "begins_with", "seconds"),
    *("forward_note", "core", "threads"),
}


def provenance_section(model: str, given: dict[str, Any], facts: list[tuple[str, str]]) -> dict[str, Any]:
    """What the template shows of a provenance, with some facts of the result in the middle."""
    texts = given.get("texts") or []
    head, check = given.get("head") or {}, given.get("verification") or {}
    rows: list[tuple[str, str]] = [
        ("Model", model),
        ("Architecture", _architecture(given)),
        ("Number type", str(given.get("dtype") or "not recorded")),
        *facts,
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
