"""A comparison as plain text for the terminal: sentences, numbers, and differences; at most 80 columns."""

from __future__ import annotations

import math
import textwrap

from .._bootstrap import Estimate
from .._comparison import Comparison, Quantity
from ._numbers import count, number, percent, text_names
from ._text import plural
from ._tokens import visible

__all__ = [
    "comparison_sentences",
    "comparison_table",
    "difference_unit",
    "excludes_zero",
    "label",
    "plain_warning",
    "sample_of",
    "written",
    "written_interval",
]

COLUMNS = 3  # models side by side
TITLE, CELL = 29, 17  # characters
ABOUT_TOKENS = ("nll", "entropy", "calibration", "accuracy")


def comparison_table(comparison: Comparison, *, with_warnings: bool = True) -> str:
    """What was compared, a sentence for each pair, quantities of the models, differences to the baseline.

    Examples
    --------
    >>> print(comparison_table(comparison))  # doctest: +SKIP
    """
    first = comparison.profiles[comparison.baseline]
    texts = text_names(first.provenance)
    shown = ", ".join(texts[:3]) + (f" and {len(texts) - 3} more" if len(texts) > 3 else "")
    lines = [f"{label(i):<3}{visible(name)}" for i, name in enumerate(comparison.names)]
    whose = "" if all(comparison.paired) else f" of {label(comparison.baseline)}"
    lines.append(f"{f'on {visible(shown)}: ' if shown else ''}{sample_of(comparison, comparison.baseline)}{whose}")
    lines += ["", *(line for said in comparison.sentences for line in _wrapped(said))]
    everyone, others = range(len(comparison.profiles)), comparison.others
    for start in range(0, len(everyone), COLUMNS):
        block = everyone[start : start + COLUMNS]
        lines += ["", _row("quantity", [label(i) for i in block]), "-" * 80]
        for quantity in comparison.quantities.values():
            cells = [_cell(quantity.estimates[i], quantity.unit) for i in block]
            lines += _two_lines(quantity.title, "" if quantity.unit == "share" else quantity.unit, cells)
    compared = [i for i in others if comparison.paired[i]]
    if compared:
        against = label(comparison.baseline)
        for start in range(0, len(compared), COLUMNS):
            columns = compared[start : start + COLUMNS]
            lines += ["", _row("difference", [f"{label(i)} - {against}" for i in columns]), "-" * 80]
            for name in ABOUT_TOKENS:
                quantity = comparison.quantities[name]
                cells = [_difference_cell(quantity.differences[i], quantity.unit) for i in columns]
                lines += _two_lines(quantity.title, difference_unit(quantity), cells)
        differences = [comparison.quantities[name].differences[i] for name in ABOUT_TOKENS for i in compared]
        marked = any(excludes_zero(difference) for difference in differences if difference is not None)
        if marked:
            level = f"{100 * comparison.level:g} %"
            note = f"* outside noise: the {level} interval of the difference on the same tokens does not hold 0."
            lines += _wrapped(note)
    if with_warnings and comparison.warnings:
        lines += [
            "",
            *(line for w in comparison.warnings for line in _wrapped(f"Warning: {plain_warning(w)}.")),
        ]
    return "\n".join(lines)


def comparison_sentences(comparison: Comparison) -> tuple[str, ...]:
    """For each model but the baseline, who has the lower loss and whether that is outside noise; then calibrations."""
    pairs = [_sentence(comparison, i) for i in comparison.others]
    each = [_calibration(comparison, i) for i in range(len(comparison.profiles))]
    return tuple(visible(said) for said in (*pairs, f"Calibration: {'; '.join(each)}."))


def label(model: int) -> str:
    """One of A, B, C … Z, AA, BB … to stand for a name."""
    return chr(ord("A") + model % 26) * (1 + model // 26)


def written(value: float, unit: str, *, sign: bool = False) -> str:
    """A number with as many digits as its unit and size want; a share as percentage, its difference in points."""
    if unit == "share":
        return number(100 * value, 1, sign=True) if sign else percent(value)
    if unit == "":
        return number(value, 3 if abs(value) < 1 else 2 if abs(value) < 100 else 1, sign=sign)
    return number(value, 3 if abs(value) < 100 else 1, sign=sign)


def written_interval(estimate: Estimate, unit: str, *, sign: bool = False) -> str:
    """``[low, high]``; "" where there is none."""
    low, high = estimate.interval
    if math.isnan(low) or math.isnan(high):
        return ""
    if unit == "share" and not sign:
        return f"[{number(100 * low, 1)}, {number(100 * high, 1)}]"
    return f"[{written(low, unit, sign=sign)}, {written(high, unit, sign=sign)}]"


def difference_unit(quantity: Quantity) -> str:
    return "percentage points" if quantity.unit == "share" else quantity.unit


def excludes_zero(estimate: Estimate) -> bool:
    low, high = estimate.interval
    return low > 0 or high < 0  # NaN is neither


def plain_warning(message: str) -> str:
    """Without the function's name in front, which stands where a warning is about a call."""
    return visible(message.removeprefix("compare: ").rstrip("."))


def _wrapped(text: str) -> list[str]:
    """Lines of 80 characters; names stay whole."""
    return textwrap.wrap(text, 80, break_on_hyphens=False, break_long_words=False)


def _row(title: str, cells: list[str]) -> str:
    return (f"{title:<{TITLE}}" + "".join(f"{cell:>{CELL}}" for cell in cells)).rstrip()


def _two_lines(title: str, unit: str, cells: list[tuple[str, str]]) -> list[str]:
    lines = [_row(title, [value for value, _ in cells])]
    below = _row(f"  {unit}".rstrip(), [interval for _, interval in cells])
    return [*lines, below] if below else lines


def _cell(estimate: Estimate | None, unit: str) -> tuple[str, str]:
    if estimate is None:
        return "-", ""
    return written(estimate.value, unit), written_interval(estimate, unit)


def _difference_cell(estimate: Estimate | None, unit: str) -> tuple[str, str]:
    if estimate is None:
        return "-", ""
    mark = " *" if excludes_zero(estimate) else ""
    return written(estimate.value, unit, sign=True) + mark, written_interval(estimate, unit, sign=True)


def _sentence(comparison: Comparison, i: int) -> str:
    a, b = comparison.names[comparison.baseline], comparison.names[i]
    difference = comparison.quantities["nll"].differences[i]
    if difference is None:
        return _by_characters(comparison, i)
    if math.isnan(difference.value):
        return f"Whether {a} or {b} has the lower loss cannot be said: no token has a known loss under both."
    low, high = difference.interval
    if low <= 0 <= high:
        signed = f"{written(difference.value, 'nats', sign=True)} {written_interval(difference, 'nats', sign=True)}"
        return f"{b} and {a} cannot be told apart by their losses: {signed} nats per token is within noise."
    sign = math.copysign(1.0, difference.value)
    size = Estimate(abs(difference.value), (min(sign * low, sign * high), max(sign * low, sign * high)))
    shown = f"{written(size.value, 'nats')} {written_interval(size, 'nats')}".rstrip()
    told = f"{b} loses {shown} nats per token {'less' if sign < 0 else 'more'} than {a}"
    if math.isnan(low):
        return f"{told}; with one sequence, nothing tells whether that is noise."
    return f"{told}: outside noise."


def _by_characters(comparison: Comparison, i: int) -> str:
    a, b = comparison.names[comparison.baseline], comparison.names[i]
    quantity = comparison.quantities.get("nll_per_character")
    pair = (None, None) if quantity is None else (quantity.estimates[i], quantity.estimates[comparison.baseline])
    if pair[0] is None or pair[1] is None:
        return f"{b} and {a} have other tokens, and their texts are not known: their losses cannot be compared."
    values = [written(estimate.value, "nats") for estimate in pair if estimate]
    way = "less" if pair[0].value < pair[1].value else "more"
    told = f"loses as much per character as {a}" if values[0] == values[1] else f"loses {way} per character than {a}"
    each = [f"{v} {written_interval(e, 'nats')}".rstrip() for v, e in zip(values, pair, strict=True) if e]
    return f"{b} {told}: {' against '.join(each)} nats. Their tokens differ, so none are paired."


def _calibration(comparison: Comparison, i: int) -> str:
    found, name = comparison.profiles[i].calibration, comparison.names[i]
    if math.isnan(found.value):
        return f"that of {name} is not known"
    if math.isnan(found.interval[0]):
        return f"{name} is off by {written(found.value, 'nats', sign=True)} nats"
    if excludes_zero(found):
        size = f"{written(abs(found.value), 'nats')} nats"
        return f"{name} is {'over' if found.value > 0 else 'under'}-confident by {size}"
    return f"{name} cannot be told from calibrated"


def sample_of(comparison: Comparison, i: int) -> str:
    """How much text a model was shown."""
    profile = comparison.profiles[i]
    return f"{count(profile.num_tokens)} tokens in {plural(profile.num_sequences, 'sequence')}"
