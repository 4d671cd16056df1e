"""One build per instruction set: which is loaded, what each exports, and that they agree."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import markovlm
import reference
from conftest import BUILDS
from markovlm import KL, SoftmaxKernel, build_info, mean_prediction, softmax_stats
from markovlm._ext import _cpu
from markovlm.typing import IntArray
from reference import Bounds, assert_within

EXTENSIONS = sorted(Path(markovlm.__path__[0], "_ext").glob("_c*.so"))


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that finds the same package and these tests."""
    paths = [str(Path(markovlm.__path__[0]).parent), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    variables = {k: v for k, v in os.environ.items() if k != "MARKOVLM_ISA"}
    variables |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), **environment}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=variables, capture_output=True, text=True, timeout=120
    )


def test_build_info() -> None:
    info = build_info()
    assert set(info) == {"isa", "available", "build_type", "vector_floats", "compiler"}
    assert info["available"] == [name for name in _cpu.runnable_builds() if name in info["available"]]  # best first
    print("build type:", info["build_type"])


def test_baseline_runs_everywhere() -> None:
    assert _cpu.runnable_builds()[-1] == "baseline"
    cores = [path for path in EXTENSIONS if path.name.startswith("_core_")]
    assert cores
    if len(cores) > 1:  # a developer's installation has one: the best for this CPU
        assert "baseline" in BUILDS


@pytest.mark.parametrize("build", BUILDS)
def test_a_build_can_be_forced(build: str) -> None:
    run = python("import markovlm; print(markovlm.build_info()['isa'])", MARKOVLM_ISA=build)
    assert run.stdout.strip() == build, run.stderr


def test_the_best_build_is_the_default() -> None:
    run = python("import markovlm; print(markovlm.build_info()['isa'])")
    assert run.stdout.strip() == BUILDS[0], run.stderr


@pytest.mark.parametrize("wanted", ["v5", "V4", *sorted({"amx", "bf16", "v4", "v3", "baseline"} - set(BUILDS))])
def test_a_build_that_cannot_be_had_is_an_error_that_lists_those_that_can(wanted: str) -> None:
    run = python("import markovlm", MARKOVLM_ISA=wanted)
    assert run.returncode != 0
    message = run.stderr.strip().splitlines()[-1]
    assert "ValueRangeError: MARKOVLM_ISA: expected one of " + ", ".join(BUILDS) in message
    assert repr(wanted) in message


def test_builds_agree() -> None:
    rng = np.random.default_rng(0)
    P = SoftmaxKernel(rng.standard_normal((50, 200)), rng.standard_normal((400, 200)) / 8, softcap=20.0)
    R = SoftmaxKernel(rng.standard_normal((25, 200)), P.head, softcap=20.0)
    bounds = Bounds(reference.kernel_logits(P), reference.logit_error(P))
    zr, dr = np.tile(reference.kernel_logits(R), (2, 1)), np.tile(reference.logit_error(R), 2)
    eta = bounds.delta + dr + 4 * reference.UNIT * np.abs(zr - bounds.z).max(axis=1)
    kl_bound = reference.divergence_bound(KL(), zr, bounds.z, eta, dr)
    results = []
    for build in BUILDS:
        core = importlib.import_module(f"markovlm._ext._core_{build}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(markovlm._softmax, "core", core)
            s = softmax_stats(P, orders=(-3.0, 0.5, 2.0), jensen_shannon=True, reference=R, divergences=[KL()])
            results.append((s, mean_prediction(P)))
    (first, first_mean), *others = results
    for other, mean in others:
        assert_within("log_normalizer", other.log_normalizer, first.log_normalizer, 2 * bounds.log_normalizer)
        assert_within("entropy", other.entropy, first.entropy, 2 * bounds.entropy)
        assert_within("jensen_shannon", other.jensen_shannon, first.jensen_shannon, 2 * bounds.jensen_shannon)
        assert_within("kl", other.divergences[KL()], first.divergences[KL()], 2 * kl_bound)
        assert_within("mean prediction", mean, first_mean, 2 * bounds.mean_prediction())
        for order, values in other.renyi.items():
            assert_within(f"renyi {order}", values, first.renyi[order], 2 * bounds.renyi(order))


TAILS = """
import sys
import numpy as np
from test_builds import tails
from markovlm import KL, softmax_stats

found = {}
for name, (P, R, targets) in tails().items():
    s = softmax_stats(P, targets, (-3.0, 2.0), jensen_shannon=True, reference=R, divergences=[KL()], mean=True)
    found |= {f"{name} entropy": s.entropy, f"{name} nll": s.nll, f"{name} kl": s.divergences[KL()]}
    found |= {f"{name} renyi": s.renyi[2.0], f"{name} mean": s.mean[0]}
    found |= {f"{name} renyi below 0": s.renyi[-3.0], f"{name} jensen_shannon": s.jensen_shannon}
np.savez(sys.argv[1], **found)
"""


def tails() -> dict[str, tuple[SoftmaxKernel, SoftmaxKernel, IntArray]]:
    """Cases whose sizes leave every remainder that a vector, a register tile or a tile register can leave."""
    rng = np.random.default_rng(0)
    cases = {}
    for dtype in (np.float32, ml_dtypes.bfloat16):
        for size in range(1, 34):
            for n, V, d in ((size, 40, 9), (3, size, 9), (3, 40, size), (size, 80 + size, 64 + size)):
                hidden, other, head = (rng.standard_normal(shape).astype(dtype) for shape in ((n, d), (n, d), (V, d)))
                P, R = SoftmaxKernel(hidden, head), SoftmaxKernel(other, head.copy())
                cases[f"{dtype.__name__} {n} {V} {d}"] = P, R, rng.integers(0, V, n)
    return cases


@pytest.mark.parametrize("build", BUILDS)
def test_a_build_is_right_at_every_tail(build: str, tmp_path: Path) -> None:
    run = python(TAILS, str(tmp_path / "found.npz"), MARKOVLM_ISA=build)
    assert run.returncode == 0, run.stderr
    with np.load(tmp_path / "found.npz") as found:
        for name, (P, R, targets) in tails().items():
            z, zr = reference.kernel_logits(P), reference.kernel_logits(R)
            bounds = Bounds(z, reference.logit_error(P))
            delta = reference.logit_error(R)
            eta = bounds.delta + delta + 4 * reference.UNIT * np.abs(zr - z).max(axis=1)
            kl = reference.divergence(KL(), zr, z)
            assert_within(name, found[f"{name} entropy"], reference.entropy(z), bounds.entropy)
            assert_within(name, found[f"{name} nll"], reference.nll(z, targets), bounds.nll)
            assert_within(name, found[f"{name} renyi"], reference.renyi(z, 2.0), bounds.renyi(2.0))
            assert_within(name, found[f"{name} renyi below 0"], reference.renyi(z, -3.0), bounds.renyi(-3.0))
            js = found[f"{name} jensen_shannon"]
            assert_within(name, js, reference.jensen_shannon(z), bounds.jensen_shannon)
            assert_within(name, found[f"{name} kl"], kl, reference.divergence_bound(KL(), zr, z, eta, delta))
            assert_within(name, found[f"{name} mean"], reference.mean_prediction(z), bounds.mean_prediction())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a version script is what Linux has")
@pytest.mark.parametrize("path", EXTENSIONS, ids=lambda path: path.name.partition(".")[0])
def test_an_extension_exports_its_entry_point_alone(path: Path) -> None:
    """Weak symbols of two builds would otherwise be shared, and one of them would run on the wrong CPU."""
    listing = subprocess.run(["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=True).stdout
    symbols = [line.split()[-1] for line in listing.splitlines()]
    if path.name.startswith("_cpu."):  # compiled without any flag: what it shares runs anywhere
        assert "PyInit__cpu" in symbols
    else:
        assert symbols == [f"PyInit_{path.name.partition('.')[0]}"]


def test_import_is_light() -> None:
    heavy = ("torch", "transformers", "typer", "rich", "jinja2", "pandas", "matplotlib", "safetensors", "gguf")
    run = python(f"import sys, markovlm; print([name for name in {heavy} if name in sys.modules])")
    assert run.stdout.strip() == "[]", run.stdout + run.stderr
