"""Markov kernels between finite sets: composition, tensor, marginals, conditionals, Bayesian inverses (theory §1)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from html import escape
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp

from . import _checks
from ._axes import Axis, Space, as_space, axis_positions, matched, size_of, sizes_of, spelled
from ._chain import compose
from ._disintegration import conditional_rows, posterior_rows
from ._products import Work
from ._rows import Dense, Rows, Sparse, Tensor, Wiring
from ._show import html_table, text_table
from .errors import DTypeError, ShapeError
from .typing import ArrayInput, FloatArray, IntArray, Progress

__all__ = ["Kernel", "SpaceInput", "law_of"]

Origins: TypeAlias = "tuple[int | None, ...]"

SpaceInput: TypeAlias = "int | Axis | Sequence[int | Axis] | Mapping[str, int | Sequence[Hashable]]"
"""A finite set: its size, a `markovlm.Axis`, several of both for a product, or names with their labels or sizes."""


class Kernel:
    r"""A Markov kernel :math:`k : X \to Y` between finite sets: row ``x`` is the law of ``y`` given ``x``.

    .. math:: k[x, y] = P(y \mid x) \ge 0, \qquad \textstyle\sum_y k[x, y] = 1

    Parameters
    ----------
    matrix : (n, m) array or SciPy sparse array
        Rows that sum to 1 within the rounding of their type. Dense matrices are kept as float64, sparse ones by rows.
    domain, codomain : optional
        The sets: a size, a `markovlm.Axis`, several for a product (the last factor counts fastest), or a mapping from
        names to labels or sizes. Names and labels survive every operation and have to agree where kernels meet.

    Raises
    ------
    NotStochasticError
        Names the worst row and its sum, or the entry that is negative, NaN or infinite.
    ShapeError, DTypeError

    Notes
    -----
    ``f >> g`` is *f, then g*, :math:`\sum_y f[x, y]\, g[y, z]`; ``f.tensor(g)`` runs both side by side. Composition
    costs nothing until a number is asked for; then a chain is multiplied in the cheapest order, each pair of
    representations (dense, sparse, deterministic, softmax) in its own way.
    Source: theory §1; Perrone, arXiv 2212.11719.

    Examples
    --------
    >>> import markovlm as mk
    >>> rain = mk.state({"dry": 0.8, "wet": 0.2}, "sky")
    >>> look = mk.Kernel([[0.9, 0.1], [0.3, 0.7]], rain.codomain, {"forecast": ["fair", "foul"]})
    >>> (rain >> look).matrix
    array([[0.78, 0.22]])
    >>> look.bayes(rain)
    Kernel(forecast[fair, foul] -> sky[dry, wet], dense)
               dry     wet
      fair  0.9231  0.0769
      foul  0.3636  0.6364
    """

    __slots__ = ("_origins", "_parts", "codomain", "domain")
    __array_priority__ = 1000  # NumPy leaves operators to us

    _parts: tuple[Rows, ...]
    """Representations of a chain, first one first."""
    _origins: Origins
    """Of each factor of the codomain, the factor of the domain that it is a copy of, if it is one: names follow."""

    domain: Space
    codomain: Space

    def __init__(
        self, matrix: ArrayInput, domain: SpaceInput | None = None, codomain: SpaceInput | None = None
    ) -> None:
        rows = _checked_rows("matrix", matrix)
        self._parts = (rows,)
        self.domain = as_space("domain", domain, rows.shape[0])
        self.codomain = as_space("codomain", codomain, rows.shape[1])
        self._origins = (None,) * len(self.codomain)

    @classmethod
    def _of(
        cls, parts: Rows | Sequence[Rows], domain: Space, codomain: Space, origins: Origins | None = None
    ) -> Kernel:
        made = object.__new__(Kernel)
        made._parts = (parts,) if isinstance(parts, Rows) else tuple(parts)
        made.domain, made.codomain = domain, codomain
        made._origins = (None,) * len(codomain) if origins is None else origins
        return made

    # What it is

    @property
    def shape(self) -> tuple[int, int]:
        """``(n, m)``: how many elements it comes from and goes to."""
        return size_of(self.domain), size_of(self.codomain)

    def evaluate(
        self,
        *,
        max_memory: int | None = None,
        num_threads: int | None = None,
        progress: Progress | None = None,
    ) -> Kernel:
        """The same kernel, its chain multiplied out: what asks for numbers does this first. Options as in passes."""
        if len(self._parts) > 1:
            self._parts = (compose(self._parts, Work(max_memory, num_threads, progress)),)
        return self

    @property
    def _rows(self) -> Rows:
        (rows,) = self.evaluate()._parts
        return rows

    @property
    def representation(self) -> str:
        """``"dense"``, ``"sparse"``, ``"deterministic"``, ``"softmax"``, ``"tensor"``, or ``"chain"``: not made yet."""
        return self._parts[0].kind if len(self._parts) == 1 else "chain"

    @property
    def matrix(self) -> FloatArray:
        """All entries, (n, m) float64, formed if need be. Cost ``8 n m`` bytes."""
        return self._rows.dense()

    @property
    def sparse(self) -> sp.csr_array:
        """Positive entries by rows, as SciPy has them."""
        return self._rows.sparse()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> FloatArray:
        """For NumPy: the matrix."""
        return np.array(self.matrix, dtype=dtype, copy=copy)

    def __getitem__(self, rows: Any) -> Kernel:
        """The kernel on some elements of its domain, given by a slice, numbers, or a mask; or its law at a label."""
        if isinstance(rows, str):
            labels = self.domain[0].labels if len(self.domain) == 1 else None
            if labels is None or rows not in labels:
                raise ShapeError(f"rows: expected one of the labels of {spelled(self.domain)}, got {rows!r}")
            return Kernel._of(self._rows.take(np.array([labels.index(rows)])), (), self.codomain)
        index = _checks.row_numbers("rows", rows, self.shape[0])
        return Kernel._of(self._rows.take(index), self._domain_of(index), self.codomain)

    def _domain_of(self, index: IntArray) -> Space:
        """What is left of the domain when some rows are taken; labels where each is taken once at most."""
        if len(self.domain) != 1:
            return (Axis(len(index)),)
        (axis,) = self.domain
        once = axis.labels is not None and len(np.unique(index)) == len(index)
        return (Axis([axis.label(i) for i in index] if once else len(index), axis.name),)

    def is_deterministic(self, tolerance: float = 0.0) -> bool:
        """Whether every row is a point mass, up to ``tolerance`` of its mass; equivalently, whether it can be copied.

        Examples
        --------
        >>> import markovlm as mk
        >>> mk.swap(2, 3).is_deterministic(), mk.uniform(2).is_deterministic()
        (True, False)
        """
        rows = self._rows
        if rows.kind == "deterministic":
            return True
        return all(bool(np.all(block.max(axis=1) >= 1.0 - tolerance)) for _, block in rows.blocks())

    # What can be made of it

    def __rshift__(self, other: Kernel) -> Kernel:
        if not isinstance(other, Kernel):
            return NotImplemented
        middle = matched(self.codomain, other.domain, "f >> g")
        codomain, origins = _names_forwards(other, middle)
        return Kernel._of(
            (*self._parts, *other._parts),
            _names_backwards(self, middle),
            codomain,
            tuple(self._origins[o] if o is not None and len(middle) == len(self._origins) else None for o in origins),
        )

    def tensor(self, *others: Kernel) -> Kernel:
        r"""Independently side by side: :math:`(f \otimes g)[(x, x'), (y, y')] = f[x, y]\, g[x', y']`.

        Examples
        --------
        >>> import markovlm as mk
        >>> mk.uniform(2).tensor(mk.state([0.25, 0.75])).matrix
        array([[0.125, 0.375, 0.125, 0.375]])
        """
        factors: list[Rows] = []
        for one in (self, *others):
            rows = one._rows
            factors += rows.factors if isinstance(rows, Tensor) else [rows]
        domain = tuple(axis for one in (self, *others) for axis in one.domain)
        codomain = tuple(axis for one in (self, *others) for axis in one.codomain)
        origins: Origins = ()
        before = 0
        for one in (self, *others):
            origins += tuple(None if o is None else o + before for o in one._origins)
            before += len(one.domain)
        if all(isinstance(rows, Wiring) for rows in factors):
            return Kernel._of(_one_wiring(factors), domain, codomain, origins)
        return Kernel._of(Tensor(tuple(factors)), domain, codomain, origins)

    def renamed(self, domain: SpaceInput | None = None, codomain: SpaceInput | None = None) -> Kernel:
        """The same kernel with other names, labels, or factors of its sets."""
        n, m = self.shape
        return Kernel._of(
            self._parts,
            self.domain if domain is None else as_space("domain", domain, n),
            self.codomain if codomain is None else as_space("codomain", codomain, m),
        )

    def marginal(self, *kept: int | str) -> Kernel:
        """Discards all factors of the codomain but those given, by name or number, in the order given.

        Examples
        --------
        >>> import markovlm as mk
        >>> mk.state([[0.1, 0.2], [0.3, 0.4]], {"x": 2, "y": 2}).marginal("y").matrix
        array([[0.4, 0.6]])
        """
        positions = axis_positions("marginal", self.codomain, kept)
        kept_space = tuple(self.codomain[i] for i in positions)
        return self >> Kernel._of(Wiring(sizes_of(self.codomain), positions), self.codomain, kept_space, positions)

    def conditional(self, *given: int | str, zero_evidence: ZeroEvidence = "raise") -> Kernel:
        r"""The disintegration of :math:`f : A \to X \otimes Y` on factors X, :math:`f_{|X} : A \otimes X \to Y`.

        .. math:: f[a, (x, y)] = f_X[a, x] \cdot f_{|X}[(a, x), y]

        Parameters
        ----------
        *given : str or int
            Names or numbers of factors of the codomain.
        zero_evidence : "raise", "uniform", or a state on Y
            What the rows get whose condition has probability 0.

        Returns
        -------
        Kernel
            From the domain and the factors given, to the other factors.

        Raises
        ------
        ValueRangeError
            Names the first condition that has probability 0.

        Examples
        --------
        >>> import markovlm as mk
        >>> joint = mk.state([[0.1, 0.3], [0.3, 0.3]], {"x": ["a", "b"], "y": 2})
        >>> joint.conditional("x")
        Kernel(x[a, b] -> y(2), dense)
                  0       1
          a  0.2500  0.7500
          b  0.5000  0.5000
        """
        positions = axis_positions("conditional", self.codomain, given)
        others = tuple(i for i in range(len(self.codomain)) if i not in positions)
        conditions, rest = (tuple(self.codomain[i] for i in places) for places in (positions, others))
        ordered = self.marginal(*positions, *others)._rows
        rows = conditional_rows(
            ordered, size_of(conditions), size_of(rest), _substitute(zero_evidence, rest), (*self.domain, *conditions)
        )
        return Kernel._of(rows, (*self.domain, *conditions), rest)

    def bayes(self, p: Kernel | ArrayInput, zero_evidence: ZeroEvidence = "raise") -> Kernel:
        r"""The Bayesian inverse at a law: :math:`k^\dagger[y, x] = p[x]\, k[x, y] / (p \gg k)[y]`.

        Parameters
        ----------
        p : state or array
            ``n`` probabilities on the domain.
        zero_evidence : "raise", "uniform", or a state on the domain
            What the rows of those y get that never happen.

        Raises
        ------
        ValueRangeError
            Names the first y that never happens.

        Examples
        --------
        >>> import markovlm as mk
        >>> test = mk.Kernel([[0.99, 0.01], [0.1, 0.9]], {"ill": ["no", "yes"]}, {"test": ["-", "+"]})
        >>> test.bayes([0.999, 0.001])
        Kernel(test[-, +] -> ill[no, yes], dense)
                 no     yes
          -  0.9999  0.0001
          +  0.9174  0.0826
        """
        prior = law_of("p", p, self.domain)
        rows = posterior_rows(self._rows, prior, _substitute(zero_evidence, self.domain), self.codomain)
        return Kernel._of(rows, self.codomain, self.domain)

    # How it looks

    def __repr__(self) -> str:
        small = self._is_small(8)  # which makes it
        head = f"Kernel({spelled(self.domain)} -> {spelled(self.codomain)}, {self.representation})"
        return f"{head}\n{text_table(self.matrix, self.domain, self.codomain)}" if small else head

    def _repr_html_(self) -> str:
        small = self._is_small(12)
        title = f"{spelled(self.domain)} → {spelled(self.codomain)}, {self.representation}"
        return html_table(title, self.matrix, self.domain, self.codomain) if small else f"<code>{escape(title)}</code>"

    def _is_small(self, most: int) -> bool:
        """Whether it can be shown, made if that is a trifle."""
        n, m = self.shape
        joint = n == 1 and len(self.codomain) == 2
        if not 0 < n <= most or not 0 < (max(sizes_of(self.codomain)) if joint else m) <= most:
            return False
        if len(self._parts) > 1 and any(part.kind == "softmax" or math.prod(part.shape) > 4096 for part in self._parts):
            return False
        self.evaluate()
        return True


ZeroEvidence: TypeAlias = "str | Kernel | ArrayInput"


def _checked_rows(name: str, matrix: ArrayInput) -> Rows:
    if isinstance(matrix, Kernel):
        return matrix._rows
    if sp.issparse(matrix):
        csr, eps = _checks.stochastic_sparse(name, matrix)
        return Sparse(csr, eps)
    array, eps = _checks.stochastic(name, matrix)
    return Dense(array, eps)


def _names_forwards(k: Kernel, middle: Space) -> tuple[Space, Origins]:
    """The codomain of ``k`` where its domain is called so, and what of it comes from where."""
    if len(middle) == len(k.domain):
        named = zip(k.codomain, k._origins, strict=True)
        return tuple(middle[o] if o is not None and axis.is_plain else axis for axis, o in named), k._origins
    if len(k.domain) == 1:  # of one factor, which the other kernel has several of
        axes: list[Axis] = []
        origins: list[int | None] = []
        for axis, o in zip(k.codomain, k._origins, strict=True):
            axes += middle if o == 0 and axis.is_plain else [axis]
            origins += range(len(middle)) if o == 0 and axis.is_plain else [None]
        return tuple(axes), tuple(origins)
    return k.codomain, (None,) * len(k.codomain)


def _names_backwards(k: Kernel, middle: Space) -> Space:
    """The domain of ``k`` where its codomain is called so."""
    if len(middle) != len(k.codomain):
        return k.domain
    known = {o: axis for o, axis in zip(k._origins, middle, strict=True) if not axis.is_plain}
    return tuple(known.get(i, axis) if axis.is_plain else axis for i, axis in enumerate(k.domain))


def _one_wiring(factors: Sequence[Rows]) -> Wiring:
    sizes: tuple[int, ...] = ()
    wires: tuple[int, ...] = ()
    for part in factors:
        assert isinstance(part, Wiring)  # for the type checker
        wires += tuple(w + len(sizes) for w in part.wires)
        sizes += part.sizes
    return Wiring(sizes, wires)


def law_of(name: str, p: Kernel | ArrayInput | None, space: Space) -> FloatArray:
    """(n,) probabilities on a space: of a state, of an array, or uniform."""
    n = size_of(space)
    if p is None:
        return np.full(n, 1.0 / max(n, 1))
    if isinstance(p, Kernel):
        if p.shape[0] != 1:
            raise ShapeError(f"{name}: expected a state, a kernel from one element, got shape {p.shape}")
        matched(p.codomain, space, name)
        law: FloatArray = p.matrix[0]
        return law
    law, _ = _checks.stochastic(name, p, ndim=1)
    if law.shape != (n,):
        raise ShapeError(f"{name}: expected shape ({n},), a probability for each of {spelled(space)}, got {law.shape}")
    return law


def _substitute(zero_evidence: ZeroEvidence, space: Space) -> FloatArray | None:
    if isinstance(zero_evidence, str):
        if zero_evidence == "raise":
            return None
        if zero_evidence != "uniform":
            raise DTypeError(f'zero_evidence: expected "raise", "uniform" or a state, got {zero_evidence!r}')
        return law_of("zero_evidence", None, space)
    return law_of("zero_evidence", zero_evidence, space)
