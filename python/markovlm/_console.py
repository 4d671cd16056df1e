"""What a command says on standard error: bars, notes, and errors of one line."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from .errors import MarkovLMError, SampleWarning

__all__ = ["note", "progress", "sample_warnings_are_notes", "user_errors"]

_stderr = Console(stderr=True)


def user_errors(command: Callable[..., None]) -> Callable[..., None]:
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


def note(message: str) -> None:
    """One line for people, of what is no error."""
    typer.echo(f"markovlm: {message}", err=True)


@contextmanager
def sample_warnings_are_notes() -> Iterator[None]:
    """Results keep them, and a command shows those; Python's own way would show them a second time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SampleWarning)
        yield


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "")


@contextmanager
def progress() -> Iterator[Callable[[str], Callable[[int, int], None]]]:
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
