"""Modes for people: their table for the terminal, the cards of the page, and the data that colours the text by them."""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np

from .._modes import Modes
from .._profile import Profile
from ..errors import ValueRangeError
from ..typing import FloatArray
from ._numbers import count, number
from ._tokens import snippet, visible

__all__ = ["mode_data", "mode_section", "modes_table", "require_same_contexts", "same_contexts"]

NAMES = {
    "bhattacharyya": "Bhattacharyya",
    "expected_likelihood": "expected-likelihood",
    "prototype": "prototype",
    "hellinger_gaussian": "Hellinger–Gaussian",
    "jensen_shannon": "Jensen–Shannon",
}
FORMULAS = {  # HTML
    "bhattacharyya": "Σ<sub>w</sub> √(p<sub>x</sub>(w) p<sub>x′</sub>(w))",
    "expected_likelihood": "Σ<sub>w</sub> p<sub>x</sub>(w) p<sub>x′</sub>(w)",
    "prototype": "⟨ḡ<sub>x</sub>, ḡ<sub>x′</sub>⟩, ḡ<sub>x</sub> being the mean row of the head under p<sub>x</sub>,",
    "hellinger_gaussian": "exp(−2β (1 − Σ<sub>w</sub> √(p<sub>x</sub>(w) p<sub>x′</sub>(w))))",
    "jensen_shannon": "exp(−β JS(p<sub>x</sub>, p<sub>x′</sub>))",
}
FACES = {
    "expected_likelihood": "v<sub>i</sub>(w) = mean<sub>x</sub> p<sub>x</sub>(w) φ<sub>i</sub>(x) / √λ<sub>i</sub>",
    "prototype": "v<sub>i</sub>(w) ∝ ⟨g<sub>w</sub>, mean<sub>x</sub> ḡ<sub>x</sub> φ<sub>i</sub>(x)⟩",
    "bhattacharyya": "v<sub>i</sub>(w) = mean<sub>x</sub> √p<sub>x</sub>(w) φ<sub>i</sub>(x) / √λ<sub>i</sub>",
}
WITHOUT_FACTOR = ("hellinger_gaussian", "jensen_shannon")
MOST_VALUES = 400_000  # of functions on contexts in the page, one byte each
UNKNOWN = -128  # the byte of a context that the modes were not made from
TOKENS, CONTEXTS = 16, 6  # shown of either sign
AROUND = 10  # tokens of text on either side
SINGLE = 1e-6  # of the largest eigenvalue: rounding of an operator in single precision
STEPS = 127  # of a byte, on either side of 0


def same_contexts(profile: Profile, modes: Modes) -> bool:
    """Whether modes were made from the contexts of a profile, and so can be shown in its text."""
    tokens = profile.tokens
    return (
        profile.model == modes.model
        and tokens.text == modes.text
        and np.array_equal(tokens.context_id, modes.token_ids)
        and np.array_equal(tokens.sequence_id, modes.sequence_ids)
    )


def require_same_contexts(profile: Profile, modes: Modes) -> None:
    """An error that names both, if not."""
    if not same_contexts(profile, modes):
        raise ValueRangeError(
            f"modes: expected modes of the contexts of this profile, {count(profile.num_tokens)} of {profile.model!r}, "
            f"got those of {count(len(modes.text))} contexts of {modes.model!r}; make both from the same features"
        )


def similarity_name(modes: Modes) -> str:
    """In a sentence."""
    beta = f" (β = {modes.beta:g})" if modes.kind in WITHOUT_FACTOR else ""
    return f"{'centered ' if modes.centered else ''}{NAMES[modes.kind]} similarity{beta}"


def verdict(modes: Modes, mode: int) -> str:
    """Whether a mode is found again in the other half of the text, in words."""
    alone, spanned = float(modes.stability[mode]), float(modes.span_stability[mode])
    if math.isnan(spanned):
        return "not known"
    if alone >= 0.9:
        return "replicates"
    if spanned >= 0.9:
        return "replicates, mixed"
    return "replicates partly" if alone >= 0.6 or spanned >= 0.6 else "does not replicate"


VERDICTS = {
    "replicates": "Either half of the text, on its own, has this mode.",
    "replicates, mixed": "Either half has it, but mixed with other modes, which may be mixed otherwise elsewhere.",
    "replicates partly": "The halves of the text have something like it, alone or mixed with others: a tendency.",
    "does not replicate": "The halves of the text disagree: other text would likely give another mode.",
    "not known": "The halves of the text were not compared, or cannot be.",
}


def modes_table(modes: Modes) -> str:
    """Eigenvalues with bounds, shares, stability, leading tokens and one context of each mode, for the terminal."""
    k = modes.num_modes
    layer = "" if modes.layer == -1 else f", layer {modes.layer}"
    lines = [
        visible(
            f"{modes.model}: {k} modes of the {similarity_name(modes)}{layer}, {count(modes.num_contexts)} contexts"
        ),
        f"trace {modes.trace:.4g}, of which these hold {share(float(modes.shares.sum()))}; "
        + (f"no other eigenvalue is above {modes.rest:.3g}" if modes.rest > 0 else "there are no others"),
        "± is the solver's bound and 1e-6 of the first eigenvalue, for single precision in the operator",
    ]
    if modes.num_splits:
        sequences = len(np.unique(modes.sequence_ids[modes.rows]))
        lines.append(f"stability is a mean over {modes.num_splits} random splits of {sequences} sequences into halves")
    if modes.effective_rank is not None:
        lines.append(f"effective rank {modes.effective_rank:.1f}")
    lines += ["", f"{'mode':>4}  {'eigenvalue':<22}{'share':>8}  {'stability':>9}  {'in span':>7}  verdict", "-" * 80]
    for i in range(k):
        stable, spanned = (number(float(x[i]), 2) for x in (modes.stability, modes.span_stability))
        lines.append(
            f"{i + 1:>4}  {eigenvalue(modes, i):<22}{share(float(modes.shares[i])):>8}  {stable:>9}  {spanned:>7}  "
            f"{verdict(modes, i)}"
        )
        for sign, mark in ((1, "+"), (-1, "-")):
            names = [f'"{shown(modes, token)}"' for token in modes.top_tokens(i, 8, sign)[0].tolist()]
            lines += [f"      {mark} {cut(' '.join(names), 72)}"] if names else []
        for at in modes.top_contexts(i, 1).tolist():
            before, token, _ = place(modes, at)
            lines.append(f"        {cut(before, 56, keep_end=True)}[{token}]")
    return "\n".join(lines)


def eigenvalue(modes: Modes, mode: int) -> str:
    """``0.01234 ± 2e-08``, with what single precision in the operator adds; of the solver's bounds the larger one."""
    value = float(modes.eigenvalues[mode])
    off = max(float(modes.upper[mode]) - value, value - float(modes.lower[mode]))
    return f"{value:.5g} ± {off + SINGLE * modes.norm:.0e}"


def share(value: float) -> str:
    """Of the trace, with a digit more for small ones."""
    return "n/a" if math.isnan(value) else f"{100 * value:.{1 if value >= 0.1 else 2}f} %"


def signed(value: float) -> str:
    return number(value, 2, sign=True).replace("-", "−")


def cut(text: str, width: int, *, keep_end: bool = False) -> str:
    """At most so many characters on one line."""
    text = text.replace("\n", " ")
    if len(text) <= width:
        return text
    return "…" + text[1 - width :] if keep_end else text[: width - 1] + "…"


def shown(modes: Modes, token: int) -> str:
    return visible(modes.vocabulary.get(token, f"token {token}"))


def place(modes: Modes, at: int) -> tuple[str, str, str]:
    """The text before a context's target, the target, and the text after."""
    row = int(modes.rows[at])
    first = int(np.searchsorted(modes.sequence_ids, modes.sequence_ids[row]))
    start = modes.vocabulary.get(int(modes.token_ids[first]), "")
    return snippet(modes.text, modes.sequence_ids, row, start, AROUND)


def coloured(modes: Modes) -> int:
    """How many modes the text can be coloured by."""
    return min(modes.num_modes, MOST_VALUES // max(len(modes.text), 1))


def mode_section(modes: Modes) -> dict[str, Any]:
    """What the template shows."""
    largest = float(modes.eigenvalues[0])
    return {
        "k": modes.num_modes,
        "n": modes.num_contexts,
        "similarity": similarity_name(modes),
        "kind": modes.kind,
        "has_factor": modes.kind not in WITHOUT_FACTOR,
        "formula": FORMULAS[modes.kind],
        "face": FACES.get(modes.kind, FACES["bhattacharyya"].replace("=", "∝").replace(" / √λ<sub>i</sub>", "")),
        "centered": modes.centered,
        "layer": None if modes.layer == -1 else modes.layer,
        "share": share(float(modes.shares.sum())),
        "trace": f"{modes.trace:.4g}",
        "rest": f"{modes.rest:.3g}" if modes.rest > 0 else None,
        "check": modes.missed_check,
        "largest_residual": f"{float(modes.residual_norms.max()):.0e}",
        "num_splits": modes.num_splits,
        "compared": bool(np.isfinite(modes.stability).any()),
        "coloured": coloured(modes),
        "of_tokens": "Tokens whose logits it raises" if modes.kind == "prototype" else "Tokens it predicts",
        "effective_rank": modes.effective_rank,
        "cards": [_card(modes, i, largest) for i in range(modes.num_modes)],
    }


def _card(modes: Modes, mode: int, largest: float) -> dict[str, Any]:
    value = float(modes.eigenvalues[mode])
    sides = [_side(modes, mode, sign) for sign in (1, -1)]
    return {
        "index": mode,
        "bar": f"{max(value / largest, 0.0) if largest > 0 else 0.0:.3f}",
        "eigenvalue": eigenvalue(modes, mode),
        "share": share(float(modes.shares[mode])),
        "stability": number(float(modes.stability[mode]), 2),
        "span": number(float(modes.span_stability[mode]), 2),
        "verdict": verdict(modes, mode),
        "explained": VERDICTS[verdict(modes, mode)],
        "sides": sides,
        "one_sign": not all(side["places"] for side in sides),
    }


def _side(modes: Modes, mode: int, sign: int) -> dict[str, Any]:
    ids, values = modes.top_tokens(mode, TOKENS, sign)
    largest = float(np.abs(modes.token_functions[:, mode]).max(initial=0.0))
    names = [shown(modes, token) for token in ids.tolist()]
    return {
        "sign": "positive" if sign > 0 else "negative",
        "tokens": [
            {
                **_spaces(name),
                "value": signed(value),
                "bar": f"{abs(value) / largest:.3f}",
            }
            for name, value in zip(names, values.tolist(), strict=True)
        ],
        "places": [_place(modes, mode, at) for at in _spread(modes, mode, sign)],
    }


def _spaces(name: str) -> dict[str, str]:
    """A token's name, with spaces at either end shown: words at a beginning and inside of a sentence differ by one."""
    inner = name.strip(" ")
    before = len(name) - len(name.lstrip(" "))
    after = len(name) - len(inner) - before if inner else 0
    return {"before": "␣" * before, "name": inner or ("" if name else "(empty)"), "after": "␣" * after}


def _spread(modes: Modes, mode: int, sign: int) -> list[int]:
    """Leading contexts whose surroundings do not overlap, and do not repeat each other."""
    found: dict[tuple[str, ...], int] = {}
    for at in modes.top_contexts(mode, 16 * CONTEXTS, sign).tolist():
        row = int(modes.rows[at])
        near = any(abs(row - int(modes.rows[other])) <= AROUND for other in found.values())
        if not near:
            found.setdefault(tuple(part.strip() for part in modes.text[max(0, row - 1) : row + 1]), at)
        if len(found) == CONTEXTS:
            break
    return list(found.values())


def _place(modes: Modes, mode: int, at: int) -> dict[str, Any]:
    before, token, after = place(modes, at)
    value = signed(float(modes.functions[at, mode]))
    return {"before": before, "token": token, "after": after, "value": value, "index": int(modes.rows[at])}


def mode_data(modes: Modes) -> dict[str, Any]:
    """Functions on contexts for the script: one signed byte each, ``value = largest · sign(byte) · (byte / 127)²``."""
    functions = modes.functions[:, : coloured(modes)]
    largest = np.abs(functions).max(axis=0, initial=0.0)
    largest[largest == 0] = 1.0
    bytes_ = np.full((functions.shape[1], len(modes.text)), UNKNOWN, dtype=np.int8)
    bytes_[:, modes.rows] = np.rint(STEPS * np.sign(functions) * np.sqrt(np.abs(functions) / largest)).T
    return {
        "largest": [float(f"{x:.6g}") for x in largest],
        "scale": [_saturation(column) for column in functions.T],
        "values": [base64.b64encode(row.tobytes()).decode() for row in bytes_],
    }


def _saturation(function: FloatArray) -> float:
    """Where the colours end: the mean square is 1, and most functions are near 0 nearly everywhere."""
    return round(max(1.0, float(np.quantile(np.abs(function), 0.97))), 1)
