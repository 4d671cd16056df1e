"""From which depth the future is known: the first step of a draft from every layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _json
from ._bootstrap import Estimate, Estimates, bootstrap_mean
from ._divergences import KL, TotalVariation
from ._drafting import Starts, fitted_heads
from ._features import Features, evenly_spread
from ._softmax import softmax_stats
from .typing import FloatArray, IntArray

__all__ = ["LayerSurplus", "layer_surplus"]

_VALIDATION_ROWS = 64  # that temperatures are chosen by
_FEWEST_ROWS = 32  # to fit


@dataclass(frozen=True, eq=False)
class LayerSurplus:
    """Step 1 drafted from each layer, on the same contexts."""

    layer: IntArray  # (L,) 0 = embedding … num_layers = final
    kl: Estimates  # E KL(p_{t+1} ‖ q_1) of each
    acceptance: Estimates  # E[1 − TV(p_{t+1}, q_1)]
    kl_without: Estimate  # of the token alone
    acceptance_without: Estimate
    num_rows: tuple[int, int]  # to fit, and to score

    @property
    def share(self) -> FloatArray:
        """(L,): of what the final layer takes off the KL of the token alone, how much each layer does."""
        gain = self.kl_without.value - self.kl.value
        return np.asarray(gain / gain[-1] if gain[-1] > 0 else np.full(len(gain), np.nan))

    @classmethod
    def of_plain(cls, fields: dict[str, Any]) -> LayerSurplus:
        """What JSON made of it."""
        return cls(
            layer=np.array(fields["layer"], dtype=np.int64),
            kl=_json.estimates(fields["kl"]),
            acceptance=_json.estimates(fields["acceptance"]),
            kl_without=_json.estimate(fields["kl_without"]),
            acceptance_without=_json.estimate(fields["acceptance_without"]),
            num_rows=(fields["num_rows"][0], fields["num_rows"][1]),
        )


def layer_surplus(
    features: Features,
    parts: tuple[IntArray, IntArray, IntArray],
    most: int,
    penalties: Sequence[float],
    level: float,
    seed: int,
    num_threads: int | None,
    report: Callable[[], None],
) -> LayerSurplus | None:
    """On contexts whose layers were kept, of sequences to fit, to choose by and to score; None for want of them.

    ``penalties`` are those of heads that see the state and that do not.
    """
    rows = features.layer_rows
    assert rows is not None
    assert features.layer_hidden is not None
    usable = Starts.of(features, 2, features.hidden).rows
    kept = np.flatnonzero(np.isin(rows, usable))
    train, validation, test = (kept[np.isin(features.sequence_ids[rows[kept]], part)] for part in parts)
    if len(train) < _FEWEST_ROWS or min(len(validation), len(test)) == 0:
        return None
    test = test[evenly_spread(len(test), most)]
    P = features.softmax_kernel()[rows[test] + 1]
    columns: list[FloatArray] = []
    for i in range(len(features.layers) + 1):
        final = i == len(features.layers)
        source = features.hidden if final else features.layer_hidden[i]
        seen = [Starts(features, rows[w], source, rows[w] if final else w) for w in (train, validation, test)]
        kinds = (True, False) if final else (True,)
        for kind, penalty in zip(kinds, penalties, strict=False):
            (head,), _ = fitted_heads(
                seen[0], seen[1], 2, (kind,), _VALIDATION_ROWS, num_threads, lambda: None, (penalty,)
            )
            Q = head.kernel(1, seen[2].states(), seen[2].tokens(1))
            stats = softmax_stats(Q, reference=P, divergences=[KL(), TotalVariation()], num_threads=num_threads)
            columns += [stats.divergences[KL()], 1 - stats.divergences[TotalVariation()]]
            report()
    groups = features.sequence_ids[rows[test]]
    found = bootstrap_mean(np.column_stack(columns), groups, level=level, seed=seed)
    return LayerSurplus(
        layer=np.array([*features.layers, features.num_layers], dtype=np.int64),
        kl=Estimates.of(found[:-2:2]),
        acceptance=Estimates.of(found[1:-2:2]),
        kl_without=found[-2],
        acceptance_without=found[-1],
        num_rows=(len(train), len(test)),
    )
