"""How do time and memory of the pass grow with contexts, vocabulary and width?

python bench/scaling.py [--case V|n|d|all] [--rounds 5] [--json FILE] [--strict] [--quick]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np

import markovlm as mk
import models
from harness import Answer, Array, Case, Contender, Row, Target, ask
from softmax_stats import TOLERANCE, reference

SIZES = {
    "V": [(2048, V, 576) for V in (8192, 49_152, 128_000, 256_000)],
    "n": [(n, 49_152, 576) for n in (256, 1024, 4096, 32_768)],
    "d": [(2048, 49_152, d) for d in (64, 256, 576, 1024, 4096)],
    "quick": [(64, 1000, 16), (256, 1000, 16)],
}
LETTERS = ("n", "V", "d")


def contender(dtype: str, letter: str, size: tuple[int, int, int], rows: Array) -> Contender:
    n, V, d = size
    H, W = models.as_type(dtype, *models.random(n, V, d)[:2])
    targets = np.zeros(n, np.int64)
    P = mk.SoftmaxKernel(H, W)

    def run(count: int | None) -> Answer:
        s = mk.softmax_stats(P[:count], targets[:count])
        return {"entropy": s.entropy, "nll": np.asarray(s.nll)}

    exact = reference(H, W, targets, rows)
    name = f"{dtype} {letter} = {dict(zip(LETTERS, size, strict=True))[letter]:,}"
    return Contender(name, run, "", exact, TOLERANCE, dtype, 2.0 * n * V * d)


def case(which: str) -> Case:
    sizes = SIZES[which]
    letter = "n" if which == "quick" else which
    rows = np.arange(8)
    found = [contender(dtype, letter, size, rows) for dtype in ("float32", "bfloat16") for size in sizes]

    def judge(table: Sequence[Row], _: Mapping[str, float]) -> list[Target]:
        targets = []
        for dtype in ("float32", "bfloat16"):
            mine = [row for row in table if row.dtype == dtype]
            rates = [row.gflops for row in mine]
            memory = [row.extra_mib for row in mine if row.extra_mib is not None]
            if letter != "d":
                targets.append(
                    Target(f"{dtype}: fastest / slowest rate", max(rates) / min(rates), 1.15, at_least=False)
                )
            if memory:
                targets.append(Target(f"{dtype}: most extra memory, MiB", max(memory), 64.0, at_least=False))
        return targets

    fixed = ", ".join(f"{name} = {sizes[0][i]:,}" for i, name in enumerate(LETTERS) if name != letter)
    return Case(
        title=f"random, {fixed}",
        contenders=found,
        rows=rows,
        reference={},
        tolerance={},
        judge=judge,
        weigh=[c.name for c in found],
        rounds=3,
    )


def cases(names: Iterable[str]) -> dict[str, Callable[[], Case]]:
    return {name: partial(case, name) for name in names}


if __name__ == "__main__":
    sys.exit(ask(__doc__.splitlines()[0], __file__, cases(SIZES)))
