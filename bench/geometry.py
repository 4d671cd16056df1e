"""How fast are the leading eigenpairs of the pullback metric at many contexts, and how right are they?

python bench/geometry.py [--case smollm2|thousand|all] [--rounds 3] [--json FILE] [--strict] [--quick]

geomstats is no contender: its pullback metrics form the Jacobian (V, d) by automatic differentiation, and its metric of
categorical distributions is a dense (V, V) matrix, 19 GB here for a single context.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec

import numpy as np
import torch

import markovlm as mk
import models
from harness import RESULTS, Answer, Array, Case, Contender, Row, Target, ask

TOL = 1e-3  # of residuals, relative to the largest eigenvalue: what markovlm is asked for
VERIFIED = 8  # contexts whose metric is formed in float64
SINGLE = 1  # context, of contenders that take long
OURS = "markovlm"
FORMING = "d × d formed by torch, no pairs"


def formed(h: torch.Tensor, W: torch.Tensor, scaled: torch.Tensor) -> torch.Tensor:
    """``Σ p (g − ḡ)(g − ḡ)ᵀ``; ``scaled`` is room for ``√p (g − ḡ)``.

    Without centring, ``Σ p g gᵀ − ḡ ḡᵀ``, eigenvalues are off by 3e-3 of the largest where one token is near certain.
    """
    p = torch.softmax(W @ h, 0)
    torch.sub(W, p @ W, out=scaled)
    scaled.mul_(p.sqrt_()[:, None])
    return scaled.T @ scaled


def accurately_formed(h: Array, W: Array) -> Array:
    """In float64, rows centred first."""
    z = W @ h
    p = np.exp(z - z.max())
    p /= p.sum()
    X = W - p @ W
    return np.asarray(X.T @ (p[:, None] * X))


def exactly(title: str, H: torch.Tensor, W: torch.Tensor, rows: Array) -> tuple[Array, Array]:
    """Metrics of some contexts in float64, and their eigenvalues, falling; kept, for the processes that weigh."""
    path = RESULTS / f"{title.lower()}-metrics.npz"
    if not path.exists():
        wide = models.wide(W)
        A = np.array([accurately_formed(models.wide(H[i]), wide) for i in rows])
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, A=A, eigenvalues=np.linalg.eigvalsh(A)[:, ::-1])
    kept = np.load(path)
    return kept["A"], kept["eigenvalues"]


class OfStates(torch.nn.Module):
    """A head whose parameter is the state: the Gauss–Newton matrix of its cross-entropy is the metric."""

    def __init__(self, h: torch.Tensor, W: torch.Tensor) -> None:
        super().__init__()
        self.h, self.W = torch.nn.Parameter(h[None].clone()), W

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.h @ self.W.T


def by_curvlinops(h: torch.Tensor, W: torch.Tensor, k: int) -> tuple[Array, Array]:
    from curvlinops import GGNLinearOperator
    from scipy.sparse.linalg import eigsh

    model = OfStates(h, W)
    data = [(torch.ones(1, 1), torch.zeros(1, dtype=torch.long))]
    operator = GGNLinearOperator(model, torch.nn.CrossEntropyLoss(), list(model.parameters()), data)
    values, vectors = eigsh(operator.to_scipy(), k, which="LA", tol=TOL)
    return values[::-1], vectors[:, ::-1]


def case(title: str, H: torch.Tensor, W: torch.Tensor, k: int) -> Case:
    (n, d), vocabulary = H.shape, len(W)
    rows = np.linspace(0, n - 1, VERIFIED).astype(int)
    A, exact = exactly(title, H, W, rows)
    reference = {"eigenvalues": exact[:, :k] / exact[:, :1], "residuals": np.zeros((len(rows), k))}
    accurate = {"eigenvalues": 2 * TOL, "residuals": 2 * TOL}
    scaled = torch.empty_like(W)

    def checked(values: Array, vectors: Array) -> Answer:
        """Answers are whole; what is verified is filled in at those rows."""
        eigenvalues, residuals = np.zeros((n, k)), np.zeros((n, k))
        for j, i in enumerate(rows):
            U = vectors[i].astype(np.float64)
            eigenvalues[i] = values[i] / exact[j, 0]
            residuals[i] = np.linalg.norm(A[j] @ U - U * values[i], axis=0) / exact[j, 0]
        return {"eigenvalues": eigenvalues, "residuals": residuals}

    def ours(m: int | None) -> Answer:
        found = mk.geometry(mk.SoftmaxKernel(H[:m], W), k, tol=TOL)
        assert found.status == "converged"
        return {} if m else checked(found.eigenvalues, found.eigenvectors)

    def few(count: int, values: Array, vectors: Array) -> Answer:
        """Of the first contexts that are verified; the others were not asked for."""
        every, all_vectors = np.zeros((n, k)), np.zeros((n, d, k))
        every[rows[:count]], all_vectors[rows[:count]] = values, vectors
        answer = checked(every, all_vectors)
        for name in answer:
            answer[name][rows[count:]] = reference[name][count:]
        return answer

    def by_torch(_: int | None) -> Answer:
        values, U = torch.linalg.eigh(torch.stack([formed(H[i], W, scaled) for i in rows]))
        return few(VERIFIED, values.flip(1)[:, :k].numpy(), U.flip(2)[:, :, :k].numpy())

    def forming(_: int | None) -> Answer:
        for i in rows:
            formed(H[i], W, scaled)
        return {}

    def curvlinops(_: int | None) -> Answer:
        return few(SINGLE, *by_curvlinops(H[rows[0]], W, k))

    found = [
        Contender(OURS, ours, "with the mean metric and effective ranks"),
        Contender(f"torch: formed one by one, batched eigh: {VERIFIED} contexts", by_torch),
        Contender(FORMING, forming, f"{VERIFIED} contexts"),
    ]
    if find_spec("curvlinops"):
        found.append(Contender(f"curvlinops, scipy eigsh: {SINGLE} context", curvlinops, "Gauss–Newton matrix of h"))

    def judge(table: Sequence[Row], _: Mapping[str, float]) -> list[Target]:
        by_name = {row.name: row for row in table}
        mine = by_name[OURS].median / n
        ratio = by_name[FORMING].median / VERIFIED / mine
        targets = [Target("forming by torch / markovlm, per context", ratio, 5.0, at_least=True)]
        for row in table:
            if row.name.startswith("curvlinops"):
                ratio = row.median / SINGLE / mine
                targets.append(Target("curvlinops / markovlm, per context", ratio, 5.0, at_least=True))
        return targets

    return Case(
        title=f"{title}, n = {n:,}, V = {vocabulary:,}, d = {d:,}, k = {k}, {torch.get_num_threads()} threads",
        contenders=found,
        rows=rows,
        reference=reference,
        tolerance=accurate,
        judge=judge,
    )


def states(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    features = models.smollm2()
    chosen = np.linspace(0, features.num_contexts - 1, n).astype(int)
    return torch.from_numpy(np.array(features.hidden[chosen])), torch.from_numpy(np.array(features.head))


def thousand() -> Case:
    """What the whole takes, beyond its result."""
    n, k = 1000, 16
    H, W = states(n)
    size = [0.0]

    def run(m: int | None) -> Answer:
        found = mk.geometry(mk.SoftmaxKernel(H[:m], W), k, tol=TOL)
        size[0] = sum(value.nbytes for value in vars(found).values() if isinstance(value, np.ndarray)) / 2**20
        return {"residuals": found.residual_norms / found.eigenvalues[:, :1]}

    return Case(
        title=f"SmolLM2-135M, n = {n:,}, k = {k}",
        contenders=[Contender(OURS, run)],
        rows=np.arange(n),
        reference={"residuals": np.zeros((n, k))},
        tolerance={"residuals": TOL},
        judge=lambda table, _: [
            Target("extra memory beyond the result, MiB", row.extra_mib - size[0], 64.0, at_least=False)
            for row in table
            if row.extra_mib is not None
        ],
        once=True,
    )


def quick() -> Case:
    H, W, _ = models.random(16, 2000, 96)
    falling = torch.from_numpy((1 / np.arange(1, 97)).astype(np.float32))
    return case("random", H, W * falling * 5, 4)


CASES: dict[str, Callable[[], Case]] = {
    "smollm2": lambda: case("SmolLM2-135M", *states(256), 16),
    "thousand": thousand,
    "quick": quick,
}

if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=UserWarning, module="curvlinops")
    sys.exit(ask(__doc__.splitlines()[0], __file__, CASES))
