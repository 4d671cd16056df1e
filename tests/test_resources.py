"""How many threads and how much memory passes take, and that neither changes what they find."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reference
from markovlm import KL, SoftmaxKernel, _checks, mean_prediction, normal_product, softmax_stats
from reference import Bounds, assert_within


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, np.inf),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/cpu.max": "300000 100000\n",
                "sys/fs/cgroup/a/cpu.max": "200000 100000\n",
            },
            2.0,  # what holds the group is narrower than the group
        ),
        (
            {
                "proc/self/cgroup": "3:cpuset:/x\n2:cpu,cpuacct:/x\n0::/\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            np.inf,
        ),
        ({"proc/self/cgroup": "0::/gone\n"}, np.inf),
        ({}, np.inf),
    ],
)
def test_a_container_limits_the_default_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: float
) -> None:
    quota = _checks._cpu_quota(write(tmp_path, files))
    assert quota == expected
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(_checks, "_cpu_quota", lambda: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64), raising=False)
    assert _checks.threads(None) == (64 if np.isinf(expected) else np.ceil(expected))


@pytest.mark.parametrize(("wanted", "expected"), [("3", 3), ("5,2", 5), ("0", 64), ("many", 64), ("", 64)])
def test_the_variable_that_others_heed_is_heeded(monkeypatch: pytest.MonkeyPatch, wanted: str, expected: int) -> None:
    monkeypatch.setattr(_checks, "_cpu_quota", lambda: np.inf)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64), raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", wanted)
    assert _checks.threads(None) == expected
    assert _checks.threads(7) == 7


def test_small_blocks_give_the_same(core: Any) -> None:
    rng = np.random.default_rng(0)
    n, V, d = 300, 1000, 20
    P = SoftmaxKernel(rng.standard_normal((n, d)), rng.standard_normal((V, d)) / 2)
    R = SoftmaxKernel(rng.standard_normal((n, d)), P.head)
    z = reference.kernel_logits(P)
    bounds = Bounds(z, reference.logit_error(P))
    few = 1 << 20  # a block of all rows would take more
    found = softmax_stats(P, reference=R, divergences=[KL()], mean=True, max_memory=few)
    assert_within("entropy", found.entropy, reference.entropy(z), bounds.entropy)
    whole = softmax_stats(P, reference=R, divergences=[KL()])
    assert_within("kl", found.divergences[KL()], whole.divergences[KL()], 1e-5 * whole.divergences[KL()])
    assert_within("mean", mean_prediction(P, max_memory=few), reference.mean_prediction(z), bounds.mean_prediction())
    X = rng.standard_normal((V, 3))
    few_rows, many_rows = (normal_product(P, X, max_memory=memory) for memory in (few, None))
    np.testing.assert_allclose(few_rows, many_rows, rtol=0, atol=1e-6 * np.abs(many_rows).max())


GROWTH = """
import ctypes, sys
from pathlib import Path
import numpy as np
import markovlm as mk

def status(name):
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if name in line)

rng = np.random.default_rng(0)
hidden, head = (rng.standard_normal((rows, 16), dtype=np.float32) for rows in (1500, 50_000))
P = mk.SoftmaxKernel(hidden, head)
mk.mean_prediction(P[:40], num_threads=1)
ctypes.CDLL(None).malloc_trim(0)
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # resets the peak
limits = {"max_memory": int(sys.argv[1]), "num_threads": 1}
if sys.argv[2] == "mean":
    mk.mean_prediction(P, **limits)
else:
    mk.softmax_stats(P, orders=np.arange(-10.0, 0.0), jensen_shannon=True, **limits)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured on Linux only")
@pytest.mark.parametrize(
    ("wanted", "allowed", "least"),
    [("mean", 16, 8), ("mean", 32, 24), ("mean", 64, 48), ("entropies", 8, 4), ("entropies", 16, 8)],
)
def test_memory_stays_within_what_was_allowed(wanted: str, allowed: int, least: int) -> None:
    """In MiB; in a process of its own, because the C library keeps memory of earlier tests at hand."""
    command = [sys.executable, "-c", GROWTH, str(allowed << 20), wanted]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 1024
    assert least < grown < allowed + 2
