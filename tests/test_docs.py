"""Pages of documentation: what they show is what comes out, it type-checks, and their links lead somewhere."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
NEEDS_MODEL = "<!-- real_model -->"  # stands in a section whose examples need SmolLM2-135M
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
LARGEST_PICTURE = 60_000  # bytes

of_every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))


@dataclass(frozen=True)
class Block:
    """Python code of a page: its text, the line that it starts at (from 0), and whether it needs the model."""

    code: str
    line: int
    needs_model: bool


def blocks_of(text: str) -> list[Block]:
    """All ```python blocks of a page, in order."""
    found: list[Block] = []
    needs_model, code, start, fence = False, list[str](), 0, ""
    for number, line in enumerate(text.splitlines()):
        if fence:
            if line.strip() == "```":
                if fence == "```python":
                    found.append(Block("\n".join([*code, ""]), start, needs_model))
                fence = ""
            code.append(line)
        elif line.startswith("```"):
            fence, code, start = line.strip(), [], number + 1
        elif line.startswith("## "):
            needs_model = False
        elif line.strip() == NEEDS_MODEL:
            needs_model = True
    assert not fence, f"a block that starts at line {start} never ends"
    return found


def what_differs(name: str, blocks: list[Block]) -> str:
    """Runs blocks one after another, with one set of names; says where something else came out than they show."""
    runner, names, report = doctest.DocTestRunner(optionflags=OPTIONS, verbose=False), dict[str, Any](), list[str]()
    for block in blocks:
        test = doctest.DocTestParser().get_doctest(block.code, {}, name, name, block.line)
        test.globs = names
        runner.run(test, out=report.append, clear_globs=False)
    assert bool(runner.failures) == bool(report)
    return "".join(report)


def as_script(text: str, blocks: list[Block]) -> str:
    """The code alone, each line at the number that it has in the page."""
    lines = [""] * (text.count("\n") + 1)
    for block in blocks:
        for example in doctest.DocTestParser().get_examples(block.code):
            source = example.source.splitlines()
            first = block.line + example.lineno
            lines[first : first + len(source)] = source
    return "\n".join(lines) + "\n"


def without_model(page: Path) -> list[Block]:
    return [block for block in blocks_of(page.read_text("utf8")) if not block.needs_model]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to draw pictures into, so that those of the repository stay as they are."""
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@of_every_page
def test_examples_without_a_model(page: Path, elsewhere: Path) -> None:
    differences = what_differs(page.name, without_model(page))
    assert not differences, differences


@pytest.mark.real_model
@pytest.mark.parametrize(
    "page", [page for page in PAGES if NEEDS_MODEL in page.read_text("utf8")], ids=lambda p: p.name
)
def test_examples_with_the_model(page: Path, elsewhere: Path) -> None:
    blocks = blocks_of(page.read_text("utf8"))
    assert any(block.needs_model for block in blocks)
    differences = what_differs(page.name, blocks)
    assert not differences, differences
    text = page.read_text("utf8")
    for drawn in (elsewhere / "docs").iterdir():
        assert f"]({drawn.name})" in text, f"{drawn.name} is drawn and not shown"
        assert drawn.stat().st_size <= LARGEST_PICTURE, drawn.name


@of_every_page
def test_examples_without_a_model_need_no_torch(page: Path, elsewhere: Path) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import pathlib, test_docs as t; "
        f"print(t.what_differs('page', t.without_model(pathlib.Path({str(page)!r})))); "
        "sys.exit('torch was imported' if 'torch' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=elsewhere, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.strip(), done.stdout


@of_every_page
def test_examples_without_a_model_type_check(page: Path, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    from mypy import api  # here, so that a machine without it fails this test and no other

    script = tmp_path / f"{page.stem}.py"
    script.write_text(as_script(page.read_text("utf8"), without_model(page)), "utf8")
    cache = pytestconfig.cache.mkdir("mypy_of_docs") if pytestconfig.cache else tmp_path / "cache"
    options = ["--strict", "--config-file=", f"--cache-dir={cache}", "--follow-imports=silent", "--no-error-summary"]
    said, complaint, status = api.run([*options, f"--python-executable={sys.executable}", str(script)])
    assert status == 0, f"line numbers are those of {page.name}:\n{said}{complaint}"


@of_every_page
def test_every_block_of_code_is_checked(page: Path) -> None:
    text = page.read_text("utf8")
    blocks = blocks_of(text)
    assert blocks
    for block in blocks:
        assert block.code.startswith(">>> "), f"line {block.line + 1}: a block that nobody runs; start it with >>>"
    # other names for a language would leave code unchecked
    assert set(re.findall(r"^```(.*)$", text, re.MULTILINE)) <= {"python", "", "bash"}


def slug(heading: str) -> str:
    """What GitHub makes of a heading, for links to it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@of_every_page
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text("utf8")
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = {slug(heading) for heading in re.findall(r"^#+ (.*)$", prose, re.MULTILINE)}
    pictures = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", prose)
    for words, target in pictures:
        assert words, f"{target}: says nothing to those who cannot see it"
        assert (page.parent / target).stat().st_size <= LARGEST_PICTURE, target
    for target in re.findall(r"\]\(([^)]+)\)", prose):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif not target.startswith("https://"):
            assert (page.parent / target.partition("#")[0]).exists(), target


WRONG = """
## One
```python
>>> x = 1
```
```python
>>> x + 1
3
```
## Two

<!-- real_model -->

```python
>>> x
1
>>> y: str = x
```
"""


def test_what_is_wrong_is_noticed(tmp_path: Path) -> None:
    blocks = blocks_of(WRONG)
    assert [(block.line, block.needs_model) for block in blocks] == [(3, False), (6, False), (14, True)]
    report = what_differs("wrong.md", blocks)
    assert 'File "wrong.md", line 7' in report
    assert "Expected:\n    3\nGot:\n    2" in report
    assert report.count("Failed example") == 1
    assert not what_differs("right.md", [blocks[0], blocks[2]])
    lines = as_script(WRONG, blocks).splitlines()
    assert (lines[3], lines[6], lines[16]) == ("x = 1", "x + 1", "y: str = x")
