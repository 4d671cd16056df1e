"""The report: self-contained, safe against what a text may hold, and in agreement with the profile."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import math
import os
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from markovlm._profile import Profile
from markovlm._report import render_html, text_table, write_html
from markovlm._report._figures import figures
from markovlm._report._numbers import calibration_verdict, cost_sentence, interval, number
from markovlm._report._text import thinned
from markovlm._report._tokens import rank_shares, reliability, surprising_tokens, visible
from markovlm.errors import MissingDependencyError
from profile_fixture import DEGENERATE, HOSTILE_TOKENS, constant, fake_profile

pytest.importorskip("jinja2", reason="renders the report")
pytest.importorskip("matplotlib", reason="draws the report")

NAN, INF = float("nan"), float("inf")


class Page(HTMLParser):
    """Elements, their attributes, and the text of each script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] == "script":
            self.scripts[-1] += data

    @property
    def data(self) -> dict[str, Any]:
        return dict(json.loads(self.scripts[0]))


@pytest.fixture(scope="module")
def profile() -> Profile:
    return fake_profile()


@pytest.fixture(scope="module")
def html(profile: Profile) -> str:
    return render_html(profile)


def outside_references(html: str) -> list[str]:
    """Everything that a browser would fetch: links that a reader may follow are not among them."""
    found = []
    for tag, attributes in Page(html).elements:
        for name, value in attributes.items():
            loads = name in {"src", "srcset", "data", "poster", "action", "background", "xlink:href"} or (
                name == "href" and tag != "a"
            )
            if loads and not value.startswith("#"):
                found.append(f"{tag} {name}={value}")
    found += [url for url in re.findall(r"url\(([^)]*)\)", html) if not url.startswith("#")]
    return found + re.findall(r"@import|\bimport\s*\(|\bfetch\s*\(|XMLHttpRequest|sendBeacon|WebSocket", html)


def assert_self_contained(html: str) -> None:
    """Nothing is loaded from outside, no script but ours runs, ids are unique, references resolve."""
    assert html.startswith("<!doctype html>")
    assert outside_references(html) == []
    page = Page(html)
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = page.elements[3][1]["content"]
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{digest}'" in policy
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r"url\(#([^)]+)\)", html)) | set(re.findall(r'href="#([^"]+)"', html))
    assert used <= set(ids)
    followed = {a["href"] for tag, a in page.elements if tag == "a" and not a["href"].startswith("#")}
    assert all(link.startswith("https://arxiv.org/abs/") for link in followed)


def test_the_page_is_self_contained(html: str) -> None:
    assert_self_contained(html)


@pytest.mark.parametrize(
    "bad", ['<img src="a.png">', '<link href="https://x.y/z.css">', "<style>a{background:url(b.png)}</style>"]
)
def test_the_check_for_outside_references_sees_them(bad: str) -> None:
    assert outside_references(bad)


def test_same_profile_same_bytes(profile: Profile, html: str) -> None:
    assert render_html(profile) == html


def test_size_at_8192_tokens() -> None:
    size = len(render_html(fake_profile(8192, 16)).encode())
    assert size < 2_500_000


def test_hostile_tokens_stay_text(html: str) -> None:
    page = Page(html)
    assert len(page.scripts) == 2
    assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]
    assert "img" not in [tag for tag, _ in page.elements]
    shown = page.data["text"]
    for token in HOSTILE_TOKENS:
        assert visible(token, keep_layout=True) in shown
    assert "49" not in [text.strip() for text in shown]  # the template engine did not see "{{ 7 * 7 }}"
    html.encode()  # no lone surrogates are left


def test_hostile_names_stay_text(profile: Profile) -> None:
    evil = '"><script>alert(1)</script>\x00\ud800'
    given = profile.provenance | {"model": evil, "texts": [{"name": evil, "sha256": evil}], evil: evil}
    page = render_html(replace(profile, provenance=given, vocabulary=dict.fromkeys(profile.vocabulary, evil)))
    assert len(Page(page).scripts) == 2
    page.encode()
    text_table(replace(profile, provenance=given)).encode()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü 語 🙂", "plain ü 語 🙂"),
        ("a\nb\tc", "a↵b⇥c"),
        ("\x00\x1b", "␀␛"),
        ("\u202e", "‹U+202E›"),
        ("\ud800", "\ufffd"),
        ("👩\u200d🚀", "👩\u200d🚀"),
    ],
)
def test_visible(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_line_breaks_stay_in_the_text() -> None:
    assert visible("\n\n", keep_layout=True) == "↵\n↵\n"


def test_every_token_reaches_the_page(profile: Profile, html: str) -> None:
    data, tokens = Page(html).data, profile.tokens
    assert len(data["text"]) == profile.num_tokens
    # written with three decimals: half a unit of the last one, and the rounding of the subtraction
    np.testing.assert_allclose(data["nll"], tokens.nll, rtol=0, atol=0.5e-3 + 1e-12)
    np.testing.assert_allclose(data["entropy"], tokens.entropy, rtol=0, atol=0.5e-3 + 1e-12)
    assert data["rank"] == tokens.rank.tolist()
    assert data["topIds"] == tokens.top_ids.ravel().tolist()
    assert data["starts"] == np.unique(tokens.sequence_id, return_index=True)[1].tolist()
    assert data["gaps"] == []
    known = {int(token): visible(text) for token, text in profile.vocabulary.items()}
    assert all(known[int(token)] == text for token, text in data["vocabulary"].items())


def test_what_the_model_was_given_is_shown_where_a_text_begins(profile: Profile) -> None:
    tokens = profile.tokens
    begins = np.searchsorted(tokens.sequence_id, np.arange(profile.num_sequences))
    second_text = np.where(np.arange(profile.num_tokens) < begins[2], 0, 1)
    given = {"texts": [{"name": "one.txt"}, {"name": "two.txt"}]}
    data = Page(render_html(replace(profile, provenance=given, tokens=replace(tokens, text_id=second_text)))).data
    assert data["names"] == ["one.txt"] * 2 + ["two.txt"] * (profile.num_sequences - 2)
    shown = [visible(profile.vocabulary[int(tokens.context_id[at])], keep_layout=True) for at in begins[[0, 2]]]
    assert data["before"] == [shown[0], "", shown[1], *[""] * (profile.num_sequences - 3)]


def test_an_embedding_far_off_leaves_the_other_layers_readable(profile: Profile) -> None:
    curves = profile.layers
    assert curves is not None
    far = np.where(curves.layer == 0, 1e3, curves.nll)
    assert "↑ layer 0: 1e+03" in figures(replace(profile, layers=replace(curves, nll=far)))["layers-nll"]
    assert "↑" not in figures(profile)["layers-nll"]


def test_gaps_between_contexts_are_marked(profile: Profile) -> None:
    position = profile.tokens.position.copy()
    position[5:] += 3
    page = render_html(replace(profile, tokens=replace(profile.tokens, position=position)))
    assert Page(page).data["gaps"] == [5]


def test_numbers_agree_with_the_profile(profile: Profile, html: str) -> None:
    table = text_table(profile)
    for estimate in (profile.nll, profile.entropy):
        low, high = estimate.interval
        for where in (html, table):
            assert f"{estimate.value:.3f}" in where
            assert f"[{low:.3f}, {high:.3f}]" in where
    low, high = profile.calibration.interval
    assert f"[{low:+.3f}, {high:+.3f}]" in html
    assert f"{math.exp(profile.nll.value):.2f}" in html
    assert f"{profile.nll.value / math.log(2):.3f}" in html
    assert f"{profile.information:.3f}" in html
    assert f"{100 * profile.accuracy.value:.1f} %" in html
    assert profile.layers is not None
    for value in profile.layers.nll:
        assert f"{value:.3f}" in html
    assert f"over {profile.layers.num_rows} contexts" in re.sub(r"\s+", " ", html)
    assert "2.91 s = 14 % of the model&#39;s own forward pass (21.40 s)" in html


def test_text_table_fits_a_terminal(profile: Profile) -> None:
    assert max(map(len, text_table(profile).splitlines())) <= 80


def test_text_table_thins_layers(profile: Profile) -> None:
    assert thinned(5) == [0, 1, 2, 3, 4]
    many = thinned(81)
    assert (many[0], many[-1], len(many)) == (0, 80, 13)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.01, 0.2, "over-confident"),
        (-0.2, -0.01, "under-confident"),
        (-0.1, 0.1, "indistinguishable from calibrated"),
        (0.0, 0.1, "indistinguishable from calibrated"),
        (NAN, NAN, "no verdict: a single sequence gives no interval"),
    ],
)
def test_verdict_is_decided_by_the_interval(profile: Profile, low: float, high: float, verdict: str) -> None:
    judged = replace(profile, calibration=constant(0.05, low, high))
    assert calibration_verdict(judged) == verdict
    assert verdict in text_table(judged)
    assert verdict in render_html(judged)


def test_numbers_are_written_plainly() -> None:
    assert [number(x) for x in (1234.5678, -0.0001, NAN, INF, -INF)] == ["1,234.568", "0.000", "n/a", "inf", "-inf"]
    assert number(0.5, 2, sign=True) == "+0.50"
    assert interval(constant(1.0), 1) == "n/a (one sequence)"
    assert interval(constant(NAN), 1) == "n/a"
    assert interval(constant(1.0), 7) == "n/a"
    assert cost_sentence({}) is None
    assert cost_sentence({"total_profile": 2.0}) == "The profile cost 2.00 s."


def test_rank_classes() -> None:
    ranks = np.array([0, 0, 1, 2, 4, 5, 9, 10, 99, 100, 999, 1000, 10**6, -1])
    np.testing.assert_array_equal(13 * rank_shares(ranks), [2, 1, 2, 2, 2, 2, 2])


def test_reliability_bins_hold_all_tokens(profile: Profile) -> None:
    tokens = replace(profile.tokens, nll=profile.tokens.entropy + 0.5)
    bins = np.array(reliability(tokens))
    # means of at most n numbers below 16 nats
    atol = 16 * profile.num_tokens * np.finfo(float).eps
    np.testing.assert_allclose(bins[:, 1] - bins[:, 0], 0.5, rtol=0, atol=atol)
    assert (np.diff(bins[:, 0]) > 0).all()


def test_surprising_tokens_are_the_largest_and_stay_in_their_sequence(profile: Profile) -> None:
    found = surprising_tokens(profile, how_many=7, around=3)
    expected = np.sort(profile.tokens.surprise)[::-1][:7]
    np.testing.assert_array_equal([token.surprise for token in found], expected)
    first = replace(profile.tokens, surprise=np.where(np.arange(profile.num_tokens) == 200, 99.0, 0.0))
    (token,) = surprising_tokens(replace(profile, tokens=first))
    assert (token.index, token.before) == (200, "")  # the second of six sequences begins at 200


@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_profiles(profile: Profile, case: str) -> None:
    made = DEGENERATE[case](profile)
    page = render_html(made)
    assert outside_references(page) == []
    assert not re.search(r">\s*(nan|None|NaN)\b", page)
    assert "NaN" not in Page(page).scripts[0]
    table = text_table(made)
    assert "nan" not in table
    assert "None" not in table


def test_one_sequence_says_why_there_is_no_interval() -> None:
    single = fake_profile(200, 1)
    assert "n/a (one sequence)" in text_table(single)
    assert "n/a (one sequence)" in render_html(single)


def test_write_html(profile: Profile, html: str, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    write_html(profile, path)
    assert path.read_text(encoding="utf-8") == html
    assert os.listdir(tmp_path) == ["report.html"]


def test_failure_leaves_the_old_file_and_nothing_else(
    profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def refuse(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_html(profile, path)
    assert os.listdir(tmp_path) == ["report.html"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_missing_dependency_is_named(
    profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else real(name))
    with pytest.raises(MissingDependencyError, match=rf"{missing}: pip install 'markovlm\[report\]'"):
        write_html(profile, tmp_path / "report.html")
    assert not any(tmp_path.iterdir())
    assert text_table(profile)  # the terminal needs neither


def test_users_matplotlib_style_is_left_alone(profile: Profile, html: str) -> None:
    import matplotlib

    with matplotlib.rc_context({"font.size": 40, "axes.facecolor": "red"}):
        assert render_html(profile) == html
        assert matplotlib.rcParams["font.size"] == 40


# ---- in a browser


@pytest.fixture(scope="module")
def page_file(profile: Profile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_html(profile, path)
    return path


def assert_scheme_can_be_chosen(driver: Any, scheme: str, paper: str, width: int) -> None:
    """The toggle overrides the system's scheme; the page still fits, and nothing went wrong in all the time before."""
    other = "dark" if scheme == "light" else "light"
    driver.execute_script(f"document.querySelector('#scheme input[value={other}]').click()")
    assert driver.execute_script("return getComputedStyle(document.body).backgroundColor") != paper
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []


def assert_fits(driver: Any, width: int, scheme: str) -> str:
    """The page is as wide as it may be, loads nothing, and has the scheme's colours; that of the paper is returned."""
    run = driver.execute_script
    # against the width that was asked for: a phone's viewport grows with a page that is too wide
    assert run("return document.documentElement.scrollWidth") <= width
    assert run("return performance.getEntriesByType('resource').length") == 0
    paper: str = run("return getComputedStyle(document.body).backgroundColor")
    assert (min(map(int, re.findall(r"\d+", paper)[:3])) > 200) == (scheme == "light")
    return paper


def open_browser(path: Path, width: int, scheme: str) -> Any:
    webdriver = pytest.importorskip("selenium.webdriver", reason="opens the report in a browser")
    driver_path, browser_path = shutil.which("chromedriver"), shutil.which("chromium")
    if not driver_path or not browser_path:
        pytest.skip("chromium or chromedriver is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = browser_path
    for argument in ("--no-sandbox", "--headless=new", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_path))
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    driver.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    driver.get(path.as_uri())
    return driver


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_page_in_a_browser(page_file: Path, profile: Profile, width: int, scheme: str) -> None:
    driver = open_browser(page_file, width, scheme)
    try:
        run = driver.execute_script
        paper = assert_fits(driver, width, scheme)

        # a token answers to focus, and the answer is about that token
        run("document.querySelector('[data-i=\"7\"]').focus()")
        tip = driver.find_element("id", "tip")
        assert tip.is_displayed()
        assert f"{profile.tokens.entropy[7]:.2f} nats" in tip.text
        assert tip.rect["x"] >= 0
        assert tip.rect["x"] + tip.rect["width"] <= width
        driver.switch_to.active_element.send_keys("\ue014")  # arrow right
        assert f"{profile.tokens.entropy[8]:.2f} nats" in tip.text
        driver.switch_to.active_element.send_keys("\ue00c")  # escape
        assert not tip.is_displayed()
        driver.find_element("css selector", '[data-i="3"]').click()
        assert tip.is_displayed()
        assert f"{profile.tokens.entropy[3]:.2f} nats" in tip.text

        # the colour switch changes the colours and the legend
        def colours() -> Any:
            return run(
                "return [...document.querySelectorAll('[data-i]')].map(e => getComputedStyle(e).backgroundColor)"
            )

        before, meaning = colours(), driver.find_element("id", "metric-meaning").text
        for metric in ("nll", "entropy", "rank"):
            run(f"document.querySelector('#metric input[value={metric}]').click()")
            after = colours()
            assert after != before
            assert driver.find_element("id", "metric-meaning").text != meaning
            before, meaning = after, driver.find_element("id", "metric-meaning").text

        # every token is on some page, with its own text
        seen = "".join(
            run(f"document.querySelector('.page').value = {page};"
                "document.querySelector('.page').dispatchEvent(new Event('change'));"
                "return [...document.querySelectorAll('#tokens [data-i]')].map(e => e.textContent).join('')")
            for page in range(run("return document.querySelector('.page').length"))
        )  # fmt: skip
        assert seen == "".join(visible(text, keep_layout=True) or "·" for text in profile.tokens.text)

        # a surprising token leads back to its place
        index = run("const b = document.querySelector('[data-token]'); b.click(); return Number(b.dataset.token)")
        assert run("return Number(document.activeElement.dataset.i)") == index

        assert_scheme_can_be_chosen(driver, scheme, paper, width)
    finally:
        driver.quit()


@pytest.mark.browser
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_pages_in_a_browser(profile: Profile, tmp_path: Path, case: str) -> None:
    path = tmp_path / "report.html"
    write_html(DEGENERATE[case](profile), path)
    driver = open_browser(path, 390, "light")
    try:
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 390
        assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []
    finally:
        driver.quit()
