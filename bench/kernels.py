"""How fast are composition and categorical entropies, next to NumPy, SciPy, PyTorch, dit and markov-entropy?

python bench/kernels.py [--case sparse|dense|entropies|small|vocabulary|coarse|all] [--rounds 5] [--json FILE] [--quick]
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp
import scipy.stats
import torch

import markovlm as mk
import models
from harness import Answer, Array, Case, Contender, Row, Target, ask

EVERY_ROW: Any = slice(None)
DIVERGENCES = (mk.KL(), mk.TotalVariation(), mk.SquaredHellinger(), mk.ChiSquared(), mk.JensenShannon(), mk.Renyi(0.5))


def ratio(name: str, above: str, below: str, bound: float, at_least: bool = True) -> Callable[..., list[Target]]:
    """A judge of one ratio: of the fastest contender whose name begins so, to another."""

    def judge(table: Sequence[Row], peaks: Mapping[str, float]) -> list[Target]:
        first, second = (min(row.median for row in table if row.name.startswith(start)) for start in (above, below))
        return [Target(name, first / second, bound, at_least)]

    return judge


# Composition


def steps(states: int, per_row: int, reach: int, count: int, seed: int = 0) -> list[sp.csr_array]:
    """Random walks: each state goes on to ``per_row`` states at random, at most ``reach`` away."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        columns = (np.arange(states)[:, None] + rng.integers(-reach, reach + 1, (states, per_row))) % states
        rows = sp.csr_array(
            (rng.random(states * per_row), columns.reshape(-1), np.arange(0, states * per_row + 1, per_row)),
            shape=(states, states),
        )
        rows.sum_duplicates()
        made.append(sp.csr_array(sp.diags_array(1 / rows.sum(axis=1)) @ rows))
    return made


def sparse(states: int, per_row: int, reach: int) -> Case:
    walk = steps(states, per_row, reach, 10)
    kernels = [mk.Kernel(step) for step in walk]
    sample = np.linspace(0, states - 1, 64).astype(np.int64)
    exact = walk[0][sample].toarray()
    for step in walk[1:]:
        exact = (step.T @ exact.T).T

    def answer(composed: sp.csr_array) -> Answer:
        return {"rows": composed[sample].toarray(), "sums": composed.sum(axis=1)}

    def ours(threads: int | None) -> Callable[[int | None], Answer]:
        def run(_: int | None) -> Answer:
            whole = kernels[0]
            for step in kernels[1:]:
                whole = whole >> step
            return answer(whole.evaluate(num_threads=threads).sparse)

        return run

    def from_the_left(_: int | None) -> Answer:
        whole = walk[0]
        for step in walk[1:]:
            whole = whole @ step
        return answer(whole)

    def by_halves(_: int | None) -> Answer:
        done = walk
        while len(done) > 1:
            done = [a @ b for a, b in zip(done[::2], done[1::2], strict=False)] + done[len(done) // 2 * 2 :]
        return answer(done[0])

    return Case(
        title=f"ten kernels of {states:,} states with {per_row} entries a row, at most {reach:,} apart",
        contenders=[
            Contender("markovlm", ours(None), dtype="float64"),
            Contender("markovlm, one thread", ours(1), dtype="float64"),
            Contender("scipy, from the left", from_the_left, dtype="float64"),
            Contender("scipy, by halves", by_halves, dtype="float64"),
        ],
        rows=EVERY_ROW,
        reference={"rows": exact, "sums": np.ones(states)},
        tolerance={"rows": 1e-14, "sums": 1e-12},
        judge=ratio("scipy, the best / markovlm", "scipy", "markovlm", 1.0),
    )


def dense(size: int) -> Case:
    rng = np.random.default_rng(0)
    f, g = (rng.random((size, size)) for _ in range(2))
    f, g = f / f.sum(axis=1, keepdims=True), g / g.sum(axis=1, keepdims=True)
    F, G = mk.Kernel(f), mk.Kernel(g)
    tf, tg = torch.from_numpy(f), torch.from_numpy(g)
    sample = np.linspace(0, size - 1, 64).astype(np.int64)
    exact = (f[sample].astype(np.longdouble) @ g[:, :256].astype(np.longdouble)).astype(np.float64)

    def entry(name: str, product: Callable[[], Array]) -> Contender:
        def run(_: int | None) -> Answer:
            made = product()
            return {"rows": made[sample][:, :256], "sums": made.sum(axis=1)}

        return Contender(name, run, dtype="float64", work=2.0 * size**3)

    return Case(
        title=f"two dense kernels of {size:,} states",
        contenders=[
            entry("markovlm", lambda: (F >> G).matrix),
            entry("numpy", lambda: f @ g),
            entry("torch", lambda: (tf @ tg).numpy()),
        ],
        rows=EVERY_ROW,
        reference={"rows": exact, "sums": np.ones(size)},
        tolerance={"rows": 1e-15, "sums": 1e-12},
        judge=ratio("markovlm / numpy", "markovlm", "numpy", 1.1, at_least=False),
    )


# Categorical entropies


def definitions(p: Array) -> dict[str, Array]:
    """By their closed forms, written down as they stand, row by row."""
    positive = np.where(p > 0, p, 1.0)
    square = (p**2).sum(axis=1)
    terms = p * np.log(2 / (1 + p)) + p**2 * np.log(2 * positive / (1 + p))
    return {
        "KL": -(p * np.log(positive)).sum(axis=1),
        "TV": 1 - square,
        "H2": 1 - (p**1.5).sum(axis=1),
        "chi2": (p > 0).sum(axis=1) - 1.0,
        "JS": (terms.sum(axis=1) + (1 - square) * math.log(2)) / 2,
        "Renyi": -2 * np.log((p**1.5).sum(axis=1)),
    }


def named(found: Mapping[Any, Array]) -> Answer:
    return dict(zip(("KL", "TV", "H2", "chi2", "JS", "Renyi"), found.values(), strict=False))


def tolerance(size: float) -> dict[str, float]:
    return dict.fromkeys(("KL", "TV", "H2", "chi2", "JS", "Renyi"), size)


def entropies(n: int, m: int) -> Case:
    p = np.random.default_rng(0).dirichlet(np.full(m, 0.3), n)
    k = mk.Kernel(p)
    return Case(
        title=f"a dense kernel, {n:,} × {m:,}",
        contenders=[
            Contender("markovlm, six divergences", lambda _: named(mk.categorical_entropies(k, DIVERGENCES))),
            Contender("numpy, six formulas", lambda _: definitions(p)),
            Contender("markovlm, KL", lambda _: named(mk.categorical_entropies(k, [mk.KL()]))),
            Contender("scipy.stats.entropy", lambda _: {"KL": scipy.stats.entropy(p, axis=1)}),
        ],
        rows=EVERY_ROW,
        reference=definitions(p),
        tolerance=tolerance(1e-11),
        judge=ratio("scipy.stats.entropy / markovlm, KL", "scipy.stats", "markovlm, KL", 1.0),
    )


def small(n: int, m: int) -> Case:
    import dit
    import markov_entropy as me

    p = np.random.default_rng(0).dirichlet(np.full(m, 0.3), n)
    k = mk.Kernel(p)
    outcomes = [(str(i),) for i in range(m)]

    def by_dit(_: int | None) -> Answer:
        laws = [dit.Distribution(outcomes, row) for row in p]
        return {"KL": np.array([dit.shannon.entropy(law) for law in laws]) * math.log(2)}

    def by_markov_entropy(_: int | None) -> Answer:
        space = me.FiniteSpace(range(m))
        laws = [me.Distribution(space, row) for row in p]
        return {"KL": np.array([me.shannon_entropy(law) for law in laws])}

    return Case(
        title=f"{n:,} laws on {m:,} elements, from arrays",
        contenders=[
            Contender("markovlm", lambda _: named(mk.categorical_entropies(mk.Kernel(p), [mk.KL()]))),
            Contender("markovlm, six divergences", lambda _: named(mk.categorical_entropies(k, DIVERGENCES))),
            Contender("scipy.stats.entropy", lambda _: {"KL": scipy.stats.entropy(p, axis=1)}),
            Contender("dit", by_dit),
            Contender("markov-entropy", by_markov_entropy),
        ],
        rows=EVERY_ROW,
        reference=definitions(p),
        tolerance=tolerance(1e-11),
        judge=ratio("dit / markovlm", "dit", "markovlm", 1.0),
    )


def by_torch(hidden: torch.Tensor, head: torch.Tensor, size: int) -> Callable[[int | None], Answer]:
    """All six, a few rows at a time, from probabilities."""

    def some(h: torch.Tensor) -> tuple[torch.Tensor, ...]:
        log_p = torch.log_softmax(h @ head.T, dim=-1)
        p = log_p.exp()
        square, power = (p * p).sum(-1), (1.5 * log_p).exp().sum(-1)
        log_both = torch.log1p(p)
        js = math.log(2) - (p * (1 + p) * log_both - p * p * log_p).sum(-1) / 2
        return -(p * log_p).sum(-1), 1 - square, 1 - power, (p > 0).sum(-1) - 1.0, js, -2 * power.log()

    def run(rows: int | None) -> Answer:
        h = hidden[:rows]
        parts = [some(h[i : i + size]) for i in range(0, len(h), size)]
        return named({i: torch.cat(part).double().numpy() for i, part in enumerate(zip(*parts, strict=True))})

    return run


def vocabulary(n: int, V: int, d: int) -> Case:
    hidden, head, _ = models.random(n, V, d)
    P = mk.SoftmaxKernel(hidden, head)
    rows = np.linspace(0, n - 1, min(n, 16)).astype(np.int64)
    exact = definitions(P[rows].matrix)
    work = 2.0 * n * V * d

    def ours(kinds: Sequence[Any]) -> Callable[[int | None], Answer]:
        return lambda m: named(mk.categorical_entropies(P[:m], kinds))

    def judge(table: Sequence[Row], peaks: Mapping[str, float]) -> list[Target]:
        mine, one, torchs = table[0], table[1], table[2]
        targets = [
            Target("torch / markovlm", torchs.median / mine.median, 1.0, at_least=True),
            Target("markovlm, six divergences / KL alone", mine.median / one.median, 1.5, at_least=False),
        ]
        if mine.extra_mib is not None:
            targets.append(Target("extra memory of markovlm, MiB", mine.extra_mib, 64.0, at_least=False))
        return targets

    return Case(
        title=f"a softmax kernel, n = {n:,}, V = {V:,}, d = {d:,}, float32, {torch.get_num_threads()} threads",
        contenders=[
            Contender("markovlm, six divergences", ours(DIVERGENCES), work=work),
            Contender("markovlm, KL", ours(DIVERGENCES[:1]), work=work),
            Contender("torch, six formulas, 64 rows at a time", by_torch(hidden, head, 64), work=work),
        ],
        rows=rows,
        reference=exact,
        tolerance={**tolerance(1e-3), "chi2": 0.5},
        judge=judge,
        weigh=["markovlm, six divergences", "torch, six formulas, 64 rows at a time"],
        rounds=2,
    )


def coarse(title: str, hidden: torch.Tensor, head: torch.Tensor, classes: int) -> Case:
    (n, d), V = hidden.shape, len(head)
    of_token = np.random.default_rng(0).integers(0, classes, V)
    P, grain = mk.SoftmaxKernel(hidden, head), mk.deterministic(of_token, classes)
    index = torch.from_numpy(of_token)
    rows = np.linspace(0, n - 1, min(n, 32)).astype(np.int64)
    exact = np.stack([np.bincount(of_token, row, minlength=classes) for row in P[rows].matrix])
    one_hot = torch.nn.functional.one_hot(index, classes).float()

    def in_chunks(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[int | None], Answer]:
        def run(m: int | None) -> Answer:
            h = hidden[:m]
            made = [function(torch.softmax(h[i : i + 256] @ head.T, -1)) for i in range(0, len(h), 256)]
            return {"P": torch.cat(made).numpy()}

        return run

    def added(p: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(p), classes).index_add_(1, index, p)

    work = 2.0 * n * V * d
    return Case(
        title=f"{title}, n = {n:,}, V = {V:,} to {classes} classes, d = {d:,}, float32",
        contenders=[
            Contender("markovlm", lambda m: {"P": (P[:m] >> grain).matrix}, work=work),
            Contender("torch, by a product, 256 rows at a time", in_chunks(lambda p: p @ one_hot), work=work),
            Contender("torch, by index_add, 256 rows at a time", in_chunks(added), work=work),
        ],
        rows=rows,
        reference={"P": exact},
        tolerance={"P": 1e-4},
        judge=ratio("torch, the best / markovlm", "torch", "markovlm", 1.0),
        weigh=["markovlm", "torch, by a product, 256 rows at a time"],
    )


def smollm2() -> Case:
    features = models.smollm2()
    hidden, head = (torch.from_numpy(np.array(x)) for x in (features.hidden, features.head))
    return coarse("SmolLM2-135M", hidden[:2048], head, 26)


CASES: dict[str, Callable[[], Case]] = {
    "sparse": partial(sparse, 20_000, 4, 50),
    "spread": partial(sparse, 20_000, 2, 10_000),
    "dense": partial(dense, 4096),
    "entropies": partial(entropies, 4096, 4096),
    "small": partial(small, 300, 64),
    "vocabulary": partial(vocabulary, 4096, 256_000, 576),
    "coarse": smollm2,
    "quick": lambda: coarse("random", *models.random(256, 3000, 64)[:2], 8),
}

if __name__ == "__main__":
    sys.exit(ask(__doc__.splitlines()[0], __file__, CASES))
