"""What commands share: the names of the files that they write, and the options that mean the same in all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "FEATURES_FILE",
    "PROFILE_FILE",
    "REPORT_FILE",
    "SPECTRUM_FILE",
    "AsJson",
    "ContextLength",
    "LayersOption",
    "Model",
    "Out",
    "SaveFeatures",
    "Texts",
    "Threads",
    "Tokens",
    "TrustRemoteCode",
    "one_of",
]

PROFILE_FILE = "profile.safetensors"
FEATURES_FILE = "features.safetensors"
SPECTRUM_FILE = "spectrum.safetensors"
REPORT_FILE = "report.html"

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
LayersOption = Annotated[
    str, typer.Option("--layers", help="all, some (12 at most), none, or numbers such as 0,10,20 (0 is the embedding).")
]
Out = Annotated[
    Path | None, typer.Option(help="Directory for the results; default: markovlm-NAME, or where kept features are.")
]
ContextLength = Annotated[int, typer.Option(min=1, help="Contexts per sequence at most.")]
SaveFeatures = Annotated[bool, typer.Option("--save-features", help="Keep states and head for other analyses.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Let the model run its own code.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON for scripts on standard output, and nothing else there.")
]


def one_of(option: str, allowed: tuple[str, ...]) -> Callable[[str], str]:
    """Known before the model is run."""

    def parse(value: str) -> str:
        if value not in allowed:
            raise typer.BadParameter(f"expected one of {', '.join(allowed)}, got {value!r}", param_hint=option)
        return value

    return parse
