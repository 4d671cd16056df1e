"""Finite sets with names and labels, and products of them: what kernels go from and to."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from .errors import DTypeError, ShapeError

__all__ = ["Axis", "Space", "as_space", "axis_positions", "element_of", "matched", "size_of", "sizes_of", "spelled"]

SHOWN = 6  # labels that a message or a repr spells out


@dataclass(frozen=True, init=False, repr=False)
class Axis:
    """A finite set: a size, or the labels of its elements, and a name. One factor of what a kernel goes from or to.

    Parameters
    ----------
    elements : int or sequence of hashable
        How many elements, or their labels, each once.
    name : str, optional

    Raises
    ------
    ShapeError, DTypeError

    Examples
    --------
    >>> import markovlm as mk
    >>> mk.Axis(["sun", "rain"], "weather")
    Axis(['sun', 'rain'], 'weather')
    >>> mk.Axis(49152, "token").size
    49152
    """

    size: int
    name: str
    labels: tuple[Hashable, ...] | None

    def __init__(self, elements: int | Sequence[Hashable], name: str = "") -> None:
        labels: tuple[Hashable, ...] | None = None
        if isinstance(elements, (int, np.integer)) and not isinstance(elements, bool):
            size = int(elements)
        elif isinstance(elements, (str, bytes, bool, np.integer)) or not hasattr(elements, "__len__"):
            raise DTypeError(f"axis: expected a size or a sequence of labels, got {elements!r}")
        else:
            labels = tuple(elements.tolist() if isinstance(elements, np.ndarray) else elements)
            size = len(labels)
            if len(set(labels)) < size:
                twice = next(label for label in labels if labels.count(label) > 1)
                raise ShapeError(f"axis {name or ''}: expected labels that occur once each, got {twice!r} twice")
        if size < 0:
            raise ShapeError(f"axis {name or ''}: expected a size >= 0, got {size}")
        for attribute, value in (("size", size), ("name", name), ("labels", labels)):
            object.__setattr__(self, attribute, value)

    @property
    def is_plain(self) -> bool:
        """Whether it is a mere size."""
        return not self.name and self.labels is None

    def label(self, i: int) -> Hashable:
        """The label of an element, or its number."""
        return i if self.labels is None else self.labels[i]

    def __repr__(self) -> str:
        elements = repr(self.size)
        if self.labels is not None:
            shown = ", ".join(repr(label) for label in self.labels[:SHOWN])
            elements = f"[{shown}{', ...' if self.size > SHOWN else ''}]"
        return f"Axis({elements}{f', {self.name!r}' if self.name else ''})"

    def __str__(self) -> str:
        if self.labels is None:
            return f"{self.name}({self.size})" if self.name else str(self.size)
        shown = ", ".join(str(label) for label in self.labels[:SHOWN])
        return f"{self.name}[{shown}{f', ... {self.size}' if self.size > SHOWN else ''}]"


Space: TypeAlias = tuple[Axis, ...]
"""A product of finite sets, its elements counted with the last factor fastest; () is the one-point set."""


def size_of(space: Space) -> int:
    """How many elements."""
    return math.prod(axis.size for axis in space)


def sizes_of(space: Space) -> tuple[int, ...]:
    """Of each factor."""
    return tuple(axis.size for axis in space)


def spelled(space: Space) -> str:
    """For people."""
    return " ⊗ ".join(map(str, space)) or "⋆"


def element_of(space: Space, i: int) -> str:
    """The label of an element of a product."""
    names = []
    for axis in reversed(space):
        i, own = divmod(i, axis.size)
        names.append(str(axis.label(own)))
    return ", ".join(reversed(names)) or "⋆"


def as_space(name: str, given: Any, size: int | None = None) -> Space:
    """What a user may give for one: a size, an Axis, several of both, or a mapping from names to labels or sizes."""
    space: Space
    if given is None:
        assert size is not None  # for the type checker
        space = (Axis(size),)
    elif isinstance(given, Axis):
        space = (given,)
    elif isinstance(given, (int, np.integer)) and not isinstance(given, bool):
        space = (Axis(int(given)),)
    elif isinstance(given, Mapping):
        space = tuple(Axis(elements, str(key)) for key, elements in given.items())
    elif isinstance(given, (tuple, list)):
        space = tuple(axis for part in given for axis in as_space(name, part))
    else:
        raise DTypeError(
            f"{name}: expected a size, a markovlm.Axis, several of them, or names with their labels, got {given!r}"
        )
    if size is not None and size_of(space) != size:
        raise ShapeError(f"{name}: expected {size} elements, as the matrix has, got {size_of(space)}: {spelled(space)}")
    return space


def axis_positions(name: str, space: Space, wanted: Sequence[int | str]) -> tuple[int, ...]:
    """Positions of factors that are given by name or by number."""
    positions = []
    for one in wanted:
        if isinstance(one, str):
            found = [i for i, axis in enumerate(space) if axis.name == one]
            if len(found) != 1:
                several = f"{len(found)} factors" if found else "none"
                raise ShapeError(f"{name}: expected one factor of the name {one!r}, got {several} in {spelled(space)}")
            positions += found
        elif isinstance(one, (int, np.integer)) and -len(space) <= one < len(space):
            positions.append(int(one) % len(space))
        else:
            raise ShapeError(
                f"{name}: expected names or numbers of the {len(space)} factors of {spelled(space)}, got {one!r}"
            )
    if len(set(positions)) < len(positions):
        raise ShapeError(f"{name}: expected different factors, got {tuple(wanted)!r}")
    return tuple(positions)


def matched(left: Space, right: Space, what: str) -> Space:
    """The space that two kernels meet in, with the names and labels of either; an error where they contradict."""
    total, other = size_of(left), size_of(right)
    if total != other:
        raise ShapeError(
            f"{what}: expected sets of one size, got {total} elements on the left, {spelled(left)}, "
            f"and {other} on the right, {spelled(right)}"
        )
    if sizes_of(left) != sizes_of(right):
        for one, another in ((left, right), (right, left)):
            if all(axis.is_plain for axis in one):
                return another
        raise ShapeError(f"{what}: expected the same factors, got {spelled(left)} and {spelled(right)}")
    return tuple(_merged(a, b, what) for a, b in zip(left, right, strict=True))


def _merged(a: Axis, b: Axis, what: str) -> Axis:
    if a.name and b.name and a.name != b.name:
        raise ShapeError(
            f"{what}: expected one name, got {a.name!r} on the left and {b.name!r} on the right; rename one "
            "with .renamed(domain=...) or .renamed(codomain=...)"
        )
    if a.labels is not None and b.labels is not None and a.labels != b.labels:
        i = next(i for i in range(a.size) if a.labels[i] != b.labels[i])
        raise ShapeError(
            f"{what}: expected the same labels in the same order, got {a} on the left and {b} on the right; they "
            f"differ first at element {i}: {a.labels[i]!r} and {b.labels[i]!r}"
        )
    if a.is_plain or b.is_plain:
        return b if a.is_plain else a
    labels = a.labels if a.labels is not None else b.labels
    return Axis(a.size if labels is None else labels, a.name or b.name)
