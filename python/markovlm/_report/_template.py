"""One self-contained HTML document from a template, its styles and its scripts."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from ._numbers import count, number, percent, typeset
from ._tokens import visible

__all__ = ["page"]


def page(template: str, *, scripts: Sequence[str], figures: dict[str, str], **values: Any) -> str:
    """Fill a template; it opens offline, and a browser refuses to load anything for it."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_resource),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters |= {
        "count": count,
        "number": lambda *given, **named: typeset(number(*given, **named)),
        "percent": percent,
        "visible": visible,
    }
    script = "".join(map(_resource, scripts))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(
        style=Markup(_resource("report.css")),
        script=Markup(script),
        # No source but the page itself: a browser refuses every request, and every script other than ours.
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'",
        figures={name: Markup(svg) for name, svg in figures.items()},
        **values,
    )


def _resource(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
