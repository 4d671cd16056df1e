"""The benchmark harness: wrong answers are refused before anything is timed, and runs are interleaved."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import markovlm as mk

BENCH = Path(__file__).parents[1] / "bench"
sys.path.insert(0, str(BENCH))

import harness  # noqa: E402

ROWS = np.array([0, 2])
REFERENCE = {"entropy": np.array([1.0, 3.0])}


def contender(name: str, calls: list[str], answer: Any = (1.0, 2.0, 3.0)) -> harness.Contender:
    def run(rows: int | None) -> harness.Answer:
        calls.append(name)
        return {"entropy": np.array(answer)}

    return harness.Contender(name, run)


def test_runs_are_interleaved_after_all_were_verified() -> None:
    calls: list[str] = []
    field = [contender("a", calls), contender("b", calls)]
    table = harness.compare(field, REFERENCE, ROWS, tolerance={"entropy": 1e-9}, rounds=3)
    assert calls == ["a", "b"] * 4
    assert [len(row.seconds) for row in table] == [3, 3]
    assert [row.errors for row in table] == [{"entropy": 0.0}] * 2


@pytest.mark.parametrize("wrong", [(1.0, 2.0, 3.1), (float("nan"), 2.0, 3.0)])
def test_a_wrong_answer_is_not_timed(wrong: tuple[float, ...]) -> None:
    calls: list[str] = []
    field = [contender("right", calls), contender("wrong", calls, wrong)]
    with pytest.raises(harness.WrongAnswerError, match="wrong: errors"):
        harness.compare(field, REFERENCE, ROWS, tolerance={"entropy": 1e-2}, rounds=3)
    assert calls == ["right", "wrong"]


def test_a_debug_build_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    harness.refuse_debug_build()
    monkeypatch.setattr(mk, "build_info", lambda: {"build_type": "Debug"})
    with pytest.raises(SystemExit, match="Debug build"):
        harness.refuse_debug_build()


def test_memory_of_a_call_is_seen() -> None:
    def run(rows: int | None) -> harness.Answer:
        return {"x": np.ones((rows or 4096) * 4096)}  # 128 MiB unless small

    extra = harness.measure_extra_memory(harness.Contender("grows", run), 1)
    assert 120 < extra < 140


def test_targets_say_what_was_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "peaks", lambda: {"float32": 4.0})
    row = harness.Row("one", "", {"entropy": 1e-6}, [2.0, 1.0, 4.0], work=4e9)
    assert row.median == 2.0
    text = harness.show("title", [row], [harness.Target("a", 1.0, 1.8, True), harness.Target("b", 1.0, 1.15, False)])
    assert "50%" in text
    assert "a: 1.00 (target >= 1.8, MISSED)" in text
    assert "b: 1.00 (target <= 1.15, met)" in text


def test_a_contender_may_have_a_reference_and_a_tolerance_of_its_own() -> None:
    own = harness.Contender(
        "own", lambda _: {"entropy": np.array([7.0, 8.0, 9.5])}, "", {"entropy": [7, 9]}, {"entropy": 1}
    )
    (row,) = harness.compare([own], REFERENCE, ROWS, tolerance={"entropy": 1e-9}, rounds=1)
    assert row.errors == {"entropy": 0.5}


def test_the_peaks_are_those_of_a_cpu() -> None:
    found = harness.peaks()
    assert set(found) == {"float32", "bfloat16", "memory"}
    cores = len(os.sched_getaffinity(0))
    for rate in (found["float32"], found["bfloat16"]):
        assert 1 < rate / cores < 10_000  # GFLOP/s of a core: neither stuck nor optimised away
    assert 0.1 < found["memory"] < 10_000


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured on Linux only")
@pytest.mark.parametrize(
    ("question", "rows", "targets"),
    [
        (
            "softmax_stats",
            {"float32 markovlm", "float32 torch eager, whole", "bfloat16 torch mm, whole"},
            {"float32 torch.compile, the best / markovlm", "float32 extra memory of markovlm, MiB"},
        ),
        ("divergences", {"float32 markovlm KL"}, {"bfloat16 torch, the best / markovlm"}),
        ("panels", {"b = 8   markovlm √Pᵀ √P X"}, {"b = 1, √P X: torch / markovlm"}),
        ("scaling", {"bfloat16 n = 256"}, {"float32: fastest / slowest rate"}),
        ("geometry", {"markovlm"}, {"forming by torch / markovlm, per context"}),
        ("alignment", {"NumPy and SciPy, √P formed"}, {"by hand / markovlm"}),
    ],
)
def test_a_question_runs_from_end_to_end(tmp_path: Path, question: str, rows: set[str], targets: set[str]) -> None:
    command = [sys.executable, str(BENCH / f"{question}.py"), "--quick", "--json", str(tmp_path / f"{question}.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / f"{question}.json").read_text())
    assert found["environment"]["core"]["build_type"] == "Release"
    assert rows <= {row["name"] for row in found["cases"]["quick"]["rows"]}
    assert targets <= {target["name"] for target in found["cases"]["quick"]["targets"]}
    for target in targets:
        assert target in done.stdout
    command = [sys.executable, str(BENCH / "summary.py"), str(tmp_path), "--out", str(tmp_path / "summary")]
    subprocess.run(command, check=True)
    assert "quick" in (tmp_path / "summary" / "RESULTS.md").read_text("utf8")
