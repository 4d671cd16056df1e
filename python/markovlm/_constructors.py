"""Kernels to start from: states, functions, and what only rearranges (theory §1)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress

import numpy as np

from . import _checks
from ._axes import Axis, Space, as_space, size_of
from ._kernels import Kernel, SpaceInput, law_of
from ._rows import Dense, Function, Wiring
from .errors import DTypeError, ShapeError
from .typing import ArrayInput

__all__ = ["coarse_grain", "copy", "deterministic", "discard", "identity", "state", "swap", "uniform"]


def state(p: ArrayInput | Mapping[Hashable, float], codomain: SpaceInput | str | None = None) -> Kernel:
    """A state: a probability vector, as a kernel from the one-point set.

    Parameters
    ----------
    p : probabilities of any shape, or a mapping from labels to probabilities
        An array with several axes is a joint state on as many factors.
    codomain : optional
        The set, as in `Kernel`; the name of the set where ``p`` is a mapping.

    Raises
    ------
    NotStochasticError, ShapeError, DTypeError

    Examples
    --------
    >>> import markovlm as mk
    >>> mk.state({"heads": 0.5, "tails": 0.5}, "coin")
    Kernel(⋆ -> coin[heads, tails], dense)
          heads   tails
      ⋆  0.5000  0.5000
    """
    if isinstance(p, Mapping):
        if codomain is not None and not isinstance(codomain, str):
            raise DTypeError("codomain: expected the name of the set, because p has its labels")
        codomain = Axis(list(p), codomain or "")
        values = np.array(list(p.values()), np.float64)
    else:
        values = _checks.as_numpy("p", p)
        if isinstance(codomain, str):
            codomain = Axis(values.size, codomain)
    law, eps = _checks.stochastic("p", np.reshape(values, -1), ndim=1)
    factors = tuple(Axis(size) for size in values.shape)
    space = as_space("codomain", factors if codomain is None else codomain, law.size)
    return Kernel._of(Dense(law[None, :], eps), (), space)


def uniform(codomain: SpaceInput) -> Kernel:
    """The uniform state.

    Examples
    --------
    >>> import markovlm as mk
    >>> mk.uniform(4).matrix
    array([[0.25, 0.25, 0.25, 0.25]])
    """
    space = as_space("codomain", codomain)
    if size_of(space) == 0:
        raise ShapeError("codomain: expected at least one element, got none")
    return Kernel._of(Dense(law_of("codomain", None, space)[None, :]), (), space)


def deterministic(
    index: ArrayInput, size: int | None = None, domain: SpaceInput | None = None, codomain: SpaceInput | None = None
) -> Kernel:
    """A function, as a kernel: row ``x`` is the point mass at ``index[x]``.

    Parameters
    ----------
    index : array
        ``n`` integers in [0, size).
    size : int, optional
        Of the codomain; without one, and without ``codomain``, the largest index and one.
    domain, codomain : optional
        As in `Kernel`.

    Raises
    ------
    ShapeError, DTypeError, ValueRangeError

    Examples
    --------
    >>> import markovlm as mk
    >>> parity = mk.deterministic([0, 1, 0, 1], 2)
    >>> (mk.state([0.4, 0.3, 0.2, 0.1]) >> parity).matrix
    array([[0.6, 0.4]])
    """
    space = None if codomain is None else as_space("codomain", codomain, size)
    if space is not None:
        size = size_of(space)
    values = _checks.function_index("index", index, size)
    m = size if size is not None else int(values.max(initial=-1)) + 1
    return Kernel._of(Function(values, m), as_space("domain", domain, len(values)), space or (Axis(m),))


def coarse_grain(classes: Sequence[Hashable] | ArrayInput, name: str = "class") -> Kernel:
    """The function that sends every element to its class: tokens to first letters, parts of speech, frequency bands.

    Parameters
    ----------
    classes : sequence of n hashable
        The class of each element.
    name : str
        Of the set of classes, which are sorted where they can be and else come as they come.

    Examples
    --------
    >>> import numpy as np, markovlm as mk
    >>> P = mk.SoftmaxKernel(np.zeros((1, 2)), np.zeros((3, 2)))
    >>> (P >> mk.coarse_grain(["vowel", "consonant", "vowel"])).matrix.round(3)
    array([[0.333, 0.667]])
    """
    given = list(classes.tolist() if isinstance(classes, np.ndarray) else classes)
    labels = list(dict.fromkeys(given))
    with suppress(TypeError):  # of different kinds
        labels.sort()
    number = {label: i for i, label in enumerate(labels)}
    return deterministic(np.fromiter((number[one] for one in given), np.int64, len(given)), codomain={name: labels})


def _rearranging(factors: Sequence[Space], wires: Sequence[int]) -> Kernel:
    """Factor ``i`` of the codomain is factor ``wires[i]`` of the domain, each perhaps a product itself."""
    before = np.cumsum([0, *(len(one) for one in factors)])
    domain = tuple(axis for one in factors for axis in one)
    origins = tuple(int(before[w]) + i for w in wires for i in range(len(factors[w])))
    wiring = Wiring(tuple(size_of(one) for one in factors), tuple(wires))
    return Kernel._of(wiring, domain, tuple(domain[o] for o in origins), origins)


def identity(space: SpaceInput) -> Kernel:
    """The kernel that does nothing.

    Examples
    --------
    >>> import markovlm as mk
    >>> mk.identity(2).matrix
    array([[1., 0.],
           [0., 1.]])
    """
    one = as_space("space", space)
    return _rearranging([one], [0])


def copy(space: SpaceInput) -> Kernel:
    """Copies an element: ``x ↦ (x, x)``. It takes no memory, for a vocabulary either.

    Examples
    --------
    >>> import markovlm as mk
    >>> (mk.state([0.25, 0.75]) >> mk.copy(2)).matrix
    array([[0.25, 0.  , 0.  , 0.75]])
    """
    one = as_space("space", space)
    return _rearranging([one], [0, 0])


def discard(space: SpaceInput) -> Kernel:
    """Forgets: the only kernel to the one-point set.

    Examples
    --------
    >>> import markovlm as mk
    >>> mk.discard(2).matrix
    array([[1.],
           [1.]])
    """
    one = as_space("space", space)
    return _rearranging([one], [])


def swap(first: SpaceInput, second: SpaceInput) -> Kernel:
    """Exchanges two factors: ``(x, x') ↦ (x', x)``.

    Examples
    --------
    >>> import markovlm as mk
    >>> mk.state([[0.1, 0.2, 0.3], [0.4, 0.0, 0.0]]) >> mk.swap(2, 3)
    Kernel(⋆ -> 3 ⊗ 2, dense)
              0       1
      0  0.1000  0.4000
      1  0.2000  0.0000
      2  0.3000  0.0000
    """
    one, two = as_space("first", first), as_space("second", second)
    return _rearranging([one, two], [1, 0])
