"""Loss, entropy, calibration and information against explicit distributions, and what they say of known models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import markovlm as mk
import reference
from markovlm import IGNORED_TARGET, Features, nll
from markovlm._bootstrap import bootstrap_mean
from markovlm._nll import token_columns
from markovlm.typing import IntArray
from reference import Bounds, assert_within


def features(n: int, V: int, d: int, sharpness: float = 1.0, sequences: int = 10, **more: Any) -> Features:
    """Random states; targets that the model itself samples."""
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((n, d)).astype(np.float32)
    head = (sharpness * rng.standard_normal((V, d))).astype(np.float32)
    z = reference.logits(hidden, head, **{k: more[k] for k in ("bias", "scale", "softcap") if k in more})
    fields = {
        "targets": (z + rng.gumbel(size=z.shape)).argmax(axis=1),
        "token_ids": np.zeros(n, np.int64),
        "sequence_ids": np.arange(n) * sequences // max(n, 1),
        "positions": np.arange(n),
    }
    return Features(hidden, head, **{**fields, **more})


def logits(f: Features) -> Any:
    return reference.logits(f.hidden, f.head, f.bias, scale=f.scale, softcap=f.softcap)


@pytest.mark.parametrize(
    "options", [{}, {"bias": np.linspace(-1, 1, 40, dtype=np.float32), "scale": 0.5, "softcap": 4.0}]
)
def test_against_explicit_distributions(options: dict[str, Any]) -> None:
    f = features(150, 40, 8, **options)
    f.targets[::7] = IGNORED_TARGET
    known = f.targets != IGNORED_TARGET
    result = nll(f, orders=[0.5, 2.0], top_k=3, seed=3, level=0.9)
    z = logits(f)
    bounds = Bounds(z, reference.logit_error(f.softmax_kernel()))
    loss, entropy = reference.nll(z, np.maximum(f.targets, 0)), reference.entropy(z)
    hit = reference.rank(z, np.maximum(f.targets, 0)) == 0
    columns = np.stack([loss, entropy, loss - entropy, hit, reference.renyi(z, 0.5), reference.renyi(z, 2.0)], axis=1)
    expected = bootstrap_mean(columns[known], f.sequence_ids[known], seed=3, level=0.9)
    found = [result.nll, result.entropy, result.calibration, result.accuracy, *result.renyi.values()]
    slack = [bounds.nll, bounds.entropy, bounds.nll + bounds.entropy, 0 * loss, bounds.renyi(0.5), bounds.renyi(2.0)]
    for got, exact, bound in zip(found, expected, slack, strict=True):
        error = np.array([bound.max() + 2**-45])
        assert_within("value", np.array([got.value]), np.array([exact.value]), error)
        assert_within("interval", np.array(got.interval), np.array(exact.interval), error)
    assert list(result.renyi) == [0.5, 2.0]
    mean = reference.mean_prediction(z)
    slack_of_mean = float((bounds.mean_prediction() * (1 + np.abs(np.log(mean)))).sum())
    information = mk.KL().entropy(mean) - entropy.mean()
    assert abs(result.entropy_of_mean - mk.KL().entropy(mean)) <= slack_of_mean
    assert abs(result.information - information) <= slack_of_mean + bounds.entropy.max()
    assert result.stats.top_ids is not None
    assert result.stats.top_ids.shape == (150, 3)


def test_a_model_that_samples_its_own_text_is_calibrated() -> None:
    calibration = nll(features(8000, 50, 6, sequences=80), level=0.99).calibration
    low, high = calibration.interval
    assert low <= 0 <= high
    assert high - low < 0.1  # and the interval says something


def test_a_model_sharper_than_its_text_is_over_confident_and_a_flatter_one_is_not() -> None:
    f = features(4000, 50, 6, sequences=40)
    sharper, flatter = (Features(**{**vars(f), "head": factor * f.head}) for factor in (np.float32(2), np.float32(0.5)))
    assert nll(sharper).calibration.interval[0] > 0
    assert nll(flatter).calibration.interval[1] < 0


def test_random_targets_show_over_confidence() -> None:
    f = features(2000, 50, 6)
    f.targets[:] = np.random.default_rng(1).integers(0, 50, 2000)
    assert nll(f).calibration.interval[0] > 0


def ignoring(f: Features, rows: IntArray) -> Features:
    targets = f.targets.copy()
    targets[rows] = IGNORED_TARGET
    return Features(**{**vars(f), "targets": targets})


def test_ignored_targets_are_left_out_of_losses_and_kept_in_the_information() -> None:
    f = features(288, 30, 5)
    last = np.arange(192, 288)
    some, every = nll(ignoring(f, last), seed=2), nll(f)
    columns = token_columns(every.stats)[:192]
    assert [some.nll, some.entropy, some.calibration, some.accuracy] == bootstrap_mean(
        columns, f.sequence_ids[:192], seed=2
    )
    assert some.information == every.information


def test_nothing_but_ignored_targets() -> None:
    result = nll(ignoring(features(20, 10, 3), np.arange(20)))
    assert np.isnan([result.nll.value, result.entropy.value, *result.calibration.interval]).all()
    assert np.isfinite(result.information)


def test_one_sequence_has_no_interval() -> None:
    result = nll(features(50, 10, 3, sequences=1))
    assert np.isfinite(result.nll.value)
    assert np.isnan(result.nll.interval).all()


def test_a_target_that_the_head_removes_costs_infinity() -> None:
    bias = np.zeros(10, np.float32)
    bias[4] = -np.inf
    f = features(50, 10, 3, bias=bias)
    f.targets[7] = 4
    result = nll(f)
    assert result.nll.value == result.nll.interval[1] == result.calibration.value == np.inf
    assert np.isfinite(result.nll.interval[0])  # some resamples are without that sequence


@pytest.mark.parametrize("sharpness", [0.0, 1e-3, 1.0, 100.0])
def test_information_lies_between_zero_and_log_n(sharpness: float) -> None:
    result = nll(features(30, 2000, 8, sharpness=sharpness))
    # p is known to float32's rounding, and log p of 2000 tokens to about log 2000 on average
    slack = 2 * reference.SUM * (1 + np.log(2000)) + float(30 * 2000 * np.exp(-87.0))
    assert 0 <= result.information <= np.log(30) + slack
    if sharpness == 0:
        assert result.information <= slack
    if sharpness == 100:  # every context predicts one token of its own
        assert result.information > 0.9 * np.log(30)


def test_progress_rises_to_n() -> None:
    calls: list[tuple[int, int]] = []
    nll(features(700, 300, 8), progress=lambda done, total: calls.append((done, total)))
    done, totals = zip(*calls, strict=True)
    assert set(totals) == {700}
    assert list(done) == sorted(done)
    assert done[-1] == 700


def test_entropy_of_a_vector() -> None:
    assert mk.KL().entropy(np.array([0.5, 0.0, 0.5])) == pytest.approx(np.log(2), rel=4 * np.finfo(float).eps)
    assert mk.KL().entropy(np.array([1.0, 0.0])) == 0
