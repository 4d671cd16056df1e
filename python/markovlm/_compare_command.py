"""`markovlm compare`: kept results or models, side by side."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from . import _checks
from ._compare import compare, text_hashes
from ._console import note, progress, sample_warnings_are_notes, user_errors
from ._modes import Modes
from ._options import (
    PROFILE_FILE,
    SPECTRUM_FILE,
    AsJson,
    LayersOption,
    Texts,
    Threads,
    TrustRemoteCode,
)
from ._profile import Profile, profile
from ._report import comparison_table, require_libraries
from ._sources import are_features, load_features, output_directory, parse_layers, read_source
from ._standalone import RESULTS
from .errors import MarkovLMError, ValueRangeError

__all__ = ["compare_command"]

COMPARISON_FILE = "comparison.html"
# argument of `compare`, file beside the profile, and what reads it
BESIDE: tuple[tuple[str, str, Any], ...] = (
    ("modes", SPECTRUM_FILE, Modes),
    *((kind.name, kind.file, kind.of) for kind in RESULTS.values()),
)
DEFAULT_TOKENS, DEFAULT_CONTEXT_LENGTH = 8192, 512


@dataclass
class _Kept:
    """What there is of one of the models."""

    argument: str
    profile: Profile | None = None  # None: it is still to be made
    others: dict[str, Any] = field(default_factory=dict)


@user_errors
def compare_command(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="A B ...",
            help="Directories of results (what `markovlm profile`, `spectrum`, `surplus` wrote), or a MODEL as in "
            "`markovlm profile`, which is profiled first.",
            show_default=False,
        ),
    ],
    text: Texts = None,
    tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Contexts at most of what is profiled. Default: as in the first result, or 8192."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Directory for the page, and for profiles made here.")] = Path(
        "markovlm-compare"
    ),
    names: Annotated[str | None, typer.Option(help="To show instead of the models' own; with commas between.")] = None,
    steps: Annotated[
        str | None, typer.Option(help="Of training, or sizes, that rise, such as 0,100,1000: numbers become curves.")
    ] = None,
    baseline: Annotated[int, typer.Option(min=1, help="Which one the others are compared with, from 1.")] = 1,
    layers: LayersOption = "all",
    threads: Threads = None,
    context_length: Annotated[
        int | None,
        typer.Option(min=1, help="Contexts per sequence at most. Default: as in the first result, or 512."),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Compare models on the same text: print a table with differences, write one page that puts them side by side."""
    require_libraries()
    if len(models) < 2:
        raise typer.BadParameter(f"expected two or more, got {len(models)}", param_hint="A B ...")
    called = None if names is None else _one_each("--names", [name.strip() for name in names.split(",")], models)
    places = None if steps is None else _one_each("--steps", _numbers(steps), models)
    _checks.count("--baseline", baseline, 1, len(models))
    options: dict[str, Any] = {"layers": parse_layers(layers), "trust_remote_code": trust_remote_code}
    kept = [_kept(argument) for argument in models]
    missing = [each for each in kept if each.profile is None]
    first = next((each.profile for each in kept if each.profile is not None), None)
    tokens = tokens or (DEFAULT_TOKENS if first is None else first.num_tokens)
    found_length = None if first is None else first.provenance.get("context_length")
    options["context_length"] = context_length or found_length or DEFAULT_CONTEXT_LENGTH
    run = [each.argument for each in missing if not are_features(each.argument)]
    if text and not run:
        raise typer.BadParameter("no model is run here; kept results have a text", param_hint="--text")
    source = read_source(run[0], text, tokens) if run else None
    with output_directory(out):
        with progress() as stage:
            for each in missing:
                each.profile = _profiled(each.argument, source, tokens, threads, stage, options)
        profiles = [each.profile for each in kept if each.profile is not None]
        if called is None and places is None and len({each.model for each in profiles}) < len(profiles):
            called = models if len(set(models)) == len(models) else None
        beside: dict[str, Any] = {name: [each.others.get(name) for each in kept] for name, *_ in BESIDE}
        with sample_warnings_are_notes():
            found = compare(
                profiles,
                names=called,
                steps=places,
                baseline=baseline - 1,
                **beside,
            )
        files = {"comparison": str(out / COMPARISON_FILE)}
        for each, label in zip(kept, _directories(models), strict=True):
            if each in missing and each.profile is not None:
                (out / label).mkdir(exist_ok=True)
                each.profile.save(out / label / PROFILE_FILE)
                files[f"profile of {each.argument}"] = str(out / label / PROFILE_FILE)
        found.to_html(out / COMPARISON_FILE)
    if as_json:
        typer.echo(json.dumps({**found.summary(), "files": files}, allow_nan=False))
    else:
        typer.echo(comparison_table(found, with_warnings=False))
        typer.echo(f"\nReport: {out / COMPARISON_FILE}")
    for message in found.warnings:
        note(message.removeprefix("compare: "))


def _kept(argument: str) -> _Kept:
    """A directory that holds a profile, with what else is there; or a model, of which nothing is known yet."""
    place = Path(argument)
    directory = place.parent if place.name == PROFILE_FILE else place
    if not (directory / PROFILE_FILE).is_file():
        if place.is_dir() and not (place / "config.json").exists():
            raise ValueRangeError(
                f"{argument}: expected {PROFILE_FILE} in it, or a model's config.json, found neither; make it with "
                "`markovlm profile`"
            )
        return _Kept(argument)
    with _about(argument):
        result = Profile.load(directory / PROFILE_FILE)
        others = {}
        for name, file, reader in BESIDE:
            if not (directory / file).is_file():
                continue
            found = reader.load(directory / file)
            known, of = (text_hashes(each.provenance) for each in (result, found))
            if known is not None and of is not None and known != of:
                note(f"{directory / file} is of other texts than the profile there; it is left out")
                continue
            others[name] = found
    return _Kept(argument, result, others)


def _profiled(
    argument: str,
    source: tuple[list[str], list[str]] | None,
    tokens: int,
    threads: int | None,
    stage: Callable[[str], Callable[[int, int], None]],
    options: dict[str, Any],
) -> Profile:
    """Its features are let go before the next model is loaded."""
    with _about(argument):
        given = None if are_features(argument) else source
        features = load_features(argument, given, tokens, threads, stage, **options)
        return profile(features, num_threads=threads, progress=stage(f"profile of {_stem(argument)}"))


@contextmanager
def _about(argument: str) -> Iterator[None]:
    """What goes wrong with one of several arguments names it."""
    try:
        yield
    except (MarkovLMError, OSError) as error:
        if argument in str(error):
            raise
        raise ValueRangeError(f"{argument}: {error}") from error


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"expected numbers such as 0,100,1000, got {text!r}", param_hint="--steps") from None


def _one_each(option: str, values: list[Any], models: Sequence[str]) -> list[Any]:
    if len(values) != len(models):
        raise typer.BadParameter(f"expected {len(models)}, one for each model, got {len(values)}", param_hint=option)
    return values


def _stem(argument: str) -> str:
    name = Path(argument.rstrip("/")).name.removesuffix(".safetensors").removesuffix(".gguf")
    return re.sub(r"[^\w.-]+", "-", name).lstrip(".") or "model"


def _directories(models: Sequence[str]) -> list[str]:
    """A name for each, all different."""
    stems = [_stem(argument) for argument in models]
    return [stem if stems.count(stem) == 1 else f"{stem}-{i + 1}" for i, stem in enumerate(stems)]
