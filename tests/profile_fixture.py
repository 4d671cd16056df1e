"""A made-up Profile whose numbers agree with one another: every quantity is computed from explicit distributions.

The text is the project's own; no model is involved. Row distributions are drawn, the token that stands in the text is
put at a rank drawn from a slightly flatter law, so that the "model" is over-confident by a known direction.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from markovlm._bootstrap import Estimate, bootstrap_mean
from markovlm._modes import Modes
from markovlm._profile import LayerCurves, Profile, TokenTable
from markovlm.typing import FloatArray, IntArray

SENTENCES = """
The harbour was quiet before the ferry came in, and the gulls stood in a row along the wall.
Nobody had asked the clockmaker why he kept two clocks that disagreed.
In winter the road over the pass is closed, so letters travel by the long way round the lake.
She measured the flour twice, wrote down both results, and used neither of them.
A small error in the first step is carried along, but it need not grow.
When the river rises above the third mark, the lower bridge is shut until the morning.
The children counted the carriages of the train: forty-one, or forty-two if one trusts the youngest.
He repaired the radio with a spring from a pen and a good deal of patience.
Most of the orchard is apples; the pear trees near the house are older than the house itself.
"Tomorrow", said the baker, "we shall have neither bread nor an explanation."
The map shows a path where there is none, and leaves out the one that everybody uses.
What remains after the rain is a smell of warm stone and the sound of gutters.
The committee met on Thursday, agreed on the minutes of Wednesday, and adjourned until Friday.
Two thermometers on the same window differ by half a degree, which is itself a kind of measurement.
Once a year the library sorts its maps by size, and once a year somebody puts them back by country.
It is easier to hear the sea from the attic than from the beach, although no one can say why.
""".strip().splitlines()

HOSTILE_TOKENS = (
    "</script><script>alert(1)</script>",
    '" onmouseover="alert(2)',
    "<img src=x onerror=alert(3)>",
    "{{ 7 * 7 }}",
    "&amp;",
    "\x00",
    "\x1b[31m",
    "\u202e desrever",
    "\ud800",
    "\u2028",
    " שלום",
    " עולם",
    " مرحبا",
    "🙂",
    "",
    "\n\n",
    "\t",
    " " + "long" * 30,
    "語",
)

RENYI_ORDERS = (0.0, 0.5, 1.0, 2.0, 4.0, float("inf"))


def pieces(sentence: str) -> list[str]:
    """Word-like tokens with their leading space; long words fall into two."""
    found = re.findall(r" ?\w+| ?[^\w\s]", sentence)
    return [part for word in found for part in ([word[:6], word[6:]] if len(word) > 10 else [word])]


def made_up_text(rng: np.random.Generator, num_tokens: int, hostile: bool) -> list[str]:
    words: list[str] = []
    while len(words) < num_tokens:
        for index in rng.permutation(len(SENTENCES)):
            words += [*pieces(SENTENCES[index]), "\n\n" if rng.random() < 0.2 else " "]
    words = words[:num_tokens]
    if hostile and num_tokens > 2 * len(HOSTILE_TOKENS):
        words[num_tokens // 4 : num_tokens // 4 + len(HOSTILE_TOKENS)] = HOSTILE_TOKENS
    return words


def renyi(log_p: FloatArray, order: float) -> FloatArray:
    if order == 0.0:
        return np.full(len(log_p), np.log(log_p.shape[1]))
    if order == 1.0:
        return np.asarray(-(np.exp(log_p) * log_p).sum(axis=1))
    if order == np.inf:
        return np.asarray(-log_p.max(axis=1))
    return np.asarray(np.log(np.exp(order * log_p).sum(axis=1)) / (1.0 - order))


def log_softmax(z: FloatArray) -> FloatArray:
    z = z - z.max(axis=1, keepdims=True)
    return np.asarray(z - np.log(np.exp(z).sum(axis=1, keepdims=True)))


def layer_curves(rng: np.random.Generator, z: FloatArray, target: IntArray, sequence: IntArray) -> LayerCurves:
    """Readouts that drift from noise to the final logits."""
    depth, rows = 12, np.arange(len(z))
    final = log_softmax(z)
    noise = rng.standard_normal(z.shape) * 3.0
    columns: dict[str, list[Any]] = {}
    for layer in range(depth + 1):
        weight = (layer / depth) ** 1.5
        log_p = log_softmax(weight * z + (1.0 - weight) * noise)
        nll, entropy = -log_p[rows, target], renyi(log_p, 1.0)
        kl = (np.exp(final) * (final - log_p)).sum(axis=1)
        hit = (log_p.argmax(axis=1) == target).astype(np.float64)
        estimates = bootstrap_mean(np.stack([entropy, nll, nll - entropy, hit, kl], axis=1), sequence, resamples=500)
        for name, estimate in zip(
            ("entropy", "nll", "calibration", "accuracy", "kl_from_final"), estimates, strict=True
        ):
            columns.setdefault(name, []).append(estimate.value)
            columns.setdefault(name + "_interval", []).append(estimate.interval)
        mean = np.exp(log_p).mean(axis=0)
        columns.setdefault("information", []).append(-(mean * np.log(mean)).sum() - entropy.mean())
        columns.setdefault("renyi", []).append([renyi(log_p, order).mean() for order in RENYI_ORDERS])
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in columns.items()}
    return LayerCurves(layer=np.arange(depth + 1), num_rows=len(z), **arrays)


def fake_profile(
    num_tokens: int = 1200,
    num_sequences: int = 6,
    *,
    top_k: int = 5,
    with_layers: bool = True,
    hostile: bool = True,
    known_targets: bool = True,
    seed: int = 20240607,
) -> Profile:
    rng = np.random.default_rng(seed)
    words = made_up_text(rng, num_tokens, hostile)
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    V = len(vocabulary) + 600
    names = list(vocabulary) + [f" word{index}" for index in range(600)]
    target = np.array([vocabulary[word] for word in words], dtype=np.int64)
    sequence = (np.arange(num_tokens) * num_sequences // num_tokens).astype(np.int64)
    n, rows = num_tokens, np.arange(num_tokens)

    # a rank drawn from a flatter law, then the token of the text is swapped into that rank: over-confidence
    sharpness = rng.lognormal(0.95, 0.5, size=(n, 1))
    z = sharpness * (rng.standard_normal((n, V)) - 0.35 * np.log1p(np.arange(V)))
    drawn = (0.88 * z + rng.gumbel(size=(n, V))).argmax(axis=1)
    z[rows, drawn], z[rows, target] = z[rows, target].copy(), z[rows, drawn].copy()

    log_p = log_softmax(z)
    nll, entropy = -log_p[rows, target], renyi(log_p, 1.0)
    rank = (z > z[rows, target][:, None]).sum(axis=1).astype(np.int64)
    top_ids = np.argsort(-z, axis=1)[:, :top_k].astype(np.int64)
    orders = [renyi(log_p, order) for order in RENYI_ORDERS]
    if not known_targets:
        nll, rank, target = np.full(n, np.nan), np.full(n, -1, dtype=np.int64), np.full(n, -100, dtype=np.int64)
    hit = np.where(rank < 0, np.nan, rank == 0)
    estimates = bootstrap_mean(np.stack([nll, entropy, nll - entropy, hit, *orders], axis=1), sequence)
    mean = np.exp(log_p).mean(axis=0)
    entropy_of_mean = float(-(mean * np.log(mean)).sum())
    kept = np.sort(rng.choice(n, size=min(n, 400), replace=False))
    context = np.roll([vocabulary[word] for word in words], 1)
    used = sorted({*target[target >= 0].tolist(), *context.tolist(), *top_ids.ravel().tolist()})
    return Profile(
        nll=estimates[0],
        entropy=estimates[1],
        calibration=estimates[2],
        accuracy=estimates[3],
        information=entropy_of_mean - float(entropy.mean()),
        entropy_of_mean=entropy_of_mean,
        num_tokens=n,
        num_sequences=num_sequences,
        vocabulary_size=V,
        hidden_size=576,
        renyi_orders=RENYI_ORDERS,
        renyi=tuple(estimates[4:]),
        tokens=TokenTable(
            nll=nll,
            entropy=entropy,
            surprise=nll - entropy,
            rank=rank,
            target=target,
            sequence_id=sequence,
            position=(rows - np.searchsorted(sequence, sequence)).astype(np.int64),
            context_id=context.astype(np.int64),
            text_id=np.zeros(n, dtype=np.int64),
            top_ids=top_ids,
            top_log_probs=np.take_along_axis(log_p, top_ids, axis=1),
            text=tuple(words) if known_targets else ("",) * n,
        ),
        layers=layer_curves(rng, z[kept], target[kept], sequence[kept]) if with_layers and known_targets else None,
        vocabulary={token: names[token] for token in used},
        provenance={
            "model": "made-up/harbour-12",
            "model_type": "llama",
            "texts": [{"name": "harbour.txt", "sha256": "9f2c" * 16, "characters": 5123}],
            "dtype": "bfloat16",
            "context_length": 512,
            "versions": {"markovlm": "0.1.0", "numpy": np.__version__, "torch": "2.13.0", "transformers": "5.23.0"},
            "created": "2025-01-01T12:00:00+00:00",
            "head": {"bias": False, "scale": 1.0, "softcap": None, "padded_rows": 0},
            "verification": {"rows": 32, "relative_error": 3.1e-7},
        },
        cost={
            "load": 1.9,
            "forward": 21.4,
            "final_layer": 1.03,
            "layers": 1.73,
            "total_profile": 2.91,
            "peak_memory_mib": 812.0,
            "tokens_per_second": n / 2.91,
        },
    )


def fake_modes(profile: Profile, k: int = 6, *, layer: int = -1, hostile: bool = True, seed: int = 5) -> Modes:
    """Modes of a profile's contexts, of every third one for a layer: orthonormal, the first of one sign."""
    rng = np.random.default_rng(seed)
    rows = np.arange(0, profile.num_tokens, 1 if layer == -1 else 3)
    V, k = profile.vocabulary_size, min(k, len(rows))

    def columns(length: int, heavy: float) -> FloatArray:
        drawn = rng.standard_normal((length, k)) * rng.lognormal(0, heavy, size=(length, k))
        drawn[:, 0] = np.abs(drawn[:, 0]) + 0.5
        found = np.linalg.qr(drawn)[0]
        return np.asarray(found * np.sign(found[np.abs(found).argmax(axis=0), np.arange(k)]))

    faces = columns(V, 1.5)
    shown = np.unique(np.argsort(-np.abs(faces), axis=0)[:48])
    odd = HOSTILE_TOKENS if hostile else (" word",)
    eigenvalues = 0.3 * np.arange(1, k + 1) ** -1.3
    stability = np.linspace(0.98, 0.1, k)
    return Modes(
        kind="bhattacharyya",
        beta=1.0,
        centered=False,
        layer=layer,
        eigenvalues=eigenvalues,
        lower=eigenvalues - 1e-9,
        upper=eigenvalues + 1e-9,
        residual_norms=np.full(k, 2e-8),
        trace=1.0,
        norm=0.3,
        rest=0.8 * float(eigenvalues[-1]),
        status="converged",
        missed_check="passed: made up",
        num_applies=120,
        tol=1e-6,
        seed=0,
        functions=np.sqrt(len(rows)) * columns(len(rows), 1.0),
        token_functions=faces,
        num_splits=3,
        stability=stability,
        span_stability=np.minimum(1.0, stability + 0.2),
        rows=rows,
        text=profile.tokens.text,
        sequence_ids=profile.tokens.sequence_id,
        token_ids=profile.tokens.context_id,
        vocabulary=profile.vocabulary | {int(i): odd[j % len(odd)] for j, i in enumerate(shown)},
        provenance=profile.provenance,
    )


def constant(value: float, low: float = float("nan"), high: float = float("nan")) -> Estimate:
    return Estimate(value, (low, high))


def infinite(profile: Profile) -> Profile:
    layers, tokens = profile.layers, profile.tokens
    assert layers is not None
    nll, first = tokens.nll.copy(), np.where(layers.layer == 0, float("inf"), 0.0)
    nll[3] = float("inf")
    return replace(
        profile,
        nll=constant(float("inf"), 3.0, float("inf")),
        calibration=constant(float("inf"), 1.0, float("inf")),
        tokens=replace(tokens, nll=nll, surprise=nll - tokens.entropy),
        layers=replace(layers, nll=layers.nll + first, kl_from_final=layers.kl_from_final + first),
    )


def nothing(profile: Profile) -> Profile:
    columns = {name: value[:0] for name, value in vars(profile.tokens).items()}
    unknown = constant(float("nan"))
    return replace(
        profile,
        nll=unknown,
        entropy=unknown,
        calibration=unknown,
        accuracy=unknown,
        information=float("nan"),
        entropy_of_mean=float("nan"),
        num_tokens=0,
        num_sequences=0,
        renyi=(unknown,) * len(profile.renyi_orders),
        tokens=replace(profile.tokens, **columns),
        layers=None,
    )


DEGENERATE: dict[str, Callable[[Profile], Profile]] = {
    "no layers": lambda p: replace(p, layers=None),
    "nothing known": lambda p: replace(p, vocabulary={}, provenance={}, cost={}),
    "no Rényi orders": lambda p: replace(p, renyi_orders=(), renyi=()),
    "one token": lambda p: fake_profile(1, 1),
    "one sequence, no predictions": lambda p: fake_profile(30, 1, top_k=0),
    "unknown targets": lambda p: fake_profile(40, 2, known_targets=False),
    "infinite values": infinite,
    "no tokens": nothing,
}
