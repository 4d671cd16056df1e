"""`markovlm alignment` and `markovlm geometry`: whether states line up with modes, and where predictions change."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from . import _checks
from ._alignment import alignment
from ._console import progress, sample_warnings_are_notes, user_errors
from ._features import Features, evenly_spread
from ._geometry import geometry
from ._options import (
    FEATURES_FILE,
    AsJson,
    ContextLength,
    LayersOption,
    Model,
    Out,
    SaveFeatures,
    Texts,
    Threads,
    Tokens,
    TrustRemoteCode,
    one_of,
)
from ._report import require_libraries
from ._similarity import KINDS
from ._sources import load_features, output_directory, parse_layers, read_source, results_directory, with_layers
from ._standalone import show, write

__all__ = ["alignment_command", "geometry_command"]


@user_errors
def alignment_command(
    model: Model,
    text: Texts = None,
    tokens: Tokens = 8192,
    similarity: Annotated[str, typer.Option(callback=one_of("--similarity", KINDS), help=", ".join(KINDS) + ".")] = (
        KINDS[0]
    ),
    ranks: Annotated[str, typer.Option(help="How many leading modes; with commas between.")] = "16,64",
    beta: Annotated[float, typer.Option(help="Sharpness of the last two similarities.")] = 1.0,
    layers: LayersOption = "all",
    seed: Annotated[int, typer.Option(min=0, help="Of halves, random functions and intervals.")] = 0,
    max_memory: Annotated[
        int, typer.Option(min=1, help="MiB; similarities of all pairs are kept where 4 bytes × contexts² fit.")
    ] = 1024,
    out: Out = None,
    threads: Threads = None,
    context_length: ContextLength = 512,
    save_features: SaveFeatures = False,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Find how far MODEL's states line up with the modes of its predictions, by layer: a table and one page."""
    require_libraries()
    wanted, of_ranks = parse_layers(layers), _ranks(ranks)
    _checks.positive("--beta", beta)
    options: dict[str, Any] = {"layers": wanted, "layer_tokens": tokens}
    options |= {"context_length": context_length, "trust_remote_code": trust_remote_code}
    source, out = read_source(model, text, tokens), results_directory(model, out)
    with output_directory(out):
        with progress() as stage:
            features = load_features(model, source, tokens, threads, stage, **options)
            with sample_warnings_are_notes():
                found = alignment(
                    features if source is not None else with_layers(features, wanted),
                    similarity,
                    of_ranks,
                    beta=beta,
                    seed=seed,
                    max_memory=max_memory * 2**20,
                    num_threads=threads,
                    progress=stage("alignment (parts)"),
                )
        if save_features:
            features.save(out / FEATURES_FILE)
        write(out, "alignment", found)
    show(out, as_json, {"alignment": found})


@user_errors
def geometry_command(
    model: Model,
    text: Texts = None,
    tokens: Tokens = 4096,
    contexts: Annotated[int, typer.Option(min=1, help="Of these contexts, evenly spread, the metric is taken.")] = 512,
    count: Annotated[int, typer.Option("--directions", min=1, help="Leading ones at each context.")] = 16,
    tol: Annotated[float, typer.Option(help="Of residuals, relative to the largest eigenvalue.")] = 1e-3,
    seed: Annotated[int, typer.Option(min=0, help="Of random vectors.")] = 0,
    out: Out = None,
    threads: Threads = None,
    context_length: ContextLength = 512,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Find in which directions of its states MODEL's predictions change: print a table, write it and one page."""
    require_libraries()
    options: dict[str, Any] = {"layers": (), "context_length": context_length, "trust_remote_code": trust_remote_code}
    source, out = read_source(model, text, tokens), results_directory(model, out)
    with output_directory(out):
        with progress() as stage:
            features: Features = load_features(model, source, tokens, threads, stage, **options)
            rows = evenly_spread(features.num_contexts, contexts)
            found = geometry(
                features.softmax_kernel()[rows],
                count,
                tol=tol,
                sequence_ids=features.sequence_ids[rows],
                seed=seed,
                num_threads=threads,
                progress=stage("geometry (contexts)"),
            )
        found = dataclasses.replace(found, provenance=features.provenance)
        write(out, "geometry", found)
    show(out, as_json, {"geometry": found})


def _ranks(text: str) -> list[int]:
    try:
        return [_checks.count("--ranks", int(part), 1, 2**31) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"expected numbers such as 16,64, got {text!r}", param_hint="--ranks") from None
