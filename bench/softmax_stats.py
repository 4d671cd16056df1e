"""How fast are entropy and loss of every context, next to what PyTorch offers and to the bare matrix product?

python bench/softmax_stats.py [--case smollm2|random|large|all] [--rounds 7] [--json FILE] [--strict] [--quick]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import markovlm as mk
from harness import (
    Answer,
    Contender,
    Row,
    Target,
    compare,
    extra_memory_in_a_process,
    measure_extra_memory,
    record,
    refuse_debug_build,
    show,
)

RESULTS = Path(__file__).parent / "results"
SHAPES = {"random": (4096, 49_152, 576), "large": (4096, 256_000, 1024), "quick": (256, 3000, 64)}
# Nats. Far above float32 rounding of either side, far below any real mistake.
TOLERANCE = {"entropy": 1e-3, "nll": 1e-3}
MOST_BYTES = 10e9  # a contender that needs more than this beyond its inputs is not run
Arrays = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]


def inputs(case: str) -> Arrays:
    """States (n, d), head (V, d) in float32, and targets (n,)."""
    if case == "smollm2":
        return _smollm2()
    n, vocabulary, d = SHAPES[case]
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((n, d), dtype=np.float32)
    head = rng.standard_normal((vocabulary, d), dtype=np.float32) * np.float32(3 / np.sqrt(d))  # logits of std 3
    return hidden, head, rng.integers(0, vocabulary, n)


def _smollm2() -> Arrays:
    """Real states: SmolLM2-135M on the standard library's docstrings, kept between runs."""
    path = RESULTS / "smollm2-features.safetensors"
    if not path.exists():
        from markovlm._sample_text import standard_library_docstrings

        texts, names = standard_library_docstrings(8 * 4096)
        features = mk.extract("smollm2-135m", texts=texts, text_names=names, layers=None, max_tokens=4096)
        path.parent.mkdir(parents=True, exist_ok=True)
        features.save(path)
    features = mk.Features.load(path)
    return np.array(features.hidden), np.array(features.head), np.array(features.targets)


def eager(h: torch.Tensor, w: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    log_p = torch.log_softmax(h @ w.T, dim=-1)
    return -(log_p.exp() * log_p).sum(-1), -log_p.gather(1, t[:, None])[:, 0]


compiled = cache(lambda: torch.compile(eager, dynamic=False))


def contenders(case: str, arrays: Arrays) -> list[Contender]:
    hidden, head, targets = arrays
    n, vocabulary = len(hidden), len(head)
    H, W, T = map(torch.from_numpy, arrays)
    P = mk.SoftmaxKernel(hidden, head)

    def ours(**more: Any) -> Callable[[int | None], Answer]:
        def run(rows: int | None) -> Answer:
            s = mk.softmax_stats(P[:rows], targets[:rows], **more)
            return {"entropy": s.entropy, "nll": np.asarray(s.nll)}

        return run

    def in_chunks(function: Callable[..., Any], size: int) -> Callable[[int | None], Answer]:
        def run(rows: int | None) -> Answer:
            h, t = H[:rows], T[:rows]
            parts = [function(h[i : i + size], W, t[i : i + size]) for i in range(0, len(h), size)]
            entropy, nll = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
            return {"entropy": entropy, "nll": nll}

        return run

    def fused_loss(rows: int | None) -> Answer:
        # Without its chunking options, which compute gradients as well and only save memory by it.
        return {"nll": torch.nn.functional.linear_cross_entropy(H[:rows], W, T[:rows], reduction="none").numpy()}

    def torch_product(size: int) -> Callable[[int | None], Answer]:
        def run(rows: int | None) -> Answer:
            h = H[:rows]
            out = torch.empty(min(size, len(h)), vocabulary)
            for i in range(0, len(h), size):
                part = h[i : i + size]
                torch.mm(part, W.T, out=out[: len(part)])
            return {}

        return run

    def numpy_product(rows: int | None) -> Answer:
        h = hidden[:rows]
        out = np.empty((min(512, len(h)), vocabulary), np.float32)
        for i in range(0, len(h), 512):
            part = h[i : i + 512]
            np.matmul(part, head.T, out=out[: len(part)])
        return {}

    found = [
        Contender("markovlm", ours()),
        Contender("markovlm + 2 Rényi orders + top 5", ours(orders=[0.5, 2.0], top_k=5)),
        Contender("markovlm + mean prediction", ours(mean=True)),
        *(Contender(f"torch eager, {c} rows at a time", in_chunks(eager, c)) for c in (64, 256, 1024)),
        *(Contender(f"torch.compile, {c} rows at a time", in_chunks(compiled(), c)) for c in (256, 1024)),
        Contender("torch mm, 512 rows at a time", torch_product(512), "the product alone"),
        Contender("numpy matmul, 512 rows at a time", numpy_product, "the product alone"),
    ]
    if 4.0 * n * vocabulary * 4 < MOST_BYTES:  # logits, log-probabilities, probabilities, their product
        found.append(Contender("torch eager, whole", in_chunks(eager, n)))
        found.append(Contender("torch mm, whole", torch_product(n), "the product alone"))
        if hasattr(torch.nn.functional, "linear_cross_entropy"):
            found.append(Contender("torch linear_cross_entropy", fused_loss, "no entropy"))
    return found


def reference(arrays: Arrays, rows: np.ndarray[Any, Any]) -> Answer:
    """Entropy and loss of some rows by their definitions in float64."""
    hidden, head, targets = arrays
    entropy, nll = [], []
    wide = head.astype(np.float64).T
    for row in rows:
        z = hidden[row].astype(np.float64) @ wide
        z -= z.max()
        log_p = z - np.log(np.exp(z).sum())
        entropy.append(-(np.exp(log_p) * log_p).sum())
        nll.append(-log_p[targets[row]])
    return {"entropy": np.array(entropy), "nll": np.array(nll)}


def judge(table: list[Row]) -> list[Target]:
    """The targets of this question, as ratios of medians of one run."""

    def best(*beginnings: str) -> float:
        return min(row.median for row in table if row.name.startswith(beginnings))

    mine = next(row for row in table if row.name == "markovlm")
    targets = [
        Target("torch eager, the best / markovlm", best("torch eager") / mine.median, 1.8, at_least=True),
        Target("torch.compile, the best / markovlm", best("torch.compile") / mine.median, 1.2, at_least=True),
        Target("markovlm / torch's bare product, the best", mine.median / best("torch mm"), 1.15, at_least=False),
        Target(
            "markovlm / the best bare product at hand", mine.median / best("torch mm", "numpy"), 1.15, at_least=False
        ),
    ]
    if mine.extra_mib is not None:
        targets.append(Target("extra memory of markovlm, MiB", mine.extra_mib, 64.0, at_least=False))
    return targets


def say(what: str) -> None:
    """Where the work stands, on one line."""
    if sys.stderr.isatty():
        print(f"\r{what:<60}", end="\r", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=["smollm2", "random", "large", "quick", "all"], default="all")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, default=RESULTS / "softmax_stats.json")
    parser.add_argument("--strict", action="store_true", help="exit with 1 where a target is missed")
    parser.add_argument("--quick", action="store_true", help="a tiny case, two rounds: does everything still run?")
    parser.add_argument("--memory", nargs=2, metavar=("CASE", "CONTENDER"), help="used by the program itself")
    given = parser.parse_args()
    refuse_debug_build()
    if given.memory:
        case, name = given.memory
        (contender,) = [c for c in contenders(case, inputs(case)) if c.name == name]
        print(measure_extra_memory(contender, 64))
        return 0

    cases = ["quick"] if given.quick else ["smollm2", "random", "large"] if given.case == "all" else [given.case]
    rounds = 2 if given.quick else given.rounds
    done: dict[str, tuple[list[Row], list[Target]]] = {}
    for case in cases:
        arrays = inputs(case)
        (n, d), vocabulary = arrays[0].shape, len(arrays[1])
        rows = np.linspace(0, n - 1, 64).astype(np.int64)
        field = contenders(case, arrays)
        table = compare(field, reference(arrays, rows), rows, tolerance=TOLERANCE, rounds=rounds, say=say)
        for row in table:
            if row.name.startswith(("markovlm", "torch eager, 256", "torch.compile, 256")):
                row.extra_mib = extra_memory_in_a_process(__file__, case, row.name)
        say("")
        done[case] = (table, judge(table))
        shape = f"n = {n:,}, V = {vocabulary:,}, d = {d:,}"
        title = f"{case}: {shape}, float32, {rounds} rounds, {torch.get_num_threads()} threads"
        print(show(title, table, 2.0 * n * vocabulary * d, done[case][1]), end="\n\n", flush=True)
    record(given.json, done)
    return int(given.strict and not all(target.met for _, targets in done.values() for target in targets))


if __name__ == "__main__":
    sys.exit(main())
