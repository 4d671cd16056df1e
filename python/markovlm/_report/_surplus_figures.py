"""Figures of a surplus: what drafts are worth at each step, and from which layer on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .._bootstrap import Estimate, Estimates
from .._surplus_result import Surplus
from ..typing import FloatArray
from ._figures import PALETTE, Draw, band, finite, layer_axis, padded, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["surplus_figures"]

BESIDE = 0.09  # steps between two dots of the same step, so that neither hides the other's interval


def surplus_figures(surplus: Surplus) -> dict[str, str]:
    """Name → SVG markup."""
    drawn: dict[str, Draw] = {
        "acceptance": lambda ax: _acceptance(ax, surplus),
        "divergence": lambda ax: _divergence(ax, surplus),
        "nats": lambda ax: _nats(ax, surplus),
    }
    layers = surplus.layers
    if layers is not None and len(layers.layer):
        drawn["layers-kl"] = lambda ax: _by_layer(ax, surplus, layers.kl, layers.kl_without)
        drawn["layers-acceptance"] = lambda ax: _by_layer(ax, surplus, layers.acceptance, layers.acceptance_without)
    return {name: svg(f"surplus-{name}", draw) for name, draw in drawn.items()}


def _acceptance(ax: Axes, surplus: Surplus) -> None:
    with padded(ax, bottom=0.0):
        _steps(ax, surplus.acceptance_without, "orange", BESIDE)
        _steps(ax, surplus.acceptance, "blue", -BESIDE)
    ax.set_ylim(0.0, min(1.05, ax.get_ylim()[1]))
    _step_axis(ax, surplus)


def _divergence(ax: Axes, surplus: Surplus) -> None:
    with padded(ax, bottom=0.0):
        _steps(ax, surplus.kl_without, "orange", BESIDE)
        _steps(ax, surplus.kl, "blue", -BESIDE)
    _step_axis(ax, surplus)


def _nats(ax: Axes, surplus: Surplus) -> None:
    """Bars side by side: usable is a part of what the bound leaves room for."""
    for estimates, colour, side in ((surplus.upper_bound_steps, "purple", -1), (surplus.usable_steps, "green", 1)):
        x = 1 + np.arange(len(estimates)) + 0.2 * side
        ax.bar(x, finite(estimates.value), width=0.36, color=PALETTE[colour], alpha=0.55, linewidth=0)
        _sticks(ax, x, estimates.interval, colour)
    ax.axhline(0.0, color=PALETTE["muted"], linewidth=1.0)
    with padded(ax):
        pass
    _step_axis(ax, surplus)


def _steps(ax: Axes, estimates: Estimates, colour: str, beside: float) -> None:
    x = 1 + np.arange(len(estimates)) + beside
    ax.plot(x, finite(estimates.value), "-", color=PALETTE[colour], alpha=0.45)
    _sticks(ax, x, estimates.interval, colour)
    ax.plot(x, finite(estimates.value), "o", color=PALETTE[colour], markersize=5.5)


def _sticks(ax: Axes, x: Any, interval: FloatArray, colour: str) -> None:
    for at, (low, high) in zip(x, interval, strict=True):
        if np.isfinite(low) and np.isfinite(high):
            ax.plot([at, at], [low, high], "-", color=PALETTE[colour], linewidth=2.2, solid_capstyle="butt")


def _step_axis(ax: Axes, surplus: Surplus) -> None:
    from matplotlib.ticker import MaxNLocator

    steps = surplus.horizon - 1
    ax.set_xlabel("drafted token (step)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9))
    ax.set_xlim(0.4, steps + 0.6)


def _by_layer(ax: Axes, surplus: Surplus, each: Estimates, alone: Estimate) -> None:
    layers = surplus.layers
    assert layers is not None
    with padded(ax, bottom=0.0):
        band(ax, layers.layer, each.value, each.interval, "blue")
        _level(ax, alone)
    layer_axis(ax, layers.layer)
    best = surplus.best_layer
    if best is not None:
        ax.axvline(best, color=PALETTE["green"], linewidth=1.4, linestyle=(0, (4, 3)))
        early = best <= layers.layer.mean()
        ax.annotate(
            f"90 % from layer {best} on",
            (best, 0.0),
            xycoords=("data", "axes fraction"),
            xytext=(5 if early else -5, 6),
            textcoords="offset points",
            ha="left" if early else "right",
        )


def _level(ax: Axes, alone: Estimate) -> None:
    """The token alone, with its interval, across all layers."""
    low, high = alone.interval
    if np.isfinite(low) and np.isfinite(high):
        ax.axhspan(low, high, color=PALETTE["orange"], alpha=0.18, linewidth=0)
    if np.isfinite(alone.value):
        ax.axhline(alone.value, color=PALETTE["orange"], linewidth=1.8)
