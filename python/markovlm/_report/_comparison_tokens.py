"""Where in the text two models differ: sequences to show with the data behind them, and single tokens."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._comparison import Comparison
from .._profile import Profile
from ..typing import FloatArray, IntArray
from ._comparison_table import label
from ._tokens import context_before, json_numbers, significant, snippet, visible

__all__ = ["difference_text", "extreme_tokens"]

AT_EITHER_END = 3  # sequences where the model gains most, and loses most
MOST_TOKENS = 256  # of a sequence
MOST_PREDICTIONS = 4


def difference_text(comparison: Comparison, model: int, shown: list[int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what the template shows, what the script knows): sequences of largest mean difference, those with gains first.

    ``shown`` are the models that the text can be coloured by, the baseline among them.
    """
    difference = comparison.token_differences(model)
    tokens = comparison.profiles[model].tokens
    scale = _scale(np.abs(difference))
    ranked = _ranked(difference, tokens.sequence_id)
    ends = AT_EITHER_END
    sides = [[s for s in ranked if s[0] < 0][:ends], [s for s in ranked[::-1] if s[0] > 0][:ends]]
    rows: list[int] = []
    columns = []
    for side in sides:
        articles = []
        for mean, number, every in side:
            chosen = _stretch(difference, every)
            articles.append(
                {
                    "number": number,
                    "mean": mean,
                    "count": len(every),
                    "cut": len(chosen) < len(every),
                    "tokens": [
                        {
                            "index": len(rows) + i,
                            "text": visible(tokens.text[row], keep_layout=True),
                            "share": _share(float(difference[row]), scale),
                        }
                        for i, row in enumerate(chosen.tolist())
                    ],
                }
            )
            rows += chosen.tolist()
        columns.append(articles)
    data = _data(comparison, shown, np.array(rows, dtype=np.int64))
    section = {"gains": columns[0], "losses": columns[1], "scale": scale}
    labels = [label(i) for i in shown]
    return section, {**data, "labels": labels, "scale": scale, "model": shown.index(model)}


def extreme_tokens(comparison: Comparison, model: int, sign: int, how_many: int = 8) -> list[dict[str, Any]]:
    """Tokens where a model's NLL is furthest below (``sign=-1``) or above the baseline's, with the text around them."""
    first, other = comparison.profiles[comparison.baseline], comparison.profiles[model]
    tokens, found = other.tokens, []
    for i in comparison.top_contexts(model, how_many, sign).tolist():
        start = int(np.searchsorted(tokens.sequence_id, tokens.sequence_id[i]))
        before, token, after = snippet(tokens.text, tokens.sequence_id, i, context_before(other, start), 8)
        found.append(
            {
                "before": before,
                "token": token,
                "after": after,
                "difference": float(other.tokens.nll[i] - first.tokens.nll[i]),
                "nll": (float(first.tokens.nll[i]), float(other.tokens.nll[i])),
                "expected": (_expected(first, i), _expected(other, i)),
            }
        )
    return found


def _ranked(difference: FloatArray, sequences: IntArray) -> list[tuple[float, int, IntArray]]:
    """(mean difference, number, rows) of each sequence, from the largest gain to the largest loss."""
    found = []
    for number in np.unique(sequences).tolist():
        rows = np.flatnonzero(sequences == number)
        known = difference[rows][np.isfinite(difference[rows])]
        if len(known):
            found.append((float(known.mean()), number, rows))
    return sorted(found, key=lambda sequence: sequence[:2])


def _stretch(difference: FloatArray, rows: IntArray) -> IntArray:
    """At most so many neighbouring rows: those where the differences sum to most."""
    if len(rows) <= MOST_TOKENS:
        return rows
    sums = np.concatenate([[0.0], np.cumsum(np.nan_to_num(difference[rows], posinf=0.0, neginf=0.0))])
    start = int(np.abs(sums[MOST_TOKENS:] - sums[:-MOST_TOKENS]).argmax())
    return rows[start : start + MOST_TOKENS]


def _scale(size: FloatArray) -> float:
    """Where the colours saturate: a round number beyond most of the differences."""
    finite = size[np.isfinite(size)]
    return max(0.01, float(f"{np.quantile(finite, 0.95):.1g}")) if len(finite) else 1.0


def _share(difference: float, scale: float) -> dict[str, str]:
    """Class and depth of a token's colour."""
    if math.isnan(difference):
        return {"side": "unknown", "depth": "0"}
    return {"side": "warm" if difference > 0 else "cool", "depth": f"{min(1.0, abs(difference) / scale):.2f}"}


def _data(comparison: Comparison, shown: list[int], rows: IntArray) -> dict[str, Any]:
    vocabulary: dict[int, str] = {}
    models = []
    for model in shown:
        profile = comparison.profiles[model]
        tokens = profile.tokens
        k = min(tokens.top_ids.shape[1], MOST_PREDICTIONS)
        ids = tokens.top_ids[rows, :k]
        named = (int(i) for i in np.unique(ids))
        vocabulary |= {i: visible(profile.vocabulary[i]) for i in named if i in profile.vocabulary}
        models.append(
            {
                "nll": json_numbers(tokens.nll[rows]),
                "entropy": json_numbers(tokens.entropy[rows]),
                "rank": tokens.rank[rows].tolist(),
                "k": k,
                "topIds": ids.ravel().tolist(),
                "topProbabilities": [significant(math.exp(x)) for x in tokens.top_log_probs[rows, :k].ravel()],
            }
        )
    return {"models": models, "baseline": shown.index(comparison.baseline), "vocabulary": vocabulary}


def _expected(profile: Profile, i: int, how_many: int = 2) -> list[tuple[str, float]]:
    ids, log_probs = profile.tokens.top_ids[i, :how_many], profile.tokens.top_log_probs[i, :how_many]
    return [
        (visible(profile.vocabulary.get(token, f"token {token}")), math.exp(log_p))
        for token, log_p in zip(ids.tolist(), log_probs.tolist(), strict=True)
    ]
