"""How fast is the KL divergence between two softmax kernels, such as two layers or a model and its rounded form?

python bench/divergences.py [--case layers|heads|all] [--rounds 5] [--json FILE] [--strict] [--quick]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch

import markovlm as mk
import models
from harness import Answer, Array, Case, Contender, Row, Target, ask

Pair = tuple[torch.Tensor, torch.Tensor]  # states and head


def eager(hp: torch.Tensor, wp: torch.Tensor, hq: torch.Tensor, wq: torch.Tensor) -> torch.Tensor:
    log_p = torch.log_softmax((hp @ wp.T).float(), dim=-1)
    log_q = torch.log_softmax((hq @ wq.T).float(), dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


compiled = cache(lambda: torch.compile(eager, dynamic=False))


def contenders(dtype: str, p: Pair, q: Pair, rows: Array) -> list[Contender]:
    shared = p[1] is q[1]
    hp, wp, hq, wq = models.as_type(dtype, *p, *q)
    if shared:
        wq = wp
    (n, d), vocabulary = hp.shape, len(wp)
    P, Q = mk.SoftmaxKernel(hp, wp), mk.SoftmaxKernel(hq, wq)
    exact = {"kl": reference(hp, wp, hq, wq, rows)}
    # PyTorch's logits of bfloat16 operands are bfloat16
    rounded = {"kl": 0.5 if dtype == "bfloat16" else 1e-3}

    def entry(name: str, run: Callable[[int | None], Answer], tolerance: Mapping[str, float]) -> Contender:
        return Contender(f"{dtype} {name}", run, "", exact, tolerance, dtype, 4.0 * n * vocabulary * d)

    def ours(D: Sequence[Any]) -> Callable[[int | None], Answer]:
        def run(count: int | None) -> Answer:
            found = mk.softmax_stats(Q[:count], reference=P[:count], divergences=D)
            return {"kl": found.divergences[D[0]]}

        return run

    def in_chunks(function: Callable[..., torch.Tensor], size: int) -> Callable[[int | None], Answer]:
        def run(count: int | None) -> Answer:
            m = count or n
            parts = [function(hp[i : i + size], wp, hq[i : i + size], wq) for i in range(0, m, size)]
            return {"kl": torch.cat(parts).numpy()}

        return run

    exact_enough = {"kl": 1e-4}
    everything = [mk.KL(), mk.TotalVariation(), mk.SquaredHellinger(), mk.ChiSquared(), mk.JensenShannon()]
    return [
        entry("markovlm KL", ours([mk.KL()]), exact_enough),
        entry("markovlm, five divergences", ours(everything), exact_enough),
        *(entry(f"torch eager, {c} rows at a time", in_chunks(eager, c), rounded) for c in (64, 256)),
        *(entry(f"torch.compile, {c} rows at a time", in_chunks(compiled(), c), rounded) for c in (256, 1024)),
    ]


def reference(hp: torch.Tensor, wp: torch.Tensor, hq: torch.Tensor, wq: torch.Tensor, rows: Array) -> Array:
    heads = [models.wide(w).T for w in (wp, wq)]
    found = []
    for row in rows:
        log_p, log_q = (models.log_probabilities(h[row], w) for h, w in zip((hp, hq), heads, strict=True))
        found.append((np.exp(log_p) * (log_p - log_q)).sum())
    return np.array(found)


def judge(table: Sequence[Row], _: Mapping[str, float]) -> list[Target]:
    targets = []
    for dtype in ("float32", "bfloat16"):
        mine = next(row for row in table if row.name == f"{dtype} markovlm KL")
        best = min(row.median for row in table if row.name.startswith(f"{dtype} torch"))
        targets.append(Target(f"{dtype} torch, the best / markovlm", best / mine.median, 3.0, at_least=True))
        if mine.extra_mib is not None:
            targets.append(Target(f"{dtype} extra memory of markovlm, MiB", mine.extra_mib, 64.0, at_least=False))
    return targets


def case(title: str, p: Pair, q: Pair) -> Case:
    (n, d), vocabulary = p[0].shape, len(p[1])
    rows = np.linspace(0, n - 1, min(n, 64)).astype(np.int64)
    names = ("markovlm KL", "torch eager, 256 rows at a time")
    return Case(
        title=f"{title}, n = {n:,}, V = {vocabulary:,}, d = {d:,}, {torch.get_num_threads()} threads",
        contenders=[c for dtype in ("float32", "bfloat16") for c in contenders(dtype, p, q, rows)],
        rows=rows,
        reference={},
        tolerance={},
        judge=judge,
        weigh=[f"{dtype} {name}" for dtype in ("float32", "bfloat16") for name in names],
    )


def smollm2(two_heads: bool) -> Case:
    features = models.smollm2()
    hidden, head, layers = (
        torch.from_numpy(np.array(x)) for x in (features.hidden, features.head, features.layer_hidden)
    )
    if two_heads:  # the head with 5 bits of each weight
        step = head.abs().amax(dim=1, keepdim=True) / 15
        return case("SmolLM2-135M and its head in 5 bits", (hidden, head), (hidden, (head / step).round() * step))
    return case("SmolLM2-135M, its final states and those after layer 27", (hidden, head), (layers[0], head))


def quick() -> Case:
    hidden, head, _ = models.random(256, 3000, 64)
    return case("random", (hidden, head), (hidden + 0.1, head))


CASES: dict[str, Callable[[], Case]] = {
    "layers": partial(smollm2, two_heads=False),
    "heads": partial(smollm2, two_heads=True),
    "quick": quick,
}

if __name__ == "__main__":
    sys.exit(ask(__doc__.splitlines()[0], __file__, CASES))
