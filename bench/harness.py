"""Times contenders that claim to do the same thing: every answer is verified first, and runs are interleaved.

A question is a module of its own that builds cases of contenders and hands them to :func:`ask`. Interleaving
(A, B, C, A, B, C, ...) lets a noisy machine disturb all alike, so ratios of medians mean more than the times do. Extra
memory is measured in a process of its own per contender: the peak resident set during one call, above what was resident
before it, once a small call has set up whatever is set up only once.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

import markovlm as mk

RESULTS = Path(__file__).parent / "results"

Answer = Mapping[str, np.ndarray[Any, Any]]
"""Named arrays; what a contender leaves out it does not compute."""
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Contender:
    """One way to the answer. ``run(rows)`` works on the first ``rows`` rows of the case, all if None."""

    name: str
    run: Callable[[int | None], Answer]
    note: str = ""
    reference: Answer | None = None  # in the place of the one that all others have: for other inputs
    tolerance: Mapping[str, float] | None = None  # likewise
    dtype: str = "float32"  # of its inputs: tells which peak it is measured against
    work: float = 0.0  # floating-point operations of one run


@dataclass
class Row:
    """What was measured for one contender."""

    name: str
    note: str
    errors: dict[str, float]  # largest absolute error of each part of the answer
    seconds: list[float] = field(default_factory=list)  # one per round
    extra_mib: float | None = None
    dtype: str = "float32"
    work: float = 0.0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def gflops(self) -> float:
        return self.work / self.median / 1e9


@dataclass(frozen=True)
class Target:
    """A ratio of medians, or another figure, and the bound that it should keep."""

    name: str
    ratio: float
    bound: float
    at_least: bool

    @property
    def met(self) -> bool:
        return self.ratio >= self.bound if self.at_least else self.ratio <= self.bound


@dataclass
class Case:
    """What one table is made of."""

    title: str
    contenders: Sequence[Contender]
    rows: Array  # at these the answers are verified
    reference: Answer
    tolerance: Mapping[str, float]
    judge: Callable[[Sequence[Row], Mapping[str, float]], list[Target]]  # from the table and the CPU's peaks
    weigh: Sequence[str] = ()  # contenders whose extra memory is measured too
    rounds: int | None = None  # fewer than asked for, where one takes long
    once: bool = False  # one run alone, verified, timed and weighed, where it takes very long


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
        table.append(verified(contender, contender.run(None), reference, rows, tolerance))
    for turn in range(rounds):
        say(f"round {turn + 1} of {rounds}")
        for contender, row in zip(contenders, table, strict=True):
            start = time.perf_counter()
            contender.run(None)
            row.seconds.append(time.perf_counter() - start)
    return table


def verified(
    contender: Contender, answer: Answer, reference: Answer, rows: Array, tolerance: Mapping[str, float]
) -> Row:
    """A row without times, of an answer that is right."""
    exact, allowed = contender.reference or reference, contender.tolerance or tolerance
    errors = {name: float(np.abs(value[rows] - exact[name]).max()) for name, value in answer.items()}
    wrong = {name: error for name, error in errors.items() if not error <= allowed[name]}
    if wrong:
        raise WrongAnswerError(f"{contender.name}: errors {wrong}, allowed {dict(allowed)}")
    return Row(contender.name, contender.note, errors, dtype=contender.dtype, work=contender.work)


def run_once(case: Case) -> list[Row]:
    """The table of a case whose contenders run a single time."""
    table = []
    for contender in case.contenders:
        answers = list[Answer]()
        start = time.perf_counter()
        extra = _peak_beyond(lambda: answers.append(contender.run(None)))  # noqa: B023
        seconds = time.perf_counter() - start
        row = verified(contender, answers[0], case.reference, case.rows, case.tolerance)
        row.seconds, row.extra_mib = [seconds], extra
        table.append(row)
    return table


def measure_extra_memory(contender: Contender, small: int) -> float:
    """MiB of resident memory that one run takes at most, beyond what is there before. For a process of its own."""
    contender.run(small)
    return _peak_beyond(lambda: contender.run(None))


def _peak_beyond(run: Callable[[], object]) -> float:
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # memory that the C library keeps would be taken again unseen
        ctypes.CDLL(None).malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    run()
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


@cache
def peaks() -> dict[str, float]:
    """GFLOP/s of products and GB/s of memory that this CPU reaches at most, by peak.cpp; empty without a compiler."""
    source = Path(__file__).parent / "peak.cpp"
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "peak")
        flags = ["-O3", "-std=c++20", "-march=native", "-ffp-contract=fast", "-pthread", "-Wno-psabi"]
        try:
            subprocess.run([os.environ.get("CXX", "c++"), *flags, str(source), "-o", program], check=True)
            done = subprocess.run([program, str(threads)], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return {}
    return dict(json.loads(done.stdout))


def environment() -> dict[str, Any]:
    """What a figure depends on."""
    packages = {}
    for name in ("markovlm", "numpy", "torch", "cut-cross-entropy"):
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
        "peaks": peaks(),
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


def show(title: str, table: Sequence[Row], targets: Sequence[Target]) -> str:
    """The table as text; rates are also shares of the CPU's own for the type of the inputs."""
    width = max(len(row.name) for row in table) + 2
    lines = [
        title,
        f"{'':<{width}}{'median s':>9}{'min s':>8}{'GFLOP/s':>9}{'of peak':>9}{'extra MiB':>11}  largest error",
    ]
    for row in sorted(table, key=lambda row: row.median):
        memory = "" if row.extra_mib is None else f"{row.extra_mib:,.0f}"
        share = f"{row.gflops / peaks()[row.dtype]:.0%}" if row.dtype in peaks() else "-"
        errors = ", ".join(f"{name} {error:.1e}" for name, error in row.errors.items())
        lines.append(
            f"{row.name:<{width}}{row.median:>9.3f}{min(row.seconds):>8.3f}{row.gflops:>9.0f}{share:>9}{memory:>11}  "
            f"{errors or '-'}{'  (' + row.note + ')' if row.note else ''}"
        )
    for target in targets:
        sign = ">=" if target.at_least else "<="
        lines.append(
            f"  {target.name}: {target.ratio:.2f} (target {sign} {target.bound:g}, {'met' if target.met else 'MISSED'})"
        )
    return "\n".join(lines)


def record(path: Path, cases: Mapping[str, tuple[Sequence[Row], Sequence[Target]]], titles: Mapping[str, str]) -> None:
    """Everything that was measured, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", *sys.argv])
    found = {
        name: {
            "title": titles[name],
            "rows": [{**asdict(row), "median": row.median, "gflops": row.gflops} for row in table],
            "targets": [{**asdict(target), "met": target.met} for target in targets],
        }
        for name, (table, targets) in cases.items()
    }
    path.write_text(json.dumps({"command": command, "environment": environment(), "cases": found}, indent=2) + "\n")


def _say(what: str) -> None:
    """Where the work stands, on one line."""
    if sys.stderr.isatty():
        print(f"\r{what:<60}", end="\r", file=sys.stderr, flush=True)


def ask(question: str, script: str, cases: Mapping[str, Callable[[], Case]]) -> int:
    """The program of a question: measures its cases, prints their tables and keeps what was found."""
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--case", choices=[*cases, "all"], default="all", help="all: all but quick")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=RESULTS / f"{Path(script).stem}.json")
    parser.add_argument("--strict", action="store_true", help="exit with 1 where a target is missed")
    parser.add_argument("--quick", action="store_true", help="a tiny case, two rounds, one weighed: does it run?")
    parser.add_argument("--memory", nargs=2, metavar=("CASE", "CONTENDER"), help="used by the program itself")
    given = parser.parse_args()
    refuse_debug_build()
    if given.memory:
        case, name = given.memory
        (contender,) = [c for c in cases[case]().contenders if c.name == name]
        print(measure_extra_memory(contender, 64))
        return 0

    names = ["quick"] if given.quick else [name for name in cases if name != "quick"]
    done, titles = {}, {}
    for name in names if given.case == "all" else [given.case]:
        case = cases[name]()
        rounds = 2 if given.quick else min(given.rounds, case.rounds or given.rounds)
        if case.once:
            table, rounds = run_once(case), 1
        else:
            table = compare(
                case.contenders, case.reference, case.rows, tolerance=case.tolerance, rounds=rounds, say=_say
            )
        weighed = case.weigh[:1] if given.quick else case.weigh
        for row in table:
            if row.name in weighed:
                _say(f"memory of {row.name}")
                row.extra_mib = extra_memory_in_a_process(script, name, row.name)
        _say("")
        done[name] = table, case.judge(table, peaks())
        titles[name] = f"{name}: {case.title}, {rounds} rounds"
        print(show(titles[name], *done[name]), end="\n\n", flush=True)
    record(given.json, done, titles)
    return int(given.strict and not all(target.met for _, targets in done.values() for target in targets))
