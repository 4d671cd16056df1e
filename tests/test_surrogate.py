"""The quadratic surrogate: never below the loss, equal to it at the reference, and least on the leading subspace."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import markovlm as mk
import reference
from markovlm import IGNORED_TARGET, _surrogate
from markovlm._bootstrap import bootstrap_mean
from markovlm.errors import DTypeError, FileFormatError, SampleWarning, ShapeError, ValueRangeError
from markovlm.typing import FloatArray
from reference import SUM, UNIT, assert_within
from surrogate_cases import EPS, Plain, features

pytestmark = pytest.mark.filterwarnings("ignore::markovlm.errors.SampleWarning")


@st.composite
def samples(draw: st.DrawFn) -> tuple[mk.Features, FloatArray | None]:
    """Features of any size with any option of a linear head, and a reference: the mean, a context's state, another."""
    n, V, d = draw(st.integers(2, 40)), draw(st.integers(2, 80)), draw(st.integers(1, 9))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    options: dict[str, Any] = {"scale": draw(st.sampled_from([1.0, 0.25, 1 / 0.7]))}
    if (kind := draw(st.sampled_from(["none", "finite", "masks"]))) != "none":
        bias = rng.standard_normal(V).astype(np.float32)
        if kind == "masks":
            bias[2:][rng.random(V - 2) < 0.5] = -np.inf
        options["bias"] = bias
    f = features(n, V, d, sharpness=draw(st.sampled_from([1e-2, 1.0, 4.0])), seed=seed, **options)
    chosen = draw(st.sampled_from(["mean", "a state", "another"]))
    h_0 = {"mean": None, "a state": f.hidden[n // 2].astype(np.float64), "another": rng.standard_normal(d)}[chosen]
    return f, h_0


@given(samples())
def test_the_surrogate_is_never_below_the_loss(sample: tuple[mk.Features, FloatArray | None]) -> None:
    f, given_reference = sample
    found = mk.quadratic_surrogate(f, reference=given_reference)
    h_0 = found.reference
    expected = f.hidden.mean(axis=0, dtype=np.float64) if given_reference is None else given_reference
    np.testing.assert_array_equal(h_0, expected.astype(np.float32).astype(np.float64))
    plain = Plain.of(f, h_0)
    assert_within("bregman", found.bregman, plain.bregman, plain.bregman_error)  # two routes: KL, and its definition
    by_ball, calibrated = found.row_gaps().T
    assert (by_ball >= -plain.bregman_error).all()
    assert (calibrated >= 0).all()
    assert found.violations == (int((by_ball < 0).sum()), 0)
    away = found.squared_distances > 0
    slack = 2 * plain.bregman_error[away] / found.squared_distances[away]
    assert 0 < found.beta_calibrated <= (found.beta_ball + slack.max()) * (1 + 8 * EPS)
    assert calibrated[away].min() <= 16 * EPS * found.bregman.max()  # no smaller β would do
    here = ~away
    assert here.sum() == (0 if given_reference is None or given_reference.tolist() not in f.hidden.tolist() else 1)
    assert (found.bregman[here] == 0).all()
    assert (found.row_gaps()[here] == 0).all()
    for gaps, beta in ((by_ball, found.beta_ball), (calibrated, found.beta_calibrated)):
        surrogate = plain.surrogate(f, h_0, beta)
        size = np.abs(surrogate) + beta * found.squared_distances + 100 * np.abs(plain.z[np.isfinite(plain.z)]).max()
        assert_within("surrogate", found.row_nll + gaps, surrogate, plain.loss_error + plain.bregman_error + EPS * size)


@given(samples())
def test_r_squared_is_that_of_the_rows_that_count(sample: tuple[mk.Features, FloatArray | None]) -> None:
    f, _ = sample
    found = mk.quadratic_surrogate(f)
    rows = f.scale * (f.head if f.bias is None else f.head[f.bias > -np.inf]).astype(np.float64)
    farthest = max(float(np.linalg.norm(rows - row, axis=1).max()) for row in rows)
    assert found.radius_lower <= math.sqrt(found.beta_ball) <= found.radius_lower * (1 + 1.1e-3)
    assert math.sqrt(found.beta_ball) >= farthest / 2 * (1 - 16 * EPS)
    # Jung: in d dimensions, points with a diameter D are in a ball of radius D √(d / 2(d + 1))
    d = f.hidden_size
    assert found.radius_lower <= farthest * math.sqrt(d / (2 * (d + 1))) * (1 + 16 * EPS)
    assert f.bias is None or (f.bias[found.support] > -np.inf).all()


def test_two_tokens_are_as_bad_as_the_bound_allows() -> None:
    """Rows ±1: A = log 2 cosh h has its largest curvature, 1 = R², at 0."""
    f = features(200, 2, 1, head=np.array([[1.0], [-1.0]]), hidden=np.linspace(-1e-2, 1e-2, 200)[:, None])
    found = mk.quadratic_surrogate(f, reference=[0.0])
    assert 1 <= found.beta_ball <= 1 + 32 * EPS
    # log cosh h ≥ h²/2 − h⁴/12: the calibrated β is 1 − h²/6 at the smallest h, 5e-5; KL to some 10 roundings
    assert abs(found.beta_calibrated - 1) <= (5e-5) ** 2 / 6 + 100 * UNIT


def test_means_and_intervals_are_over_known_targets() -> None:
    f = features(120, 30, 4, sequences=6)
    f.targets[::3] = IGNORED_TARGET
    known = f.targets != IGNORED_TARGET
    found = mk.quadratic_surrogate(f, level=0.9, seed=3)
    assert np.isnan(found.row_nll[~known]).all()
    assert np.isfinite(found.bregman).all()
    gaps = found.row_gaps()
    columns = np.column_stack([found.row_nll, found.row_nll[:, None] + gaps, gaps])[known]
    expected = bootstrap_mean(columns, f.sequence_ids[known], level=0.9, seed=3)
    names = ("nll", "surrogate_ball", "surrogate_calibrated", "gap_ball", "gap_calibrated")
    assert [getattr(found, name) for name in names] == expected
    everything = mk.quadratic_surrogate(features(120, 30, 4, sequences=6), level=0.9, seed=3)
    assert everything.beta_calibrated == found.beta_calibrated  # needs no targets
    error = 2 * Plain.of(features(120, 30, 4, sequences=6), found.reference).loss_error.max()
    assert abs(mk.nll(f).nll.value - found.nll.value) <= error


def test_assumptions() -> None:
    f = features(80, 30, 4, scale=2.0, bias=np.where(np.arange(30) % 5, 0, -np.inf).astype(np.float32))
    a = mk.quadratic_surrogate(f).assumptions
    norms = 2 * np.linalg.norm(f.head[np.arange(30) % 5 > 0].astype(np.float64), axis=1)
    z = reference.log_normalizer(reference.logits(f.hidden, f.head, f.bias, scale=2.0))
    within = 4 * float(reference.logit_error(f.softmax_kernel()).max()) + SUM
    variances = np.linalg.eigvalsh(np.cov(f.hidden.astype(np.float64).T, ddof=0))[::-1]
    shares = variances / variances.sum()
    np.testing.assert_allclose(
        [a.norm_mean, a.norm_std, a.norm_min, a.norm_max],
        [norms.mean(), norms.std(), norms.min(), norms.max()],
        rtol=1e-13,
    )
    found = [a.log_normalizer_mean, a.log_normalizer_std, a.log_normalizer_min, a.log_normalizer_max]
    np.testing.assert_allclose(found, [z.mean(), z.std(), z.min(), z.max()], rtol=0, atol=within)
    np.testing.assert_allclose(a.variances, variances, rtol=1e-12)
    assert a.condition_number == pytest.approx(variances[0] / variances[-1], rel=1e-11)
    assert a.effective_rank == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-11)
    assert a.whiteness == pytest.approx(np.abs(variances / variances.mean() - 1).max(), rel=1e-11)
    assert a.head_rank == 4


def test_white_states_and_rows_of_one_length_are_what_theory_assumes() -> None:
    signs = np.array(np.meshgrid(*[[-1.0, 1.0]] * 3)).reshape(3, -1).T
    f = features(8, 8, 3, hidden=signs, head=signs)
    a = mk.quadratic_surrogate(f).assumptions
    assert a.norm_std <= 4 * EPS
    assert (a.condition_number, a.whiteness) == pytest.approx((1.0, 0.0), abs=64 * EPS)
    assert a.effective_rank == pytest.approx(3, rel=64 * EPS)
    assert a.log_normalizer_std <= 8 * UNIT * a.log_normalizer_mean


def test_half_of_the_sequences_calibrates_for_the_other() -> None:
    ratios, groups = np.array([1.0, 0.5, 2.0, 0.75, 0.25, 0.1]), np.array([4, 4, 7, 7, 7, 7])
    # by sequence 4 a quarter of 7 is beyond, by a factor of 2; by 7 none of 4
    assert _surrogate._held_out(ratios, groups, np.random.default_rng(0)) == (0.125, 1.5)
    assert _surrogate._held_out(ratios, 0 * groups, np.random.default_rng(0)) is None
    found = mk.quadratic_surrogate(features(200, 30, 4, sequences=10))
    assert found.held_out_violations is not None
    assert found.held_out_factor is not None
    assert 0 < found.held_out_violations < 0.1
    assert found.held_out_factor >= 1


def test_layers_are_read_at_their_own_contexts() -> None:
    f = features(60, 30, 4)
    rows = np.arange(0, 60, 2)
    layers = np.random.default_rng(1).standard_normal((1, 30, 4)).astype(np.float32)
    f = dataclasses.replace(f, layers=(1,), layer_rows=rows, layer_hidden=layers, num_layers=3)
    found = mk.quadratic_surrogate(f, 1)
    alone = dataclasses.replace(
        features(60, 30, 4),
        hidden=layers[0],
        **{name: getattr(f, name)[rows] for name in ("targets", "token_ids", "sequence_ids", "positions")},
    )
    same = mk.quadratic_surrogate(alone)
    assert (found.layer, same.layer, mk.quadratic_surrogate(f).layer) == (1, 0, 3)
    assert found.rows.tolist() == rows.tolist()
    assert (found.nll, found.gap_calibrated) == (same.nll, same.gap_calibrated)
    assert mk.quadratic_surrogate(f, -3).beta_calibrated == same.beta_calibrated


def test_what_is_refused() -> None:
    f = features(60, 30, 4)
    with pytest.raises(ValueRangeError, match="got soft-capping at 30"):
        mk.quadratic_surrogate(dataclasses.replace(f, softcap=30.0))
    same = dataclasses.replace(f, hidden=np.repeat(f.hidden[:1] * np.float32(1.1), 60, axis=0))
    with pytest.raises(ValueRangeError, match="expected states that differ"):
        mk.quadratic_surrogate(same)
    with pytest.raises(ValueRangeError, match="rows that differ"):
        mk.quadratic_surrogate(dataclasses.replace(f, head=np.repeat(f.head[:1], 30, axis=0)))
    one = {name: getattr(f, name)[:1] for name in ("hidden", "targets", "token_ids", "sequence_ids", "positions")}
    with pytest.raises(ValueRangeError, match="at least two contexts in this layer, got 1"):
        mk.quadratic_surrogate(dataclasses.replace(f, **one))
    with pytest.raises(ValueRangeError, match=r"ranks: expected an integer in \[1"):
        mk.quadratic_surrogate(f, ranks=(0,))
    with pytest.raises(ShapeError, match=r"reference: expected shape \(4,\), a state, got \(1, 4\)"):
        mk.quadratic_surrogate(f, reference=f.hidden[:1])
    with pytest.raises(ValueRangeError, match="reference: expected finite"):
        mk.quadratic_surrogate(f, reference=[0.0, np.nan, 0.0, 0.0])
    with pytest.raises(DTypeError, match="reference"):
        mk.quadratic_surrogate(f, reference=["a"] * 4)
    with pytest.raises(ValueRangeError, match="level"):
        mk.quadratic_surrogate(f, level=2)


def test_what_is_warned_about() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", SampleWarning)
        assert mk.quadratic_surrogate(features(60, 30, 4)).warnings == ()
    with pytest.warns(SampleWarning, match="single sequence"):
        one = mk.quadratic_surrogate(features(60, 30, 4, sequences=1))
    assert np.isnan(one.gap_ball.interval).all()
    assert one.held_out_violations is None
    for n in (4, 15):
        with pytest.warns(SampleWarning, match=f"were found on {n} contexts"):
            mk.quadratic_surrogate(features(n, 30, 4))
    f = features(60, 30, 4)
    f.head[:, 3] = f.head[:, 0] + np.float32(2)  # the softmax does not see the 2
    with pytest.warns(SampleWarning, match="span 3 of 4 directions"):
        deficient = mk.quadratic_surrogate(f)
    assert len(deficient.warnings) == 1
    assert deficient.assumptions.head_rank == 3
    # the rank of some rows is not that of all
    f = features(60, 4000, 4)
    f.head[:, 3] = 0
    f.head[1, 3] = 1
    assert mk.quadratic_surrogate(f).assumptions.head_rank == 4


def test_unknown_and_impossible_targets() -> None:
    f = features(60, 30, 4)
    nothing = dataclasses.replace(f, targets=np.full(60, IGNORED_TARGET))
    found = mk.quadratic_surrogate(nothing)
    assert np.isnan(found.nll.value)
    assert found.text_maps is None
    assert found.violations == (0, 0)
    assert "rows of tokens of the text" not in str(found)
    bias = np.zeros(30, np.float32)
    bias[f.targets[7]] = -np.inf
    impossible = mk.quadratic_surrogate(dataclasses.replace(f, bias=bias))
    assert impossible.nll.value == impossible.surrogate_ball.value == np.inf
    assert np.isfinite(impossible.gap_ball.value)
    assert impossible.text_maps is not None
    assert impossible.text_maps.constant == np.inf


@pytest.mark.parametrize("kind", ["plain", "one sequence", "no targets", "impossible target"])
def test_saved_shown_summarised(kind: str, tmp_path: Path) -> None:
    f = features(60, 30, 4, sequences=1 if kind == "one sequence" else 5, provenance={"model": "made-up/harbour"})
    if kind == "no targets":
        f.targets[:] = IGNORED_TARGET
    if kind == "impossible target":
        f = dataclasses.replace(f, bias=np.where(np.arange(30) == f.targets[0], -np.inf, 0).astype(np.float32))
    found = mk.quadratic_surrogate(f, ranks=(2,))
    found.save(tmp_path / "surrogate.safetensors")
    again = mk.Surrogate.load(tmp_path / "surrogate.safetensors")
    for field in dataclasses.fields(mk.Surrogate):
        one, other = (getattr(x, field.name) for x in (found, again))
        parts = [(vars(one), vars(other))] if hasattr(one, "__dict__") else [({"": one}, {"": other})]
        for mine, theirs in parts:
            for key in mine:
                np.testing.assert_equal(theirs[key], mine[key], err_msg=f"{field.name} {key}")
    table = str(again)
    assert table == str(found)
    assert max(map(len, table.splitlines())) <= 80
    assert "made-up/harbour" in table
    assert "0 calibrated, 0 with R²" in table
    summary = json.loads(json.dumps(found.summary(), allow_nan=False))
    assert summary["beta_calibrated"] == found.beta_calibrated
    assert summary["model_maps"]["ranks"] == [2, 4]
    assert "directions" not in summary["model_maps"]
    assert "bregman" not in summary
    assert "Surrogate('made-up/harbour', layer 0: nll=" in repr(found)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    features(60, 30, 4).save(tmp_path / "features.safetensors")
    with pytest.raises(FileFormatError, match="expected a surrogate of schema 1, got a file of another kind"):
        mk.Surrogate.load(tmp_path / "features.safetensors")


def test_progress_rises_and_can_stop_the_work() -> None:
    calls: list[tuple[int, int]] = []
    mk.quadratic_surrogate(features(300, 50, 4), progress=lambda done, total: calls.append((done, total)))
    done, totals = zip(*calls, strict=True)
    assert set(totals) == {600}
    assert list(done) == sorted(done)
    assert (done[0], done[-1]) == (0, 600)

    def stop(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mk.quadratic_surrogate(features(300, 50, 4), progress=stop)


def test_other_settings_change_nothing_they_should_not() -> None:
    f = features(300, 500, 6)
    one, other = (mk.quadratic_surrogate(f, num_threads=threads) for threads in (1, 2))
    assert one.summary() == other.summary()
    looser = mk.quadratic_surrogate(f, tol=0.5)
    assert looser.beta_ball >= looser.radius_lower**2
    assert looser.beta_calibrated == one.beta_calibrated
