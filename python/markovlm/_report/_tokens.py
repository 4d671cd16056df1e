"""What the page needs to know about single tokens: their visible form, the data behind the text, surprising ones."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._bootstrap import bootstrap_mean
from .._profile import Profile, TokenTable
from ..typing import FloatArray, IntArray

__all__ = [
    "RANK_LABELS",
    "Surprising",
    "browser_data",
    "context_before",
    "json_numbers",
    "rank_shares",
    "reliability",
    "significant",
    "snippet",
    "surprising_tokens",
    "visible",
]

MOST_PREDICTIONS = 5

RANK_EDGES = (0, 1, 2, 5, 10, 100, 1000)
RANK_LABELS = ("1st", "2nd", "3rd–5th", "6th–10th", "11th–100th", "101st–1000th", "beyond")

# Characters that a browser would hide, or obey: controls, bidi overrides and isolates, invisible joiners, lone halves
# of a surrogate pair. Zero-width joiner and variation selectors stay: emoji are built with them.
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


def visible(text: str, *, keep_layout: bool = False) -> str:
    """``text`` with hidden characters spelled out; line breaks and tabs also stay what they are if ``keep_layout``."""

    def spelled(match: re.Match[str]) -> str:
        character = match[0]
        code = ord(character)
        if character == "\n":
            return "↵\n" if keep_layout else "↵"
        if character == "\t":
            return "⇥\t" if keep_layout else "⇥"
        if code < 0x20:
            return chr(0x2400 + code)  # Unicode's own pictures of the controls
        if 0xD800 <= code <= 0xDFFF:
            return "\ufffd"
        return f"‹U+{code:04X}›"

    return _HIDDEN.sub(spelled, text)


def browser_data(profile: Profile) -> dict[str, Any]:
    """Columns for the script, JSON-ready: NaN becomes None, infinities the strings "inf" and "-inf"."""
    tokens = profile.tokens
    sequence, position = tokens.sequence_id, tokens.position
    starts = np.flatnonzero(np.diff(sequence, prepend=sequence[:1] - 1)) if len(sequence) else np.zeros(0, np.int64)
    follows = np.diff(sequence, prepend=sequence[:1] - 1) == 0
    gaps = np.flatnonzero(follows & (np.diff(position, prepend=position[:1]) != 1))
    k = min(tokens.top_ids.shape[1], MOST_PREDICTIONS) if tokens.top_ids.ndim == 2 else 0
    used = np.unique(tokens.top_ids[:, :k]) if k else np.zeros(0, np.int64)
    return {
        "text": [visible(text, keep_layout=True) for text in tokens.text],
        "nll": json_numbers(tokens.nll),
        "entropy": json_numbers(tokens.entropy),
        "rank": tokens.rank.tolist(),
        "starts": starts.tolist(),
        "before": [visible(context_before(profile, at), keep_layout=True) for at in starts.tolist()],
        "names": [visible(_text_name(profile, at)) for at in starts.tolist()],
        "gaps": gaps.tolist(),  # contexts that do not directly follow the one before: text is missing between them
        "k": k,
        "topIds": tokens.top_ids[:, :k].ravel().tolist() if k else [],
        "topProbabilities": [significant(math.exp(x)) for x in tokens.top_log_probs[:, :k].ravel()] if k else [],
        "vocabulary": {int(i): visible(profile.vocabulary[int(i)]) for i in used if int(i) in profile.vocabulary},
        "vocabularySize": profile.vocabulary_size,
        "scale": colour_scale(tokens),
    }


def context_before(profile: Profile, at: int) -> str:
    """The token that row ``at`` starts its sequence from, which nothing predicts; "" if it was shown just before."""
    tokens = profile.tokens
    if at and tokens.text_id[at] == tokens.text_id[at - 1] and tokens.target[at - 1] == tokens.context_id[at]:
        return ""
    return profile.vocabulary.get(int(tokens.context_id[at]), "")


def _text_name(profile: Profile, at: int) -> str:
    texts = profile.provenance.get("texts") or []
    index = int(profile.tokens.text_id[at])
    return str(texts[index].get("name") or "") if 0 <= index < len(texts) else ""


def colour_scale(tokens: TokenTable) -> dict[str, float]:
    """Where the colours saturate: NLL and entropy share one scale, so that they can be compared by eye."""
    levels = np.concatenate([tokens.nll, tokens.entropy])
    surprise = np.abs(tokens.surprise)
    return {"level": _saturation(levels), "surprise": _saturation(surprise)}


def _saturation(values: FloatArray) -> float:
    finite = values[np.isfinite(values)]
    return float(max(1.0, math.ceil(np.quantile(finite, 0.97)))) if len(finite) else 1.0


def significant(value: float) -> float:
    return float(f"{value:.3g}") if math.isfinite(value) else 0.0


def json_numbers(values: FloatArray) -> list[float | str | None]:
    return [
        round(x, 3) if math.isfinite(x) else None if math.isnan(x) else "inf" if x > 0 else "-inf"
        for x in values.tolist()
    ]


def rank_shares(rank: IntArray) -> FloatArray:
    """Share of known targets per class of RANK_LABELS."""
    known = rank[rank >= 0]
    counts = np.histogram(known, [*RANK_EDGES, np.inf])[0]
    return np.asarray(counts / max(len(known), 1), dtype=np.float64)


def reliability(tokens: TokenTable, most_bins: int = 12) -> list[tuple[float, float, float, float]]:
    """(mean entropy, mean NLL, low, high) per bin of equally many tokens, by increasing entropy."""
    known = np.flatnonzero(np.isfinite(tokens.nll) & np.isfinite(tokens.entropy))
    if not len(known):
        return []
    ordered = known[np.argsort(tokens.entropy[known], kind="stable")]
    bins = []
    for rows in np.array_split(ordered, max(1, min(most_bins, len(known) // 20))):
        (nll,) = bootstrap_mean(tokens.nll[rows, None], tokens.sequence_id[rows], resamples=1000)
        bins.append((float(tokens.entropy[rows].mean()), nll.value, *nll.interval))
    return bins


def snippet(text: tuple[str, ...], sequence_ids: IntArray, i: int, start: str, around: int) -> tuple[str, str, str]:
    """(before, token, after) of row ``i`` inside its sequence, which begins with ``start``."""
    same = np.flatnonzero(sequence_ids == sequence_ids[i])
    first, last = max(i - around, int(same[0])), min(i + around, int(same[-1]))
    before = "".join(text[first:i]) if first > same[0] else start + "".join(text[first:i])
    return (
        ("… " if first > same[0] else "") + visible(before.lstrip(" ")),
        visible(text[i]) or "…",
        visible("".join(text[i + 1 : last + 1])) + ("\u00a0…" if last < same[-1] else ""),
    )


@dataclass(frozen=True)
class Surprising:
    """A token that the model expected least, with the text around it."""

    index: int
    before: str
    token: str
    after: str
    nll: float
    entropy: float
    surprise: float
    rank: int
    expected: tuple[tuple[str, float], ...]  # (token, probability)


def surprising_tokens(profile: Profile, how_many: int = 20, around: int = 8) -> list[Surprising]:
    """The ``how_many`` tokens of largest NLL − entropy, most surprising first; infinite ones lead."""
    tokens = profile.tokens
    known = np.flatnonzero(tokens.surprise > 0.0)  # NaN is not
    order = known[np.argsort(-tokens.surprise[known], kind="stable")][:how_many]
    found = []
    for i in order.tolist():
        first = int(np.searchsorted(tokens.sequence_id, tokens.sequence_id[i]))
        before, token, after = snippet(tokens.text, tokens.sequence_id, i, context_before(profile, first), around)
        predictions = [
            (visible(profile.vocabulary.get(likely, f"token {likely}")), math.exp(log_p))
            for likely, log_p in zip(tokens.top_ids[i].tolist(), tokens.top_log_probs[i].tolist(), strict=True)
        ]
        found.append(
            Surprising(
                index=i,
                before=before,
                token=token,
                after=after,
                nll=float(tokens.nll[i]),
                entropy=float(tokens.entropy[i]),
                surprise=float(tokens.surprise[i]),
                rank=int(tokens.rank[i]),
                expected=tuple(predictions[:3]),
            )
        )
    return found
