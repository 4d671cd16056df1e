"""Results as JSON has them: no NaN, no infinity, no arrays."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from ._bootstrap import Estimate, Estimates

__all__ = ["estimate", "estimates", "plain"]


def plain(value: Any) -> Any:
    """Arrays and tuples as lists, estimates as objects; NaN and infinity as None."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (Estimate, Estimates)):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def estimate(fields: dict[str, Any]) -> Estimate:
    """An `Estimate` of what ``dataclasses.asdict`` made of it."""
    return Estimate(fields["value"], tuple(fields["interval"]), fields["level"])


def estimates(fields: dict[str, Any]) -> Estimates:
    """`Estimates` of what `plain` made of them."""
    value, interval = (np.array(fields[name], dtype=np.float64) for name in ("value", "interval"))  # None: NaN
    return Estimates(value, interval.reshape(-1, 2), fields["level"])
