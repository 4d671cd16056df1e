"""A made-up Surplus whose numbers agree with one another: means and intervals come from its own rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from markovlm._bootstrap import Estimate, Estimates, bootstrap_mean
from markovlm._layer_surplus import LayerSurplus
from markovlm._scores import reached_and_lengths, round_starts
from markovlm._surplus_result import Surplus
from markovlm.typing import FloatArray
from profile_fixture import constant, made_up_text

NAN = float("nan")
PROVENANCE = {
    "model": "made-up/harbour-12",
    "model_type": "llama",
    "texts": [{"name": "harbour.txt", "sha256": "9f2c" * 16, "characters": 5123}],
    "dtype": "float32",
    "context_length": 512,
    "created": "2025-01-01T12:00:00+00:00",
    "head": {"bias": False, "scale": 1.0, "softcap": None, "padded_rows": 0},
    "surplus_seed": 7,
}


def fake_surplus(
    num_rows: int = 480,
    num_sequences: int = 12,
    horizon: int = 4,
    *,
    with_layers: bool = True,
    hostile: bool = True,
    seed: int = 20240607,
) -> Surplus:
    rng = np.random.default_rng(seed)
    steps, m = horizon - 1, num_rows
    groups = 2 * (np.arange(m) * num_sequences // m)  # as ids of a sample: not all are scored
    rows = np.arange(m) + 50 * groups
    ease = rng.uniform(0.5, 2.0, num_sequences)[groups // 2, None]
    accepted = rng.beta(ease, 1.5 + 0.4 * np.arange(steps), (m, steps))
    without = accepted * rng.uniform(0.3, 0.9, (m, steps))
    tokens = np.minimum(1.0, accepted * rng.uniform(0.5, 1.5, (m, steps)))
    kl, kl_without = -np.log(accepted + 0.02), -np.log(without + 0.02)
    entropy = rng.gamma(2.0, 1.0, (m, steps))
    loss = entropy + 1.0 + rng.normal(0, 0.5, (m, steps))
    loss_without = loss + rng.normal(0.4, 0.3, (m, steps))
    starts = round_starts(tokens, rows)
    reached = np.cumprod(np.column_stack([np.ones(m), tokens[:, :-1]]), axis=1)

    def means(values: FloatArray, weights: FloatArray | None = None) -> Estimates:
        return Estimates.of(bootstrap_mean(values, groups, weights=weights))

    def drafting(accepted: FloatArray, tokens: FloatArray) -> Estimates:
        parts = [
            (reached_and_lengths(accepted[:, :k], tokens[:, :k])[1], round_starts(tokens[:, :k], rows))
            for k in range(1, horizon)
        ]
        return Estimates.of([means(length[:, None], weights)[0] for length, weights in parts])

    return Surplus(
        model="made-up/harbour-12",
        horizon=horizon,
        usable=means((loss_without - loss).sum(axis=1, keepdims=True))[0],
        upper_bound=means((loss_without - entropy).sum(axis=1, keepdims=True))[0],
        acceptance=means(accepted),
        expected_accepted_length=means(1 + (reached * accepted).sum(axis=1, keepdims=True), starts)[0],
        lengths=drafting(accepted, tokens),
        lengths_without=drafting(without, np.minimum(tokens, without)),
        acceptance_without=means(without),
        conditional_acceptance=means(accepted, starts[:, None] * reached),
        kl=means(kl),
        kl_without=means(kl_without),
        usable_steps=means(loss_without - loss),
        upper_bound_steps=means(loss_without - entropy),
        loss=means(loss),
        loss_without=means(loss_without),
        model_loss=means(entropy + 0.1),
        model_entropy=means(entropy),
        layers=fake_layers(means, accepted[:, :1], without[:, :1]) if with_layers else None,
        rows=rows,
        sequence_ids=groups,
        row_acceptance=accepted,
        row_starts=starts,
        text=tuple(made_up_text(rng, m, hostile)),
        num_sequences=(18, 6, num_sequences),
        num_rows=(9000, 3000, m),
        warnings=("surplus: intervals rest on few sequences; <b>take</b> more text",),
        provenance=PROVENANCE,
    )


def fake_layers(means: Callable[[FloatArray], Estimates], accepted: FloatArray, without: FloatArray) -> LayerSurplus:
    """From no better than the token alone to the last layer, which gets there at three quarters of the depth."""
    layer = np.arange(0, 25, 2)
    weight = np.minimum(1.0, layer / 20.0)
    by_layer = without + weight * (accepted - without)
    return LayerSurplus(
        layer=layer,
        kl=means(-np.log(by_layer + 0.02)),
        acceptance=means(by_layer),
        kl_without=means(-np.log(without + 0.02))[0],
        acceptance_without=means(without)[0],
        num_rows=(1000, len(accepted)),
    )


def worse_than_nothing(found: Surplus) -> Surplus:
    """The last layer has the larger KL: no share of its gain, and no layer to name."""
    assert found.layers is not None
    return replace(found, layers=replace(found.layers, kl_without=constant(0.001, 0.0, 0.002)))


def unknown_means(found: Surplus) -> Surplus:
    unknown = Estimates(np.full(found.horizon - 1, NAN), np.full((found.horizon - 1, 2), NAN))
    nothing = Estimate(NAN, (NAN, NAN))
    return replace(found, conditional_acceptance=unknown, kl=unknown, usable_steps=unknown, usable=nothing)


DEGENERATE_SURPLUSES: dict[str, Callable[[Surplus], Surplus]] = {
    "no layers": lambda s: replace(s, layers=None),
    "no warnings": lambda s: replace(s, warnings=()),
    "nothing known of it": lambda s: replace(s, provenance={}, text=("",) * len(s.text)),
    "one sequence": lambda s: fake_surplus(30, 1),
    "two sequences, one step": lambda s: fake_surplus(12, 2, 2, with_layers=False),
    "seven sequences": lambda s: fake_surplus(70, 7),
    "many steps": lambda s: fake_surplus(200, 4, 12),
    "worse than nothing": worse_than_nothing,
    "unknown values": unknown_means,
    "infinite KL": lambda s: replace(s, kl=Estimates(np.full(3, np.inf), np.tile([1.0, np.inf], (3, 1)))),
}
