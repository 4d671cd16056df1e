"""The page and the table of a surplus: they say what the object holds, and nothing in a text reaches further."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from markovlm._bootstrap import Estimate
from markovlm._report import render_surplus, surplus_table, write_surplus
from markovlm._report._surplus_figures import surplus_figures
from markovlm._report._tokens import visible
from markovlm._surplus_result import Surplus
from profile_fixture import HOSTILE_TOKENS
from surplus_fixture import DEGENERATE_SURPLUSES, fake_surplus
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


@pytest.fixture(scope="module")
def found() -> Surplus:
    return fake_surplus()


@pytest.fixture(scope="module")
def html(found: Surplus) -> str:
    return render_surplus(found)


def all_estimates(found: Surplus) -> list[Estimate]:
    several = [found.acceptance, found.acceptance_without, found.conditional_acceptance]
    several += [found.kl, found.kl_without, found.usable_steps, found.upper_bound_steps]
    single = [found.usable, found.upper_bound, found.expected_accepted_length]
    return [*single, *(part[i] for part in several for i in range(len(part)))]


def words(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def test_numbers_are_those_of_the_object(found: Surplus, html: str) -> None:
    table, plain = str(found), html.replace("−", "-")
    assert table == surplus_table(found)
    for estimate in all_estimates(found):
        low, high = estimate.interval
        for where in (table, plain):
            assert f"{estimate.value:.2f}" in where
            assert f"[{low:.2f}, {high:.2f}]" in where
    for part in (found.loss, found.loss_without, found.model_loss, found.model_entropy):
        for value, (low, high) in zip(part.value, part.interval, strict=True):
            assert f"<td>{value:.2f}<small>[{low:.2f}, {high:.2f}]</small></td>" in plain
    assert found.layers is not None
    for share in found.layers.share:
        assert f"{100 * share:.1f} %" in plain
        assert f"{100 * share:.1f} %" in table
    assert found.best_layer == 18
    assert "<strong>Layer 18</strong>" in html
    for text in (table, html):
        assert words(found.decision) in words(text)


def test_table_fits_a_terminal_and_is_explained(found: Surplus) -> None:
    table = str(found)
    assert max(map(len, table.splitlines())) <= 80
    assert "without the state: a draft that sees the drawn and drafted tokens, but not the hidden state." in words(
        table
    )
    assert "Fitted on 18 sequences (9,000 contexts), chosen by 6 sequences (3,000 contexts), " in words(table)
    assert "scored on 12 sequences (480 contexts)." in words(table)
    assert "Warning: intervals rest on few sequences; <b>take</b> more text." in table
    assert "Warning" not in surplus_table(found, with_warnings=False)
    assert table.index(found.decision[:40]) < table.index("step ")  # the decision comes first
    assert re.search(r"^24 +.*100\.0 %$", table, re.MULTILINE)


def test_the_page_is_self_contained(html: str) -> None:
    assert_self_contained(html)


def test_same_surplus_same_bytes(found: Surplus, html: str) -> None:
    assert render_surplus(found) == html


def test_hostile_tokens_and_names_stay_text(found: Surplus) -> None:
    evil = '"><script>alert(1)</script>\x00\ud800'
    given = {**found.provenance, "model": evil, "texts": [{"name": evil, "sha256": evil}], evil: evil}
    odd = replace(found, model=evil, provenance=given, warnings=(evil,))
    assert set(HOSTILE_TOKENS) <= set(odd.text)
    html = render_surplus(odd)
    page = Page(html)
    assert len(page.scripts) == 2
    assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]
    assert not {"img", "b"} & {tag for tag, _ in page.elements}
    html.encode()  # no lone surrogates are left
    str(odd).encode()


def test_every_token_has_its_own_acceptance(found: Surplus, html: str) -> None:
    page = Page(html)
    tokens = {int(a["data-i"]): float(a["style"].removeprefix("--a:")) for _, a in page.elements if "data-i" in a}
    assert sorted(tokens) == list(range(len(found.rows)))
    # written with two and three decimals
    np.testing.assert_allclose([tokens[i] for i in sorted(tokens)], found.row_acceptance[:, 0], rtol=0, atol=0.5001e-2)
    np.testing.assert_allclose(page.data["acceptance"], found.row_acceptance, rtol=0, atol=0.5001e-3)
    np.testing.assert_allclose(page.data["starts"], found.row_starts, rtol=0, atol=0.5001e-3)


def test_best_and_worst_sequences_come_first(found: Surplus, html: str) -> None:
    numbers = np.unique(found.sequence_ids)
    means = np.array([found.row_acceptance[found.sequence_ids == number, 0].mean() for number in numbers])
    order = numbers[np.argsort(-means)].tolist()
    shown = [int(number) for number in re.findall(r'<article id="sequence-(\d+)">', html)]
    assert shown == [*order[:3], *order[:-4:-1], *order[3:-3]]
    assert html.index("more sequences, from best to worst") < html.index(f'id="sequence-{order[3]}"')
    links = re.findall(r'<a href="#sequence-(\d+)" style="--v:([\d.]+)"', html)
    assert [int(number) for number, _ in links] == order
    np.testing.assert_allclose([float(v) for _, v in links], np.sort(means)[::-1], rtol=0, atol=0.5001e-3)


def test_missing_text_between_scored_contexts_is_marked(found: Surplus, html: str) -> None:
    rows = found.rows.copy()
    rows[5:] += 3
    assert 'class="gap"' not in html
    assert render_surplus(replace(found, rows=rows)).count('class="gap"') == 1


def test_warnings_stand_out(found: Surplus, html: str) -> None:
    assert '<p class="note"><strong>Take care:</strong> intervals rest on few sequences; &lt;b&gt;take' in html
    assert "Take care" not in render_surplus(replace(found, warnings=()))


def test_seed_and_sizes_are_told(html: str) -> None:
    text = words(re.sub(r"<[^>]+>", " ", html))
    assert "Seed of split and bootstrap 7" in text
    assert "fitted: 18 sequences, 9,000 contexts; chosen by: 6 sequences, 3,000 contexts; scored: 12 sequences" in text


def test_figures(found: Surplus) -> None:
    drawn = surplus_figures(found)
    assert list(drawn) == ["acceptance", "divergence", "nats", "layers-kl", "layers-acceptance"]
    assert "90 % from layer 18 on" in drawn["layers-kl"]
    assert list(surplus_figures(replace(found, layers=None))) == ["acceptance", "divergence", "nats"]


@pytest.mark.parametrize("case", DEGENERATE_SURPLUSES)
def test_degenerate_surpluses(found: Surplus, case: str) -> None:
    made = DEGENERATE_SURPLUSES[case](found)
    html = render_surplus(made)
    assert outside_references(html) == []
    assert not re.search(r">\s*(nan|None|NaN)\b", html)
    assert "NaN" not in Page(html).scripts[0]
    assert ('id="layers"' in html) == (made.layers is not None)
    assert not re.search(r"\b(nan|None)\b", str(made))
    if case == "one sequence":
        assert "n/a (one sequence)" in html
        assert "n/a (one sequence)" in str(made)
    if case == "worse than nothing":
        assert "no layer can be named" in html


def test_write(found: Surplus, html: str, tmp_path: Path) -> None:
    path = tmp_path / "surplus.html"
    path.write_text("old")
    found.to_html(path)
    assert path.read_text(encoding="utf-8") == html
    found.save(tmp_path / "surplus.safetensors")
    whole = replace(found, text=tuple(visible(text) for text in found.text))  # no lone surrogates in a file
    whole.save(tmp_path / "surplus.safetensors")
    assert str(Surplus.load(tmp_path / "surplus.safetensors")) == str(found)


# ---- in a browser


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_page_in_a_browser(found: Surplus, tmp_path: Path, width: int, scheme: str) -> None:
    path = tmp_path / "surplus.html"
    write_surplus(found, path)
    driver = open_browser(path, width, scheme)
    try:
        run = driver.execute_script
        paper = assert_fits(driver, width, scheme)

        # a token answers to focus and to the arrow keys, and the answer is about that token
        tip = driver.find_element("id", "tip")
        assert not tip.is_displayed()
        first = run("const t = document.querySelector('[data-i]'); t.focus(); return Number(t.dataset.i)")
        last = first + int((found.sequence_ids == found.sequence_ids[first]).sum()) - 1

        def about(i: int) -> None:
            assert tip.is_displayed()
            shown = [float(x) for x in re.findall(r"\b[01]\.\d\d$", tip.text, re.MULTILINE)]
            np.testing.assert_allclose(shown, [*found.row_acceptance[i], found.row_starts[i]], rtol=0, atol=0.6e-2)
            assert tip.rect["x"] >= 0
            assert tip.rect["x"] + tip.rect["width"] <= width

        about(first)
        for key, i in ((ARROW_RIGHT, first + 1), (END, last), (ARROW_RIGHT, last), (HOME, first), (ARROW_LEFT, first)):
            driver.switch_to.active_element.send_keys(key)
            about(i)
        driver.switch_to.active_element.send_keys(ESCAPE)
        assert not tip.is_displayed()

        # the more, the deeper: where nothing is accepted, the paper shows
        colours: Any = run(
            "return [...document.querySelectorAll('[data-i]')].map(e => [Number(e.dataset.i),"
            "getComputedStyle(e).backgroundColor])"
        )
        assert len({colour for _, colour in colours}) > 20

        # a bar leads to its sequence, also to one that is folded away
        folded = run(
            "const a = [...document.querySelectorAll('#sequence-index a')][5]; a.click();"
            "return document.querySelector(a.hash).offsetHeight"
        )
        assert folded > 0
        assert_scheme_can_be_chosen(driver, scheme, paper, width)
    finally:
        driver.quit()


@pytest.mark.browser
@pytest.mark.parametrize("case", DEGENERATE_SURPLUSES)
def test_degenerate_pages_in_a_browser(found: Surplus, tmp_path: Path, case: str) -> None:
    path = tmp_path / "surplus.html"
    write_surplus(DEGENERATE_SURPLUSES[case](found), path)
    driver = open_browser(path, 390, "light")
    try:
        driver.execute_script("document.querySelector('[data-i]').focus()")
        assert driver.find_element("id", "tip").is_displayed()
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 390
        assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []
    finally:
        driver.quit()
