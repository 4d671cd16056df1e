"""What does alignment of all layers cost, next to the forward pass that gives them and to doing it by hand?

python bench/alignment.py [--case smollm2|all] [--rounds 3] [--json FILE] [--strict] [--quick]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from scipy.linalg import eigh, qr
from scipy.sparse.linalg import eigsh

import markovlm as mk
import models
from harness import RESULTS, Answer, Array, Case, Contender, Row, Target, ask
from spectrum import gram, square_roots

RANKS = (16, 64)
CHECKED = 3  # layers whose scores are verified in float64
CONTEXTS, CONTEXT_LENGTH = 8192, 512


@cache
def smollm2() -> mk.Features:
    """8,192 contexts of SmolLM2-135M on the standard library's docstrings with all layers; kept between runs."""
    path = RESULTS / "smollm2-layers.safetensors"
    if not path.exists():
        from markovlm._sample_text import standard_library_docstrings

        texts, names = standard_library_docstrings(8 * CONTEXTS)
        options: dict[str, Any] = {"layers": "all", "layer_tokens": CONTEXTS, "context_length": CONTEXT_LENGTH}
        features = mk.extract("smollm2-135m", texts=texts, text_names=names, max_tokens=CONTEXTS, **options)
        path.parent.mkdir(parents=True, exist_ok=True)
        features.save(path)
    return mk.Features.load(path)


def small() -> mk.Features:
    hidden, head, _ = models.random(400, 500, 16)
    rng, count = np.random.default_rng(0), np.arange(400)
    return mk.Features(
        hidden=hidden.numpy(),
        head=head.numpy(),
        targets=count % 500,
        token_ids=count % 500,
        sequence_ids=count // 20,
        positions=count % 20,
        layers=(0, 1),
        layer_rows=count,
        layer_hidden=rng.standard_normal((2, 400, 16), dtype=np.float32),
        num_layers=2,
    )


def checked_layers(features: mk.Features) -> list[int]:
    depth = features.num_layers
    return sorted({round(depth * i / (CHECKED - 1)) for i in range(CHECKED)})


def score(K: Array, top: Array, states: Array) -> list[float]:
    """By a basis from QR and all eigenvalues of what K is on it; K is centered."""
    U = qr(states - states.mean(axis=0), mode="economic")[0].astype(K.dtype)
    theta = eigh(U.T @ (K @ U), eigvals_only=True)[::-1]
    return [float(theta[:r].sum() / top[:r].sum()) for r in RANKS]


def centered(K: Array) -> Array:
    K -= K.mean(axis=0)
    K -= K.mean(axis=1, keepdims=True)
    return K


def exactly(features: mk.Features) -> Array:
    """(layers that are verified, ranks) in float64; kept, since the similarity takes long."""
    path = RESULTS / f"alignment-{features.num_contexts}.npz"
    if not path.exists():
        K = centered(gram(torch.from_numpy(features.hidden.copy()), torch.from_numpy(features.head.copy())))
        top = eigsh(K, RANKS[-1], which="LA")[0][::-1]
        scores = [score(K, top, features._states(layer).astype(np.float64)) for layer in checked_layers(features)]
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, scores=np.array(scores))
    return np.asarray(np.load(path)["scores"])


@cache
def model() -> Any:
    from markovlm._load import load_model, locate

    return load_model(*locate("smollm2-135m"), trust_remote_code=False)


def case(title: str, features: mk.Features, forward: Callable[[int | None], Answer] | None) -> Case:
    layers, which = [*features.layers, features.num_layers], checked_layers(features)
    places = [layers.index(layer) for layer in which]

    def ours(m: int | None) -> Answer:
        found = mk.alignment(features, ranks=RANKS, layers="all" if m is None else which)
        return {"captured": found.captured_value[places]} if m is None else {}

    def by_hand(m: int | None) -> Answer:
        F = square_roots(torch.from_numpy(features.hidden.copy()), torch.from_numpy(features.head.copy()))
        K = centered(F @ F.T / np.float32(len(F)))
        top = eigsh(K, RANKS[-1], which="LA", v0=np.ones(len(K), np.float32), tol=1e-5)[0][::-1]
        scores = np.array([score(K, top, features._states(layer)) for layer in (layers if m is None else which)])
        return {"captured": scores[places]} if m is None else {}

    def judge(table: Sequence[Row], _: Mapping[str, float]) -> list[Target]:
        seconds = {row.name: row.median for row in table}
        mine = seconds["markovlm, with nulls, halves, intervals"]
        targets = [Target("by hand / markovlm", seconds["NumPy and SciPy, √P formed"] / mine, 1.0, at_least=True)]
        if forward is not None:
            targets.append(Target("markovlm / forward pass", mine / seconds["forward pass"], 3.0, at_least=False))
        return targets

    contenders = [
        Contender("markovlm, with nulls, halves, intervals", ours, f"{len(layers)} layers"),
        Contender("NumPy and SciPy, √P formed", by_hand, f"{len(layers)} layers, in-sample scores alone"),
    ]
    if forward is not None:
        contenders.append(Contender("forward pass", forward, "PyTorch, layers kept"))
    n, d = features.hidden.shape
    return Case(
        title=f"{title}, n = {n:,}, V = {len(features.head):,}, d = {d}, {torch.get_num_threads()} threads",
        contenders=contenders,
        rows=np.arange(CHECKED),
        reference={"captured": exactly(features), "hidden": features.hidden[:CHECKED]},
        tolerance={"captured": 1e-3, "hidden": 1e-2},
        judge=judge,
        weigh=[contender.name for contender in contenders[:2]],
        rounds=3,
    )


def real() -> Case:
    features = smollm2()
    starts = np.flatnonzero(features.positions == 0)
    sequences = [torch.from_numpy(ids.copy()) for ids in np.split(features.token_ids, starts[1:])]

    def forward(m: int | None) -> Answer:
        network, last = model(), []
        with torch.inference_mode():
            for ids in sequences if m is None else sequences[:1]:
                found = network(input_ids=ids[None], output_hidden_states=True, logits_to_keep=1)
                last.append(found.hidden_states[-1][0].numpy())
        return {"hidden": np.concatenate(last)}

    return case("SmolLM2-135M", features, forward)


CASES: dict[str, Callable[[], Case]] = {
    "smollm2": real,
    "quick": lambda: case("random", small(), None),
}

if __name__ == "__main__":
    raise SystemExit(ask(__doc__.splitlines()[0], __file__, CASES))
