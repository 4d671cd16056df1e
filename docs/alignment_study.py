"""Does likelihood training align hidden states with the modes of predictive similarity? The study behind alignment.md.

python docs/alignment_study.py [--long] [--parts PART...] [--features FILE] [--out DIR]

Writes alignment-study.json and pictures, and prints tables. The short form takes seconds and shows that all of it runs;
the page has what the long form found.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import markovlm as mk
from alignment_figures import draw, findings, tables
from markovlm._bootstrap import bootstrap_mean
from markovlm._sample_text import standard_library_docstrings
from markovlm.typing import IntArray, SinglePrecisionArray

NAME = "alignment-study.json"
SIMILARITIES = ("bhattacharyya", "expected_likelihood", "prototype", "hellinger_gaussian")
GROUPS = 32
DIGITS = 4


@dataclass(frozen=True)
class Language:
    """Models trained from scratch on random hidden Markov languages, whose laws are known."""

    runs: int  # each with a language, a model and contexts of its own
    contexts: int
    steps: int
    checkpoints: int
    states: int = 24
    vocabulary: int = 48
    concentration: float = 0.1
    hidden_size: int = 32
    ranks: tuple[int, ...] = (4, 16)
    draws: int = 2  # of random functions


@dataclass(frozen=True)
class Docstrings:
    """A transformer that reads the documentation of Python's standard library, character by character."""

    characters: int
    windows: int  # of held-out text
    context_length: int
    width: int
    depth: int
    steps: int
    checkpoints: int
    batch_size: int = 16
    learning_rate: float = 2e-3
    ranks: tuple[int, ...] = (16, 64)
    draws: int = 2


@dataclass(frozen=True)
class SmolLM2:
    """SmolLM2-135M, layer by layer, on the same text."""

    contexts: int = 8192
    readout_contexts: int = 1024  # on which the loss of every layer's readout is taken
    fewer: tuple[int, ...] = (2048, 4096)  # contexts: what more text would do to the last layer
    ranks: tuple[int, ...] = (16, 64)
    draws: int = 4


SHORT: dict[str, Any] = {
    "language": Language(runs=3, contexts=320, steps=60, checkpoints=4),
    "docstrings": Docstrings(100_000, 8, 40, width=32, depth=2, steps=30, checkpoints=3, ranks=(4, 16)),
}
LONG: dict[str, Any] = {
    "language": Language(runs=6, contexts=2048, steps=2400, checkpoints=10),
    "docstrings": Docstrings(2_000_000, 32, 128, width=128, depth=4, steps=1500, checkpoints=9),
    "smollm2": SmolLM2(),
}


def scores(found: mk.Alignment, *, intervals: bool = True) -> dict[str, Any]:
    """What is kept of an alignment: by layer (or checkpoint) and rank."""
    by_rank = np.stack([found.modes_held_out[:, :rank].mean(axis=1) for rank in found.ranks], axis=1)
    kept = {
        "captured": found.captured_value,
        "held_out": found.held_out_value,
        "null": found.null,
        "null_held_out": found.null_held_out,
        "modes": by_rank,  # share of variance, all modes counting alike
    }
    return {**kept, "interval": found.held_out_interval} if intervals else kept


def by_layer(
    states: Sequence[SinglePrecisionArray], judge: mk.Features, hidden: SinglePrecisionArray | None = None
) -> mk.Features:
    """The states, one after the other as layers, to be held against predictions that are others'.

    ``judge`` has the predictions, or ``hidden`` (n, V) has their logarithms. States that are narrower get zeros, which
    no function of states sees.
    """
    if hidden is not None:
        judge = replace(judge, hidden=hidden, head=np.eye(hidden.shape[1], dtype=np.float32), bias=None, embedding=None)
    padded = [np.pad(h, ((0, 0), (0, judge.hidden_size - h.shape[1]))) for h in states]
    rows = np.arange(judge.num_contexts)
    numbers = tuple(range(len(states)))
    return replace(judge, layers=numbers, layer_rows=rows, layer_hidden=np.stack(padded), num_layers=len(states))


def language_study(size: Language) -> dict[str, Any]:
    """Checkpoints against the modes of their own predictions, and against those of the language itself."""
    runs = []
    for seed in range(size.runs):
        language = mk.synthetic.random_language(size.states, size.vocabulary, seed, size.concentration)
        trained = mk.synthetic.train_language_model(
            language,
            steps=size.steps,
            checkpoints=size.checkpoints,
            num_contexts=size.contexts,
            hidden_size=size.hidden_size,
            seed=seed,
        )
        checkpoints = trained.checkpoints
        steps = [checkpoint.step for checkpoint in checkpoints]
        curves = mk.nll_decomposition([c.kernel for c in checkpoints], trained.k_data, trained.weights, steps=steps)
        # contexts are independent, so any groups will do to resample; the intervals that count are those over runs
        assert curves.entropy is not None  # for the type checker, as the next one
        assert curves.cross_entropy is not None
        groups = np.arange(size.contexts) * GROUPS // size.contexts
        features = [replace(checkpoint.features, sequence_ids=groups) for checkpoint in checkpoints]
        log_laws = np.log(np.maximum(trained.k_data.matrix, 1e-26)).astype(np.float32)
        against_data = by_layer([each.hidden for each in features], features[0], log_laws)
        options: dict[str, Any] = {"num_null": size.draws, "seed": seed}
        own: dict[str, Any] = {}
        for kind in SIMILARITIES:
            found = [scores(mk.alignment(each, kind, size.ranks, **options), intervals=False) for each in features]
            own[kind] = {name: np.concatenate([each[name] for each in found]) for name in found[0]}
        data = {  # a language has no head, hence no prototypes
            kind: scores(mk.alignment(against_data, kind, size.ranks, **options), intervals=False)
            for kind in SIMILARITIES
            if kind != "prototype"
        }
        runs.append(
            {
                "steps": steps,
                "nll": curves.cross_entropy,
                "kl": curves.kl,
                "entropy": curves.entropy.value,
                "kl_of_frequencies": kl_of_frequencies(trained.k_data),
                "data": {k: {n: v[:-1] for n, v in each.items()} for k, each in data.items()},
                "log_laws": {k: {n: v[-1] for n, v in each.items()} for k, each in data.items()},
                "own": own,
            }
        )
        print(f"language {seed}: loss {curves.cross_entropy[0]:.3f} to {curves.cross_entropy[-1]:.3f}", flush=True)
    return {"settings": asdict(size), "runs": runs}


def kl_of_frequencies(data: mk.Kernel) -> float:
    """KL from the language of what knows frequencies of tokens, and nothing of contexts: nats per token."""
    mean = mk.Kernel(np.broadcast_to(data.matrix.mean(axis=0), data.matrix.shape))
    return float(mk.average_divergence(mk.Kernel(data.matrix), mean, mk.KL()))


class Transformer(torch.nn.Module):
    """Embeddings of characters and places, blocks that norm first, a norm, a head."""

    def __init__(self, vocabulary: int, size: Docstrings) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(vocabulary, size.width)
        self.position = torch.nn.Embedding(size.context_length, size.width)
        heads = max(1, size.width // 32)
        self.blocks = torch.nn.ModuleList(
            torch.nn.TransformerEncoderLayer(
                size.width, heads, 4 * size.width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(size.depth)
        )
        self.norm = torch.nn.LayerNorm(size.width)
        self.head = torch.nn.Linear(size.width, vocabulary, bias=False)
        later = torch.full((size.context_length, size.context_length), float("-inf")).triu(1)
        self.register_buffer("later", later)

    def states(self, ids: torch.Tensor) -> list[torch.Tensor]:
        """At every cut, as the head reads them: (B, T, d) each."""
        h = self.embedding(ids) + self.position.weight
        cuts = [h]
        for block in self.blocks:
            h = block(h, src_mask=self.later, is_causal=True)
            cuts.append(h)
        return [self.norm(cut) for cut in cuts]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits (B, T, V)."""
        logits: torch.Tensor = self.head(self.states(ids)[-1])
        return logits


def texts_as_ids(size: Docstrings) -> tuple[IntArray, IntArray, tuple[str, ...]]:
    """Text to train on, (N,); windows of text from other modules, (B, T + 1), each of another piece; the characters."""
    texts, modules = standard_library_docstrings(size.characters)
    held_out = set(sorted(set(modules))[::5])
    training = "\n\n\n".join(text for text, name in zip(texts, modules, strict=True) if name not in held_out)
    frequent = sorted(c for c, count in Counter(training).items() if count >= 50)
    vocabulary = ("other", *frequent)
    number = {character: i for i, character in enumerate(vocabulary)}
    length = size.context_length + 1
    others = [t for t, name in zip(texts, modules, strict=True) if name in held_out and len(t) >= length]
    if len(others) < size.windows:
        raise ValueError(f"expected {size.windows} held-out texts, got {len(others)}")
    windows = [text[(len(text) - length) // 2 :][:length] for text in others[: size.windows]]
    ids = [np.array([number.get(c, 0) for c in text]) for text in (training, *windows)]
    return ids[0], np.stack(ids[1:]), vocabulary


def trained_transformer(
    size: Docstrings, seed: int, kept: set[int], training: IntArray, windows: IntArray, vocabulary: tuple[str, ...]
) -> list[tuple[int, mk.Features]]:
    """Features of the held-out windows at some steps; weights and batches are the seed's."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    model = Transformer(len(vocabulary), size)
    optimizer = torch.optim.AdamW(model.parameters(), size.learning_rate, weight_decay=0.01)
    warmup = max(1, size.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (size.steps - step) / max(size.steps - warmup, 1))
    )
    found = []
    for step in range(size.steps + 1):
        if step in kept:
            found.append((step, features_of(model, windows, vocabulary, step)))
        first = rng.integers(0, len(training) - size.context_length, size.batch_size)
        batch = torch.from_numpy(training[first[:, None] + np.arange(size.context_length + 1)])
        loss = torch.nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"docstrings {seed}, step {step}: loss {loss.item():.3f}", flush=True)
    return found


def features_of(model: Transformer, windows: IntArray, vocabulary: tuple[str, ...], step: int) -> mk.Features:
    """States at every cut on all windows, each window a sequence."""
    with torch.no_grad():
        cuts = [cut.flatten(0, 1).numpy() for cut in model.states(torch.from_numpy(windows[:, :-1]))]
    sequences, length = windows[:, :-1].shape
    n = sequences * length
    return mk.Features(
        hidden=cuts[-1],
        head=model.head.weight.detach().numpy().copy(),
        targets=windows[:, 1:].reshape(-1),
        token_ids=windows[:, :-1].reshape(-1),
        sequence_ids=np.repeat(np.arange(sequences), length),
        positions=np.tile(np.arange(length), sequences),
        layers=tuple(range(len(cuts) - 1)),
        layer_rows=np.arange(n),
        layer_hidden=np.stack(cuts[:-1]),
        num_layers=len(cuts) - 1,
        vocabulary=vocabulary,
        provenance={"model": f"transformer after {step} steps"},
    )


def readout_losses(features: mk.Features, rows: IntArray) -> dict[str, Any]:
    """Loss of each cut's states when the final norm and the head read them, with intervals over sequences."""
    P = [features.softmax_kernel(layer) for layer in (*features.layers, features.num_layers)]
    stats = [mk.softmax_stats(kernel[rows], targets=features.targets[rows]) for kernel in P]
    losses = np.stack([each.nll for each in stats if each.nll is not None], axis=1)
    found = bootstrap_mean(losses, features.sequence_ids[rows])
    return {"nll": [each.value for each in found], "nll_interval": [each.interval for each in found]}


def docstring_study(size: Docstrings) -> dict[str, Any]:
    """Checkpoints by layer against their own modes, and final states against those of another model, fully trained."""
    text = texts_as_ids(size)
    kept = {0, *np.rint(np.geomspace(4, size.steps, size.checkpoints - 1)).astype(int).tolist()}
    trained = trained_transformer(size, 0, kept, *text)
    ((_, other),) = trained_transformer(size, 1, {size.steps}, *text)
    options: dict[str, Any] = {"num_null": size.draws}
    against_other = by_layer([features.hidden for _, features in trained], other)
    checkpoints = []
    for step, features in trained:
        losses = mk.nll(features)
        own = {kind: scores(mk.alignment(features, kind, size.ranks, **options)) for kind in SIMILARITIES}
        losses_by_layer = readout_losses(features, np.arange(features.num_contexts))
        checkpoints.append({"step": step, "entropy": losses.entropy.value, **losses_by_layer, "own": own})
        print(f"docstrings, step {step}: held-out loss {losses.nll.value:.3f}", flush=True)
    return {
        "settings": asdict(size),
        "vocabulary": other.vocabulary_size,
        "checkpoints": checkpoints,
        "other_nll": mk.nll(other).nll.value,
        "other": {kind: scores(mk.alignment(against_other, kind, size.ranks, **options)) for kind in SIMILARITIES},
    }


def smollm2_study(size: SmolLM2, path: Path | None) -> dict[str, Any]:
    """All cuts of a real model against the modes of its predictions."""
    if path is not None:
        features = mk.Features.load(path)
    else:
        n = size.contexts
        texts, names = standard_library_docstrings(8 * n)
        features = mk.extract("smollm2-135m", texts=texts, text_names=names, max_tokens=n, layer_tokens=n)
    n = features.num_contexts
    own: dict[str, Any] = {}
    for kind in SIMILARITIES:
        found = mk.alignment(features, kind, size.ranks, num_null=size.draws)
        tokens = [[" ".join(names) for names in pair] for pair in found.tokens]
        each = {"modes_of_last_layer": found.modes_held_out[-1], "best_layer": found.best_layer, "tokens": tokens}
        own[kind] = {**scores(found), **each}
        print(f"SmolLM2: {found!r}", flush=True)
    rows = np.linspace(0, n - 1, min(n, size.readout_contexts)).astype(np.int64)
    return {
        "settings": asdict(size),
        "sequences": len(np.unique(features.sequence_ids)),
        **readout_losses(features, rows),
        "own": own,
        "fewer": {str(m): on_fewer_contexts(features, m, size) for m in size.fewer},
    }


def on_fewer_contexts(features: mk.Features, m: int, size: SmolLM2) -> dict[str, Any]:
    """The last layer on the first m contexts."""
    names = ("hidden", "targets", "token_ids", "sequence_ids", "positions")
    cut: dict[str, Any] = {name: getattr(features, name)[:m] for name in names}
    unused: dict[str, Any] = dict.fromkeys(("layer_rows", "layer_hidden", "text_ids", "target_spans"))
    first = replace(features, **cut, **unused, layers=())
    return scores(mk.alignment(first, "bhattacharyya", size.ranks, num_null=size.draws))


def plain(value: Any) -> Any:
    """As JSON has it, in few digits; what is not a number is null."""
    if isinstance(value, dict):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, (float, np.floating)):
        return round(float(value), DIGITS) if np.isfinite(value) else None
    return value


def main() -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true", help="what the page shows, some forty minutes")
    parser.add_argument("--parts", nargs="*", choices=tuple(LONG), help="only these, or none: only draw what is in DIR")
    parser.add_argument("--features", type=Path, help="SmolLM2's with all layers, from mk.extract, instead of new ones")
    parser.add_argument("--out", type=Path, default=Path("alignment-study"), help="a folder; default alignment-study")
    wanted = parser.parse_args()
    warnings.simplefilter("ignore", mk.errors.SampleWarning)  # the page says what samples cannot carry
    sizes = LONG if wanted.long else SHORT
    parts = tuple(sizes) if wanted.parts is None else wanted.parts
    wanted.out.mkdir(parents=True, exist_ok=True)
    path = wanted.out / NAME
    results: dict[str, Any] = json.loads(path.read_text("utf8")) if path.exists() else {}
    for part in parts:
        size = (sizes if part in sizes else LONG)[part]
        if part == "language":
            found = language_study(size)
        elif part == "docstrings":
            found = docstring_study(size)
        else:
            found = smollm2_study(size, wanted.features)
        results = plain({**results, part: found})
    results = {name: results[name] for name in LONG if name in results}
    results["findings"] = plain(findings(results))
    path.write_text(json.dumps(results, ensure_ascii=False, separators=(",", ":")) + "\n", "utf8")
    draw(results, wanted.out)
    print("\n" + "\n\n".join(tables(results["findings"]).values()))


if __name__ == "__main__":
    main()
