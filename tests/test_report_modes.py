"""Modes in the report: what the page says agrees with them, it stays self-contained, and answers mouse and keyboard."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from markovlm._bootstrap import Estimate
from markovlm._modes import Modes
from markovlm._profile import Profile
from markovlm._report import _modes, modes_table, render_html, same_contexts, write_html
from markovlm._report._modes import mode_data, mode_section, verdict
from markovlm._report._tokens import visible
from markovlm.errors import ValueRangeError
from markovlm.typing import FloatArray
from profile_fixture import DEGENERATE, HOSTILE_TOKENS, fake_modes, fake_profile
from test_report import Page, open_browser, outside_references

pytest.importorskip("jinja2", reason="renders the report")
pytest.importorskip("matplotlib", reason="draws the report")

NAN = float("nan")
WITH_CONTEXTS = [case for case in DEGENERATE if case != "no tokens"]  # others have no modes
ARROW_LEFT, ARROW_RIGHT, END = "\ue012", "\ue014", "\ue010"


@pytest.fixture(scope="module")
def profile() -> Profile:
    return fake_profile()


@pytest.fixture(scope="module")
def modes(profile: Profile) -> Modes:
    return fake_modes(profile)


@pytest.fixture(scope="module")
def html(profile: Profile, modes: Modes) -> str:
    return render_html(profile, modes)


def decoded(data: dict[str, Any]) -> FloatArray:
    """(k, N) as the script reads them."""
    found = []
    for largest, text in zip(data["largest"], data["values"], strict=True):
        values = np.frombuffer(base64.b64decode(text), np.int8).astype(float)
        found.append(np.where(values == -128, NAN, np.sign(values) * largest * (values / 127) ** 2))
    return np.array(found)


def test_without_modes_the_page_has_nothing_of_them(profile: Profile) -> None:
    html = render_html(profile)
    page = Page(html)
    assert "modes" not in page.data
    assert not [a for _, a in page.elements if "mode" in a.get("id", "") and a["id"] != "metric-meaning"]
    assert "#modes" not in html
    assert "Modes of prediction" not in html
    assert [a["value"] for tag, a in page.elements if a.get("name") == "metric"] == [
        "surprise",
        "nll",
        "entropy",
        "rank",
    ]
    assert "gallery" not in page.scripts[1]


def test_the_policy_allows_the_one_script(profile: Profile, html: str) -> None:
    for made in (html, render_html(profile)):
        (script,) = re.findall(r"<script>(.*?)</script>", made, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"script-src 'sha256-{digest}'" in Page(made).elements[3][1]["content"]


def test_nothing_is_loaded_and_references_resolve(html: str) -> None:
    assert outside_references(html) == []
    elements = Page(html).elements
    ids = [a["id"] for _, a in elements if "id" in a]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r"url\(#([^)]+)\)", html)) | set(re.findall(r'href="#([^"]+)"', html))
    used |= {a["aria-controls"] for _, a in elements if "aria-controls" in a}
    assert used <= set(ids)


def test_same_modes_same_bytes(profile: Profile, modes: Modes, html: str) -> None:
    assert render_html(profile, modes) == html


def test_hostile_tokens_stay_text(html: str, modes: Modes) -> None:
    page = Page(html)
    assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]
    assert "img" not in [tag for tag, _ in page.elements]
    html.encode()
    assert set(HOSTILE_TOKENS) <= set(modes.vocabulary.values())
    modes_table(modes).encode()


def test_numbers_agree_with_the_modes(html: str, modes: Modes) -> None:
    words = re.sub(r"\s+", " ", html)
    for value, share in zip(modes.eigenvalues, modes.shares, strict=True):
        assert f"{value:.5g} ± {1e-6 * modes.norm:.0e}" in html  # beside which the solver's bounds vanish
        assert f"{100 * share:.{1 if share >= 0.1 else 2}f} %" in html
    assert f"together they hold {100 * modes.shares.sum():.1f} % of it (its trace is 1)" in words
    for mode in range(modes.num_modes):
        assert f"{modes.stability[mode]:.2f} alone, {modes.span_stability[mode]:.2f} in the span" in html
    assert "effective rank" not in html
    assert "Mode 1 is what all predictions have in common" in words


def test_cards_show_leading_tokens_and_places(profile: Profile, modes: Modes) -> None:
    cards = mode_section(modes)["cards"]
    assert [card["one_sign"] for card in cards] == [True, *[False] * 5]
    for i, card in enumerate(cards):
        for side, sign in zip(card["sides"], (1, -1), strict=True):
            ids, _ = modes.top_tokens(i, 16, sign)
            assert len(side["tokens"]) == len(ids)
            bars = [float(token["bar"]) for token in side["tokens"]]
            assert bars == sorted(bars, reverse=True)
            assert (bars[0] == 1.0) if sign > 0 else all(bar <= 1.0 for bar in bars)
            rows = [place["index"] for place in side["places"]]
            values = modes.functions[rows, i] * sign
            assert (np.diff(values) <= 0).all()
            if rows:
                assert rows[0] == modes.top_contexts(i, 1, sign)[0]
                assert min([abs(a - b) for a in rows for b in rows if a != b]) > 10  # none shows the text of another
            for place in side["places"]:
                assert place["token"] == (visible(profile.tokens.text[place["index"]]) or "…")


def test_spaces_at_the_ends_of_tokens_are_shown() -> None:
    names = ["The", " The", "↵", "↵ ", "  ", "", "a b"]
    parts = [_modes._spaces(name) for name in names]
    shown = [part["before"] + part["name"] + part["after"] for part in parts]
    assert shown == ["The", "␣The", "↵", "↵␣", "␣␣", "(empty)", "a b"]


def test_functions_reach_the_page_within_half_a_step(profile: Profile, modes: Modes, html: str) -> None:
    data = Page(html).data["modes"]
    step = 0.5 / 127  # of the square root of a value's share of the largest: (s + step)² − s² <= 2 step + step²
    largest = np.abs(modes.functions).max(axis=0)
    error = (2 * step + step**2 + 1e-6) * largest  # and six digits of the largest
    assert (np.abs(decoded(data) - modes.functions.T).max(axis=1) <= error).all()
    assert sum(map(len, data["values"])) <= 4 * (modes.functions.size / 3 + modes.num_modes)
    assert all(1 <= scale <= top for scale, top in zip(data["scale"], largest, strict=True))


def test_contexts_without_modes_are_unknown(profile: Profile) -> None:
    modes = fake_modes(profile, layer=3)
    html = render_html(profile, modes)
    known = ~np.isnan(decoded(Page(html).data["modes"]))
    assert (known == np.isin(np.arange(profile.num_tokens), modes.rows)).all()
    assert "at layer 3" in re.sub(r"\s+", " ", html)
    assert all(p["index"] % 3 == 0 for c in mode_section(modes)["cards"] for s in c["sides"] for p in s["places"])


@pytest.mark.parametrize(("most", "coloured"), [(3 * 1200 + 7, 3), (100, 0)])
def test_too_many_values_are_left_out_and_that_is_said(
    profile: Profile, modes: Modes, monkeypatch: pytest.MonkeyPatch, most: int, coloured: int
) -> None:
    monkeypatch.setattr(_modes, "MOST_VALUES", most)
    assert len(mode_data(modes)["values"]) == coloured
    html = render_html(profile, modes)
    page = Page(html)
    assert len([a for _, a in page.elements if "data-colour" in a]) == coloured
    assert len([a for tag, a in page.elements if a.get("value") == "mode"]) == min(coloured, 1)
    assert ("by the first 3 modes only" if coloured else "cannot be coloured by modes") in html


def test_size_at_8192_tokens() -> None:
    profile = fake_profile(8192, 16)
    size = len(render_html(profile, fake_modes(profile, 32)).encode()) - len(render_html(profile).encode())
    assert size < 900_000  # 8192 · 32 bytes in base64, and some 17 kB a mode


@pytest.mark.parametrize(
    ("alone", "spanned", "words"),
    [
        (0.95, 0.99, "replicates"),
        (0.5, 0.93, "replicates, mixed"),
        (0.7, 0.8, "replicates partly"),
        (0.2, 0.6, "replicates partly"),
        (0.2, 0.5, "does not replicate"),
        (NAN, NAN, "not known"),
    ],
)
def test_verdicts(profile: Profile, modes: Modes, alone: float, spanned: float, words: str) -> None:
    first = np.arange(6) == 0
    judged = replace(
        modes,
        stability=np.where(first, alone, modes.stability),
        span_stability=np.where(first, spanned, modes.span_stability),
    )
    assert verdict(judged, 0) == words
    assert f"<strong>{words.capitalize()}.</strong>" in render_html(profile, judged)
    assert words in modes_table(judged).splitlines()[7]


def test_modes_of_other_contexts_are_refused(profile: Profile, modes: Modes, tmp_path: Path) -> None:
    other = fake_profile(1200, 4)
    assert same_contexts(profile, modes)
    assert not same_contexts(other, modes)
    with pytest.raises(
        ValueRangeError, match=r"modes: expected modes of the contexts of this profile, 1,200 of 'made-up"
    ):
        other.to_html(tmp_path / "report.html", modes)
    named = replace(modes, provenance={"model": "another"})
    with pytest.raises(ValueRangeError, match="got those of 1,200 contexts of 'another'; make both from the same"):
        write_html(profile, tmp_path / "report.html", named)
    assert not any(tmp_path.iterdir())


def test_an_effective_rank_has_its_place(profile: Profile, modes: Modes) -> None:
    html = render_html(profile, replace(modes, effective_rank=Estimate(123.4, (101.0, 150.2))))
    assert "<strong>123.4</strong>" in html
    assert "[101.0, 150.2]" in re.sub(r"\s+", " ", html)


@pytest.mark.parametrize("case", WITH_CONTEXTS)
def test_degenerate_profiles(profile: Profile, case: str) -> None:
    made = DEGENERATE[case](profile)
    page = render_html(made, fake_modes(made, 3))
    assert outside_references(page) == []
    assert not re.search(r">\s*(nan|None|NaN)\b", page)
    assert "NaN" not in Page(page).scripts[0]


ODD: dict[str, dict[str, Any]] = {
    "nothing compared": {"stability": np.full(6, NAN), "span_stability": np.full(6, NAN)},
    "zeros": {"eigenvalues": np.zeros(6), "lower": np.zeros(6), "upper": np.zeros(6), "trace": 0.0, "rest": 0.0},
    "one above zero": {"eigenvalues": np.array([0.5, 0, 0, 0, 0, -1e-17]), "rest": NAN},
    "no faces": {"token_functions": np.zeros((2000, 6)), "functions": np.zeros((1200, 6))},
    "no names": {"vocabulary": {}},
    "centered": {"centered": True, "trace": 0.7},
    "prototype": {"kind": "prototype"},
    "no factor": {"kind": "jensen_shannon", "beta": 0.5},
}


@pytest.mark.parametrize("case", ODD)
def test_odd_modes(profile: Profile, modes: Modes, case: str) -> None:
    odd = replace(modes, **ODD[case])
    page = render_html(profile, odd)
    assert not re.search(r">\s*(nan|None|NaN)\b", page)
    assert "NaN" not in Page(page).scripts[0]
    table = modes_table(odd)
    assert "nan" not in table
    assert ('id="modes-spectrum-' in page) == (case != "zeros")


# ---- in a browser


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_gallery_in_a_browser(profile: Profile, modes: Modes, tmp_path: Path, width: int, scheme: str) -> None:
    path = tmp_path / "report.html"
    write_html(profile, path, modes)
    driver = open_browser(path, width, scheme)
    try:
        run = driver.execute_script
        assert run("return document.documentElement.scrollWidth") <= width

        def shown() -> Any:
            return run(
                "return [...document.querySelectorAll('.mode-card')].flatMap((c, i) => c.offsetHeight ? [i] : [])"
            )

        def state() -> Any:
            return run(
                "const t = [...document.querySelectorAll('[role=tab]')];"
                "return [t.findIndex(x => x.ariaSelected === 'true'), t.findIndex(x => x.tabIndex === 0),"
                "document.querySelectorAll('[role=tabpanel]').length, t.indexOf(document.activeElement)]"
            )

        assert shown() == [0]
        assert state() == [0, 0, 6, -1]
        run("document.querySelectorAll('[role=tab]')[3].click()")
        assert shown() == [3]
        assert state() == [3, 3, 6, 3]
        for key, mode in ((ARROW_RIGHT, 4), (END, 5), (ARROW_RIGHT, 0), (ARROW_LEFT, 5), (ARROW_LEFT, 4)):
            driver.switch_to.active_element.send_keys(key)
            assert shown() == [mode]
            assert state() == [mode, mode, 6, mode]
        for mode in range(6):  # no card is too wide
            run(f"document.querySelectorAll('[role=tab]')[{mode}].click()")
            assert run("return document.documentElement.scrollWidth") <= width

        # a place leads to its token, and the button colours the text
        run("document.querySelectorAll('[role=tab]')[2].click()")
        index = run(
            "const b = document.querySelector('.mode-card:not(.closed) [data-token]'); b.click();"
            "return Number(b.dataset.token)"
        )
        assert run("return Number(document.activeElement.dataset.i)") == index
        assert index == modes.top_contexts(2, 1)[0]
        before = run("return getComputedStyle(document.activeElement).backgroundColor")
        run("document.querySelector('[data-colour=\"2\"]').click()")
        assert run("return document.querySelector('#metric input:checked').value") == "mode"
        assert "Mode 3" in driver.find_element("id", "metric").text
        assert "Mode 3 at the prediction" in driver.find_element("id", "metric-meaning").text
        node = f"document.querySelector('[data-i=\"{index}\"]')"
        run(f"{node}.focus()")
        assert run(f"return {node}.className").split()[:2] == ["heat", "warm"]
        run(f"{node}.blur(); {node}.focus()")
        tip = driver.find_element("id", "tip").text
        found = re.search(r"mode 3\s+(-?[\d.]+)", tip.replace("−", "-"))
        assert found, tip
        assert float(found[1]) == pytest.approx(float(modes.functions[index, 2]), rel=1e-2)
        assert run(f"return getComputedStyle({node}).backgroundColor") != before

        # another mode recolours the text at once
        colours = "return [...document.querySelectorAll('[data-i]')].map(e => getComputedStyle(e).backgroundColor)"
        before = run(colours)
        run("document.querySelectorAll('[role=tab]')[4].click()")
        assert run(colours) != before
        assert "Mode 5" in driver.find_element("id", "metric").text
        run("document.querySelector('#metric input[value=nll]').click()")
        assert "mode 5" not in driver.find_element("id", "tip").text

        # on paper all modes stand one after another
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        assert shown() == list(range(6))
        assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []
    finally:
        driver.quit()


@pytest.mark.browser
def test_without_scripts_all_modes_are_listed(profile: Profile, modes: Modes, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    html = render_html(profile, modes)
    path.write_text(html[: html.rindex("<script>")], "utf8")
    driver = open_browser(path, 390, "light")
    try:
        heights = driver.execute_script("return [...document.querySelectorAll('.mode-card')].map(c => c.offsetHeight)")
        assert len(heights) == 6
        assert min(heights) > 0
        assert not driver.find_element("id", "mode-index").is_displayed()
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 390
    finally:
        driver.quit()


@pytest.mark.browser
@pytest.mark.parametrize("case", WITH_CONTEXTS)
def test_degenerate_pages_in_a_browser(profile: Profile, tmp_path: Path, case: str) -> None:
    path = tmp_path / "report.html"
    made = DEGENERATE[case](profile)
    write_html(made, path, fake_modes(made, 3))
    driver = open_browser(path, 390, "light")
    try:
        run = driver.execute_script
        run("document.querySelector('[data-colour]').click()")
        assert run("return document.querySelector('#metric input:checked').value") == "mode"
        assert run("return document.documentElement.scrollWidth") <= 390
        assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []
    finally:
        driver.quit()
