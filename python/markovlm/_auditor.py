"""The checks that an audit makes: each says by how much what must hold was missed, and where."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np

from ._axes import Axis
from ._constructors import copy, state
from ._divergences import (
    KL,
    ChiSquared,
    Divergence,
    JensenShannon,
    Renyi,
    SquaredHellinger,
    TotalVariation,
)
from ._information import joint, state_prediction_information
from ._kernels import Kernel
from ._panels import panel_product
from ._rows import Dense, Rows, Tensor
from ._rowwise import categorical_entropies, divergences, supremum_categorical_entropy
from ._softmax import softmax_of
from .typing import FloatArray, IntArray

__all__ = ["DIVERGENCES", "Auditor", "Check", "Named"]

DIVERGENCES: tuple[Divergence, ...] = (
    KL(),
    TotalVariation(),
    SquaredHellinger(),
    ChiSquared(),
    JensenShannon(),
    Renyi(0.5),
    Renyi(2.0),
)
FORMED = 2**20  # entries of a kernel up to which laws that form it are checked on the whole of it
UNDERFLOW = -650.0  # logarithm of an entry that is near the smallest number
SAMPLED = 2**22  # entries of the rows that are looked at in a larger one


@dataclass(frozen=True)
class Check:
    """One thing that must hold: ``worst`` is by how much it was missed at most, which has to be within ``allowed``."""

    name: str
    subject: str
    worst: float
    allowed: float
    where: str = ""

    @property
    def passed(self) -> bool:
        """Whether it holds."""
        return self.worst <= self.allowed  # NaN does not


Named: TypeAlias = tuple[str, Kernel]
Places: TypeAlias = Callable[[int], str]
_SMALLEST = float(np.finfo(np.float64).smallest_subnormal)


def _plain(k: Kernel) -> Kernel:
    return k.renamed(k.shape[0], k.shape[1])


def _finite(values: FloatArray) -> FloatArray:
    return np.where(np.isfinite(values), values, 0.0)


def _log_of_smallest(rows: Rows) -> float:
    """Of the positive entries: a categorical entropy, of which those of independent factors add up."""
    if isinstance(rows, Tensor):
        return sum(map(_log_of_smallest, rows.factors))
    n, m = rows.shape
    return -supremum_categorical_entropy(Kernel._of(rows, (Axis(n),), (Axis(m),)), Renyi(math.inf))


def _at(D: Divergence, place: Places) -> Places:
    return lambda i: f"{place(i)}, {D}"


def _excess(small: FloatArray, large: FloatArray) -> FloatArray:
    """By how much what should be smaller is larger; nothing exceeds what is infinite."""
    return np.where(np.isinf(large), -np.inf, small - np.where(np.isinf(large), 0.0, large))


class Auditor:
    """Collects checks; every number comes from the public operations that users call."""

    def __init__(self, wanted: Sequence[Divergence], samples: int, rng: np.random.Generator) -> None:
        self.wanted, self.samples, self.rng = wanted, samples, rng
        self.checks: list[Check] = []
        self.skipped: list[str] = []

    def add(self, name: str, subject: str, missed: FloatArray, allowed: FloatArray | float, where: Places) -> bool:
        """One check of many places: what counts is the one that is worst next to what rounding allows."""
        if not missed.size:
            return True
        limits = np.broadcast_to(allowed, missed.shape)
        with np.errstate(over="ignore"):
            worst = int(np.argmax(np.nan_to_num(missed / limits, nan=np.inf)))
        self.checks.append(Check(name, subject, float(missed[worst]) + 0.0, float(limits[worst]), where(worst)))
        return self.checks[-1].passed

    def one(self, subject: str, k: Kernel) -> bool:
        """A kernel for itself; whether its rows are laws, without which nothing else is worth a look."""
        rows, part = self.sampled(k)
        rounding = k._rows.rounding

        def row(i: int) -> str:
            return f"row {rows[i]}"

        csr = part.sparse  # of as many columns as there are: a copied vocabulary is wide
        least = np.array([csr.data[a:b].min(initial=0.0) for a, b in pairwise(csr.indptr)])
        sound = self.add("entries ≥ 0", subject, np.nan_to_num(-least, nan=np.inf), _SMALLEST, row)
        softmax = softmax_of(part)
        if softmax is None:
            sums = np.asarray(csr.sum(axis=1))
        else:  # as a pass makes them: those above were divided by their sum just now
            sums = panel_product(softmax, np.ones((k.shape[1], 1)))[:, 0]
        if not self.add("rows sum to 1", subject, np.abs(sums - 1), rounding, row) or not sound:
            return False
        entropies = categorical_entropies(part, self.wanted)
        if k.shape[1] <= 64:
            matrix = part.matrix
            squares = np.where(matrix > 0, matrix, 1.0).min(axis=1) > 1e-150  # of smaller entries they underflow
            few = np.flatnonzero(squares)[: self.samples]
            some = part[few]
            copied, twice = some >> copy(k.shape[1]), copy(len(few)) >> some.tensor(some)
            for D, defined in divergences(_plain(copied), _plain(twice), self.wanted).items():
                closed = entropies[D][few]
                off = np.where(closed == defined, 0.0, np.abs(closed - _finite(defined)))
                allowed = rounding * (1 + _finite(defined))
                self.add("entropy = D(copied ‖ run twice)", subject, off, allowed, _at(D, lambda i: row(int(few[i]))))
        most = np.log(np.diff(csr.indptr))
        shannon = categorical_entropies(part, [KL()])[KL()]
        self.add("entropy ≤ log of the support", subject, shannon - most, rounding * (1 + most), row)
        self.inequalities(subject, part, rows)
        self.laws(subject, k)
        return True

    def claim(self, subject: str, k: Kernel) -> None:
        """That a kernel, made of however many stages, is a function."""
        spread = categorical_entropies(k, [TotalVariation()])[TotalVariation()]
        self.add("deterministic, as claimed", subject, spread, k._rows.rounding, lambda i: f"row {i}")

    def sampled(self, k: Kernel) -> tuple[IntArray, Kernel]:
        """Rows to look at: all of a small kernel, some of a large one."""
        n, m = k.shape
        count = n if n * m <= FORMED else int(np.clip(SAMPLED // max(m, 1), 2, min(n, max(self.samples, 2))))
        rows = np.arange(n) if count >= n else np.unique(self.rng.integers(0, n, count))
        return rows, k if count >= n else k[rows]

    def inequalities(self, subject: str, part: Kernel, rows: IntArray) -> None:
        """Between pairs of rows, as far as the literature has them for any two laws."""
        n = len(rows)
        if n < 2:
            return
        first = self.rng.integers(0, n, 4 * self.samples)
        second = (first + self.rng.integers(1, n, 4 * self.samples)) % n  # another one
        p, q = part[first], part[second]
        kl, tv, h2, chi2, js, half, double = divergences(p, q, DIVERGENCES).values()
        rounding = part._rows.rounding

        def pair(i: int) -> str:
            return f"rows {rows[first[i]]} and {rows[second[i]]}"

        for name, small, large in (
            ("Pinsker: TV² ≤ KL / 2", tv**2, kl / 2),
            ("H² ≤ KL / 2", h2, kl / 2),
            ("H² ≤ TV", h2, tv),
            ("TV² ≤ H² (2 − H²)", tv**2, h2 * (2 - h2)),
            ("JS ≤ TV log 2", js, tv * math.log(2)),
            ("KL ≤ log(1 + χ²)", kl, np.log1p(chi2)),
            ("Rényi ½ ≤ KL", half, kl),
            ("KL ≤ Rényi 2", kl, double),
        ):
            self.add(name, subject, _excess(small, large), rounding * (1 + _finite(small)), pair)

    def laws(self, subject: str, k: Kernel) -> None:
        """Bayes twice, and the disintegration of the joint."""
        n, m = k.shape
        if n * m > FORMED or n * m == 0:
            self.skipped.append(f"{subject}: Bayesian inverse and disintegration, which form {n} × {m} entries")
            return
        law = self.rng.dirichlet(np.ones(n))
        rounding = k._rows.rounding
        back = k.bayes(law, zero_evidence="uniform")
        twice = back.bayes((state(law, k.domain) >> k).matrix[0], zero_evidence="uniform")
        differences = np.abs(twice.matrix - k.matrix).sum(axis=1) / 2
        self.add("bayes(bayes(k)) = k", subject, differences[law > 0], rounding, lambda i: f"row {i}")
        both = joint(law, k).renamed(codomain=(n, m))
        rest = both.conditional(0, zero_evidence="uniform")
        again = joint(both.marginal(0).renamed(codomain=n), rest.renamed(domain=n))
        off = np.abs(again.matrix - both.matrix)
        self.add("disintegration recomposes", subject, off.sum(axis=1) / 2, rounding, lambda i: "")

    # Kernels one after another

    def chain(self, run: Sequence[Named]) -> None:
        """Data processing along a pipeline, and that it does not matter in which order it is multiplied."""
        n = run[0][1].shape[0]
        if n == 0:
            return
        if n > FORMED:
            self.skipped.append(f"{run[0][0]} …: data processing, for which laws on {n} elements would be drawn")
            return
        p, q = self.laws_on(n), self.laws_on(n)[::-1]
        left, right = (Kernel._of(Dense(x), (Axis(len(x)),), run[0][1].domain) for x in (p, q))
        before = divergences(left, right, self.wanted)
        rounding, names = 0.0, list[str]()
        smallest = _log_of_smallest(left._rows) + _log_of_smallest(right._rows)
        for name, k in run:
            left, right = (left >> k).evaluate(), (right >> k).evaluate()
            rounding, names = max(rounding, k._rows.rounding), [*names, name]
            after = divergences(left, right, self.wanted)
            smallest += _log_of_smallest(k._rows)
            if smallest < UNDERFLOW:  # then entries may vanish that should not, and take a support with them
                after = {D: np.where(np.isinf(values), before[D], values) for D, values in after.items()}
            for D in self.wanted:
                self.add(
                    "data processing",
                    name,
                    _excess(after[D], before[D]),
                    rounding * (1 + _finite(before[D])),
                    _at(D, lambda i: f"pair of laws {i}"),
                )
            before = after
        if len(run) > 1:
            whole = run[0][1]
            for _, k in run[1:]:
                whole = whole >> k
            entries = max(run[0][1].shape[0] * k.shape[1] for _, k in run)
            subject = f"{names[0]} … {names[-1]}"
            if entries > FORMED:
                self.skipped.append(f"{subject}: (p >> f) >> g = p >> (f >> g), which forms f >> g")
                return
            start = Kernel._of(Dense(p), (Axis(len(p)),), run[0][1].domain)
            difference = np.abs((start >> whole.evaluate()).matrix - left.matrix).sum(axis=1) / 2
            self.add("(p >> f) >> g = p >> (f >> g)", subject, difference, rounding, lambda i: f"law {i}")
            self.information(subject, run, rounding)

    def information(self, subject: str, run: Sequence[Named], rounding: float) -> None:
        """What later stages know of the first input only falls."""
        known, whole = [], None
        for _, k in run:
            whole = k if whole is None else whole >> k
            known.append(state_prediction_information(whole))
        values = np.array(known)
        self.add(
            "information about the input falls",
            subject,
            np.diff(values),
            rounding * (1 + values[:-1]),
            lambda i: f"after stage {i + 1}",
        )

    def laws_on(self, n: int) -> FloatArray:
        """Random laws, spread out and concentrated, and point masses: (samples, n)."""
        made = []
        for i in range(self.samples):
            drawn = self.rng.gamma((1.0, 0.1, 1.0, 0.01)[i % 4], size=n)
            drawn[self.rng.integers(n)] += 1e-3  # small ones may all be 0
            made.append(drawn / drawn.sum() if i % 5 else np.eye(1, n, int(self.rng.integers(n)))[0])
        return np.array(made)
