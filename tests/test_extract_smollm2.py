"""A real model from end to end: SmolLM2-135M's own logits, layers and statistics, on every build of the core."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch

import markovlm as mk
from markovlm import _load
from markovlm._bootstrap import bootstrap_mean
from markovlm._sample_text import standard_library_docstrings
from markovlm._text import cut_windows

pytestmark = pytest.mark.real_model

N, VOCABULARY, WIDTH, DEPTH = 4096, 49_152, 576, 30
TOLERANCE = 1e-5
"""Nats. Logits reach 40 here, where one float32 has a rounding of 2e-6; a plain float32 product is off by 2e-5."""


@dataclass
class Run:
    model: Any
    tokenizer: Any
    texts: list[str]
    features: mk.Features
    path: Path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    texts, names = standard_library_docstrings(8 * N)
    kept: list[Any] = []
    load_model, load_tokenizer = _load.load_model, _load.load_tokenizer

    def keeping(load: Any) -> Any:
        def loaded(*arguments: Any, **options: Any) -> Any:
            kept.append(load(*arguments, **options))
            return kept[-1]

        return loaded

    with pytest.MonkeyPatch.context() as patch:  # loading takes seconds: once for extraction and for its check
        patch.setattr(_load, "load_model", keeping(load_model))
        patch.setattr(_load, "load_tokenizer", keeping(load_tokenizer))
        features = mk.extract(
            "smollm2-135m", texts=texts, text_names=names, layers="all", max_tokens=N, layer_tokens=64
        )
    tokenizer, model = kept
    path = tmp_path_factory.mktemp("smollm2") / "features.safetensors"
    features.save(path)
    return Run(model, tokenizer, texts, features, path)


def test_what_is_kept(run: Run) -> None:
    f = run.features
    assert f.hidden.shape == (N, WIDTH)
    assert f.head.shape == (VOCABULARY, WIDTH)
    assert (f.bias, f.scale, f.softcap) == (None, 1.0, None)
    assert f.layers == tuple(range(DEPTH))
    assert f.layer_hidden is not None
    assert f.layer_hidden.shape == (DEPTH, 64, WIDTH)
    assert f.provenance is not None
    assert f.provenance["verification"]["relative_error"] < 1e-5
    assert f.provenance["num_parameters"] == 134_515_008
    columns = cut_windows(run.texts, run.tokenizer, max_tokens=N, context_length=512).columns()
    for name in ("targets", "token_ids", "sequence_ids", "positions", "text_ids", "target_spans"):
        assert np.array_equal(getattr(f, name), columns[name]), name
    assert len(f.vocabulary) == VOCABULARY
    joined = "".join(np.array(f.target_texts(), dtype=object)[columns["text_ids"] == 0])
    assert run.texts[0].endswith(joined)
    assert len(joined) > 100


def test_its_own_logits_come_out_again(run: Run) -> None:
    f = run.features
    assert f.layer_rows is not None
    rows = np.flatnonzero(f.sequence_ids == f.sequence_ids[f.layer_rows[0]])
    with torch.no_grad():
        output = run.model(input_ids=torch.from_numpy(f.token_ids[rows])[None], output_hidden_states=True)
    own = output.logits[0].numpy()
    rebuilt = f.hidden[rows].astype(np.float64) @ f.head.astype(np.float64).T
    # float32 products over d = 576 terms, theirs and those of 30 layers: some 1e-6 of the range.
    assert np.abs(rebuilt - own).max() / np.ptp(own) < 1e-5
    assert f.layer_hidden is not None
    inside = np.isin(f.layer_rows, rows)
    assert inside.any()
    for layer in range(DEPTH):
        with torch.no_grad():
            expected = run.model.model.norm(output.hidden_states[layer][0][f.layer_rows[inside] - rows[0]]).numpy()
        error = np.abs(f.layer_hidden[layer][inside] - expected).max() / np.abs(expected).max()
        assert error < 1e-4, layer


def reference(f: mk.Features, rows: Any) -> np.ndarray[Any, Any]:
    """Log-normaliser, entropy and loss of ``rows``, (3, r), by their definitions in float64."""
    head, found = f.head.astype(np.float64).T, []
    for block in np.array_split(rows, max(1, len(rows) // 64)):
        z = f.hidden[block].astype(np.float64) @ head
        top = z.max(axis=1, keepdims=True)
        log_normalizer = top[:, 0] + np.log(np.exp(z - top).sum(axis=1))
        log_p = z - log_normalizer[:, None]
        entropy = -(np.exp(log_p) * log_p).sum(axis=1)
        found.append([log_normalizer, entropy, -log_p[np.arange(len(block)), f.targets[block]]])
    return np.concatenate(found, axis=1)


@pytest.fixture(scope="module")
def expected(run: Run) -> np.ndarray[Any, Any]:
    return reference(run.features, np.arange(N))


STATISTICS = """
import sys, numpy as np, markovlm as mk
f = mk.Features.load(sys.argv[1])
s = mk.softmax_stats(f.softmax_kernel(), targets=f.targets)
np.save(sys.argv[2], np.stack([s.log_normalizer, s.entropy, s.nll]))
print(mk.build_info()["isa"])
"""


@pytest.mark.parametrize("isa", mk.build_info()["available"])
def test_statistics_on_every_build(isa: str, run: Run, expected: np.ndarray[Any, Any], tmp_path: Path) -> None:
    environment = {**os.environ, "MARKOVLM_ISA": isa, "PYTHONPATH": str(Path(mk.__file__).parents[1])}
    command = [sys.executable, "-c", STATISTICS, str(run.path), str(tmp_path / "found.npy")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [isa]
    found = np.load(tmp_path / "found.npy")
    assert found.shape == (3, N)
    assert np.isfinite(found).all()
    errors = np.abs(found - expected).max(axis=1)
    print(f"{isa}: largest errors of log Z, entropy and NLL on {N} rows: {errors} nats")
    assert (errors < TOLERANCE).all(), errors
    assert 1.5 < found[2].mean() < 4.5  # an English model on English text; a wrongly read file gives some 10


@pytest.mark.parametrize("distance", [1e-6, 1e-5, 1e-4, 1e-2, 1.0])
def test_kl_between_nearby_states(run: Run, distance: float) -> None:
    f = run.features
    rows = np.arange(0, N, N // 48)
    near = f.hidden[rows] + distance * np.random.default_rng(0).standard_normal((len(rows), WIDTH)).astype(np.float32)
    P = mk.SoftmaxKernel(f.hidden[rows], f.head)
    Q = mk.SoftmaxKernel(near, P.head)
    log_p, log_q = (z - np.log(np.exp(z).sum(axis=1, keepdims=True)) for z in (P.logits(), Q.logits()))
    d = log_q - log_p  # to some 1e-14
    exact = (np.exp(log_p) * (np.expm1(d) - d)).sum(axis=1)
    error = np.abs(mk.divergence(P, Q, mk.KL()) - exact)
    print(f"KL of {np.median(exact):.1e}: largest relative error {(error / exact)[exact >= 1e-10].max(initial=0):.1e}")
    assert (error <= 1e-2 * np.maximum(exact, 1e-10)).all()


def test_alignment_of_the_final_states(run: Run) -> None:
    f, rows = run.features, np.arange(0, N, 3)
    part = dataclasses.replace(
        f,
        layers=(),
        layer_rows=None,
        layer_hidden=None,
        text_ids=None,
        target_spans=None,
        **{name: getattr(f, name)[rows] for name in ("hidden", "targets", "token_ids", "sequence_ids", "positions")},
    )
    with pytest.warns(mk.errors.SampleWarning, match="1366 contexts for 576 dimensions flatter"):
        found, of_prototypes = mk.alignment(part, ranks=(16,)), mk.alignment(part, "prototype", ranks=(16,))
    for result in (found, of_prototypes):
        assert (result.ritz_values <= result.eigenvalues * (1 + 1e-5)).all()  # interlacing; K is made of float32
        assert result.score().interval[0] > result.null_band[0, 0, 1]
        assert result.score(held_out=True).value < result.score().value
    h, g = (x.astype(np.float64) for x in (part.hidden, mk.prototypes(part.softmax_kernel())))
    h, g = h - h.mean(axis=0), g - g.mean(axis=0)
    cross = h.T @ g / len(h)
    theta = scipy.linalg.eigh(cross @ cross.T, h.T @ h / len(h), eigvals_only=True)[::-1]
    assert of_prototypes.ritz_values[0] == pytest.approx(theta[:16], rel=1e-5)


def test_the_quadratic_surrogate_is_never_below_the_loss(run: Run, expected: np.ndarray[Any, Any]) -> None:
    found = mk.quadratic_surrogate(run.features, ranks=(16,))
    assert found.warnings == ()
    assert found.violations == (0, 0)
    assert found.row_gaps().min() >= 0
    assert (np.abs(found.row_nll - expected[2]) < TOLERANCE).all()
    assert found.radius_lower**2 <= found.beta_ball <= (found.radius_lower / (1 - 1.001e-3)) ** 2
    assert 100 * found.beta_calibrated < found.beta_ball  # so loose is R² on this model
    assert found.text_maps is not None
    for b, estimate in enumerate((found.surrogate_ball, found.surrogate_calibrated)):
        value = found.text_maps.constant - found.text_maps.reached[b, -1] * found.text_maps.decrease[b, -1]
        assert abs(value - estimate.value) < TOLERANCE * found.gap_ball.value  # by covariances alone


def test_the_reference_sees_an_error(run: Run) -> None:
    rows = np.arange(3)
    exact = reference(run.features, rows)
    P = mk.SoftmaxKernel(run.features.hidden[rows], run.features.head)
    z = P.logits()
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(exact[1], -(p * np.log(p)).sum(axis=1), atol=1e-9)
    assert np.abs(reference(run.features, rows + 1) - exact).max() > 1e-2


@pytest.mark.filterwarnings("ignore::markovlm.errors.SampleWarning")
def test_what_drafting_was_predicted_to_give_is_what_it_gives(run: Run) -> None:
    """After prompts that were not fitted: tokens per pass of the decoder, and as predicted along what it wrote."""
    f = run.features
    found = mk.surplus(dataclasses.replace(f, layers=(), layer_rows=None, layer_hidden=None), horizon=3)
    assert found.draft is not None
    assert found.kl.interval[0, 1] < found.kl_without.interval[0, 1]
    assert found.usable.interval[0] > 0  # the state is worth something
    starts = [np.flatnonzero(f.sequence_ids == number)[:32] for number in np.unique(found.sequence_ids)]
    prompts = [f.token_ids[rows] for rows in starts if len(rows) == 32][:8]
    decoded = mk.speculative_decode(run.model, found.draft, prompts, num_tokens=24, seed=1)
    lengths = np.concatenate(decoded.accepted_lengths).astype(np.float64)[:, None]
    groups = np.repeat(np.arange(len(prompts)), [len(part) for part in decoded.accepted_lengths])
    (measured,) = bootstrap_mean(lengths, groups, level=0.99)
    texts = [np.concatenate(pair) for pair in zip(prompts, decoded.tokens, strict=True)]
    written = mk.extract(run.model, texts=texts, layers=None)
    predicted = mk.expected_accepted_length(found.draft, written, first_position=31, level=0.99)
    assert max(measured.interval[0], predicted.interval[0]) <= min(measured.interval[1], predicted.interval[1])
    assert 1.05 < predicted.value < 2
