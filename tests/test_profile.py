"""The profile: what it says agrees with the passes beneath it, and survives its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import markovlm as mk

INF = float("inf")


@pytest.fixture(scope="module")
def features() -> mk.Features:
    rng = np.random.default_rng(20260)
    n, m, d, vocabulary = 60, 20, 6, 30
    targets = rng.integers(0, vocabulary, n)
    targets[[5, 17]] = mk.IGNORED_TARGET
    return mk.Features(
        hidden=rng.normal(size=(n, d)).astype(np.float32),
        head=rng.normal(size=(vocabulary, d)).astype(np.float32),
        targets=targets,
        token_ids=rng.integers(0, vocabulary, n),
        sequence_ids=np.arange(n) // 15,
        positions=np.arange(n) % 15,
        bias=rng.normal(size=vocabulary).astype(np.float32),
        scale=0.5,
        softcap=3.0,
        layers=(0, 2),
        layer_rows=np.arange(0, n, 3),
        layer_hidden=rng.normal(size=(2, m, d)).astype(np.float32),
        num_layers=4,
        vocabulary=tuple(f"token {i}" for i in range(vocabulary)),
        provenance={"model": "made-up", "texts": [{"name": "a"}], "seconds": {"forward": 2.0, "load": 1.0}},
    )


@pytest.fixture(scope="module")
def profile(features: mk.Features) -> mk.Profile:
    return mk.profile(features, orders=(0.0, 1.0, 2.0, INF), top_k=3)


def assert_same(a: Any, b: Any) -> None:
    """Equal to the last bit, NaN equal to NaN."""
    if isinstance(a, np.ndarray):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif hasattr(a, "__dataclass_fields__"):
        assert_same(vars(a), vars(b))
    elif isinstance(a, tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b or (a != a and b != b)


def test_agrees_with_the_passes(features: mk.Features, profile: mk.Profile) -> None:
    stats = mk.softmax_stats(features.softmax_kernel(), features.targets, [2.0], 3)
    tokens = profile.tokens
    np.testing.assert_array_equal(tokens.nll, stats.nll)
    np.testing.assert_array_equal(tokens.entropy, stats.entropy)
    np.testing.assert_array_equal(tokens.surprise, stats.nll - stats.entropy)
    np.testing.assert_array_equal(tokens.rank, stats.rank)
    np.testing.assert_array_equal(tokens.top_ids, stats.top_ids)
    known = features.targets != mk.IGNORED_TARGET
    rounding = 64 * np.finfo(float).eps  # of a mean of 58 numbers below 16, summed in another order
    assert profile.nll.value == pytest.approx(stats.nll[known].mean(), rel=rounding)
    assert profile.calibration.value == pytest.approx(profile.nll.value - profile.entropy.value, abs=16 * rounding)
    assert profile.renyi[1].value == pytest.approx(profile.entropy.value, rel=rounding)
    assert profile.renyi[2].value == pytest.approx(stats.renyi[2.0][known].mean(), rel=rounding)
    assert profile.layers is not None
    assert profile.layers.layer.tolist() == [0, 2, 4]
    assert profile.layers.num_rows == 20
    assert profile.layers.kl_from_final[-1] == 0.0


def test_names_every_token_that_it_shows(profile: mk.Profile) -> None:
    tokens = profile.tokens
    shown = {*tokens.target.tolist(), *tokens.context_id.tolist(), *tokens.top_ids.ravel().tolist()}
    assert set(profile.vocabulary) == shown - {mk.IGNORED_TARGET}
    assert tokens.text[5] == ""
    assert tokens.text[6] == f"token {tokens.target[6]}"


def test_vocabularies_of_a_few_tokens(tmp_path: Path) -> None:
    profile = mk.profile(mk.synthetic.golden_mean().features(5, 20))
    assert profile.tokens.top_ids.shape == (100, 2)
    profile.to_html(tmp_path / "report.html")


def test_repr_is_short_and_str_is_the_table(profile: mk.Profile) -> None:
    assert repr(profile).startswith("Profile('made-up': 60 tokens, nll=")
    assert "state-prediction information" in str(profile)


def test_saves_and_loads_everything(profile: mk.Profile, tmp_path: Path) -> None:
    path = tmp_path / "profile.safetensors"
    profile.save(path)
    assert_same(mk.Profile.load(path), profile)
    assert [file.name for file in tmp_path.iterdir()] == ["profile.safetensors"]


def test_saves_without_layers_or_names(features: mk.Features, tmp_path: Path) -> None:
    bare = mk.Features(
        features.hidden,
        features.head,
        features.targets,
        features.token_ids,
        features.sequence_ids,
        features.positions,
    )
    profile = mk.profile(bare, orders=(), top_k=0)
    assert profile.layers is None
    assert profile.model == "unnamed model"
    assert (profile.tokens.text_id == -1).all()
    profile.save(tmp_path / "p")
    assert_same(mk.Profile.load(tmp_path / "p"), profile)


def test_refuses_files_of_another_kind(features: mk.Features, profile: mk.Profile, tmp_path: Path) -> None:
    features.save(tmp_path / "features")
    with pytest.raises(mk.errors.FileFormatError, match="expected a profile of schema 1, got a file of another kind"):
        mk.Profile.load(tmp_path / "features")
    profile.save(tmp_path / "profile")
    whole = (tmp_path / "profile").read_bytes()
    newer = whole.replace(b'"markovlm.profile":"1"', b'"markovlm.profile":"9"')
    assert newer != whole
    (tmp_path / "newer").write_bytes(newer)
    with pytest.raises(mk.errors.FileFormatError, match="got 9"):
        mk.Profile.load(tmp_path / "newer")
    (tmp_path / "cut").write_bytes(whole[:-100])
    with pytest.raises(mk.errors.FileFormatError, match="truncated"):
        mk.Profile.load(tmp_path / "cut")


def test_summary_is_plain_json(profile: mk.Profile) -> None:
    summary = profile.summary()
    again = json.loads(json.dumps(summary, allow_nan=False))
    assert again == summary
    assert again["model"] == "made-up"
    assert again["nll"]["value"] == profile.nll.value
    assert list(again["renyi"]) == ["0", "1", "2", "inf"]
    assert again["layers"]["layer"] == [0, 2, 4]


def test_data_frame(profile: mk.Profile) -> None:
    frame = profile.to_frame()
    assert len(frame) == 60
    assert {"nll", "entropy", "surprise", "rank", "text", "sequence_id"} <= set(frame.columns)
    np.testing.assert_array_equal(frame["entropy"], profile.tokens.entropy)


def test_progress_reaches_the_end_and_never_falls(features: mk.Features) -> None:
    seen: list[tuple[int, int]] = []
    mk.profile(features, progress=lambda done, total: seen.append((done, total)))
    assert len({total for _, total in seen}) == 1
    done = [d for d, _ in seen]
    assert done == sorted(done)
    assert seen[-1][0] == seen[-1][1] == 60 + 3 * 20


def test_cost_counts_the_forward_pass(profile: mk.Profile) -> None:
    assert profile.cost["forward"] == 2.0
    assert profile.cost["tokens_per_second"] == 30.0
    assert profile.cost["final_layer"] + profile.cost["layers"] <= profile.cost["total_profile"]


def test_layer_rows_bound_the_work(features: mk.Features) -> None:
    layers = mk.profile(features, layer_rows=7).layers
    assert layers is not None
    assert layers.num_rows == 7
