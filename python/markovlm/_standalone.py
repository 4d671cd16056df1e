"""Results that have a page of their own: where a directory keeps them, and how a command shows them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import typer

from ._alignment_result import Alignment
from ._console import note
from ._geometry import Geometry
from ._report import alignment_table, geometry_table, surplus_table
from ._surplus_result import Surplus

__all__ = ["RESULTS", "Kind", "Result", "kept", "note_warnings", "print_json", "show", "write"]


class Result(Protocol):
    """What all of them do."""

    @property
    def warnings(self) -> tuple[str, ...]: ...
    def summary(self) -> dict[str, Any]: ...
    def save(self, path: Path) -> None: ...
    def to_html(self, path: Path) -> None: ...


@dataclass(frozen=True)
class Kind:
    """One of them, by its name in JSON and in front of its warnings."""

    name: str
    of: Any
    table: Callable[..., str]

    @property
    def file(self) -> str:
        return f"{self.name}.safetensors"

    @property
    def page(self) -> str:
        return f"{self.name}.html"


RESULTS = {
    "surplus": Kind("surplus", Surplus, surplus_table),
    "alignment": Kind("alignment", Alignment, alignment_table),
    "geometry": Kind("geometry", Geometry, geometry_table),
}


def kept(directory: Path) -> dict[str, Result]:
    """Those that a directory holds, by name."""
    return {
        name: kind.of.load(directory / kind.file) for name, kind in RESULTS.items() if (directory / kind.file).exists()
    }


def write(directory: Path, name: str, found: Result) -> None:
    """The file and the page."""
    found.save(directory / RESULTS[name].file)
    found.to_html(directory / RESULTS[name].page)


def show(directory: Path, as_json: bool, results: Mapping[str, Result]) -> None:
    """Tables with the places of pages, or JSON: of a single result what it is, of several each by its name."""
    if as_json:
        several = len(results) > 1
        summary: dict[str, Any] = {}
        files: dict[str, str] = {}
        for name, found in results.items():
            summary |= {name: found.summary()} if several else found.summary()
            files |= {name: RESULTS[name].file, f"{name}_report" if several else "report": RESULTS[name].page}
        print_json(directory, summary, files)
    else:
        tables = [
            f"{RESULTS[name].table(found, with_warnings=False)}\n\nReport: {directory / RESULTS[name].page}"
            for name, found in results.items()
        ]
        typer.echo("\n\n".join(tables))
    for name, found in results.items():
        note_warnings(name, found)


def note_warnings(name: str, found: Result) -> None:
    """On standard error, where no script that reads the rest trips over them."""
    for message in found.warnings:
        note(message.removeprefix(f"{name}: "))


def print_json(directory: Path, summary: dict[str, Any], files: Mapping[str, str]) -> None:
    """One line on standard output, with the paths of what was written."""
    paths = {name: str(directory / file) for name, file in files.items()}
    typer.echo(json.dumps({**summary, "files": paths}, allow_nan=False))
