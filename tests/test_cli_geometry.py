"""`markovlm alignment` and `markovlm geometry`: what they print and write, alone and beside a profile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import markovlm as mk
from test_cli import model, run, text

__all__ = ["model", "text"]  # fixtures

SMALL = ("--tokens", 400, "--context-length", 40, "--threads", 1)


def test_alignment_writes_table_alignment_and_page(model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("alignment", model, "--text", text, *SMALL, "--ranks", "2,5", "--out", out)
    assert result.exit_code == 0, result.output
    assert sorted(file.name for file in out.iterdir()) == ["alignment.html", "alignment.safetensors"]
    found = mk.Alignment.load(out / "alignment.safetensors")
    assert (found.ranks, found.num_contexts, found.layers.tolist()) == ((2, 5), 400, [0, 1, 2, 3])
    assert "First 5 modes" in result.stdout
    assert f"Report: {out / 'alignment.html'}" in result.stdout
    assert result.stderr.splitlines() == [message.replace("alignment:", "markovlm:") for message in found.warnings]

    html = (out / "alignment.html").read_text("utf8")
    (out / "alignment.html").unlink()
    again = run("report", out)
    assert (again.stdout, again.stderr) == (result.stdout, result.stderr)
    assert (out / "alignment.html").read_text("utf8") == html


def test_both_as_json_of_kept_features_and_beside_a_profile(model: Path, text: Path, tmp_path: Path) -> None:
    arguments = ("--text", text, *SMALL, "--ranks", 3, "--layers", "0", "--json", "--save-features", "--out", tmp_path)
    of_alignment = json.loads(run("alignment", model, *arguments).stdout)
    assert of_alignment["layers"] == [0, 3]
    features = tmp_path / "features.safetensors"
    of_geometry = run("geometry", features, "--contexts", 20, "--directions", 3, "--threads", 1, "--json")
    geometry = json.loads(of_geometry.stdout)
    assert (geometry["num_contexts"], geometry["k"], geometry["status"]) == (20, 3, "converged")
    assert geometry["effective_rank"]["interval"][0] > 1
    both = json.loads(run("report", tmp_path, "--json").stdout)
    assert both["alignment"] == {name: value for name, value in of_alignment.items() if name != "files"}
    assert both["geometry"] == {name: value for name, value in geometry.items() if name != "files"}
    assert run("profile", features, "--json").exit_code == 0
    tables = run("report", tmp_path).stdout
    assert tables.count("Report: ") == 3
    assert "of the mean metric's trace" in tables
    compared = run("compare", tmp_path, tmp_path, "--names", "A,B", "--out", tmp_path / "compared")
    assert compared.exit_code == 0, compared.output
    for words in ("captured, rank 3", "effective rank of the metric", "anisotropy of the metric"):
        assert words in compared.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["alignment"], 2, "Missing argument"),
        (["alignment", "MODEL", "--similarity", "cosine"], 2, "expected one of bhattacharyya,"),
        (["alignment", "MODEL", "--ranks", "few"], 2, "expected numbers such as 16,64"),
        (["alignment", "MODEL", "--text", "TEXT", "--tokens", "20"], 1, "expected more contexts than dimensions"),
        (["geometry", "MODEL", "--directions", "0"], 2, "--directions"),
        (["geometry", "absent.safetensors"], 1, "there is no such file"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], code: int, words: str, model: Path, text: Path, tmp_path: Path
) -> None:
    given = [{"MODEL": str(model), "TEXT": str(text)}.get(argument, argument) for argument in arguments]
    result = run(*given, *([] if len(given) < 2 else ["--out", tmp_path / "out"]))
    assert result.exit_code == code, result.output
    assert words in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.stderr
