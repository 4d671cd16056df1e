"""The cuts of the composite kernel (theory §5): every layer read out with the model's own final norm and head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import _checks
from ._bootstrap import bootstrap_mean
from ._divergences import KL
from ._features import IGNORED_TARGET, Features
from ._nll import token_columns
from ._softmax import SoftmaxKernel, SoftmaxStats, softmax_stats
from .errors import ValueRangeError
from .typing import FloatArray, IntArray, Progress

__all__ = ["LayerCurves", "layer_curves"]


@dataclass(frozen=True, repr=False)
class LayerCurves:
    """Per-layer results on `num_rows` contexts; (L,) each, intervals (L, 2); the last entry is the final layer."""

    layer: IntArray  # 0 = embedding ... num_layers = final
    num_rows: int  # contexts that every point of the curves was computed from
    entropy: FloatArray
    entropy_interval: FloatArray
    nll: FloatArray
    nll_interval: FloatArray
    calibration: FloatArray  # mean nll - mean entropy
    calibration_interval: FloatArray
    accuracy: FloatArray  # share of targets that are the most likely token
    accuracy_interval: FloatArray
    kl_from_final: FloatArray  # mean KL(p_L || p_l), 0 at the final layer
    kl_from_final_interval: FloatArray
    information: FloatArray  # state-prediction information I(H; W), at most log(num_rows)
    renyi: FloatArray  # (L, orders) mean Renyi entropies

    def __repr__(self) -> str:
        return f"LayerCurves({len(self.layer)} layers, {self.num_rows} contexts each)"


def layer_curves(
    features: Features,
    *,
    orders: Sequence[float] = (),
    max_rows: int = 128,
    level: float = 0.95,
    seed: int = 0,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> LayerCurves:
    """Entropy, loss, calibration, accuracy, information and ``KL(p_L ‖ p_l)`` of every kept layer and the final one.

    At most ``max_rows`` of the contexts whose layers were kept, evenly spread. All layers of a context are read in one
    pass over the head, next to the final one: ``2 V d`` flops per context and layer. Progress counts contexts × layers.
    """
    if features.layer_hidden is None or features.layer_rows is None or not features.layers:
        raise ValueRangeError("features: expected states of some layers, got none; extract with layers='all'")
    _checks.count("max_rows", max_rows, 1, 2**62)
    kept = len(features.layer_rows)
    chosen = np.unique(np.linspace(0, kept - 1, min(max_rows, kept)).round().astype(np.int64))
    rows, m = features.layer_rows[chosen], len(chosen)
    states = features.layer_hidden if m == kept else features.layer_hidden[:, chosen]
    final = features.softmax_kernel()[rows]
    stacked = SoftmaxKernel(  # (layers * m) rows: context fastest
        states.reshape(-1, states.shape[-1]),
        features.head,
        features.bias,
        scale=features.scale,
        softcap=features.softcap,
    )
    targets, groups = features.targets[rows], features.sequence_ids[rows]
    known = targets != IGNORED_TARGET
    num_readouts = len(features.layers) + 1

    def read(kernel: SoftmaxKernel, done: int, against: SoftmaxKernel | None = None) -> SoftmaxStats:
        return softmax_stats(
            kernel,
            np.tile(targets, kernel.shape[0] // m),
            orders,
            reference=against,
            divergences=[] if against is None else [KL()],
            mean=True,
            ignore_index=IGNORED_TARGET,
            num_threads=num_threads,
            progress=None if progress is None else lambda part, _: progress(done + part, num_readouts * m),
        )

    last, others = read(final, 0), read(stacked, m, final)
    assert last.mean is not None
    assert others.mean is not None
    columns = np.concatenate(
        [
            token_columns(others, others.divergences[KL()], *others.renyi.values()),
            token_columns(last, np.zeros(m), *last.renyi.values()),
        ]
    ).reshape(num_readouts, m, -1)
    means = [*others.mean, last.mean]
    information = [max(0.0, float(KL().entropy(p)) - rows[:, 1].mean()) for p, rows in zip(means, columns, strict=True)]
    estimates = [bootstrap_mean(rows[known], groups[known], level=level, seed=seed) for rows in columns]
    value = np.array([[e.value for e in row] for row in estimates])
    interval = np.array([[e.interval for e in row] for row in estimates])
    named = {}
    for q, name in enumerate(("nll", "entropy", "calibration", "accuracy", "kl_from_final")):
        named[name] = value[:, q]
        named[f"{name}_interval"] = interval[:, q]
    return LayerCurves(
        layer=np.array([*features.layers, features.num_layers], dtype=np.int64),
        num_rows=m,
        information=np.array(information),
        renyi=value[:, 5:],
        **named,
    )
