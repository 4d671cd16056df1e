"""Checks that what is called a kernel is one, and obeys what every kernel must (theory §1, §2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from . import _checks
from ._auditor import DIVERGENCES, Auditor, Check, Named
from ._axes import Axis, matched
from ._divergences import Divergence, as_divergence
from ._features import Features
from ._kernels import Kernel
from ._rows import Dense
from .errors import AuditError, ShapeError
from .typing import ArrayInput

__all__ = ["Audit", "Check", "audit"]


@dataclass(frozen=True, repr=False)
class Audit:
    """What was checked. True where all of it holds, so that ``assert mk.audit(f, g)`` is a test."""

    checks: tuple[Check, ...]
    skipped: tuple[str, ...] = ()  # what was not checked, and why

    @property
    def failures(self) -> tuple[Check, ...]:
        """What does not hold."""
        return tuple(check for check in self.checks if not check.passed)

    def __bool__(self) -> bool:
        return not self.failures

    def require(self) -> Audit:
        """Itself, or an `AuditError` that lists what does not hold."""
        if self.failures:
            raise AuditError("; ".join(_sentence(check) for check in self.failures))
        return self

    def summary(self) -> tuple[Check, ...]:
        """Of checks with one name the one that is worst next to what rounding allows."""
        worst: dict[str, Check] = {}
        for check in self.checks:
            if (
                check.name not in worst
                or not check.worst / check.allowed <= worst[check.name].worst / worst[check.name].allowed
            ):
                worst[check.name] = check
        return tuple(worst.values())

    def _lines(self) -> list[list[str]]:
        return [
            [
                "ok" if c.passed else "FAILS",
                c.name,
                f"{c.worst:.1e}",
                f"{c.allowed:.1e}",
                f"{c.subject}, {c.where}".strip(", "),
            ]
            for c in self.summary()
        ]

    def __repr__(self) -> str:
        lines = [["", *_COLUMNS], *self._lines()]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        padded = (zip(line, widths, strict=True) for line in lines)
        table = ["  ".join(f"{cell:{width}}" for cell, width in line).rstrip() for line in padded]
        count, failed = len(self.checks), len(self.failures)
        verdict = f"{failed} of {count} checks fail" if failed else f"all {count} checks hold"
        notes = [f"not checked: {one}" for one in self.skipped]
        return "\n".join([f"{verdict}; of each kind the one that came nearest:", *table, *notes])

    def _repr_html_(self) -> str:
        lines = [["", *_COLUMNS], *self._lines()]
        rows = ("".join(f"<td>{escape(cell)}</td>" for cell in line) for line in lines)
        notes = "".join(f"<p>not checked: {escape(one)}</p>" for one in self.skipped)
        return f"<table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>{notes}"


_COLUMNS = ("check", "missed by", "allowed", "worst at")


def _sentence(check: Check) -> str:
    return f"{check.name}, {check.subject}: missed by {check.worst:.3g} ({check.allowed:.1e} is rounding) {check.where}"


def audit(
    *subjects: Kernel | Features | ArrayInput,
    deterministic: Sequence[int] = (),
    divergences: Sequence[Divergence] = DIVERGENCES,
    samples: int = 16,
    seed: int = 0,
) -> Audit:
    r"""Checks kernels, pipelines, or Features for all that must hold: rows, laws, data processing, inequalities.

    Parameters
    ----------
    *subjects : Kernel, Features, or (n, m) array
        Kernels that meet, one's codomain being the next one's domain, are a pipeline, and so are the stages of a chain
        ``f >> g >> h``. Arrays are taken as they are: what is wrong with their rows is a failed check, no error. Of
        Features, the kernels of all layers that were kept.
    deterministic : numbers of subjects
        Those that are claimed to be functions, a chain as a whole.
    divergences : sequence of divergences
        For which data processing, and entropies by their definition, are checked.
    samples : int
        Pairs of random laws, and rows of large kernels, that are tried.
    seed : int
        Where random numbers start.

    Returns
    -------
    Audit
        A table of checks: by how much each was missed at most, what rounding allows, and where.

    Raises
    ------
    DTypeError, ShapeError

    Notes
    -----
    Rounding is that of the type of the entries, ``(64 + 4 √m) ε (1 + value)`` as for sums of rows. Kernels of up to a
    million entries are looked at whole; of larger ones rows are sampled, and what would have to be formed is listed as
    not checked. Source: arXiv 2507.19247, Thm 2.4 (data processing); theory §1, §2.

    Examples
    --------
    >>> import markovlm as mk
    >>> noise = mk.Kernel([[0.9, 0.1], [0.2, 0.8]])
    >>> bool(mk.audit(noise, noise, mk.deterministic([0, 0], 1), deterministic=[2]))
    True
    >>> mk.audit(noise, deterministic=[0]).failures[0].name
    'deterministic, as claimed'
    """
    if not subjects:
        raise ShapeError("audit: expected at least one kernel, got none")
    auditor = Auditor([as_divergence(D) for D in divergences], samples, np.random.default_rng(seed))
    run: list[Named] = []
    for i, subject in enumerate(subjects):
        if isinstance(subject, Features):
            layers = [*subject.layers, subject.num_layers]
            for layer in layers:
                auditor.one(f"layer {layer}", subject.softmax_kernel(layer))
            auditor.chain([(f"layer {layers[-1]}", subject.softmax_kernel())])
            continue
        kernel = subject if isinstance(subject, Kernel) else _unchecked(subject)
        stages = _stages(f"kernel {i}", kernel)
        sound = [auditor.one(name, stage) for name, stage in stages]
        if i in deterministic and all(sound):
            auditor.claim(f"kernel {i}", kernel)
        if run and not (all(sound) and _meet(run[-1][1], stages[0][1])):
            auditor.chain(run)
            run = []
        if all(sound):
            run += stages
    if run:
        auditor.chain(run)
    return Audit(tuple(auditor.checks), tuple(auditor.skipped))


def _unchecked(matrix: ArrayInput) -> Kernel:
    array = np.array(_checks.as_numpy("audit", matrix), np.float64)
    _checks.require_ndim("audit", array, 2, "(n, m)")
    return Kernel._of(Dense(array), (Axis(array.shape[0]),), (Axis(array.shape[1]),))


def _stages(name: str, k: Kernel) -> list[Named]:
    """The stages of a chain that was not multiplied out; a kernel for itself."""
    if len(k._parts) == 1:
        return [(name, k)]
    spaces = [(Axis(part.shape[0]), Axis(part.shape[1])) for part in k._parts]
    return [
        (f"{name}, stage {j}", Kernel._of(part, (domain,), (codomain,)))
        for j, (part, (domain, codomain)) in enumerate(zip(k._parts, spaces, strict=True))
    ]


def _meet(f: Kernel, g: Kernel) -> bool:
    try:
        matched(f.codomain, g.domain, "")
    except ShapeError:
        return False
    return True
