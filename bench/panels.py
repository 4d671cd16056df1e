"""How near do products of softmax rows with a few columns come to the products that they consist of?

python bench/panels.py [--case smollm2|all] [--rounds 5] [--json FILE] [--strict] [--quick]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

import markovlm as mk
import models
from harness import Answer, Array, Case, Contender, Row, Target, ask


def torch_product(h: torch.Tensor, w: torch.Tensor, x: torch.Tensor, power: float, size: int) -> torch.Tensor:
    """softmax(h wᵀ)^a x, a few rows at a time."""
    return torch.cat([torch.softmax(h[i : i + size] @ w.T, -1).pow_(power) @ x for i in range(0, len(h), size)])


def reference(
    H: torch.Tensor, W: torch.Tensor, X: torch.Tensor, Y: torch.Tensor, rows: Array
) -> tuple[dict[str, Array], dict[str, float]]:
    """The products in float64 at some contexts, or tokens of the same numbers; and the largest sum of sizes of each."""
    head, x, y, n = models.wide(W).T, models.wide(X), models.wide(Y), len(H)
    found = {"sqrt": np.zeros((n, x.shape[1])), "plain": np.zeros((n, x.shape[1]))}
    columns = np.zeros((n, len(rows)))  # of √P
    largest = 0.0
    for first in range(0, n, 128):
        part = slice(first, first + 128)
        z = models.wide(H[part]) @ head
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        root = np.sqrt(p)
        found["plain"][part], found["sqrt"][part], columns[part] = p @ x, root @ x, root[:, rows]
        largest = max(largest, float(root.sum(axis=1).max()))
    answer = {name: value[rows] for name, value in found.items()}
    answer["adjoint"] = columns.T @ y
    answer["normal"] = columns.T @ found["sqrt"] / n
    sizes = {"plain": 1.0, "sqrt": largest, "adjoint": float(columns.sum(axis=0).max())}
    sizes["normal"] = sizes["adjoint"] * largest / n
    widest = max(np.abs(x).max(), np.abs(y).max())
    return answer, {name: size * widest for name, size in sizes.items()}


def case(title: str, H: torch.Tensor, W: torch.Tensor, widths: Sequence[int]) -> Case:
    (n, d), vocabulary = H.shape, len(W)
    rows = np.linspace(0, n - 1, min(n, 64)).astype(np.int64)
    P = mk.SoftmaxKernel(H, W)
    log_z = mk.softmax_stats(P).log_normalizer
    rng = np.random.default_rng(0)
    found = []
    for b in widths:
        X = torch.from_numpy(rng.standard_normal((vocabulary, b), dtype=np.float32))
        Y = torch.from_numpy(rng.standard_normal((n, b), dtype=np.float32))
        exact, sizes = reference(H, W, X, Y, rows)
        allowed = {name: 1e-5 * size for name, size in sizes.items()}
        work, twice = 2.0 * n * vocabulary * (d + b), 2.0 * n * vocabulary * (d + 2 * b)

        def entry(name: str, run: Callable[[int | None], Answer], work: float) -> Contender:
            return Contender(f"b = {b:<3} {name}", run, "", exact, allowed, "float32", work)  # noqa: B023

        def forward(power: float, X: torch.Tensor = X) -> Callable[[int | None], Answer]:
            part = "plain" if power == 1 else "sqrt"
            return lambda m: {part: mk.panel_product(P[:m], X, power, log_normalizer=log_z[:m])}

        def adjoint(m: int | None, Y: torch.Tensor = Y) -> Answer:
            return {"adjoint": mk.adjoint_product(P[:m], Y[:m], 0.5, log_normalizer=log_z[:m])}

        def normal(m: int | None, X: torch.Tensor = X) -> Answer:
            return {"normal": mk.normal_product(P[:m], X, 0.5, log_normalizer=log_z[:m])}

        def by_torch(size: int, X: torch.Tensor = X) -> Callable[[int | None], Answer]:
            return lambda m: {"sqrt": torch_product(H[:m], W, X, 0.5, size).numpy()}

        found += [
            entry("markovlm √P X", forward(0.5), work),
            entry("markovlm P X", forward(1.0), work),
            entry("markovlm √Pᵀ Y", adjoint, work),
            entry("markovlm √Pᵀ √P X", normal, twice),
            entry("torch √P X, 256 rows at a time", by_torch(256), work),
        ]

    def judge(table: Sequence[Row], peaks: Mapping[str, float]) -> list[Target]:
        targets = []
        for b in widths:
            mine = {row.name.split("markovlm ")[1]: row for row in table if row.name.startswith(f"b = {b:<3} markovlm")}
            torchs = next(row for row in table if row.name.startswith(f"b = {b:<3} torch"))
            for name, row in mine.items():
                if "float32" in peaks:
                    share = row.gflops / peaks["float32"]
                    targets.append(Target(f"b = {b}, {name}: share of the CPU's peak", share, 0.6, at_least=True))
            ratio = torchs.median / mine["√P X"].median
            targets.append(Target(f"b = {b}, √P X: torch / markovlm", ratio, 1.0, at_least=True))
        return targets

    return Case(
        title=f"{title}, n = {n:,}, V = {vocabulary:,}, d = {d:,}, float32, {torch.get_num_threads()} threads",
        contenders=found,
        rows=rows,
        reference={},
        tolerance={},
        judge=judge,
        weigh=[f"b = {b:<3} markovlm {name}" for b in widths for name in ("√P X", "√Pᵀ √P X")],
    )


def smollm2() -> Case:
    features = models.smollm2()
    hidden, head = (torch.from_numpy(np.array(x)) for x in (features.hidden, features.head))
    return case("SmolLM2-135M", hidden[:2048], head, (1, 16, 64, 128))


CASES: dict[str, Callable[[], Case]] = {
    "smollm2": smollm2,
    "quick": lambda: case("random", *models.random(256, 3000, 64)[:2], (1, 8)),
}

if __name__ == "__main__":
    sys.exit(ask(__doc__.splitlines()[0], __file__, CASES))
