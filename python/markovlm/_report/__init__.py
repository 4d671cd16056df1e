"""Profile, surplus, or comparison → one HTML file that opens offline, and a plain table for the terminal."""

from __future__ import annotations

import importlib.util
import os
import secrets
from pathlib import Path

from .._alignment_result import Alignment
from .._comparison import Comparison
from .._geometry import Geometry
from .._modes import Modes
from .._profile import Profile
from .._surplus_result import Surplus
from ..errors import MissingDependencyError
from ._alignment import render_alignment
from ._alignment_table import alignment_table
from ._comparison import render_comparison
from ._comparison_table import comparison_sentences, comparison_table
from ._geometry import render_geometry
from ._geometry_table import geometry_table
from ._html import render_html
from ._modes import modes_table, same_contexts
from ._surplus import render_surplus
from ._surplus_table import surplus_table
from ._surrogate_table import surrogate_table
from ._text import text_table

__all__ = [
    "alignment_table",
    "comparison_sentences",
    "comparison_table",
    "geometry_table",
    "modes_table",
    "render_alignment",
    "render_comparison",
    "render_geometry",
    "render_html",
    "render_surplus",
    "require_libraries",
    "same_contexts",
    "surplus_table",
    "surrogate_table",
    "text_table",
    "write_alignment",
    "write_comparison",
    "write_geometry",
    "write_html",
    "write_surplus",
]


def require_libraries() -> None:
    """Say what the report needs and is not installed, before the work that it would report on is done."""
    missing = [name for name in ("jinja2", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(f"the report needs {', '.join(missing)}: pip install 'markovlm[report]'")


def write_html(profile: Profile, path: str | os.PathLike[str], modes: Modes | None = None) -> None:
    """Write the report to ``path``, in one step: a reader sees the old file or the new one, never half of it.

    With ``modes`` of the same contexts it has a section on them.

    Raises
    ------
    MissingDependencyError
        jinja2 or matplotlib is not installed (``pip install 'markovlm[report]'``).
    ValueRangeError
        The modes are those of other contexts.
    OSError
        The folder does not exist or cannot be written. An existing file at ``path`` is left as it was.
    """
    require_libraries()
    _write(render_html(profile, modes), Path(path))


def write_surplus(surplus: Surplus, path: str | os.PathLike[str]) -> None:
    """Write the page of a surplus to ``path``, in one step; what it raises is as for `write_html`."""
    require_libraries()
    _write(render_surplus(surplus), Path(path))


def write_alignment(alignment: Alignment, path: str | os.PathLike[str]) -> None:
    """Write the page of an alignment to ``path``, in one step; what it raises is as for `write_html`."""
    require_libraries()
    _write(render_alignment(alignment), Path(path))


def write_comparison(comparison: Comparison, path: str | os.PathLike[str]) -> None:
    """Write the page of a comparison to ``path``, in one step; what it raises is as for `write_html`."""
    require_libraries()
    _write(render_comparison(comparison), Path(path))


def write_geometry(geometry: Geometry, path: str | os.PathLike[str]) -> None:
    """Write the page of a geometry to ``path``, in one step; what it raises is as for `write_html`."""
    require_libraries()
    _write(render_geometry(geometry), Path(path))


def _write(html: str, target: Path) -> None:
    # in the same folder, since a rename is atomic only within one file system
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "x", encoding="utf-8", newline="\n") as file:
            file.write(html)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
