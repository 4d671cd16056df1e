"""Entry point of the `markovlm` command."""

from __future__ import annotations

import os
import signal
import sys

INTERRUPTED = 128 + signal.SIGINT


def main() -> None:
    """Run the command line, or say what to install where its libraries are missing."""
    try:
        try:
            from .cli import app
        except ModuleNotFoundError as error:
            if error.name not in ("typer", "rich"):
                raise
            print(
                f"markovlm: the command line needs {error.name}, which is not installed: pip install 'markovlm[cli]'",
                file=sys.stderr,
            )
            sys.exit(1)
        app()
    except KeyboardInterrupt:  # before any command had begun
        _end_by_interrupt()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _end_by_interrupt()
        raise


def _end_by_interrupt() -> None:
    """Let the signal end this process: a shell then sees 130 and stops its own loop or script too."""
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "posix":
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
