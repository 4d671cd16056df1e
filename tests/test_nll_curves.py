"""Checkpoints of a training run as curves: single calls side by side, what they approach, and their figure."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import markovlm as mk
from markovlm.errors import MissingDependencyError
from test_nll import features
from test_nll_decomposition import ALL, DOUBLE, softmax


def run_of(count: int) -> tuple[list[mk.Kernel | mk.Features], mk.SoftmaxKernel]:
    """Softmax kernels whose logits go straight from flat to the data's."""
    data = softmax(120, 60, 6, size=2.0)
    return [mk.SoftmaxKernel(np.float32(t) * data.hidden, data.head) for t in np.linspace(0, 1, count)], data


def test_curves_are_single_calls_side_by_side() -> None:
    models, data = run_of(4)
    groups = np.arange(120) // 6
    curves = mk.nll_decomposition(models, data, groups=groups, steps=[0, 1, 10, 100], divergences=ALL)
    assert curves.steps.tolist() == [0, 1, 10, 100]
    for c, model in enumerate(models):
        assert isinstance(model, mk.Kernel)
        point = mk.nll_decomposition(model, data, groups=groups, divergences=ALL)
        for name in ("cross_entropy", "kl", "model_entropy", "calibration"):
            assert getattr(curves, name)[c] == getattr(point, name).value
            assert tuple(getattr(curves, f"{name}_interval")[c]) == getattr(point, name).interval
        assert curves.residual is not None
        assert curves.residual[c] == point.residual
        assert curves.entropy == point.entropy
        assert curves.data_entropies == point.data_entropies
        for D in ALL:
            assert curves.entropies[D][c] == point.entropies[D].value
            assert tuple(curves.entropies_interval[D][c]) == point.entropies[D].interval
    assert curves.nll is None
    assert repr(curves).startswith("NLLCurves(4 checkpoints, 120 contexts each, loss ")


def test_entropies_approach_those_of_the_data() -> None:
    """Theorem 5.2 along a path where KL falls, being convex with its minimum at the end."""
    models, data = run_of(6)
    curves = mk.nll_decomposition(models, data, divergences=ALL)
    assert curves.kl is not None
    assert np.all(np.diff(curves.kl) < 0)
    assert curves.kl[-1] == 0
    for D in ALL:
        assert curves.entropies[D][-1] == curves.data_entropies[D].value
        average = mk.average_categorical_entropy(data, D)
        assert curves.data_entropies[D].value == pytest.approx(average, rel=1e3 * DOUBLE)
        away = np.abs(curves.entropies[D] - curves.data_entropies[D].value)
        assert np.all(np.diff(away) <= 0)


def test_checkpoints_on_text_alone() -> None:
    f = features(200, 40, 8)
    curves = mk.nll_decomposition([replace(f, hidden=np.float32(t) * f.hidden) for t in (0.0, 0.5, 1.0)])
    assert curves.nll is not None
    assert curves.nll_interval is not None
    assert np.all(np.diff(curves.nll) < 0)
    assert curves.kl is None
    assert curves.entropy is None
    assert curves.data_entropies == {}


@pytest.mark.parametrize("kind", ["data", "text", "both", "infinite"])
@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_plot(tmp_path: Path, kind: str, suffix: str) -> None:
    pytest.importorskip("matplotlib", reason="draws the figure")
    models, data = run_of(3)
    f = features(120, 60, 6)
    text = [replace(f, hidden=np.float32(t) * f.hidden) for t in (0.2, 0.5, 1.0)]
    truth: mk.Kernel = data
    if kind == "infinite":
        truth = mk.identity(2)
        models = [mk.Kernel([[0.0, 1.0], [1.0, 0.0]]), mk.Kernel(np.full((2, 2), 0.5)), truth]
    curves = mk.nll_decomposition(
        text if kind in ("text", "both") else models,
        None if kind == "text" else truth,
        steps=[0, 5, 1000],
        divergences=ALL,
    )
    path = tmp_path / f"run.{suffix}"
    curves.plot(path)
    assert path.read_bytes()[:5] == (b"\x89PNG\r" if suffix == "png" else b"<?xml")


def test_plot_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models, data = run_of(2)
    curves = mk.nll_decomposition(models, data)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"plot needs matplotlib: pip install 'markovlm\[report\]'"):
        curves.plot(tmp_path / "run.png")
