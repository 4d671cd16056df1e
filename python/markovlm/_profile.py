"""Runs the analyses over Features and keeps what they found: the Profile."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np

from . import _checks, _json, _store
from ._bootstrap import Estimate
from ._ext import build_info
from ._features import Features
from ._layers import LayerCurves, layer_curves
from ._modes import Modes
from ._nll import nll
from .errors import FileFormatError, MissingDependencyError
from .typing import FloatArray, IntArray, Progress

__all__ = ["DEFAULT_ORDERS", "LayerCurves", "Profile", "TokenTable", "profile"]

DEFAULT_ORDERS = (0.0, 0.5, 1.0, 2.0, 4.0, float("inf"))
_SCHEMA = 1
_SCHEMA_KEY = "markovlm.profile"


@dataclass(frozen=True, repr=False)
class TokenTable:
    """Per-token results of the final layer, (n,) each; entropies in nats."""

    nll: FloatArray  # -log p(target); NaN where the target is unknown
    entropy: FloatArray  # H(p_x)
    surprise: FloatArray  # nll - entropy: how much more than the model expected; its mean is the calibration
    rank: IntArray  # tokens with a strictly larger logit than the target; -1 where the target is unknown
    target: IntArray
    sequence_id: IntArray
    position: IntArray
    context_id: IntArray  # last token of the context
    text_id: IntArray  # place of the text in the provenance's `texts`; -1 where unknown
    top_ids: IntArray  # (n, k) most likely next tokens
    top_log_probs: FloatArray  # (n, k)
    text: tuple[str, ...]  # target token as it stands in the text ("" for a byte inside a character already shown)


@dataclass(frozen=True, repr=False)
class Profile:
    """What one model's states say about one text. Entropies and divergences in nats."""

    nll: Estimate
    entropy: Estimate
    calibration: Estimate  # nll - entropy; > 0: over-confident, < 0: under-confident
    accuracy: Estimate  # share of targets that are the most likely token
    information: float  # I(H; W) = H(mean prediction) - mean entropy, exact for the empirical law, <= log n
    entropy_of_mean: float  # H(mean prediction)
    num_tokens: int  # n
    num_sequences: int
    vocabulary_size: int
    hidden_size: int
    renyi_orders: tuple[float, ...]  # 0 ... inf
    renyi: tuple[Estimate, ...]
    tokens: TokenTable
    layers: LayerCurves | None
    vocabulary: dict[int, str]  # printable form of the token ids that occur in `tokens`
    provenance: dict[str, Any]
    # model, model_type, texts (list of {name, sha256, characters}), dtype, context_length, versions, created,
    # head = {bias, scale, softcap, padded_rows}, verification = {rows, relative_error}
    cost: dict[str, float]
    # seconds: load, tokenize, forward, verify, final_layer, layers, total_profile; peak_memory_mib; tokens_per_second

    @property
    def model(self) -> str:
        """Name of the model, as it was given."""
        return str(self.provenance.get("model") or "unnamed model")

    def __repr__(self) -> str:
        return (
            f"Profile({self.model!r}: {self.num_tokens} tokens, nll={self.nll:.3f}, entropy={self.entropy:.3f}, "
            f"calibration={self.calibration:+.3f})"
        )

    def __str__(self) -> str:
        """The table that `markovlm profile` prints."""
        from ._report import text_table

        return text_table(self)

    def summary(self) -> dict[str, Any]:
        """Everything but the tokens as plain values for JSON; NaN and infinity become None, the order inf "inf"."""
        left_out = ("tokens", "layers", "vocabulary", "renyi_orders", "renyi")
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in left_out}
        fields["renyi"] = {f"{order:g}": e for order, e in zip(self.renyi_orders, self.renyi, strict=True)}
        fields["model"] = self.model
        fields["layers"] = None if self.layers is None else vars(self.layers)
        return {name: _json.plain(value) for name, value in fields.items()}

    def to_html(self, path: str | PathLike[str], modes: Modes | None = None) -> None:
        """Write the report: one self-contained HTML file that opens offline. Needs ``markovlm[report]``.

        With ``modes`` of the same contexts it shows them too; those of others are a `ValueRangeError`.
        """
        from ._report import write_html

        write_html(self, path, modes)

    def to_frame(self) -> Any:
        """The tokens as a pandas data frame, one row per context; ``top_ids``, ``top_log_probs`` are left out."""
        try:
            import pandas as pd
        except ImportError as error:
            raise MissingDependencyError("to_frame needs pandas: pip install pandas") from error
        table = {f.name: getattr(self.tokens, f.name) for f in dataclasses.fields(TokenTable)}
        return pd.DataFrame(
            {name: list(v) if name == "text" else v for name, v in table.items() if not name.startswith("top_")}
        )

    def save(self, path: str | PathLike[str]) -> None:
        """Write everything to one safetensors file (arrays) with JSON metadata; atomic, never pickle."""
        arrays = {f"tokens.{k}": v for k, v in vars(self.tokens).items() if isinstance(v, np.ndarray)}
        arrays["text.bytes"], arrays["text.offsets"] = _store.pack_strings(self.tokens.text)
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("tokens", "layers")}
        if self.layers is not None:
            arrays |= {f"layers.{k}": v for k, v in vars(self.layers).items() if isinstance(v, np.ndarray)}
            fields["layers.num_rows"] = self.layers.num_rows
        _store.write(
            path, arrays, {_SCHEMA_KEY: str(_SCHEMA), "fields": json.dumps(fields, default=dataclasses.asdict)}
        )

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Profile:
        """Read what `save` wrote. A file of another kind or of a newer schema is a `FileFormatError`."""
        arrays, metadata = _store.read(path)
        found = metadata.get(_SCHEMA_KEY, "a file of another kind")
        if found != str(_SCHEMA):
            raise FileFormatError(
                f"{path}: expected a profile of schema {_SCHEMA}, got {found}; make it again with this version"
            )
        fields = json.loads(metadata["fields"])
        num_rows = fields.pop("layers.num_rows", None)
        for name in ("nll", "entropy", "calibration", "accuracy"):
            fields[name] = _json.estimate(fields[name])
        fields["renyi"] = tuple(_json.estimate(e) for e in fields["renyi"])
        fields["renyi_orders"] = tuple(fields["renyi_orders"])
        fields["vocabulary"] = {int(k): v for k, v in fields["vocabulary"].items()}

        def part(prefix: str) -> dict[str, Any]:
            return {name.removeprefix(prefix): v for name, v in arrays.items() if name.startswith(prefix)}

        text = _store.unpack_strings(arrays["text.bytes"], arrays["text.offsets"])
        return cls(
            tokens=TokenTable(text=text, **part("tokens.")),
            layers=None if num_rows is None else LayerCurves(num_rows=num_rows, **part("layers.")),
            **fields,
        )


def profile(
    features: Features,
    *,
    orders: Sequence[float] = DEFAULT_ORDERS,
    top_k: int = 5,
    layer_rows: int = 128,
    level: float = 0.95,
    seed: int = 0,
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> Profile:
    """Everything that one text shows about one model: the final layer on every token, every kept layer on a subsample.

    Parameters
    ----------
    features : Features
        From `extract`, or made by hand.
    orders : sequence of float in [0, inf]
        Rényi orders.
    top_k : int
        Likely tokens to keep for each context; all of a vocabulary that has fewer.
    layer_rows : int
        At most this many contexts, evenly spread, for the curves over layers; all that `features` kept if fewer.
    level, seed
        Of the bootstrap over sequences.
    num_threads : int, optional
        Default: all that this process may run on; results do not depend on it.
    progress : callable, optional
        ``progress(done, total)`` in contexts read, over all passes.

    Returns
    -------
    Profile
        Print it for a table; ``to_html`` for the report; ``save`` to keep it.

    Raises
    ------
    MarkovLMError
        Where features do not fit together or logits overflow.

    Notes
    -----
    One fused pass on ``n`` contexts and one on ``layers × layer_rows``: ``2 V d`` flops for each row. Definitions and
    sources: `nll` (arXiv 2507.19247, Eq. 4.4, Thm 5.1, 5.2), theory §4–§6.

    Examples
    --------
    >>> import numpy as np, markovlm as mk
    >>> rng = np.random.default_rng(0)
    >>> features = mk.Features(
    ...     hidden=rng.normal(size=(40, 8)).astype("float32"), head=rng.normal(size=(50, 8)).astype("float32"),
    ...     targets=rng.integers(0, 50, 40), token_ids=np.zeros(40, dtype=int),
    ...     sequence_ids=np.arange(40) // 10, positions=np.arange(40) % 10)
    >>> mk.profile(features).num_sequences
    4
    """
    orders = _checks.renyi_orders("orders", orders, low=0.0)  # of which the report has an axis
    top_k = min(top_k, features.vocabulary_size)
    started = time.perf_counter()
    n = features.hidden.shape[0]
    layer_rows = min(layer_rows, 0 if features.layer_rows is None else len(features.layer_rows))
    total = n + (len(features.layers) + 1) * layer_rows if features.layers else n

    def report(offset: int) -> Progress | None:
        return None if progress is None else lambda done, _: progress(offset + done, total)

    result = nll(
        features, orders=orders, top_k=top_k, level=level, seed=seed, num_threads=num_threads, progress=report(0)
    )
    final_done = time.perf_counter()
    layers = None
    if features.layers:
        layers = layer_curves(
            features,
            orders=orders,
            max_rows=layer_rows,
            level=level,
            seed=seed,
            num_threads=num_threads,
            progress=report(n),
        )
    layers_done = time.perf_counter()

    stats = result.stats
    assert stats.nll is not None
    assert stats.rank is not None
    top_ids = stats.top_ids if stats.top_ids is not None else np.zeros((n, 0), dtype=np.int64)
    top_log_probs = stats.top_log_probs if stats.top_log_probs is not None else np.zeros((n, 0))
    tokens = TokenTable(
        nll=stats.nll,
        entropy=stats.entropy,
        surprise=stats.nll - stats.entropy,
        rank=stats.rank,
        target=features.targets,
        sequence_id=features.sequence_ids,
        position=features.positions,
        context_id=features.token_ids,
        text_id=np.full(n, -1) if features.text_ids is None else features.text_ids,
        top_ids=top_ids,
        top_log_probs=top_log_probs,
        text=features.target_texts(),
    )
    used = np.unique(np.concatenate([features.targets, features.token_ids, top_ids.ravel()]))
    vocabulary = {int(i): features.vocabulary[i] for i in used if 0 <= i < len(features.vocabulary)}
    provenance = {**(features.provenance or {}), "core": build_info()["isa"], "threads": _checks.threads(num_threads)}
    seconds = provenance.get("seconds", {})
    cost = {name: float(seconds[name]) for name in ("load", "tokenize", "forward", "verify") if name in seconds}
    cost |= {
        "final_layer": final_done - started,
        "layers": layers_done - final_done,
        "total_profile": time.perf_counter() - started,
        "peak_memory_mib": _peak_memory_mib(),
    }
    if cost.get("forward"):
        cost["tokens_per_second"] = n / cost["forward"]
    return Profile(
        nll=result.nll,
        entropy=result.entropy,
        calibration=result.calibration,
        accuracy=result.accuracy,
        information=result.information,
        entropy_of_mean=result.entropy_of_mean,
        num_tokens=n,
        num_sequences=len(np.unique(features.sequence_ids)),
        vocabulary_size=features.head.shape[0],
        hidden_size=features.head.shape[1],
        renyi_orders=tuple(result.renyi),
        renyi=tuple(result.renyi.values()),
        tokens=tokens,
        layers=layers,
        vocabulary=vocabulary,
        provenance=provenance,
        cost=cost,
    )


def _peak_memory_mib() -> float:
    try:
        import resource
    except ImportError:  # not a POSIX system
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
