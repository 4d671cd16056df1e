"""How numbers are written, in the page and in the terminal, so that both say the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .._bootstrap import Estimate
from .._profile import Profile

__all__ = [
    "calibration_verdict",
    "cost_sentence",
    "count",
    "interval",
    "number",
    "order",
    "percent",
    "seconds",
    "text_names",
    "typeset",
]

BITS_PER_NAT = 1.0 / math.log(2.0)


def number(value: float, digits: int = 3, *, sign: bool = False) -> str:
    """``value`` to ``digits`` decimals; NaN reads "n/a" and infinity "inf"."""
    if math.isnan(value):
        return "n/a"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if abs(value) >= 1e6:
        return f"{value:.3g}"
    rounded = round(value, digits) + 0.0  # + 0.0 turns -0.0 into 0.0
    return f"{rounded:{'+' if sign and rounded else ''},.{digits}f}"


def percent(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{100.0 * value:.1f} %"


def count(value: float) -> str:
    return f"{value:,.0f}"


def seconds(value: float) -> str:
    return f"{value:,.2f} s" if value < 100 else f"{value:,.0f} s"


def order(value: float) -> str:
    return "inf" if math.isinf(value) else f"{value:g}"


def typeset(number_text: str) -> str:
    """With the signs that a terminal may lack."""
    return number_text.replace("-", "−").replace("inf", "∞")


def interval(
    estimate: Estimate,
    num_sequences: int,
    write: Callable[[float], str] = number,
    transform: Callable[[float], float] = lambda value: value,
) -> str:
    """``[low, high]``, or why there is none; ``transform`` must be increasing."""
    low, high = estimate.interval
    if math.isnan(low) or math.isnan(high):
        return "n/a (one sequence)" if num_sequences == 1 and not math.isnan(estimate.value) else "n/a"
    return f"[{write(transform(low))}, {write(transform(high))}]"


def calibration_verdict(profile: Profile) -> str:
    """Decided by the interval alone: it lies above zero, below zero, or contains it."""
    low, high = profile.calibration.interval
    if math.isnan(profile.calibration.value):
        return "no verdict: the next tokens are not known"
    if math.isnan(low) or math.isnan(high):
        return "no verdict: a single sequence gives no interval"
    if low > 0.0:
        return "over-confident"
    if high < 0.0:
        return "under-confident"
    return "indistinguishable from calibrated"


def cost_sentence(cost: dict[str, float]) -> str | None:
    """What the analysis cost next to the forward pass that any use of the model needs."""
    total, forward = cost.get("total_profile"), cost.get("forward")
    if total is None:
        return None
    if not forward:
        return f"The profile cost {seconds(total)}."
    share = 100.0 * total / forward
    written = f"{share:.0f}" if share >= 10 else f"{share:.1f}"
    return f"The profile cost {seconds(total)} = {written} % of the model's own forward pass ({seconds(forward)})."


def text_names(provenance: dict[str, Any]) -> list[str]:
    return [str(text.get("name") or "unnamed text") for text in provenance.get("texts") or []]
