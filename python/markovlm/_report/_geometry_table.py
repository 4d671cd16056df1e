"""A geometry as plain text for the terminal: at most 80 columns unless a name is longer."""

from __future__ import annotations

import textwrap

import numpy as np

from .._bootstrap import Estimate
from .._geometry import Geometry
from ..typing import FloatArray
from ._numbers import count, interval, number, percent, text_names
from ._text import aligned, plural
from ._tokens import visible

__all__ = ["TITLES", "geometry_sentence", "geometry_table", "mean_shares"]

TITLES = {"trace": "trace", "anisotropy": "largest share, λ₁ / trace", "effective_rank": "effective rank"}
FOOTNOTES = (
    "metric: how much the prediction changes with the state, KL = ½ ε² g(v, v) for a step ε v.",
    "effective rank: as many equal directions would be as spread out.",
    "of the mean: the metric averaged over contexts, whose directions all contexts share.",
)


def geometry_table(geometry: Geometry, *, with_warnings: bool = True) -> str:
    """Averages over contexts with intervals, the mean metric, and how eigenvalues fall.

    Examples
    --------
    >>> print(geometry_table(geometry))  # doctest: +SKIP
    """
    n, d, k = geometry.eigenvectors.shape
    names = text_names(geometry.provenance or {})
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    lines = [
        visible(geometry.model + (f" on {shown}" if shown else "")),
        f"{plural(n, 'context')}, {plural(geometry.num_sequences, 'sequence')}, vocabulary "
        f"{count(geometry.vocabulary_size)}, width {count(d)}",
    ]
    if not n:
        return "\n".join(lines)
    lines += [*textwrap.wrap(geometry_sentence(geometry), 80), ""]
    averages = geometry.averages()
    level = f"{100 * averages['trace'].level:g} % interval"
    rows = [[TITLES[name], *_written(estimate, geometry.num_sequences)] for name, estimate in averages.items()]
    rows.append(["effective rank of the mean", number(geometry.mean_effective_rank, 2), ""])
    lines += aligned(["average over contexts", "value", level], rows)
    shares, of_mean = mean_shares(geometry)
    places = sorted({0, 1, 3, 7, 15, k - 1} & set(range(k)))
    rows = [[str(i + 1), percent(float(shares[: i + 1].sum())), percent(float(of_mean[: i + 1].sum()))] for i in places]
    lines += ["", *aligned(["first directions", "of a context's trace", "of the mean metric's trace"], rows)]
    lines += ["", *(line for note in FOOTNOTES for line in textwrap.wrap(note, 80, subsequent_indent="  "))]
    for message in geometry.warnings if with_warnings else ():
        lines += ["", *textwrap.wrap(f"Warning: {message.removeprefix('geometry: ')}.", 80)]
    return "\n".join(lines)


def geometry_sentence(geometry: Geometry) -> str:
    """What it comes to."""
    averages, d = geometry.averages(), geometry.eigenvectors.shape[1]
    return (
        f"At a context the prediction changes in {averages['effective_rank'].value:.0f} or so of {count(d)} directions "
        f"of the state, {percent(averages['anisotropy'].value)} of it in the first one; over all contexts in "
        f"{geometry.mean_effective_rank:.0f}."
    )


def mean_shares(geometry: Geometry) -> tuple[FloatArray, FloatArray]:
    """(k,) each: of the trace, averaged over contexts whose metric is not 0; and of the mean metric."""
    k = geometry.eigenvalues.shape[1]
    total = float(geometry.mean_eigenvalues.sum())
    of_mean = geometry.mean_eigenvalues[:k] / total if total > 0 else np.full(k, np.nan)
    known = np.isfinite(geometry.shares[:, 0])
    each = geometry.shares[known].mean(axis=0) if known.any() else np.full(k, np.nan)
    return each, np.asarray(of_mean)


def _written(estimate: Estimate, sequences: int) -> list[str]:
    return [number(estimate.value, 2), interval(estimate, sequences, lambda x: number(x, 2))]
