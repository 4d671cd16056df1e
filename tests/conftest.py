"""What all tests share: reproducible random cases, every build of the core, and no skips where none are allowed."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Generator, Iterator
from typing import Any

import hypothesis
import pytest

from markovlm import (
    _checks,
    _entrywise,
    _factors,
    _metric,
    _pairs,
    _panels,
    _paths,
    _power_store,
    _softmax,
    _spectral,
    build_info,
)
from markovlm._ext import _cpu

# These peers want a newer Python than we do.
collect_ignore = (
    [f"test_peers_{name}.py" for name in ("dit", "discopy", "markov_entropy")] if sys.version_info < (3, 11) else []
)

NO_SKIPS = bool(os.environ.get("MARKOVLM_NO_SKIPS"))

# The same cases on every run of CI, new ones elsewhere; a failure prints what reproduces it.
hypothesis.settings.register_profile(
    "markovlm",
    derandomize=NO_SKIPS or bool(os.environ.get("CI")),
    print_blob=True,
    deadline=None,
    max_examples=40,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("markovlm")

BUILDS: list[str] = build_info()["available"]
if NO_SKIPS and _cpu.runnable_builds() != BUILDS:
    raise pytest.UsageError(f"MARKOVLM_NO_SKIPS is set, and of {_cpu.runnable_builds()} only {BUILDS} are installed")


def pytest_report_header() -> list[str]:
    info = build_info()
    missing = [name for name in ("amx", "bf16", "v4", "v3", "baseline") if name not in BUILDS]
    return [
        f"markovlm core: numerics are tested on {', '.join(BUILDS)}; missing here: {', '.join(missing) or 'none'} "
        f"(this CPU runs {', '.join(_cpu.runnable_builds())})",
        f"markovlm core loaded: {info['isa']}, {info['build_type']}, {info['compiler']}",
    ]


USERS_OF_CORE = (_checks, _entrywise, _factors, _metric, _pairs, _panels, _paths, _power_store, _softmax, _spectral)


@pytest.fixture(scope="module", params=BUILDS)
def core(request: pytest.FixtureRequest) -> Iterator[Any]:
    """One build of the core after the other, in the place of the one that this process chose."""
    module = importlib.import_module(f"markovlm._ext._core_{request.param}")
    with pytest.MonkeyPatch.context() as patch:
        for user in USERS_OF_CORE:
            patch.setattr(user, "core", module)
        yield module


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    if NO_SKIPS and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, and MARKOVLM_NO_SKIPS is set: {report.longrepr}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_if_skipped(report)
    return report
