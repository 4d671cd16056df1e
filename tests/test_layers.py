"""Curves over layers against explicit distributions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import markovlm as mk
import reference
from markovlm import IGNORED_TARGET, KL, Features
from markovlm._layers import layer_curves
from markovlm._nll import nll
from markovlm.errors import ValueRangeError
from reference import Bounds

N, V, D, DEPTH = 90, 37, 8, 4
CURVES = ("nll", "entropy", "calibration", "accuracy", "kl_from_final")


def features(layers: tuple[int, ...] = (0, 1, 3), every: int = 1, **options: Any) -> Features:
    """States that turn from noise to the final ones with the layer."""
    rng = np.random.default_rng(0)
    hidden, noise = rng.standard_normal((2, N, D)).astype(np.float32)
    rows = np.arange(0, N, every)
    kept = [(layer / DEPTH * hidden + (1 - layer / DEPTH) * noise)[rows] for layer in layers]
    targets = rng.integers(0, V, N)
    targets[::11] = IGNORED_TARGET
    return Features(
        hidden,
        rng.standard_normal((V, D)).astype(np.float32),
        targets,
        token_ids=np.zeros(N, np.int64),
        sequence_ids=np.arange(N) // 9,
        positions=np.arange(N) % 9,
        layers=layers,
        layer_rows=rows,
        layer_hidden=np.stack(kept).astype(np.float32),
        num_layers=DEPTH,
        **options,
    )


OPTIONS: list[dict[str, Any]] = [{}, {"bias": np.linspace(-1, 1, V, dtype=np.float32), "scale": 0.7, "softcap": 3.0}]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("every", [1, 3])
def test_against_explicit_distributions(options: dict[str, Any], every: int) -> None:
    f = features(every=every, **options)
    assert f.layer_rows is not None
    orders = (0.5, 2.0)
    curves = layer_curves(f, orders=orders, max_rows=1000)
    rows = f.layer_rows
    assert curves.layer.tolist() == [0, 1, 3, DEPTH]
    assert curves.num_rows == len(rows)
    targets = f.targets[rows]
    known, safe = targets != IGNORED_TARGET, np.maximum(targets, 0)
    final = reference.logits(f.hidden[rows], f.head, f.bias, scale=f.scale, softcap=f.softcap)
    final_error = reference.logit_error(f.softmax_kernel()[rows])
    for i, layer in enumerate(curves.layer):
        kernel = f.softmax_kernel(layer) if layer < DEPTH else f.softmax_kernel()[rows]
        z, bounds = (
            reference.kernel_logits(kernel),
            Bounds(reference.kernel_logits(kernel), reference.logit_error(kernel)),
        )
        loss, entropy = reference.nll(z, safe), reference.entropy(z)
        eta = final_error + bounds.delta + 4 * reference.UNIT * np.abs(final - z).max(axis=1)
        exact = [loss, entropy, loss - entropy, reference.rank(z, safe) == 0]
        exact.append(reference.divergence(KL(), final, z))
        slack = [bounds.nll, bounds.entropy, bounds.nll + bounds.entropy, 0 * loss]
        slack.append(reference.divergence_bound(KL(), final, z, eta, final_error))
        for name, values, bound in zip(CURVES, exact, slack, strict=True):
            assert abs(getattr(curves, name)[i] - values[known].mean()) <= bound.max() + 2**-45, name
        for q, order in enumerate(orders):
            difference = curves.renyi[i, q] - reference.renyi(z, order)[known].mean()
            assert abs(difference) <= bounds.renyi(order).max()
        mean = reference.mean_prediction(z)
        slack_of_mean = float((bounds.mean_prediction() * (1 + np.abs(np.log(mean)))).sum()) + bounds.entropy.max()
        assert abs(curves.information[i] - (mk.KL().entropy(mean) - entropy.mean())) <= slack_of_mean
        assert 0 <= curves.information[i] <= np.log(len(rows)) + slack_of_mean


def test_the_final_layer_is_where_the_curves_end() -> None:
    f = features()
    curves, final = layer_curves(f, seed=4), nll(f, seed=4)
    assert curves.kl_from_final[-1] == 0
    assert (curves.kl_from_final[:-1] > 0).all()
    assert (np.diff(curves.kl_from_final) < 0).all()  # as these states were made
    for name in ("nll", "entropy", "calibration", "accuracy"):
        estimate = getattr(final, name)
        assert getattr(curves, name)[-1] == estimate.value
        assert tuple(getattr(curves, f"{name}_interval")[-1]) == estimate.interval
    assert curves.information[-1] == final.information


def test_intervals_hold_their_values() -> None:
    curves = layer_curves(features())
    for name in CURVES:
        low, high = getattr(curves, f"{name}_interval").T
        assert (low <= getattr(curves, name)).all()
        assert (getattr(curves, name) <= high).all()


@pytest.mark.parametrize(("kept", "wanted"), [(90, 128), (90, 90), (90, 8), (30, 28), (45, 2), (90, 1)])
def test_rows_are_evenly_spread(kept: int, wanted: int) -> None:
    f = features(every=N // kept)
    assert f.layer_hidden is not None
    assert f.layer_rows is not None
    count = min(kept, wanted)
    curves = layer_curves(f, max_rows=wanted)
    assert curves.num_rows == count
    even = np.unique(np.round(np.arange(count) * (kept - 1) / max(count - 1, 1)).astype(int))
    gaps = np.diff(even)
    assert len(even) == count
    assert count < 2 or gaps.max() - gaps.min() <= 1
    by_hand = replace(f, layer_rows=f.layer_rows[even], layer_hidden=f.layer_hidden[:, even])
    for name, value in vars(layer_curves(by_hand, max_rows=kept)).items():
        np.testing.assert_array_equal(value, getattr(curves, name), err_msg=name)


def test_progress_rises_over_all_layers() -> None:
    calls: list[tuple[int, int]] = []
    layer_curves(features(), progress=lambda done, total: calls.append((done, total)))
    done, totals = zip(*calls, strict=True)
    assert set(totals) == {4 * N}
    assert list(done) == sorted(done)
    assert done[-1] == 4 * N


def test_refused() -> None:
    f = features()
    with pytest.raises(ValueRangeError, match="extract with layers='all'"):
        layer_curves(replace(f, layers=(), layer_rows=None, layer_hidden=None))
    with pytest.raises(ValueRangeError, match=r"max_rows: .* got 0"):
        layer_curves(f, max_rows=0)
    with pytest.raises(ValueRangeError, match="level"):
        layer_curves(f, level=95)
