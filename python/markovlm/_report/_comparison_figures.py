"""Figures of a comparison: differences with their intervals, where they come from, layers, and steps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from .._bootstrap import Estimate, Estimates, bootstrap_mean
from .._comparison import Comparison, DepthCurve, Quantity, at_most
from ..typing import FloatArray
from ._curves import step_axis
from ._figures import PALETTE, Draw, band, finite, log_ticks, padded, step, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["comparison_figures", "featured", "model_colours"]

MOST_COLOURS = 6
MOST_BARS = 120
MOST_BINS = 8
COLOURS = ("blue", "orange", "green", "purple", "rose", "gold")
ROWS = {"nll": "NLL", "entropy": "entropy", "calibration": "calibration"}


def featured(comparison: Comparison) -> int | None:
    """The model whose differences are shown in the text: the last one with the baseline's tokens."""
    paired = [i for i in comparison.others if comparison.paired[i]]
    return paired[-1] if paired else None


def model_colours(comparison: Comparison) -> dict[int, str]:
    """Model → colour, of as many as can be told apart; along steps they are those of a scale."""
    last = featured(comparison)
    always = [comparison.baseline, *([] if last is None else [last])]
    shown = at_most(range(len(comparison.profiles)), MOST_COLOURS, always)
    if comparison.steps is not None:
        return {model: f"step{step(i, len(shown))}" for i, model in enumerate(shown)}
    return dict(zip(shown, COLOURS, strict=False))


def comparison_figures(comparison: Comparison) -> dict[str, str]:
    """Name → SVG markup."""
    drawn: dict[str, Draw] = {}
    colours = model_colours(comparison)
    paired = [i for i in colours if i != comparison.baseline and comparison.paired[i]]
    if any(_known(comparison.quantities["nll"].differences[i]) for i in paired):
        rows = [(ROWS[name], comparison.quantities[name]) for name in ROWS]
        drawn["difference"] = lambda ax: _differences(ax, rows, paired, colours, 1.0)
        accuracy = [("", comparison.quantities["accuracy"])]
        drawn["difference-accuracy"] = lambda ax: _differences(ax, accuracy, paired, colours, 100.0)
    last = featured(comparison)
    if last is not None and np.isfinite(comparison.token_differences(last)).any():
        drawn |= _places(comparison, last)
    for name, curve in comparison.curves.items():
        drawn[f"layers-{name}"] = lambda ax, name=name, curve=curve: _layers(ax, name, curve, colours)  # type: ignore[misc]
    if comparison.steps is not None:
        change = _change_of_loss(comparison)
        if sum(map(_known, change.estimates)) > 1:
            drawn["steps-difference"] = lambda ax: _steps(ax, comparison, change)
        for name, quantity in comparison.quantities.items():
            if sum(map(_known, quantity.estimates)) > 1:
                drawn[f"steps-{name}"] = lambda ax, q=quantity: _steps(ax, comparison, q)  # type: ignore[misc]
    return {name: svg(f"comparison-{name}", draw) for name, draw in drawn.items()}


def _change_of_loss(comparison: Comparison) -> Quantity:
    """Differences in NLL as a curve of their own, which is 0 at the baseline."""
    loss, nothing = comparison.quantities["nll"], Estimate(0.0, (0.0, 0.0), comparison.level)
    each = tuple(nothing if i == comparison.baseline else d for i, d in enumerate(loss.differences))
    return Quantity("", loss.unit, each, ())


def _known(estimate: Estimate | None) -> bool:
    return estimate is not None and bool(np.isfinite(estimate.value))


def _differences(
    ax: Axes, rows: list[tuple[str, Quantity]], models: list[int], colours: dict[int, str], scale: float
) -> None:
    """Dots with their intervals, around a line at 0."""
    apart = 0.7 / max(len(models), 1)
    ax.grid(False)
    ax.grid(True, axis="x")
    ax.axvline(0.0, color=PALETTE["muted"], linewidth=1.2)
    for place, (_, quantity) in enumerate(rows):
        for j, model in enumerate(models):
            estimate = quantity.differences[model]
            if not _known(estimate) or estimate is None:
                continue
            y = -place - apart * (j - (len(models) - 1) / 2)
            low, high = (scale * end for end in estimate.interval)
            if np.isfinite(low) and np.isfinite(high):
                ax.plot([low, high], [y, y], "-", color=PALETTE[colours[model]], linewidth=3, solid_capstyle="butt")
            ax.plot([scale * estimate.value], [y], "o", color=PALETTE[colours[model]], markersize=7)
    ax.set_yticks([-place for place in range(len(rows))], [name for name, _ in rows])
    ax.set_ylim(-len(rows) + 0.4, 0.6)
    ax.margins(x=0.12)
    ax.set_xlabel("nats per token" if scale == 1.0 else "percentage points")
    ax.locator_params(axis="x", nbins=6)


def _places(comparison: Comparison, model: int) -> dict[str, Draw]:
    """Where in the text the difference in NLL comes from."""
    tokens, entropy = comparison.profiles[model].tokens, comparison.profiles[comparison.baseline].tokens.entropy
    difference = comparison.token_differences(model)
    known = np.isfinite(difference) & np.isfinite(entropy)
    difference, groups = difference[known], tokens.sequence_id[known]
    drawn: dict[str, Draw] = {}
    numbers, index = np.unique(groups, return_inverse=True)
    if len(numbers) > 1:
        means = np.sort(np.bincount(index, weights=difference) / np.bincount(index))
        drawn["by-sequence"] = lambda ax: _bars(ax, means)
    for name, values, words in (
        ("by-entropy", entropy[known], "the baseline's entropy there, nats"),
        ("by-position", tokens.position[known].astype(np.float64), "place in the sequence"),
    ):
        order = np.argsort(values, kind="stable")
        edges = np.unique(np.quantile(values, np.linspace(0, 1, MOST_BINS + 1)))
        if len(order) < 20 * MOST_BINS or len(edges) < 4:
            continue
        bins = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
        rows = [np.flatnonzero(bins == b) for b in range(len(edges) - 1)]
        rows = [chosen for chosen in rows if len(chosen)]
        x = np.array([values[chosen].mean() for chosen in rows])
        means_of = Estimates.of(
            [bootstrap_mean(difference[chosen, None], groups[chosen], resamples=1000)[0] for chosen in rows]
        )
        drawn[name] = lambda ax, x=x, m=means_of, words=words: _binned(ax, x, m, words)  # type: ignore[misc]
    return drawn


def _bars(ax: Axes, means: FloatArray) -> None:
    shown = means[at_most(range(len(means)), MOST_BARS)]
    x = np.arange(len(shown))
    for sign, colour in ((-1, "blue"), (1, "orange")):
        chosen = sign * shown > 0
        ax.bar(x[chosen], shown[chosen], width=0.85, color=PALETTE[colour], alpha=0.75, linewidth=0)
    ax.axhline(0.0, color=PALETTE["muted"], linewidth=1.0)
    ax.set_xticks([])
    ax.set_xlabel("sequences, by their difference")


def _binned(ax: Axes, x: FloatArray, means: Estimates, words: str) -> None:
    ax.axhline(0.0, color=PALETTE["muted"], linewidth=1.0)
    with padded(ax):
        band(ax, x, means.value, means.interval, "green")
    ax.set_xlabel(words)


def _layers(ax: Axes, name: str, curve: DepthCurve, colours: dict[int, str]) -> None:
    scale = 100.0 if curve.unit == "share" else 1.0
    shown = [(model, found) for model, found in _each(curve, colours) if len(found)]
    logarithmic = name == "kl_from_final" and any((found.value > 0).any() for _, found in shown)
    if logarithmic:
        ax.set_yscale("log")
    with padded(ax, bottom=None if logarithmic or name == "calibration" else 0.0):
        for model, found in shown:
            value, interval = scale * found.value, scale * found.interval
            if logarithmic:  # zero at the final layer has no place on a log scale
                value, interval = (np.where(x > 0, x, np.nan) for x in (value, interval))
            band(ax, curve.depth(model), value, interval, colours[model])
    if logarithmic:
        log_ticks(ax)
    else:
        _fit_to_later_layers(ax, [scale * found.value for _, found in shown])
    if scale != 1.0:
        ax.yaxis.set_major_formatter("{x:g} %")
    ax.set_xlim(-0.03, 1.03)
    ax.set_xlabel("depth: layer / last layer")


def _each(curve: DepthCurve, models: Iterable[int]) -> list[tuple[int, Estimates]]:
    return [(model, found) for model in models if (found := curve.estimates[model]) is not None]


def _fit_to_later_layers(ax: Axes, curves: list[FloatArray]) -> None:
    """Where first readouts would squash all others against the axis, cut these off and say so."""
    long = [values for values in curves if len(values) > 3]
    later = np.concatenate([finite(values[1:]) for values in long]) if long else np.zeros(0)
    first = np.array([values[0] for values in long])
    if not np.isfinite(later).any() or not first.max() > 2 * np.nanmax(later) > 0:
        return
    ax.set_ylim(min(0.0, float(np.nanmin(later))), 1.35 * float(np.nanmax(later)))
    ax.annotate(
        f"↑ first layers: up to {first.max():.3g}",
        (0.08, 1.0),
        xycoords="axes fraction",
        va="top",
    )


def _steps(ax: Axes, comparison: Comparison, quantity: Quantity) -> None:
    steps = comparison.steps
    assert steps is not None
    scale = 100.0 if quantity.unit == "share" else 1.0
    known = [i for i, estimate in enumerate(quantity.estimates) if _known(estimate)]
    found = Estimates.of([e for i in known if (e := quantity.estimates[i]) is not None])
    with padded(ax):
        band(ax, steps[known], scale * found.value, scale * found.interval, "blue")
    if scale != 1.0:
        ax.yaxis.set_major_formatter("{x:g} %")
    ax.grid(False, axis="x")
    step_axis(ax, steps)
