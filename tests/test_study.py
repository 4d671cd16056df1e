"""The study of alignment: its short form runs and is what it claims to be; the page cites what the long form found."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import markovlm as mk

DOCS = Path(__file__).parents[1] / "docs"
sys.path.insert(0, str(DOCS))

import alignment_figures  # noqa: E402
import alignment_study  # noqa: E402

PAGE, FOUND = DOCS / "alignment.md", DOCS / "alignment-study.json"
LARGEST_PICTURE = 60_000  # bytes, as in test_docs.py
HALF = 0.5e-4  # numbers are kept to four digits


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("study")
    done = subprocess.run(
        [sys.executable, str(DOCS / "alignment_study.py"), "--out", str(out)],
        cwd=out,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return out, done.stdout


@pytest.fixture(scope="module")
def results(short: tuple[Path, str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((short[0] / FOUND.name).read_text("utf8"))
    return found


def shape(value: Any) -> Any:
    """Names in dictionaries, nothing of what they hold."""
    return {name: shape(inner) for name, inner in value.items()} if isinstance(value, dict) else None


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for inner in value.values() for number in numbers(inner)]
    if isinstance(value, list):
        return [number for inner in value for number in numbers(inner)]
    return [value] if isinstance(value, (int, float)) else []


def test_models_learn_languages(results: dict[str, Any]) -> None:
    for run in results["language"]["runs"]:
        assert run["nll"][-1] < run["nll"][0] - 0.1
        np.testing.assert_allclose(run["nll"], np.array(run["kl"]) + run["entropy"], atol=3 * HALF)
        assert run["steps"] == sorted(set(run["steps"]))
    checkpoints = results["docstrings"]["checkpoints"]
    assert checkpoints[-1]["nll"][-1] < checkpoints[0]["nll"][-1] - 0.1


def test_scores_are_shares_with_what_chance_gives(results: dict[str, Any]) -> None:
    size = results["language"]["settings"]
    for run in results["language"]["runs"]:
        assert set(run["own"]) == {*run["data"], "prototype"}
        for found in (*run["own"].values(), *run["data"].values()):
            assert np.shape(found["captured"]) == (len(run["steps"]), len(size["ranks"]))
            for name in ("captured", "null"):
                assert np.min(found[name]) >= 0
                assert np.max(found[name]) <= 1
            # d random functions are no better than their best r, and no worse than r of them taken at random
            share = size["hidden_size"] / (size["contexts"] - 1)
            assert share / 4 < np.mean(found["null"]) < 4 * share
            assert np.min(np.array(found["captured"]) - found["null"]) > 0


def test_untrained_models_predict_what_is_linear_in_their_states(results: dict[str, Any]) -> None:
    """Predictions that differ little are affine in logits, and these in states: with a model's own modes alignment is 1
    before anything is learnt; not with those of the language, of which nothing is known yet.
    """
    for run in results["language"]["runs"]:
        for kind, found in run["data"].items():
            assert run["own"][kind]["held_out"][0][-1] > 0.99
            assert found["held_out"][0][-1] < run["log_laws"][kind]["held_out"][-1]


def test_states_are_held_against_the_predictions_of_others() -> None:
    language = mk.synthetic.random_language(4, 6, seed=0, concentration=0.3)
    features = language.features(num_sequences=40, length=5, seed=0)
    rng = np.random.default_rng(0)
    beliefs, noise = features.hidden[:, 6:], rng.standard_normal((200, 2)).astype(np.float32)
    found = mk.alignment(alignment_study.by_layer([noise, beliefs], features), "expected_likelihood", [3], num_null=2)
    assert found.dimension.tolist() == [2, 3, 9]  # beliefs sum to 1; logarithms of laws do not
    # laws are linear in beliefs, and so are the eigenfunctions of their inner products
    np.testing.assert_allclose(found.captured_value[1:], 1, atol=1e-5)  # pairs are kept in float32, off by 1e-6 or so
    assert found.captured_value[0, 0] < 0.2
    laws = np.log(language.next_token(beliefs)).astype(np.float32)
    again = mk.alignment(alignment_study.by_layer([noise], features, laws), "expected_likelihood", [3], num_null=2)
    np.testing.assert_allclose(again.captured_value[0], found.captured_value[0], atol=1e-5)


def test_what_is_found_and_drawn(short: tuple[Path, str], results: dict[str, Any]) -> None:
    out, said = short
    tables = alignment_figures.tables(results["findings"])
    assert set(tables) == {"language", "docstrings"}
    for table in tables.values():
        assert table in said
    drawn = sorted(path.name for path in out.glob("*.png"))
    assert drawn == ["alignment-docstrings.png", "alignment-language.png", "alignment-similarities.png"]
    assert all(2_000 < (out / name).stat().st_size <= LARGEST_PICTURE for name in drawn)


def test_short_and_long_form_say_the_same_things(results: dict[str, Any]) -> None:
    committed = json.loads(FOUND.read_text("utf8"))
    assert set(committed["findings"]) == {*results["findings"], "smollm2"}
    for part, found in results["findings"].items():
        assert shape(found) == shape(committed["findings"][part])
    assert len(committed["language"]["runs"]) >= 5


def cites_in_order(section: str, found: dict[str, Any]) -> None:
    """A section's numbers, outside of code and tables, are those that its last comment names, one after the other."""
    listed = re.findall(r"<!-- cited: (.*?) -->", section, re.DOTALL)
    prose = re.sub(r"^```.*?^```$|^\|.*?$|<!--.*?-->", "", section, flags=re.MULTILINE | re.DOTALL)
    prose, at, decimals = " ".join(prose.split()), 0, 0
    for path in " ".join(listed).split():
        value: Any = found
        for name in path.rstrip("%").split("."):
            value = value[int(name) if isinstance(value, list) else name]
        if path.endswith("%"):
            value, low, high = (100 * number for number in value)
            cited = f"{value:.0f} [{low:.0f}, {high:.0f}] %"
        else:
            cited = alignment_figures.in_words(value)
        assert cited in prose[at:], f"{path} is {cited}, and not cited in its place"
        at = prose.index(cited, at) + len(cited)
        decimals += len(re.findall(r"\d\.\d\d", cited))
    assert decimals == len(re.findall(r"\b\d+\.\d\d\b", prose)), "a number that no finding was named for"


def test_page_cites_what_was_found(tmp_path: Path) -> None:
    committed = json.loads(FOUND.read_text("utf8"))
    again = alignment_figures.findings({name: part for name, part in committed.items() if name != "findings"})
    assert shape(again) == shape(committed["findings"])
    # made from numbers of four digits this time: off by as much, and a difference of two by twice as much
    np.testing.assert_allclose(numbers(again), numbers(committed["findings"]), atol=6 * HALF)
    page = PAGE.read_text("utf8")
    for part, table in alignment_figures.tables(committed["findings"]).items():
        assert table in page, f"the table of {part} is another one:\n{table}"
    for section in re.split("^## ", page, flags=re.MULTILINE):
        cites_in_order(section, committed["findings"])
    alignment_figures.draw(committed, tmp_path)
    for path in tmp_path.iterdir():
        assert f"]({path.name})" in page
        assert path.stat().st_size <= LARGEST_PICTURE


def test_committed_results_are_of_no_machine() -> None:
    text = FOUND.read_text("utf8")
    assert len(text) < 150_000
    assert not re.search(r"/(home|tmp|work|root|usr)/", text)
