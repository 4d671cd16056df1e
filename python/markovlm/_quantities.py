"""What models are compared by: which number of which result, under which name and in which unit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._alignment_result import Alignment
from ._bootstrap import Estimate, Estimates
from ._comparison import DepthCurve
from ._geometry import Geometry
from ._modes import Modes
from ._profile import Profile
from ._surplus_result import Surplus

__all__ = ["SETTINGS", "Results", "depth_curves", "estimates_of"]

NAN = float("nan")


@dataclass(frozen=True)
class Results:
    """All that is known of one model."""

    profile: Profile
    surplus: Surplus | None = None
    alignment: Alignment | None = None
    modes: Modes | None = None
    geometry: Geometry | None = None


def _renyi_2(results: Results) -> Estimate | None:
    profile = results.profile
    return profile.renyi[profile.renyi_orders.index(2.0)] if 2.0 in profile.renyi_orders else None


def _average(name: str) -> Callable[[Results], Estimate | None]:
    return lambda results: None if results.geometry is None else results.geometry.averages()[name]


def _of_surplus(get: Callable[[Surplus], Estimate]) -> Callable[[Results], Estimate | None]:
    return lambda results: None if results.surplus is None else get(results.surplus)


# name, title, unit, and where it is found
QUANTITIES: tuple[tuple[str, str, str, Callable[[Results], Estimate | None]], ...] = (
    ("nll", "negative log-likelihood (NLL)", "nats/token", lambda r: r.profile.nll),
    ("entropy", "model's own entropy", "nats/token", lambda r: r.profile.entropy),
    ("calibration", "calibration, NLL - entropy", "nats/token", lambda r: r.profile.calibration),
    ("accuracy", "accuracy", "share", lambda r: r.profile.accuracy),
    (
        "information",
        "state-prediction information",
        "nats",
        lambda r: Estimate(r.profile.information, (NAN, NAN), r.profile.nll.level),
    ),
    ("renyi_2", "Renyi entropy, order 2", "nats", _renyi_2),
    ("tokens_per_pass", "tokens per pass with drafts", "tokens", _of_surplus(lambda s: s.expected_accepted_length)),
    ("usable", "usable, all steps drafted", "nats", _of_surplus(lambda s: s.usable)),
    ("acceptance", "first draft is accepted", "share", _of_surplus(lambda s: s.acceptance[0])),
    ("modes_rank", "effective rank of predictions", "", lambda r: None if r.modes is None else r.modes.effective_rank),
    ("metric_trace", "trace of the metric", "", _average("trace")),
    ("metric_anisotropy", "anisotropy of the metric", "", _average("anisotropy")),
    ("metric_rank", "effective rank of the metric", "", _average("effective_rank")),
)

# What must be the same for these numbers to be of the same thing: result, field.
SETTINGS = (
    ("surplus", "horizon"),
    ("surplus", "family"),
    ("modes", "kind"),
    ("modes", "centered"),
    ("modes", "num_contexts"),
    ("alignment", "similarity"),
    ("alignment", "num_contexts"),
)

# of `Profile.layers`; information has no interval
LAYER_CURVES = (
    ("nll", "NLL", "nats"),
    ("entropy", "the model's own entropy", "nats"),
    ("calibration", "calibration", "nats"),
    ("accuracy", "accuracy", "share"),
    ("kl_from_final", "KL from the final prediction", "nats"),
    ("information", "state-prediction information", "nats"),
)


def estimates_of(results: Sequence[Results]) -> dict[str, tuple[str, str, tuple[Estimate | None, ...]]]:
    """Name → title, unit, and what each model has; those that none has are left out."""
    found = {name: (title, unit, tuple(get(each) for each in results)) for name, title, unit, get in QUANTITIES}
    for part, words in (("captured", "captured"), ("held_out", "captured, held out")):
        for rank in _ranks(results):
            last = [_last(_of_rank(each, part, rank)) for each in results]
            found[f"{part}_{rank}"] = (f"{words}, rank {rank}", "share", tuple(last))
    return {name: row for name, row in found.items() if any(estimate is not None for estimate in row[2])}


def depth_curves(results: Sequence[Results]) -> dict[str, DepthCurve]:
    """Name → curve over the layers; those that no model has are left out."""
    found = {}
    curves = [each.profile.layers for each in results]
    if any(curve is not None and len(curve.layer) for curve in curves):
        layers = tuple(None if curve is None else curve.layer for curve in curves)
        for name, title, unit in LAYER_CURVES:
            each = tuple(None if curve is None else _curve_of(curve, name) for curve in curves)
            found[name] = DepthCurve(title, unit, layers, each)
    for part, words in (("captured", "captured"), ("held_out", "captured, held out")):
        for rank in _ranks(results):
            values = tuple(_of_rank(each, part, rank) for each in results)
            if any(value is not None for value in values):
                found[f"{part}_{rank}"] = DepthCurve(
                    f"{words}, rank {rank}",
                    "share",
                    tuple(None if each.alignment is None else each.alignment.layers for each in results),
                    values,
                )
    return found


def _curve_of(curve: Any, name: str) -> Estimates:
    value = getattr(curve, name)
    interval = getattr(curve, f"{name}_interval", np.full((len(value), 2), NAN))
    return Estimates(value, interval)


def _ranks(results: Sequence[Results]) -> list[int]:
    return sorted({int(rank) for each in results if each.alignment is not None for rank in each.alignment.ranks})


def _of_rank(results: Results, part: str, rank: int) -> Estimates | None:
    by_rank: dict[int, Estimates] = {} if results.alignment is None else getattr(results.alignment, part)
    return by_rank.get(rank)


def _last(estimates: Estimates | None) -> Estimate | None:
    return None if estimates is None or not len(estimates) else estimates[len(estimates) - 1]
