"""`markovlm compare`: kept results and models side by side, what it writes, and errors that name the argument."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import markovlm as mk
from markovlm.cli import app
from tiny_models import SENTENCES, build, configuration, mini_tokenizer

TEXT = " ".join(SENTENCES * 8)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tiny random models, the last with another tokenizer, a text, and the results of the first model on it."""
    path = tmp_path_factory.mktemp("compare")
    (path / "text.txt").write_text(TEXT, encoding="utf-8")
    for name, seed, words in (("one", 0, False), ("two", 1, False), ("words", 2, True)):
        build(configuration("llama", vocab_size=512 if words else 320), seed=seed).save_pretrained(path / name)
        mini_tokenizer(words=words).save_pretrained(path / name)
    common = ("--text", path / "text.txt", "--tokens", 200, "--context-length", 40, "--json", "--out", path / "kept")
    assert run("profile", path / "one", *common, "--save-features").exit_code == 0
    assert run("surplus", path / "kept" / "features.safetensors", "--horizon", 2, "--rows", 40, "--json").exit_code == 0
    assert run("spectrum", path / "kept" / "features.safetensors", "--modes", 2, "--json").exit_code == 0
    return path


def test_kept_results_against_a_model(home: Path, tmp_path: Path) -> None:
    """The model is profiled as the kept results were: no size has to be said again."""
    out = tmp_path / "out"
    result = run("compare", home / "kept", home / "two", "--text", home / "text.txt", "--out", out, "--threads", 1)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert f"Report: {out / 'comparison.html'}" in result.stdout
    assert "tokens per pass with drafts" in result.stdout
    assert "effective rank of predictions" in result.stdout
    assert "B - A" in result.stdout
    assert sorted(str(file.relative_to(out)) for file in out.rglob("*.*")) == [
        "comparison.html",
        "two/profile.safetensors",
    ]
    made, kept = (mk.Profile.load(p / "profile.safetensors") for p in (out / "two", home / "kept"))
    found = mk.compare([kept, made])
    assert found.paired == (True, True)
    assert found.sentences[0].split()[-1] in result.stdout

    # and again, of what it wrote: with names, steps and the other as the baseline
    arguments = ("--names", "first, second", "--steps", "1,2", "--baseline", 2, "--json", "--out", out)
    again = run("compare", home / "kept", out / "two" / "profile.safetensors", *arguments)
    assert again.exit_code == 0, again.output
    plain = json.loads(again.stdout)
    assert (plain["names"], plain["steps"], plain["baseline"]) == (["first", "second"], [1.0, 2.0], 1)
    difference = found.quantities["nll"].differences[1]
    assert difference is not None
    assert plain["quantities"]["nll"]["differences"][0]["value"] == -difference.value
    assert plain["quantities"]["tokens_per_pass"]["estimates"][1] is None
    assert plain["files"] == {"comparison": str(out / "comparison.html")}
    assert 'id="along"' in (out / "comparison.html").read_text("utf8")


def test_another_tokenizer(home: Path, tmp_path: Path) -> None:
    sizes = ("--text", home / "text.txt", "--tokens", 150, "--layers", "none", "--out", tmp_path)
    result = run("compare", home / "one", home / "words", *sizes)
    assert result.exit_code == 0, result.output
    assert "NLL per character" in result.stdout
    assert "markovlm: the tokens of" in result.stderr
    assert "Warning" not in result.stdout
    assert len(list(tmp_path.rglob("profile.safetensors"))) == 2


def test_kept_features_need_no_text(home: Path, tmp_path: Path) -> None:
    """The same model twice goes by the names of its arguments, and differs by nothing."""
    features = home / "kept" / "features.safetensors"
    result = run("compare", home / "kept", features, "--json", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["names"] == [str(home / "kept"), str(features)]
    assert found["quantities"]["nll"]["differences"][1] == {"value": 0.0, "interval": [0.0, 0.0], "level": 0.95}
    assert Path(found["files"][f"profile of {features}"]) == tmp_path / "features" / "profile.safetensors"


def test_results_of_another_text_are_left_out(home: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text(TEXT[10:])
    mixed = tmp_path / "mixed"
    assert run("profile", home / "one", "--text", other, "--tokens", 100, "--json", "--out", mixed).exit_code == 0
    (mixed / "surplus.safetensors").write_bytes((home / "kept" / "surplus.safetensors").read_bytes())
    result = run("compare", mixed, mixed / "profile.safetensors", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "surplus.safetensors is of other texts than the profile there; it is left out" in result.stderr
    assert "tokens per pass" not in result.stdout
    refused = run("compare", home / "kept", mixed, "--out", tmp_path / "out2")
    assert refused.exit_code == 1
    assert "other.txt" in refused.stderr
    assert not (tmp_path / "out2").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["compare"], 2, "Missing argument"),
        (["compare", "KEPT"], 2, "expected two or more, got 1"),
        (
            ["compare", "KEPT", "EMPTY"],
            1,
            "expected profile.safetensors in it, or a model's config.json, found neither",
        ),
        (["compare", "KEPT", "./absent"], 1, "there is no directory absent"),
        (["compare", "KEPT", "absent.safetensors"], 1, "absent.safetensors"),
        (["compare", "KEPT", "BROKEN"], 1, "broken/profile.safetensors"),
        (["compare", "KEPT", "KEPT", "--text", "TEXT"], 2, "kept results have a text"),
        (["compare", "KEPT", "KEPT", "--names", "A"], 2, "expected 2, one for each model, got 1"),
        (["compare", "KEPT", "KEPT", "--names", "A,A"], 1, "names: expected names that are all different"),
        (["compare", "KEPT", "KEPT", "--steps", "1,x"], 2, "expected numbers such as 0,100,1000, got '1,x'"),
        (["compare", "KEPT", "KEPT", "--steps", "2,1"], 1, "steps: expected finite numbers that rise"),
        (["compare", "KEPT", "KEPT", "--baseline", "3"], 1, "--baseline: expected an integer in [1, 2], got 3"),
        (["compare", "KEPT", "KEPT", "--out", "TEXT"], 1, "File exists"),
    ],
)
def test_user_errors(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "profile.safetensors").write_bytes(b"no")
    names = {"KEPT": home / "kept", "TEXT": home / "text.txt", "EMPTY": "empty", "BROKEN": "broken"}
    before = {file.name for file in tmp_path.iterdir()}
    result = run(*(names.get(argument, argument) for argument in arguments))
    assert result.exit_code == code, result.output
    assert words in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert {file.name for file in tmp_path.iterdir()} == before  # nothing half-written
