"""The page and the table of a comparison: they say what the object holds, and nothing in a text reaches further."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import markovlm as mk
from comparison_fixture import another, checkpoints, recut
from markovlm._comparison import Comparison
from markovlm._profile import Profile
from markovlm._report import comparison_table, render_comparison, write_comparison
from markovlm._report._comparison_figures import featured, model_colours
from markovlm._report._comparison_table import label, written
from markovlm._report._numbers import number
from markovlm._report._tokens import visible
from profile_fixture import DEGENERATE, HOSTILE_TOKENS, fake_profile
from test_report import (
    Page,
    assert_fits,
    assert_scheme_can_be_chosen,
    assert_self_contained,
    open_browser,
    outside_references,
)

pytest.importorskip("jinja2", reason="renders the report")
pytest.importorskip("matplotlib", reason="draws the report")

ARROW_LEFT, ARROW_RIGHT, HOME, END, ESCAPE = "\ue012", "\ue014", "\ue011", "\ue010", "\ue00c"


def quietly(profiles: list[Profile], **options: Any) -> Comparison:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mk.errors.SampleWarning)
        return mk.compare(profiles, **options)


@pytest.fixture(scope="module")
def first() -> Profile:
    return fake_profile(900, 9)


@pytest.fixture(scope="module")
def found(first: Profile) -> Comparison:
    """Three models, so that the text can be coloured by two."""
    return mk.compare([first, another(first, 0.1), another(first, 0.02, "made-up/harbour-48", seed=8)])


@pytest.fixture(scope="module")
def html(found: Comparison) -> str:
    return render_comparison(found)


def words(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def test_numbers_are_those_of_the_object(found: Comparison, html: str) -> None:
    table, plain = str(found), html.replace("−", "-")
    assert table == comparison_table(found)
    for name in ("nll", "entropy", "calibration", "renyi_2"):
        for estimate in found.quantities[name].estimates:
            assert estimate is not None
            low, high = estimate.interval
            for where in (table, plain):
                assert f"{estimate.value:.3f}" in where
                assert f"[{low:.3f}, {high:.3f}]" in where
    for name in ("nll", "entropy", "calibration"):
        for estimate in found.quantities[name].differences[1:]:
            assert estimate is not None
            low, high = estimate.interval
            mark = " *" if low > 0 or high < 0 else ""
            assert f"{estimate.value:+.3f}{mark}" in table
            assert f">{estimate.value:+.3f}{mark}<small>[{number(low, sign=True)}, {number(high, sign=True)}]<" in plain
    for sentence in found.sentences:
        for where in (table, html):
            assert words(sentence) in words(where)


def test_table_fits_a_terminal(found: Comparison) -> None:
    for shown in (found, quietly(checkpoints(5, with_layers=False), steps=range(5))):
        assert max(map(len, str(shown).splitlines())) <= 80
    assert "A  made-up/harbour-12" in str(found)
    assert re.search(r"^difference +B - A +C - A$", str(found), re.MULTILINE)


def test_sentences_follow_the_intervals(first: Profile) -> None:
    gains, noise, loses = (mk.compare([first, another(first, gain, "B")]).sentences for gain in (0.2, 0.03, -0.2))
    assert re.fullmatch(r"B loses 0\.\d+ \[0\.\d+, 0\.\d+\] nats per token less than .*: outside noise\.", gains[0])
    assert "cannot be told apart" in noise[0]
    assert "nats per token more than" in loses[0]
    assert gains[-1].startswith("Calibration: made-up/harbour-12 is over-confident by")


def test_names_for_many_and_digits() -> None:
    assert [label(i) for i in (0, 25, 26, 27)] == ["A", "Z", "AA", "BB"]
    assert [written(x, "nats/token") for x in (1.23456, 1234.5678)] == ["1.235", "1,234.6"]
    assert (written(0.1234, "share"), written(0.1234, "share", sign=True)) == ("12.3 %", "+12.3")
    assert [written(x, "") for x in (0.1234, 12.345, 1234.56)] == ["0.123", "12.35", "1,234.6"]


def test_the_page_is_self_contained(html: str) -> None:
    assert_self_contained(html)


def test_hostile_tokens_and_names_stay_text(first: Profile) -> None:
    evil = '"><script>alert(1)</script>\x00\ud800'
    given = {**first.provenance, "model": evil, "texts": [{"name": evil, "sha256": evil}], evil: evil}
    bare = replace(first, layers=None)
    sides = [replace(p, provenance=given, vocabulary=dict.fromkeys(p.vocabulary, evil)) for p in (bare, another(bare))]
    assert set(HOSTILE_TOKENS) <= set(first.tokens.text)
    for odd in (
        mk.compare(sides, names=[evil, evil + "2"]),
        quietly([sides[0], replace(recut(bare), provenance=given)]),
    ):
        html = render_comparison(odd)
        page = Page(html)
        assert len(page.scripts) == 2
        assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]
        assert not {"img", "b"} & {tag for tag, _ in page.elements} - {"b"}
        html.encode()  # no lone surrogates are left
        str(odd).encode()


def test_hostile_tokens_are_in_the_text(first: Profile) -> None:
    """Where they stand is made the sequence of the largest gain."""
    at = first.tokens.text.index(HOSTILE_TOKENS[0])
    change = np.where(first.tokens.sequence_id == first.tokens.sequence_id[at], -1.0, 0.0)
    other = replace(first, tokens=replace(first.tokens, nll=first.tokens.nll + change))
    html = render_comparison(mk.compare([first, other], names=["A", "B"]))
    shown = re.search(r'<article id="sequence-\d+">.*?</article>', html, re.DOTALL)
    assert shown
    for token in ("&lt;img src=x onerror=alert(3)&gt;", "{{ 7 * 7 }}", visible("\u202e desrever"), "&amp;amp;"):
        assert token in shown[0]


def test_every_token_has_its_own_difference(found: Comparison, html: str) -> None:
    page, (_, _, last) = Page(html), range(3)
    nodes = [(int(a["data-i"]), a["class"], a["style"]) for _, a in page.elements if "data-i" in a]
    assert [i for i, *_ in nodes] == list(range(len(nodes)))
    data = page.data
    assert (data["model"], data["baseline"], data["labels"]) == (2, 0, ["A", "B", "C"])
    nll = np.array([model["nll"] for model in data["models"]])
    difference = nll[2] - nll[0]
    for i, kind, style in nodes:
        # two decimals of a share, and three of each of two losses
        share = np.clip(abs(difference[i]) / data["scale"], 0, 1)
        assert abs(float(style.removeprefix("--a:")) - share) <= 0.5e-2 + 1.001e-3 / data["scale"]
        assert abs(difference[i]) < 2e-3 or kind.endswith("warm" if difference[i] > 0 else "cool")
    # the sequences are the extreme ones, in order
    means = {
        int(s): float(found.token_differences(last)[found.profiles[0].tokens.sequence_id == s].mean())
        for s in np.unique(found.profiles[0].tokens.sequence_id)
    }
    ranked = sorted(means, key=lambda s: means[s])
    expected = [s for s in ranked[:3] if means[s] < 0] + [s for s in ranked[:-4:-1] if means[s] > 0]
    assert [int(s) for s in re.findall(r'<article id="sequence-(\d+)">', html)] == expected


def test_extreme_tokens_are_listed(found: Comparison, html: str) -> None:
    for sign in (-1, 1):
        for value in found.token_differences(2)[found.top_contexts(2, 8, sign)]:
            assert f"difference <strong>{value:+.2f}</strong>" in html.replace("−", "-")


def test_two_models_show_their_difference_first(first: Profile) -> None:
    found = mk.compare([replace(first, layers=None), another(replace(first, layers=None), 0.2)])
    difference = found.quantities["nll"].differences[1]
    assert difference is not None
    html = render_comparison(found).replace("−", "-")
    assert f'<p class="value">{difference.value:.3f} <span>nats per token</span></p>' in html
    assert "<bdi>made-up/harbour-12</bdi> and <bdi>made-up/harbour-24</bdi>" in html
    assert 'id="other"' not in html


def bare(p: Profile) -> Profile:
    return replace(p, layers=None)


CASES: dict[str, Callable[[Profile], Comparison]] = {
    **{
        f"both: {name}": lambda p, make=make: quietly([make(p), make(p)], names=["A", "B"])  # type: ignore[misc]
        for name, make in DEGENERATE.items()
        if name not in ("no layers", "no Rényi orders")
    },
    "other tokens": lambda p: quietly([bare(p), bare(recut(p))]),
    "other tokens, no words": lambda p: quietly(
        [bare(p), replace(bare(recut(p)), tokens=replace(recut(p).tokens, text=("",) * 450))]
    ),
    "only one has layers": lambda p: quietly([p, bare(another(p))]),
    "only one has infinite losses": lambda p: quietly(
        [bare(p), bare(DEGENERATE["infinite values"](p))], names=["A", "B"]
    ),
    "nine checkpoints": lambda p: quietly(checkpoints(9, with_layers=False), steps=np.arange(9), baseline=8),
    "eight models": lambda p: quietly([another(bare(p), 0.1 * i, f"m{i}", seed=i) for i in range(8)], baseline=3),
    "the same twice": lambda p: quietly([bare(p), bare(p)]),
    "a long sequence": lambda p: quietly([one := fake_profile(900, 1, with_layers=False), another(one)]),
}


@pytest.fixture(scope="module")
def pages(first: Profile) -> dict[str, tuple[Comparison, str]]:
    """Each is made once, for the next two tests."""
    made = {case: make(first) for case, make in CASES.items()}
    return {case: (comparison, render_comparison(comparison)) for case, comparison in made.items()}


def drawn_in(html: str) -> list[str]:
    """Names of the figures of a page, in order: ids in them begin with these."""
    return list(dict.fromkeys(re.findall(r'<g id="comparison-([a-z0-9_-]+?)-figure_1"', html)))


def test_figures(found: Comparison, html: str, pages: dict[str, tuple[Comparison, str]], first: Profile) -> None:
    places = ["difference", "difference-accuracy", "by-sequence", "by-entropy", "by-position"]
    layers = [f"layers-{name}" for name in found.curves]
    assert drawn_in(html) == [*places, *layers]
    assert set(model_colours(found).values()) == {"blue", "orange", "green"}
    line, shown = pages["nine checkpoints"]
    along = ["steps-difference", *(f"steps-{name}" for name in line.quantities)]
    assert drawn_in(shown) == [*places, *along]
    assert list(model_colours(line).values()) == [f"step{i}" for i in range(6)]
    assert {0, 8} <= set(model_colours(line))
    assert featured(quietly([first, recut(first)])) is None
    assert drawn_in(pages["other tokens"][1]) == []


@pytest.mark.parametrize("case", CASES)
def test_degenerate_comparisons(pages: dict[str, tuple[Comparison, str]], case: str) -> None:
    made, html = pages[case]
    assert outside_references(html) == []
    assert not re.search(r">\s*(nan|None|NaN)\b", html)
    assert "NaN" not in Page(html).scripts[0]
    assert not re.search(r"\b(nan|None)\b", str(made))
    for message in made.warnings:
        assert words(message.removeprefix("compare: "))[:40] in words(str(made))
    assert html.count("Take care") == len(made.warnings)
    if case == "other tokens":
        assert "NLL per character" in str(made)
        assert 'id="text-section"' not in html
    if case == "a long sequence":
        assert "900 tokens, of which 256 are shown" in html


def test_write(found: Comparison, html: str, tmp_path: Path) -> None:
    """The same comparison makes the same bytes."""
    path = tmp_path / "comparison.html"
    path.write_text("old")
    found.to_html(path)
    assert path.read_text(encoding="utf-8") == html


# ---- in a browser


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_page_in_a_browser(found: Comparison, html: str, tmp_path: Path, width: int, scheme: str) -> None:
    path = tmp_path / "comparison.html"
    write_comparison(found, path)
    models = Page(html).data["models"]
    driver = open_browser(path, width, scheme)
    try:
        run = driver.execute_script
        paper = assert_fits(driver, width, scheme)

        tip = driver.find_element("id", "tip")
        assert not tip.is_displayed()
        run("document.querySelector('[data-i]').focus()")
        last = run("return document.querySelector('#tokens p').querySelectorAll('[data-i]').length") - 1

        def about(i: int, other: int) -> None:
            assert tip.is_displayed()
            losses = [float(x) for x in re.findall(r"^NLL of \w\s+([\d.]+) nats", tip.text, re.MULTILINE)]
            expected = [models[0]["nll"][i], models[other]["nll"][i]]
            np.testing.assert_allclose(losses, expected, rtol=0, atol=0.6e-2)
            assert f"First choices of {'ABC'[other]}" in tip.text
            assert tip.rect["x"] >= 0
            assert tip.rect["x"] + tip.rect["width"] <= width

        about(0, 2)
        for key, i in ((ARROW_RIGHT, 1), (END, last), (ARROW_RIGHT, last), (HOME, 0), (ARROW_LEFT, 0)):
            driver.switch_to.active_element.send_keys(key)
            about(i, 2)
        driver.switch_to.active_element.send_keys(ESCAPE)
        assert not tip.is_displayed()

        # another model, other colours, and the tooltip is about that one
        def colours() -> Any:
            return run(
                "return [...document.querySelectorAll('[data-i]')].map(e => getComputedStyle(e).backgroundColor)"
            )

        before = colours()
        assert len(set(before)) > 20
        run("document.querySelector('#other input[value=\"1\"]').click()")
        assert colours() != before
        run("document.querySelector('[data-i=\"5\"]').focus()")
        about(5, 1)
        assert_scheme_can_be_chosen(driver, scheme, paper, width)
    finally:
        driver.quit()


@pytest.mark.browser
def test_degenerate_pages_in_a_browser(pages: dict[str, tuple[Comparison, str]], tmp_path: Path) -> None:
    """One browser for all of them."""
    path = tmp_path / "comparison.html"
    path.write_text("<!doctype html>")
    driver = open_browser(path, 390, "light")
    try:
        for case, (_, html) in pages.items():
            path.write_text(html, encoding="utf-8")
            driver.get(path.as_uri())
            assert driver.execute_script("return document.documentElement.scrollWidth") <= 390, case
            assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == [], case
    finally:
        driver.quit()
