"""The benchmark harness: wrong answers are refused before anything is timed, and runs are interleaved."""

from __future__ import annotations

import json
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


def test_targets_say_what_was_missed() -> None:
    row = harness.Row("one", "", {"entropy": 1e-6}, [2.0, 1.0, 4.0])
    assert row.median == 2.0
    text = harness.show(
        "title", [row], 4e9, [harness.Target("a", 1.0, 1.8, True), harness.Target("b", 1.0, 1.15, False)]
    )
    assert "a: 1.00 (target >= 1.8, MISSED)" in text
    assert "b: 1.00 (target <= 1.15, met)" in text


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured on Linux only")
def test_the_question_runs_from_end_to_end(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCH / "softmax_stats.py"), "--quick", "--json", str(tmp_path / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "torch.compile, the best / markovlm" in done.stdout
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["environment"]["core"]["build_type"] == "Release"
    names = {row["name"] for row in found["cases"]["quick"]["rows"]}
    assert {"markovlm", "torch eager, whole", "torch mm, whole"} <= names
    assert {target["name"] for target in found["cases"]["quick"]["targets"]} >= {"extra memory of markovlm, MiB"}
