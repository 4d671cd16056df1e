"""Text that every Python has: the docstrings of its standard library, for a first look without a text at hand."""

from __future__ import annotations

import ast
import random
import sysconfig
from collections import deque
from collections.abc import Iterator
from pathlib import Path

__all__ = ["standard_library_docstrings"]

_PIECE = 2000  # characters: about one window of 512 tokens, so that a sample visits many modules
_LEFT_OUT = ("site-packages", "test", "tests", "idlelib", "__pycache__", "lib2to3", "turtledemo")


def standard_library_docstrings(characters: int, *, seed: int = 0) -> tuple[list[str], list[str]]:
    """At least ``characters`` of docstrings (or all there are), as texts of some 2,000 characters and their names.

    Modules are read, never imported, and visited in a seeded random order: a piece of each, then a second piece of
    each, and so on. What comes out depends on the Python version; a profile records its hash.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [f for f in sorted(root.rglob("*.py")) if not set(f.relative_to(root).parts[:-1]) & set(_LEFT_OUT)]
    random.Random(seed).shuffle(files)
    names: list[str] = []
    texts: list[str] = []
    waiting = deque((".".join(f.relative_to(root).with_suffix("").parts), _pieces(f)) for f in files)
    while waiting and sum(map(len, texts)) < characters:
        name, pieces = waiting.popleft()
        piece = next(pieces, None)
        if piece is not None:
            names.append(name)
            texts.append(piece)
            waiting.append((name, pieces))
    return texts, names


def _pieces(file: Path) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):  # a few files of the standard library are broken on purpose
        return
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    piece: list[str] = []
    for node in ast.walk(tree):
        doc = ast.get_docstring(node) if isinstance(node, documented) else None
        if not doc:
            continue
        piece.append(doc)
        if sum(map(len, piece)) >= _PIECE:
            yield "\n\n".join(piece)
            piece = []
    if sum(map(len, piece)) >= _PIECE // 4:  # a shorter rest says too little to be a sequence of its own
        yield "\n\n".join(piece)
