"""Times contenders that claim to do the same thing: every answer is verified first, and runs are interleaved.

A question is a module of its own that builds cases and contenders and hands them to :func:`compare`. Interleaving
(A, B, C, A, B, C, ...) lets a noisy machine disturb all alike, so ratios of medians mean more than the times do. Extra
memory is measured in a process of its own per contender: the peak resident set during one call, above what was resident
before it, once a small call has set up whatever is set up only once.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

import markovlm as mk

Answer = Mapping[str, np.ndarray[Any, Any]]
"""Named arrays; what a contender leaves out it does not compute."""


@dataclass(frozen=True)
class Contender:
    """One way to the answer. ``run(rows)`` works on the first ``rows`` rows of the case, all if None."""

    name: str
    run: Callable[[int | None], Answer]
    note: str = ""


@dataclass
class Row:
    """What was measured for one contender."""

    name: str
    note: str
    errors: dict[str, float]  # largest absolute error of each part of the answer
    seconds: list[float] = field(default_factory=list)  # one per round
    extra_mib: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Target:
    """``median of slow / median of fast``, and the bound that it should keep."""

    name: str
    ratio: float
    bound: float
    at_least: bool

    @property
    def met(self) -> bool:
        return self.ratio >= self.bound if self.at_least else self.ratio <= self.bound


class WrongAnswerError(Exception):
    """A contender's answer is off; nothing is timed."""


def refuse_debug_build() -> None:
    """End the program where the core was not built for speed."""
    build = mk.build_info()["build_type"]
    if build != "Release":
        sys.exit(
            f"bench: the core is a {build} build; timings would mean nothing. Install with CMAKE_BUILD_TYPE=Release"
        )


def compare(
    contenders: Sequence[Contender],
    reference: Answer,
    rows: np.ndarray[Any, Any],
    *,
    tolerance: Mapping[str, float],
    rounds: int,
    say: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """Verify every contender against ``reference`` (at ``rows`` of its answer), then time them in turn.

    Raises
    ------
    WrongAnswerError
        An error is larger than ``tolerance`` of its part, or an answer holds parts that the reference lacks.
    """
    table = []
    for contender in contenders:
        say(f"verifying {contender.name}")
        answer = contender.run(None)
        errors = {name: float(np.abs(value[rows] - reference[name]).max()) for name, value in answer.items()}
        wrong = {name: error for name, error in errors.items() if not error <= tolerance[name]}
        if wrong:
            raise WrongAnswerError(f"{contender.name}: errors {wrong}, allowed {dict(tolerance)}")
        table.append(Row(contender.name, contender.note, errors))
    for turn in range(rounds):
        say(f"round {turn + 1} of {rounds}")
        for contender, row in zip(contenders, table, strict=True):
            start = time.perf_counter()
            contender.run(None)
            row.seconds.append(time.perf_counter() - start)
    return table


def measure_extra_memory(contender: Contender, small: int) -> float:
    """MiB of resident memory that one run takes at most, beyond what is there before. For a process of its own."""
    contender.run(small)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    contender.run(None)
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise KeyError(name)


def extra_memory_in_a_process(script: str, *arguments: str) -> float:
    """Run ``script --memory ...`` and read the number that it prints last."""
    command = [sys.executable, script, "--memory", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def environment() -> dict[str, Any]:
    """What a figure depends on."""
    packages = {}
    for name in ("markovlm", "numpy", "torch"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    cpu = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "cpu": cpu[0] if cpu else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "core": mk.build_info(),
        "packages": packages,
        "numpy_blas": f"{blas['name']} {blas['version']}",
        "python": platform.python_version(),
        "commit": commit.stdout.strip() or "unknown",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def show(title: str, table: Sequence[Row], work: float, targets: Sequence[Target]) -> str:
    """The table as text; ``work`` is the floating-point operations of one run."""
    lines = [title, f"{'':<42}{'median s':>9}{'min s':>8}{'GFLOP/s':>9}{'extra MiB':>11}  largest error"]
    for row in sorted(table, key=lambda row: row.median):
        memory = "" if row.extra_mib is None else f"{row.extra_mib:,.0f}"
        errors = ", ".join(f"{name} {error:.1e}" for name, error in row.errors.items())
        lines.append(
            f"{row.name:<42}{row.median:>9.3f}{min(row.seconds):>8.3f}{work / row.median / 1e9:>9.0f}{memory:>11}  "
            f"{errors or '-'}{'  (' + row.note + ')' if row.note else ''}"
        )
    for target in targets:
        sign = ">=" if target.at_least else "<="
        lines.append(
            f"  {target.name}: {target.ratio:.2f} (target {sign} {target.bound:g}, {'met' if target.met else 'MISSED'})"
        )
    return "\n".join(lines)


def record(path: Path, cases: Mapping[str, tuple[Sequence[Row], Sequence[Target]]]) -> None:
    """Everything that was measured, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {
        name: {
            "rows": [{**asdict(row), "median": row.median} for row in table],
            "targets": [{**asdict(target), "met": target.met} for target in targets],
        }
        for name, (table, targets) in cases.items()
    }
    path.write_text(json.dumps({"environment": environment(), "cases": found}, indent=2) + "\n")
