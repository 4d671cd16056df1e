"""Geometry → one HTML page: in how many directions predictions change, at a context and on the whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .._bootstrap import Estimate
from .._geometry import Geometry
from ..typing import FloatArray
from ._figures import PALETTE, Draw, padded, svg
from ._geometry_table import TITLES, geometry_sentence, mean_shares
from ._numbers import count, interval, number, percent, text_names, typeset
from ._provenance import provenance_section
from ._template import page
from ._text import plural
from ._tokens import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["render_geometry"]

BINS = 32


def render_geometry(geometry: Geometry) -> str:
    """The page as one self-contained HTML document."""
    averages = geometry.averages()
    n, d, k = geometry.eigenvectors.shape
    shares, of_mean = mean_shares(geometry)

    def shown(estimate: Estimate) -> dict[str, str]:
        return {
            "value": typeset(number(estimate.value, 2)),
            "interval": typeset(interval(estimate, geometry.num_sequences, lambda x: number(x, 2))),
        }

    return page(
        "geometry.html.jinja",
        scripts=("page.js",),
        figures=_figures(geometry),
        model=visible(geometry.model),
        texts=[visible(name) for name in text_names(geometry.provenance or {})],
        sentence=geometry_sentence(geometry) if n else "There are no contexts.",
        warnings=[message.removeprefix("geometry: ") for message in geometry.warnings],
        averages={name: {"title": TITLES[name], **shown(estimate)} for name, estimate in averages.items()},
        mean_effective_rank=number(geometry.mean_effective_rank, 1),
        level=f"{100 * averages['trace'].level:g} %",
        num_contexts=n,
        num_sequences=geometry.num_sequences,
        width=d,
        rows=[
            (i + 1, percent(float(a)), percent(float(shares[: i + 1].sum())), percent(float(b)))
            for i, (a, b) in enumerate(zip(shares, of_mean, strict=True))
        ],
        provenance=provenance_section(
            geometry.model,
            dict(geometry.provenance or {}),
            [
                ("Contexts", f"{plural(n, 'context')} of {plural(geometry.num_sequences, 'sequence')}"),
                ("Eigenpairs of each", f"{count(k)}, to {geometry.tol:g} of the largest; {geometry.status}"),
            ],
        ),
    )


def _figures(geometry: Geometry) -> dict[str, str]:
    drawn: dict[str, Draw] = {}
    if np.isfinite(geometry.shares).any():
        drawn["shares"] = lambda ax: _shares(ax, geometry)
        drawn["ranks"] = lambda ax: _histogram(ax, geometry.effective_rank, "blue")
        drawn["anisotropy"] = lambda ax: _histogram(ax, 100 * geometry.anisotropy, "purple")
    return {name: svg(f"geometry-{name}", draw) for name, draw in drawn.items()}


def _shares(ax: Axes, geometry: Geometry) -> None:
    each, of_mean = mean_shares(geometry)
    known = geometry.shares[np.isfinite(geometry.shares[:, 0])]
    low, high = 100 * np.quantile(known, [0.1, 0.9], axis=0)
    numbers = np.arange(1, len(each) + 1)
    with padded(ax, bottom=0.0):
        ax.fill_between(numbers, low, high, color=PALETTE["blue"], alpha=0.18, linewidth=0)
        ax.plot(numbers, 100 * each, "-o", color=PALETTE["blue"])
        ax.plot(numbers, 100 * of_mean, "-o", color=PALETTE["orange"])
    ax.yaxis.set_major_formatter("{x:g} %")
    ax.set_xlabel("direction, by eigenvalue")
    ax.set_xlim(0.4, len(each) + 0.6)


def _histogram(ax: Axes, values: FloatArray, colour: str) -> None:
    known = values[np.isfinite(values)]
    edges = np.linspace(0.0, max(float(known.max()), 1e-9), BINS + 1)
    share = 100 * np.histogram(known, edges)[0] / len(known)
    ax.stairs(share, edges, fill=True, color=PALETTE[colour], alpha=0.3, linewidth=0)
    ax.stairs(share, edges, color=PALETTE[colour], linewidth=1.6, baseline=None)
    with padded(ax, bottom=0.0):
        ax.set_xlim(0.0, float(edges[-1]))
    ax.yaxis.set_major_formatter("{x:g} %")
