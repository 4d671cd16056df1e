"""How fast are entropy and loss of every context, next to all public ways and to the bare matrix product?

python bench/softmax_stats.py [--case smollm2|large|all] [--rounds 5] [--json FILE] [--strict] [--quick]
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

import markovlm as mk
import models
from harness import Answer, Array, Case, Contender, Row, Target, ask

# Nats. Where logits are not rounded: far above float32 rounding of either side, far below any real mistake. PyTorch
# rounds logits of bfloat16 operands to bfloat16.
TOLERANCE, ROUNDED = {"entropy": 1e-3, "nll": 1e-3}, {"entropy": 0.5, "nll": 0.5}
MOST_BYTES = 10e9  # a contender that needs more than this beyond its inputs is not run


def eager(h: torch.Tensor, w: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    log_p = torch.log_softmax((h @ w.T).float(), dim=-1)
    return -(log_p.exp() * log_p).sum(-1), -log_p.gather(1, t[:, None])[:, 0]


def unwidened(h: torch.Tensor, w: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    log_p = torch.log_softmax(h @ w.T, dim=-1)
    return -(log_p.exp() * log_p).sum(-1), -log_p.gather(1, t[:, None])[:, 0]


compiled = cache(lambda: torch.compile(eager, dynamic=False))


def in_chunks(function: Callable[..., Any], size: int, H: torch.Tensor, W: torch.Tensor, T: torch.Tensor) -> Any:
    def run(rows: int | None) -> Answer:
        h, t = H[:rows], T[:rows]
        parts = [function(h[i : i + size], W, t[i : i + size]) for i in range(0, len(h), size)]
        entropy, nll = (torch.cat(part).float().numpy() for part in zip(*parts, strict=True))
        return {"entropy": entropy, "nll": nll}

    return run


def product(size: int, H: torch.Tensor, W: torch.Tensor) -> Callable[[int | None], Answer]:
    def run(rows: int | None) -> Answer:
        h = H[:rows]
        out = torch.empty(min(size, len(h)), len(W), dtype=H.dtype)
        for i in range(0, len(h), size):
            part = h[i : i + size]
            torch.mm(part, W.T, out=out[: len(part)])
        return {}

    return run


def numpy_product(H: torch.Tensor, W: torch.Tensor) -> Callable[[int | None], Answer]:
    hidden, head = H.numpy(), W.numpy()

    def run(rows: int | None) -> Answer:
        h = hidden[:rows]
        out = np.empty((min(512, len(h)), len(head)), np.float32)
        for i in range(0, len(h), 512):
            part = h[i : i + 512]
            np.matmul(part, head.T, out=out[: len(part)])
        return {}

    return run


def fused_loss(H: torch.Tensor, W: torch.Tensor, T: torch.Tensor) -> Callable[[int | None], Answer]:
    # Without its chunking options, which compute gradients as well and only save memory by it.
    def run(rows: int | None) -> Answer:
        loss = torch.nn.functional.linear_cross_entropy(H[:rows], W, T[:rows], reduction="none")
        return {"nll": loss.float().numpy()}

    return run


def cut_cross_entropy(H: torch.Tensor, W: torch.Tensor, T: torch.Tensor) -> Callable[[int | None], Answer]:
    from cut_cross_entropy import linear_cross_entropy

    def run(rows: int | None) -> Answer:
        loss = linear_cross_entropy(H[:rows], W, T[:rows], impl="torch_compile", reduction="none")
        return {"nll": loss.float().numpy()}

    return run


def contenders(dtype: str, hidden: torch.Tensor, head: torch.Tensor, targets: Array, rows: Array) -> list[Contender]:
    H, W = models.as_type(dtype, hidden, head)
    T = torch.from_numpy(targets)
    (n, d), vocabulary = H.shape, len(W)
    P = mk.SoftmaxKernel(H, W)
    exact = reference(H, W, targets, rows)

    def entry(name: str, run: Callable[[int | None], Answer], note: str = "", rounded: bool = True) -> Contender:
        tolerance = ROUNDED if rounded and dtype == "bfloat16" else TOLERANCE
        return Contender(f"{dtype} {name}", run, note, exact, tolerance, dtype, 2.0 * n * vocabulary * d)

    def ours(**more: Any) -> Callable[[int | None], Answer]:
        def run(rows: int | None) -> Answer:
            s = mk.softmax_stats(P[:rows], targets[:rows], **more)
            return {"entropy": s.entropy, "nll": np.asarray(s.nll)}

        return run

    found = [
        entry("markovlm", ours(), rounded=False),
        entry("markovlm + 2 Rényi orders + top 5", ours(orders=[0.5, 2.0], top_k=5), rounded=False),
        entry("markovlm + mean prediction", ours(mean=True), rounded=False),
        *(entry(f"torch eager, {c} rows at a time", in_chunks(eager, c, H, W, T)) for c in (64, 256, 1024)),
        *(entry(f"torch.compile, {c} rows at a time", in_chunks(compiled(), c, H, W, T)) for c in (256, 1024)),
        entry("torch mm, 512 rows at a time", product(512, H, W), "the product alone"),
    ]
    if dtype == "float32":
        found.append(entry("numpy matmul, 512 rows at a time", numpy_product(H, W), "the product alone"))
    else:
        found.append(entry("torch eager, not widened, 256 rows at a time", in_chunks(unwidened, 256, H, W, T)))
    if 4.0 * n * vocabulary * 4 < MOST_BYTES:  # logits, log-probabilities, probabilities, their product
        found.append(entry("torch eager, whole", in_chunks(eager, n, H, W, T)))
        found.append(entry("torch mm, whole", product(n, H, W), "the product alone"))
        if hasattr(torch.nn.functional, "linear_cross_entropy"):
            found.append(entry("torch linear_cross_entropy", fused_loss(H, W, T), "no entropy"))
        if importlib.util.find_spec("cut_cross_entropy"):
            found.append(entry("cut-cross-entropy, by torch.compile", cut_cross_entropy(H, W, T), "no entropy"))
    return found


def reference(H: torch.Tensor, W: torch.Tensor, targets: Array, rows: Array) -> Answer:
    """Entropy and loss of some rows by their definitions in float64."""
    entropy, nll = [], []
    head = models.wide(W).T
    for row in rows:
        log_p = models.log_probabilities(H[row], head)
        entropy.append(-(np.exp(log_p) * log_p).sum())
        nll.append(-log_p[targets[row]])
    return {"entropy": np.array(entropy), "nll": np.array(nll)}


def judge(table: Sequence[Row], peaks: Mapping[str, float]) -> list[Target]:
    """The targets of this question."""
    amx = mk.build_info()["isa"] == "amx"

    def best(*beginnings: str) -> float:
        return min(row.median for row in table if row.name.startswith(beginnings))

    mine = {dtype: next(row for row in table if row.name == f"{dtype} markovlm") for dtype in ("float32", "bfloat16")}
    at_least, at_most = {"at_least": True}, {"at_least": False}
    targets = []
    for dtype, row in mine.items():
        eager_bound, compiled_bound = (2.0, 1.3) if dtype == "float32" else (10.0, 10.0) if amx else (1.8, 1.8)
        product_bound = 0.7 if amx and dtype == "float32" else 1.0
        ratios = (
            ("torch eager, the best / markovlm", best(f"{dtype} torch eager") / row.median, eager_bound, at_least),
            ("torch.compile, the best / markovlm", best(f"{dtype} torch.comp") / row.median, compiled_bound, at_least),
            ("markovlm / torch's bare product", row.median / best(f"{dtype} torch mm"), product_bound, at_most),
        )
        targets += [Target(f"{dtype} {name}", ratio, bound, **which) for name, ratio, bound, which in ratios]
        if row.extra_mib is not None:
            targets.append(Target(f"{dtype} extra memory of markovlm, MiB", row.extra_mib, 64.0, at_least=False))
        allowed = 1e-5 if dtype == "float32" else 1e-4
        targets.append(
            Target(f"{dtype} largest error / {allowed:g} nats", max(row.errors.values()) / allowed, 1, False)
        )
    if "bfloat16" in peaks:
        share = mine["bfloat16"].gflops / peaks["bfloat16"]
        targets.append(Target("bfloat16 share of the CPU's peak", share, 0.25, at_least=True))
    return targets


def case(title: str, hidden: torch.Tensor, head: torch.Tensor, targets: Array, rounds: int | None = None) -> Case:
    (n, d), vocabulary = hidden.shape, len(head)
    rows = np.linspace(0, n - 1, min(n, 64)).astype(np.int64)
    both = [c for dtype in ("float32", "bfloat16") for c in contenders(dtype, hidden, head, targets, rows)]
    weighed = ("markovlm", "torch eager, 256 rows at a time", "torch.compile, 256 rows at a time")
    return Case(
        title=f"{title}, n = {n:,}, V = {vocabulary:,}, d = {d:,}, {torch.get_num_threads()} threads",
        contenders=both,
        rows=rows,
        reference={},
        tolerance={},
        judge=judge,
        weigh=[f"{dtype} {name}" for dtype in ("float32", "bfloat16") for name in weighed],
        rounds=rounds,
    )


def smollm2() -> Case:
    features = models.smollm2()
    hidden, head = (torch.from_numpy(np.array(x)) for x in (features.hidden, features.head))
    return case("SmolLM2-135M", hidden, head, np.array(features.targets))


CASES: dict[str, Callable[[], Case]] = {
    "smollm2": smollm2,
    "large": lambda: case("random", *models.random(4096, 256_000, 1024), rounds=1),
    "quick": lambda: case("random", *models.random(256, 3000, 64)),
}

if __name__ == "__main__":
    sys.exit(ask(__doc__.splitlines()[0], __file__, CASES))
