"""Entry point of the `markovlm` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, or say what to install where its libraries are missing."""
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


if __name__ == "__main__":
    main()
