"""Figures of an alignment: what is captured by layer, which modes, at which angles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .._alignment_result import Alignment
from ._figures import PALETTE, Draw, band, finite, layer_axis, padded, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["alignment_figures", "shown_layers"]


def alignment_figures(alignment: Alignment) -> dict[str, str]:
    """Name → SVG markup."""
    drawn: dict[str, Draw] = {}
    if len(alignment.layers) > 1:
        for i, rank in enumerate(alignment.ranks):
            drawn[f"rank-{rank}"] = lambda ax, i=i: _captured(ax, alignment, i)  # type: ignore[misc]
        drawn["correlations-by-layer"] = lambda ax: _correlations(ax, alignment)
    drawn["modes"] = lambda ax: _modes(ax, alignment)
    drawn["angles"] = lambda ax: _angles(ax, alignment)
    return {name: svg(f"alignment-{name}", draw) for name, draw in drawn.items()}


def shown_layers(alignment: Alignment) -> list[tuple[int, str]]:
    """Places of the first, a middle and the last layer, each with its colour."""
    count = len(alignment.layers)
    places = sorted({0, count // 2, count - 1})
    return list(zip(places, ("orange", "purple", "blue")[-len(places) :], strict=True))


def _captured(ax: Axes, alignment: Alignment, i: int) -> None:
    layers = alignment.layers
    with padded(ax, bottom=0.0):
        low, high = alignment.null_band[:, i].T
        ax.fill_between(layers, low, high, color=PALETTE["muted"], alpha=0.25, linewidth=0)
        ax.plot(layers, alignment.null[:, i], color=PALETTE["muted"], linewidth=1.2, linestyle=(0, (4, 3)))
        if np.isfinite(alignment.held_out_value).any():
            ax.plot(layers, alignment.null_held_out[:, i], color=PALETTE["green"], linewidth=1.0, linestyle=(0, (1, 2)))
            band(ax, layers, alignment.held_out_value[:, i], alignment.held_out_interval[:, i], "green")
        band(ax, layers, alignment.captured_value[:, i], alignment.captured_interval[:, i], "blue")
    ax.set_ylim(0.0, min(1.02, ax.get_ylim()[1]))
    layer_axis(ax, layers)


def _correlations(ax: Axes, alignment: Alignment) -> None:
    with padded(ax, bottom=0.0):
        for values, colour in ((alignment.correlations_held_out, "green"), (alignment.correlations, "blue")):
            ax.plot(alignment.layers, finite(values.mean(axis=1)), "-o", color=PALETTE[colour])
        ax.plot(
            alignment.layers,
            alignment.random_correlation,
            color=PALETTE["muted"],
            linewidth=1.2,
            linestyle=(0, (4, 3)),
        )
    ax.set_ylim(0.0, min(1.02, ax.get_ylim()[1]))
    layer_axis(ax, alignment.layers)


def _modes(ax: Axes, alignment: Alignment) -> None:
    """Held out where that is known."""
    known = np.isfinite(alignment.modes_held_out).any()
    values = alignment.modes_held_out if known else alignment.modes
    numbers = np.arange(1, values.shape[1] + 1)
    ax.axhline(0.0, color=PALETTE["muted"], linewidth=1.0)
    with padded(ax):
        for place, colour in shown_layers(alignment):
            ax.plot(numbers, np.clip(finite(values[place]), -0.05, 1.0), "-o", color=PALETTE[colour], alpha=0.9)
    ax.set_ylim(max(-0.06, ax.get_ylim()[0]), min(1.02, ax.get_ylim()[1]))
    ax.set_xlabel("mode")
    ax.set_xlim(0.4, len(numbers) + 0.6)


def _angles(ax: Axes, alignment: Alignment) -> None:
    for place, colour in shown_layers(alignment):
        cosines = alignment.cosines[place, -1]
        numbers = np.arange(1, len(cosines) + 1)
        ax.plot(numbers, finite(np.degrees(np.arccos(np.clip(cosines, 0.0, 1.0)))), "-", color=PALETTE[colour])
    ax.axhline(90.0, color=PALETTE["muted"], linewidth=1.0, linestyle=(0, (4, 3)))
    ax.set_ylim(0.0, 94.0)
    ax.set_yticks([0, 30, 60, 90], ["0°", "30°", "60°", "90°"])
    ax.set_xlabel("principal angle, from the smallest")
    ax.set_xlim(0.4, alignment.cosines.shape[2] + 0.6)
