"""In which order a chain of kernels is multiplied."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ._products import Work, product
from ._rows import Rows

__all__ = ["compose"]

# What a multiplication and an addition take, and a copied entry, relative to those of sparse matrices: on two threads
# of one CPU 0.02 ns where dense, 0.03 softmax, 1.8 an entry, 5 to 15 sparse. Chains differ by more than that.
_BLAS, _LOOKUP = 0.005, 0.3


@dataclass(frozen=True)
class _Estimate:
    """What a product, made or not, is expected to be."""

    shape: tuple[int, int]
    per_row: float
    formula: float = 0.0  # what making an entry of it costs, where entries are not stored: a softmax kernel's width
    is_function: bool = False

    @classmethod
    def of(cls, rows: Rows) -> _Estimate:
        return cls(rows.shape, rows.per_row, getattr(rows, "width", 0.0), rows.kind == "deterministic")

    def then(self, other: _Estimate) -> tuple[_Estimate, float]:
        """The product, and what it costs."""
        (n, k), m = self.shape, other.shape[1]
        per_row = m * -math.expm1(-self.per_row * other.per_row / m) if m else 0.0
        per_row = max(min(self.per_row, 1.0), per_row)
        is_function = self.is_function and other.is_function
        result = _Estimate((n, m), 1.0 if is_function else per_row, 0.0, is_function)
        if self.is_function:
            return _Estimate((n, m), other.per_row, other.formula, is_function), _LOOKUP * n * (
                1.0 if other.formula else other.per_row
            )
        made = _BLAS * (n * k * self.formula + k * m * other.formula)
        both_full = self.per_row > 0.3 * k and other.per_row > 0.3 * m
        return result, made + (_BLAS if both_full else 1.0) * n * self.per_row * other.per_row + n * per_row


MOST_STAGES = 48  # that are ordered at a time: the search takes the cube of it


def compose(stages: Sequence[Rows], work: Work) -> Rows:
    """Stages one after another, multiplied in the order that is expected to be the cheapest."""
    done = list(stages)
    while len(done) > 1:
        part, done = done[:MOST_STAGES], done[MOST_STAGES:]
        done.insert(0, _in_best_order(part, work))
    return done[0]


def _in_best_order(stages: Sequence[Rows], work: Work) -> Rows:
    count = len(stages)
    best: dict[tuple[int, int], tuple[float, _Estimate, int]] = {
        (i, i): (0.0, _Estimate.of(rows), i) for i, rows in enumerate(stages)
    }
    for length in range(2, count + 1):
        for i in range(count - length + 1):
            j = i + length - 1
            options = []
            for split in range(i, j):
                (left_cost, left, _), (right_cost, right, _) = best[i, split], best[split + 1, j]
                result, cost = left.then(right)
                options.append((left_cost + right_cost + cost, result, split))
            best[i, j] = min(options, key=lambda option: option[0])

    def made(i: int, j: int) -> Rows:
        split = best[i, j][2]
        return stages[i] if i == j else product(made(i, split), made(split + 1, j), work)

    return made(0, count - 1)
