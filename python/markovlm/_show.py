"""How small tables of probabilities look, as text and as HTML."""

from __future__ import annotations

from html import escape

from ._axes import Space, element_of, size_of
from .typing import FloatArray

__all__ = ["html_table", "text_table"]


def _oriented(matrix: FloatArray, domain: Space, codomain: Space) -> tuple[FloatArray, Space, Space]:
    """A state on two factors as a table of one by the other."""
    if size_of(domain) == 1 and len(codomain) == 2:
        return matrix.reshape(codomain[0].size, codomain[1].size), codomain[:1], codomain[1:]
    return matrix, domain, codomain


def text_table(matrix: FloatArray, domain: Space, codomain: Space) -> str:
    """Rows with what they are of, beneath the elements that columns are of where those fit."""
    cells, left, top = _oriented(matrix, domain, codomain)
    names = [element_of(left, x) for x in range(cells.shape[0])]
    header = [element_of(top, y) for y in range(cells.shape[1])]
    width = max(map(len, names))
    widths = [max(6, len(name)) for name in header]  # 0.1234
    lines = [[" " * width, *(f"{name:>{w}}" for name, w in zip(header, widths, strict=True))]]
    lines += [
        [f"{name:{width}}", *(f"{value:{w}.4f}" for value, w in zip(row, widths, strict=True))]
        for name, row in zip(names, cells, strict=True)
    ]
    return "\n".join(f"  {'  '.join(line)}".rstrip() for line in lines)


def html_table(title: str, matrix: FloatArray, domain: Space, codomain: Space) -> str:
    """The same, larger probabilities darker."""
    cells, left, top = _oriented(matrix, domain, codomain)
    header = "".join(f"<th>{escape(element_of(top, y))}</th>" for y in range(cells.shape[1]))
    body = "".join(
        f"<tr><th>{escape(element_of(left, x))}</th>"
        + "".join(f'<td style="background: rgba(27, 108, 168, {0.6 * value:.2f})">{value:.4f}</td>' for value in row)
        + "</tr>"
        for x, row in enumerate(cells)
    )
    return f"<table><caption>{escape(title)}</caption><tr><th></th>{header}</tr>{body}</table>"
