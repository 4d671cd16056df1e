"""Figure of a training run: the terms of the loss along its checkpoints, and categorical entropies near the data's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from .._bootstrap import Estimate
from .._divergences import Divergence
from .._nll_terms import NLLCurves
from ..errors import MissingDependencyError
from ..typing import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_curves", "step_axis"]

WIDTH, HEIGHT = 4.2, 3.2  # inches, of a panel
MOST_IN_A_ROW = 3
WIDE = 50  # how many times the first step the last one is, for an axis to be logarithmic
COLOURS = {"loss": "#cf5600", "entropy": "#0b6cb0", "kl": "#00795f", "data": "#5a6069"}  # as in report.css
STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e9e9e3",
    "lines.linewidth": 1.6,
    "lines.markersize": 3.2,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "svg.hashsalt": "markovlm",
}


def draw_curves(curves: NLLCurves, path: str | os.PathLike[str], dpi: float) -> None:
    """One panel for the terms in nats, one for each divergence; infinities are gaps. See `NLLCurves.plot`."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.style import context
    except ImportError as error:
        raise MissingDependencyError("plot needs matplotlib: pip install 'markovlm[report]'") from error

    panels = 1 + len(curves.entropies)
    columns = min(panels, MOST_IN_A_ROW)
    rows = -(-panels // columns)
    with context(["default", STYLE]):  # "default" first, so that a user's own style does not reach in
        figure = Figure(figsize=(WIDTH * columns, HEIGHT * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).reshape(-1)
        _terms(axes[0], curves)
        for ax, (D, values) in zip(axes[1:], curves.entropies.items(), strict=False):
            _entropies(ax, curves, D, values)
        for ax in axes[:panels]:
            step_axis(ax, curves.steps)
        for ax in axes[panels:]:
            ax.remove()
        metadata = {"Date": None} if os.fspath(path).endswith(".svg") else None  # the same curves make the same file
        figure.savefig(path, dpi=dpi, metadata=metadata)


def _terms(ax: Axes, curves: NLLCurves) -> None:
    steps = curves.steps
    if curves.nll is not None and curves.nll_interval is not None:
        _band(ax, steps, curves.nll, curves.nll_interval, "loss", "NLL on text")
    if curves.cross_entropy is not None and curves.cross_entropy_interval is not None:
        dash = "-o" if curves.nll is None else "--o"
        _band(ax, steps, curves.cross_entropy, curves.cross_entropy_interval, "loss", "cross-entropy", dash)
    _band(ax, steps, curves.model_entropy, curves.model_entropy_interval, "entropy", "entropy of the model")
    if curves.kl is not None and curves.kl_interval is not None:
        _band(ax, steps, curves.kl, curves.kl_interval, "kl", "KL from the data")
    if curves.entropy is not None:
        _level(ax, curves.entropy, "entropy of the data")
    ax.set(title="loss = KL + entropy of the data" if curves.kl is not None else "loss and entropy", ylabel="nats")
    ax.set_ylim(bottom=0.0)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)  # inside it would lie on a curve


def _entropies(ax: Axes, curves: NLLCurves, D: Divergence, values: FloatArray) -> None:
    _band(ax, curves.steps, values, curves.entropies_interval[D], "entropy", "model")
    if D in curves.data_entropies:
        _level(ax, curves.data_entropies[D], "data")
    ax.set(title=f"categorical entropy, {D!r}", ylabel=D.unit)
    ax.legend()


def _band(
    ax: Axes, steps: FloatArray, values: FloatArray, interval: FloatArray, colour: str, label: str, dash: str = "-o"
) -> None:
    values, interval = (np.where(np.isfinite(x), x, np.nan) for x in (values, interval))
    ax.fill_between(steps, interval[:, 0], interval[:, 1], color=COLOURS[colour], alpha=0.18, linewidth=0)
    ax.plot(steps, values, dash, color=COLOURS[colour], label=label)


def _level(ax: Axes, estimate: Estimate, label: str) -> None:
    ax.axhline(estimate.value, color=COLOURS["data"], linewidth=1.2, linestyle=(0, (4, 3)), label=label)


def step_axis(ax: Axes, steps: FloatArray) -> None:
    positive = steps[steps > 0]
    if len(positive) > 1 and positive[-1] >= WIDE * positive[0] and steps[0] >= 0:
        if len(positive) == len(steps):
            ax.set_xscale("log")
        else:
            ax.set_xscale("symlog", linthresh=positive[0], linscale=0.5)  # which has a place for step 0
            ax.set_xlim(-0.2 * positive[0], 1.3 * steps[-1])
    ax.set_xlabel("step")
