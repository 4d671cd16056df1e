"""Features whose alignment is known, and alignment by its definition in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg

import markovlm as mk
import reference
from markovlm.typing import FloatArray, IntArray

U32 = 2.0**-24


def features_of(
    hidden: FloatArray, head: FloatArray, *, length: int = 20, layers: dict[int, FloatArray] | None = None, **more: Any
) -> mk.Features:
    """Features of contexts in sequences of a length; the final layer comes after those that are given."""
    n = len(hidden)
    count = np.arange(n)
    fields: dict[str, Any] = {}
    if layers:
        fields = {
            "layers": tuple(layers),
            "layer_rows": count,
            "layer_hidden": np.stack([np.asarray(states, np.float32) for states in layers.values()]),
            "num_layers": max(layers) + 1,
        }
    return mk.Features(
        hidden=np.asarray(hidden, np.float32),
        head=np.asarray(head, np.float32),
        targets=count % len(head),
        token_ids=count % len(head),
        sequence_ids=count // length,
        positions=count % length,
        **{**fields, **more},
    )


def random_features(n: int = 240, V: int = 60, d: int = 4, seed: int = 0, **options: Any) -> mk.Features:
    rng = np.random.default_rng(seed)
    hidden, head = rng.standard_normal((n, d)), 1.5 * rng.standard_normal((V, d))
    return features_of(hidden, head, **options)


def similarity(features: mk.Features, kind: str, beta: float = 1.0) -> FloatArray:
    """K (n, n) in float64, by definition."""
    P = features.softmax_kernel()
    p = np.exp(reference.log_softmax(reference.kernel_logits(P)))
    overlap = np.sqrt(p) @ np.sqrt(p).T
    if kind == "bhattacharyya":
        return np.asarray(overlap)
    if kind == "expected_likelihood":
        return np.asarray(p @ p.T)
    if kind == "prototype":
        means = p @ features.head.astype(np.float64)
        return np.asarray(means @ means.T)
    if kind == "hellinger_gaussian":
        return np.asarray(np.exp(-2 * beta * (1 - overlap)))
    entropies = -(p * np.log(p)).sum(axis=1)
    mixed = np.array([[-(m := (a + b) / 2) @ np.log(m) for b in p] for a in p])
    return np.asarray(np.exp(-beta * (mixed - (entropies[:, None] + entropies) / 2)))


@dataclass
class Exact:
    """Scores of states H against K under a law, by dense solvers."""

    K: FloatArray
    H: FloatArray
    law: FloatArray

    def __post_init__(self) -> None:
        root = np.sqrt(self.law)
        J = np.eye(len(root)) - np.outer(root, root)
        self.M = J @ (root[:, None] * self.K * root) @ J
        self.values, self.vectors = (part[..., ::-1] for part in np.linalg.eigh(self.M))
        self.U = scipy.linalg.orth(J @ (root[:, None] * self.H), rcond=1e-9)
        self.theta = np.linalg.eigvalsh(self.U.T @ self.M @ self.U)[::-1]

    def captured(self, r: int) -> float:
        return float(self.theta[:r].sum() / self.values[:r].sum())


def exact(features: mk.Features, kind: str, layer: int = -1, rows: IntArray | None = None, beta: float = 1.0) -> Exact:
    rows = np.arange(features.num_contexts) if rows is None else rows
    H = np.asarray(features.softmax_kernel(layer).hidden, np.float64)[rows]
    return Exact(similarity(features, kind, beta)[np.ix_(rows, rows)], H, np.full(len(rows), 1 / len(rows)))


def rounding(found: Exact, r: int) -> float:
    """Of a score: products with K in float32, K itself off by some rounding of logits, of eigenvalues and Ritz values.

    Logits are sums of d terms of size 10 or so, exponents are off by as much: ``ΔK <= 2 (d + 24) 10 u K``; products add
    ``(n + 4) u |K|``; by Weyl each value moves by that over n, times the norm of |K|; the score by 2 r of these. What
    fixed point takes is a random matrix of size 1.3e-5, whose norm is 2 √n times that: twice, in K and in products.
    """
    n, d = found.H.shape
    moved = (20 * (d + 24) + n + 4) * U32 * float(np.linalg.norm(np.abs(found.K), 2)) / n
    moved += 2 * 2 * 1.3e-5 * float(found.M.diagonal().max() * n) / np.sqrt(n)
    return 2 * r * moved / float(found.values[:r].sum())
