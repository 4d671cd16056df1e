"""What a decomposition of the loss is made of, for one model and for checkpoints of a training run (theory §6)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ._bootstrap import Estimate, Estimates
from ._divergences import Divergence
from .typing import FloatArray

__all__ = ["NLLCurves", "NLLDecomposition", "curves_of"]

TERMS = ("cross_entropy", "kl", "entropy", "model_entropy", "nll", "calibration")


@dataclass(frozen=True, repr=False)
class NLLDecomposition:
    """The terms of the loss, averaged over the law of contexts, in nats; None where what they need is not known."""

    cross_entropy: Estimate | None  # -E Σ p_data log p_model; None on text alone
    kl: Estimate | None  # E KL(p_data ‖ p_model): what is left to learn; None on text alone
    entropy: Estimate | None  # mean entropy of the data, which no model gets below; None on text alone
    residual: float | None  # cross_entropy - kl - entropy: 0 up to rounding; NaN where both are infinite
    model_entropy: Estimate  # mean entropy of the model's own predictions
    nll: Estimate | None  # mean of -log p_model(target); None without text
    calibration: Estimate  # nll - model_entropy; cross_entropy - model_entropy where there is no text
    entropies: dict[Divergence, Estimate]  # D -> mean categorical entropy of the model, in the unit of D
    data_entropies: dict[Divergence, Estimate]  # D -> that of the data; empty on text alone
    num_contexts: int  # that the averages are taken over

    def __repr__(self) -> str:
        known = [(name, getattr(self, name)) for name in TERMS]
        shown = [f"{name}={value}" for name, value in known if value is not None]
        shown += [] if self.residual is None else [f"residual={self.residual:.1e}"]
        return f"NLLDecomposition({', '.join(shown)}, n={self.num_contexts})"


@dataclass(frozen=True, repr=False, eq=False)
class NLLCurves:
    """`NLLDecomposition` of C checkpoints; (C,) each, intervals (C, 2); None where what a term needs is not known."""

    steps: FloatArray  # rising
    num_contexts: int  # that every point was computed from
    cross_entropy: FloatArray | None
    cross_entropy_interval: FloatArray | None
    kl: FloatArray | None
    kl_interval: FloatArray | None
    entropy: Estimate | None  # of the data, the same for all
    residual: FloatArray | None
    model_entropy: FloatArray
    model_entropy_interval: FloatArray
    nll: FloatArray | None
    nll_interval: FloatArray | None
    calibration: FloatArray
    calibration_interval: FloatArray
    entropies: dict[Divergence, FloatArray]  # D -> (C,) mean categorical entropies of the models
    entropies_interval: dict[Divergence, FloatArray]  # D -> (C, 2)
    data_entropies: dict[Divergence, Estimate]  # D -> what they approach

    def __repr__(self) -> str:
        loss = self.cross_entropy if self.nll is None else self.nll
        assert loss is not None  # for the type checker: there is text, or a data kernel
        ends = f"loss {loss[0]:.4f} to {loss[-1]:.4f}"
        return f"NLLCurves({len(self.steps)} checkpoints, {self.num_contexts} contexts each, {ends})"

    def plot(self, path: str | os.PathLike[str], *, dpi: float = 150.0) -> None:
        """Draw the terms against the steps, and a panel for each divergence; PNG, SVG or PDF by the name of the file.

        ``dpi`` is that of a PNG: dots in an inch.

        Raises
        ------
        MissingDependencyError
            Matplotlib is not installed (``pip install 'markovlm[report]'``).
        """
        from ._report._curves import draw_curves

        draw_curves(self, path, dpi)


def curves_of(steps: FloatArray, points: Sequence[NLLDecomposition]) -> NLLCurves:
    """Values and intervals of each term, one below the other."""
    columns: dict[str, FloatArray | None] = {}
    for name in ("cross_entropy", "kl", "model_entropy", "nll", "calibration"):
        estimates = [getattr(point, name) for point in points]
        known = estimates[0] is not None
        columns[name] = Estimates.of(estimates).value if known else None
        columns[f"{name}_interval"] = Estimates.of(estimates).interval if known else None
    entropies = {D: Estimates.of([point.entropies[D] for point in points]) for D in points[0].entropies}
    return NLLCurves(
        steps=steps,
        num_contexts=points[0].num_contexts,
        **columns,  # type: ignore[arg-type]  # those that are always known are never None
        entropy=points[0].entropy,
        residual=None if points[0].residual is None else np.array([point.residual for point in points]),
        entropies={D: found.value for D, found in entropies.items()},
        entropies_interval={D: found.interval for D, found in entropies.items()},
        data_entropies=points[0].data_entropies,
    )
