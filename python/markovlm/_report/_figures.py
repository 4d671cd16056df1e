"""Figures as inline SVG.

Drawn by Matplotlib, because axes, ticks and log scales are solved there. What comes out is adapted to the page: colours
become CSS variables (so a figure follows the light or dark scheme), text stays text in the page's own font, ids are
prefixed by the figure's name, and nothing in the markup points outside. The canvas is narrow (420 units), so that on
a phone, where the figure is scaled to some 340 pixels, the labels keep a readable size.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from .._modes import Modes
from .._profile import LayerCurves, Profile
from ..typing import FloatArray, IntArray
from ._tokens import RANK_LABELS, rank_shares, reliability

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["PALETTE", "Draw", "band", "figures", "finite", "layer_axis", "log_ticks", "padded", "step", "svg"]

WIDTH, HEIGHT = 420.0, 264.0

# Stand-ins that Matplotlib accepts as colours and that are then replaced; no figure uses such near-blacks itself.
PALETTE = {
    "ink": "#000001",
    "muted": "#000002",
    "grid": "#000003",
    "blue": "#000004",
    "orange": "#000005",
    "green": "#000006",
    "purple": "#000007",
    "rose": "#000008",
    "gold": "#000009",
    **{f"step{i}": f"#00001{i}" for i in range(6)},
}
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 12.5,
    "text.color": PALETTE["muted"],
    "axes.edgecolor": PALETTE["muted"],
    "axes.labelcolor": PALETTE["muted"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": PALETTE["grid"],
    "grid.linewidth": 0.8,
    "xtick.color": PALETTE["muted"],
    "ytick.color": PALETTE["muted"],
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "xtick.minor.size": 0,
    "lines.linewidth": 1.8,
    "lines.markersize": 3.2,
}

Draw = Callable[["Axes"], None]


def figures(profile: Profile, modes: Modes | None = None) -> dict[str, str]:
    """Name → SVG markup, for every figure that the profile and the modes have the numbers for."""
    drawn: dict[str, Draw] = {}
    tokens = profile.tokens
    known = tokens.nll[np.isfinite(tokens.nll)]
    entropy = tokens.entropy[np.isfinite(tokens.entropy)]
    if len(entropy):
        drawn["histogram"] = lambda ax: _histogram(ax, known, entropy)
    if (tokens.rank >= 0).any():
        drawn["ranks"] = lambda ax: _ranks(ax, rank_shares(tokens.rank))
    bins = reliability(tokens)
    if len(bins):
        drawn["reliability"] = lambda ax: _reliability(ax, bins)
    if any(math.isfinite(estimate.value) for estimate in profile.renyi):
        drawn["renyi"] = lambda ax: _renyi(ax, profile)
    curves = profile.layers
    if curves is not None and len(curves.layer):
        drawn |= {
            "layers-nll": lambda ax: _layers_nll(ax, curves),
            "layers-calibration": lambda ax: _layers_calibration(ax, curves),
            "layers-information": lambda ax: _layers_information(ax, curves),
            "layers-accuracy": lambda ax: _layers_accuracy(ax, curves),
        }
        if np.any((curves.kl_from_final > 0) & np.isfinite(curves.kl_from_final)):
            drawn["layers-kl"] = lambda ax: _layers_kl(ax, curves)
        if curves.renyi.ndim == 2 and curves.renyi.shape[1]:
            drawn["layers-renyi"] = lambda ax: _layers_renyi(ax, curves)
    if modes is not None and (modes.eigenvalues > 0).any():
        drawn["modes-spectrum"] = lambda ax: _modes_spectrum(ax, modes)
        drawn["modes-share"] = lambda ax: _modes_share(ax, modes)
    return {name: svg(name, draw) for name, draw in drawn.items()}


def svg(name: str, draw: Draw) -> str:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.style import context

    # "default" first, so that a user's own style does not reach into the report
    with context(["default", {**STYLE, "svg.hashsalt": name}]):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return _adapted(buffer.getvalue(), name)


def _adapted(svg: str, name: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<svg[^>]*>", f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" aria-hidden="true">', svg, count=1)
    svg = re.sub(r"\s*<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)  # its rules would reach the whole page
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r"font(-size)?: ([\d.]+px)[^;\"]*(; font-family: [^;\"]*)?", r"font-size: \2", svg)
    svg = re.sub(r"\d+\.\d{3,}", lambda match: f"{float(match[0]):.2f}", svg)
    for variable, colour in PALETTE.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return re.sub(r"\s*\n\s*", " ", svg)


@contextmanager
def padded(ax: Axes, *, bottom: float | None = None) -> Iterator[None]:
    """Room above the data, and the axis from ``bottom`` where zero is meaningful."""
    yield
    low, high = ax.get_ylim()
    ax.set_ylim(low if bottom is None else bottom, high + 0.06 * (high - low))


def band(ax: Axes, x: Any, mean: FloatArray, interval: FloatArray, colour: str) -> None:
    mean, interval = finite(mean), finite(interval)
    ax.fill_between(x, interval[:, 0], interval[:, 1], color=PALETTE[colour], alpha=0.18, linewidth=0)
    ax.plot(x, mean, "-o", color=PALETTE[colour])


def finite(values: FloatArray) -> FloatArray:
    """Infinities become gaps: they have no place on an axis."""
    return np.where(np.isfinite(values), values, np.nan)


def layer_axis(ax: Axes, layer: IntArray) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.set_xlabel("layer")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    first, last = int(layer.min()), int(layer.max())
    margin = max(0.03 * (last - first), 0.5 if first == last else 0.0)
    ax.set_xlim(first - margin, last + margin)


def _fit_to_later_layers(ax: Axes, curves: LayerCurves, values: FloatArray) -> None:
    """Where the first readout would squash all others against the axis, cut it off and write its value instead."""
    later = values[1:][np.isfinite(values[1:])]
    if len(later) < 2 or not 2 * float(later.max()) < values[0] < math.inf:
        return
    ax.set_ylim(min(0.0, float(later.min())), 1.35 * float(later.max()))
    ax.annotate(
        f"↑ layer {curves.layer[0]}: {values[0]:.3g}",
        (float(curves.layer[1]), 1.0),  # beyond the line, which leaves the figure before it
        xycoords=("data", "axes fraction"),
        xytext=(4, 0),
        textcoords="offset points",
        va="top",
    )


def _layers_nll(ax: Axes, curves: LayerCurves) -> None:
    with padded(ax, bottom=0.0):
        band(ax, curves.layer, curves.nll, curves.nll_interval, "orange")
        band(ax, curves.layer, curves.entropy, curves.entropy_interval, "blue")
    _fit_to_later_layers(ax, curves, curves.nll)
    layer_axis(ax, curves.layer)


def _layers_calibration(ax: Axes, curves: LayerCurves) -> None:
    with padded(ax):
        ax.axhline(0.0, color=PALETTE["muted"], linewidth=1.0)
        band(ax, curves.layer, curves.calibration, curves.calibration_interval, "purple")
    _fit_to_later_layers(ax, curves, curves.calibration)
    layer_axis(ax, curves.layer)


def _layers_kl(ax: Axes, curves: LayerCurves) -> None:
    kl, interval = curves.kl_from_final, curves.kl_from_final_interval
    shown = (kl > 0) & np.isfinite(kl)  # zero at the final layer has no place on a log scale
    interval = np.where(interval > 0, interval, np.nan)[shown]
    ax.set_yscale("log")
    band(ax, curves.layer[shown], kl[shown], interval, "green")
    log_ticks(ax)
    layer_axis(ax, curves.layer)


def log_ticks(ax: Axes) -> None:
    """Few, written as plain numbers."""
    low, high = ax.get_ylim()
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1,) if last - first > 3 else (1, 3) if last - first > 2 else (1, 2, 5)
    ticks = [t for e in range(first, last + 1) for s in steps if low <= (t := s * 10.0**e) <= high]
    ax.set_yticks(ticks, [f"{t:g}" for t in ticks])
    ax.set_yticks([], minor=True)


def _layers_information(ax: Axes, curves: LayerCurves) -> None:
    ceiling = math.log(max(curves.num_rows, 1))
    with padded(ax, bottom=0.0):
        ax.plot(curves.layer, finite(curves.information), "-o", color=PALETTE["blue"])
        ax.axhline(ceiling, color=PALETTE["muted"], linewidth=1.0, linestyle=(0, (4, 3)))
    ax.annotate(
        f"ceiling, log {curves.num_rows:,} = {ceiling:.2f}",
        (1.0, ceiling),
        xycoords=("axes fraction", "data"),
        xytext=(0, -5),
        textcoords="offset points",
        ha="right",
        va="top",
    )
    layer_axis(ax, curves.layer)


def _layers_accuracy(ax: Axes, curves: LayerCurves) -> None:
    with padded(ax, bottom=0.0):
        band(ax, curves.layer, 100 * curves.accuracy, 100 * curves.accuracy_interval, "green")
    ax.yaxis.set_major_formatter("{x:g} %")
    layer_axis(ax, curves.layer)


def _layers_renyi(ax: Axes, curves: LayerCurves) -> None:
    with padded(ax, bottom=0.0):
        for index, column in enumerate(curves.renyi.T):
            if renyi_is_flat(column):
                continue
            ax.plot(curves.layer, finite(column), "-", color=PALETTE[f"step{step(index, curves.renyi.shape[1])}"])
    layer_axis(ax, curves.layer)


def renyi_is_flat(column: FloatArray) -> bool:
    """Whether all layers agree: order 0 counts tokens, which says nothing and would take most of the axis."""
    return len(column) > 1 and bool(np.all(column == column[0]))


def step(index: int, how_many: int) -> int:
    """Which of the six steps of the ordered palette; the page's legend uses the same."""
    return round(5 * index / max(how_many - 1, 1))


def _histogram(ax: Axes, nll: FloatArray, entropy: FloatArray) -> None:
    both = np.concatenate([nll, entropy])
    top = max(float(np.quantile(both, 0.995)), 1e-3)
    edges = np.linspace(0.0, top, 41)
    width = edges[1]
    for values, colour, fill in ((nll, "orange", 0.30), (entropy, "blue", 0.0)):
        if not len(values):
            continue
        share = 100 * np.histogram(np.clip(values, 0.0, top), edges)[0] / len(values)
        ax.stairs(share, edges, fill=True, color=PALETTE[colour], alpha=fill, linewidth=0) if fill else None
        ax.stairs(share, edges, color=PALETTE[colour], linewidth=1.6, baseline=None)
    with padded(ax, bottom=0.0):
        ax.set_xlim(0.0, top)
    ax.yaxis.set_major_formatter("{x:g} %")
    ax.set_xlabel(f"nats (bins of {width:.2g})")


def _ranks(ax: Axes, shares: FloatArray) -> None:
    y = np.arange(len(shares))[::-1]
    ax.grid(False)
    ax.barh(y, 100 * shares, height=0.68, color=PALETTE["blue"], linewidth=0)
    for place, share in zip(y, shares, strict=True):
        ax.annotate(
            f"{100 * share:.1f} %", (100 * share, place), xytext=(5, 0), textcoords="offset points", va="center"
        )
    ax.set_yticks(y, RANK_LABELS)
    ax.set_xlim(0.0, 118 * float(shares.max()))
    ax.set_xticks([])
    ax.spines["bottom"].set_visible(False)


def _reliability(ax: Axes, bins: list[tuple[float, float, float, float]]) -> None:
    entropy, nll, low, high = np.array(bins).T
    top = 1.08 * float(np.nanmax(np.concatenate([entropy, nll, high])))
    top = max(top, 1e-3)
    ax.plot([0, top], [0, top], color=PALETTE["muted"], linewidth=1.0, linestyle=(0, (4, 3)))
    for x, a, b in zip(entropy, low, high, strict=True):
        if np.isfinite(a) and np.isfinite(b):
            ax.plot([x, x], [a, b], "-", color=PALETTE["orange"], alpha=0.45, linewidth=3.5, solid_capstyle="butt")
    ax.plot(entropy, nll, "o", color=PALETTE["orange"], markersize=5)
    ax.set_xlim(0, top)
    ax.set_ylim(0, top)
    ax.text(0.03, 0.96, "over-confident", transform=ax.transAxes, va="top")
    ax.text(0.98, 0.06, "under-confident", transform=ax.transAxes, ha="right")
    ax.set_xlabel("mean entropy of the bin, nats")


def _renyi(ax: Axes, profile: Profile) -> None:
    x = np.arange(len(profile.renyi_orders))
    values = np.array([estimate.value for estimate in profile.renyi])
    intervals = np.array([estimate.interval for estimate in profile.renyi])
    with padded(ax, bottom=0.0):
        band(ax, x, values, intervals, "blue")
        for place, value in zip(x, values, strict=True):
            if np.isfinite(value):
                ax.annotate(f"{value:.2f}", (place, value), xytext=(5, 5), textcoords="offset points")
    ax.set_xticks(x, ["∞" if math.isinf(a) else f"{a:g}" for a in profile.renyi_orders])
    ax.set_xlim(-0.4, len(x) - 0.4)
    ax.set_xlabel("order α")


def _modes_spectrum(ax: Axes, modes: Modes) -> None:
    numbers, values = np.arange(1, modes.num_modes + 1), modes.eigenvalues
    shown = values > 1e-12 * values[0]  # what is 0 up to rounding has no place on a log scale
    ax.set_yscale("log")
    for x, low, high in zip(numbers[shown], modes.lower[shown], modes.upper[shown], strict=True):
        ax.plot([x, x], [max(low, 1e-12 * values[0]), high], "-", color=PALETTE["blue"], alpha=0.45, linewidth=3.5)
    ax.plot(numbers[shown], values[shown], "o", color=PALETTE["blue"], markersize=5)
    if 1e-12 * values[0] < modes.rest < math.inf:
        ax.axhline(modes.rest, color=PALETTE["muted"], linewidth=1.0, linestyle=(0, (4, 3)))
        ax.annotate(
            "no other is above this",
            (0.0, modes.rest),
            xycoords=("axes fraction", "data"),
            xytext=(4, -5),
            textcoords="offset points",
            va="top",
        )
    low, high = ax.get_ylim()
    ax.set_ylim(low / 1.25, high)  # room for these words
    log_ticks(ax)
    _modes_axis(ax, modes)


def _modes_share(ax: Axes, modes: Modes) -> None:
    numbers = np.arange(modes.num_modes + 1)
    total = 100 * np.concatenate([[0.0], np.cumsum(modes.shares)])
    ax.stairs(100 * modes.shares, numbers + 0.5, fill=True, color=PALETTE["blue"], alpha=0.3, linewidth=0)
    ax.plot(numbers[1:], total[1:], "-o", color=PALETTE["blue"])
    with padded(ax, bottom=0.0):
        ax.set_ylim(0.0, max(float(total.max()), 1e-3))
    ax.yaxis.set_major_formatter("{x:g} %")
    _modes_axis(ax, modes)


def _modes_axis(ax: Axes, modes: Modes) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.set_xlabel("mode")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9))
    ax.set_xlim(0.4, modes.num_modes + 0.6)
