"""Pages and tables of alignments and geometries: they say what the object holds, and nothing in a text goes further."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import markovlm as mk
from alignment_cases import random_features
from markovlm._report import alignment_table, geometry_table, render_alignment, render_geometry, write_alignment
from markovlm._report._alignment_table import alignment_sentences
from markovlm._report._numbers import number, percent
from profile_fixture import HOSTILE_TOKENS
from test_alignment import aligned
from test_report import Page, assert_fits, assert_self_contained, open_browser

pytest.importorskip("jinja2", reason="renders the report")
pytest.importorskip("matplotlib", reason="draws the report")


@pytest.fixture(scope="module")
def found() -> mk.Alignment:
    rng = np.random.default_rng(0)
    layers = {layer: rng.standard_normal((240, 4)) for layer in range(4)}
    vocabulary = tuple(HOSTILE_TOKENS[i] if i < len(HOSTILE_TOKENS) else f" word{i}" for i in range(60))
    evil = '"><script>alert(1)</script>\x00\ud800'
    provenance = {"model": evil, "texts": [{"name": evil, "sha256": evil, "characters": 7}], evil: evil}
    features = replace(random_features(layers=layers), vocabulary=vocabulary, provenance=provenance)
    return replace(aligned(features, ranks=(3, 6)), warnings=("alignment: <b>few</b> contexts",))


@pytest.fixture(scope="module")
def html(found: mk.Alignment) -> str:
    return render_alignment(found)


def test_numbers_are_those_of_the_object(found: mk.Alignment, html: str) -> None:
    table, plain = str(found), html.replace("−", "-")
    assert table == alignment_table(found)
    for rank in found.ranks:
        for estimates in (found.captured[rank], found.held_out[rank]):
            for value, (low, high) in zip(estimates.value, estimates.interval, strict=True):
                assert f"<td>{number(value, 2)}<small>[{number(low, 2)}, {number(high, 2)}]</small></td>" in plain
                assert f"{number(value, 2)} [{number(low, 2)}, {number(high, 2)}]" in table
    for share in found.modes[-1]:
        assert percent(share) in plain
        assert percent(share) in table
    for sentence in alignment_sentences(found):
        assert sentence in re.sub(r"\s+", " ", table)
    assert max(map(len, table.splitlines())) <= 140  # names of models and tokens are as long as they are


def test_the_page_is_self_contained_and_what_is_in_it_stays_text(found: mk.Alignment, html: str) -> None:
    assert_self_contained(html)
    page = Page(html)
    assert len(page.scripts) == 1
    assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]
    assert not {"img", "b"} & {tag for tag, _ in page.elements}
    html.encode()
    str(found).encode()
    assert render_alignment(found) == html


def test_modes_without_names_are_drawn_and_not_listed() -> None:
    many = aligned(random_features(120, 40, 6), ranks=(20,))
    assert (len(many.eigenvalues), len(many.tokens)) == (20, 16)
    html = render_alignment(many)
    assert "<tr><th>16</th>" in html
    assert "<tr><th>17</th>" not in html
    assert str(many)


@pytest.mark.parametrize("case", ["as usual", "no sequences", "one token", "no contexts"])
def test_a_geometry_says_what_it_holds(found: mk.Alignment, case: str) -> None:
    features = random_features(60, 40, 6)
    head = features.head[:1] if case == "one token" else features.head
    rows = slice(0, 0 if case == "no contexts" else 60)
    P = mk.SoftmaxKernel(features.hidden[rows], head)
    known = None if case == "no sequences" else features.sequence_ids[rows]
    geometry = replace(mk.geometry(P, 3, sequence_ids=known), provenance=found.provenance)
    table, html = str(geometry), render_geometry(geometry)
    assert table == geometry_table(geometry)
    assert_self_contained(html)
    html.encode()
    table.encode()
    assert render_geometry(geometry) == html
    if case != "as usual":
        return
    for name, estimate in geometry.averages().items():
        low, high = estimate.interval
        assert f"{number(estimate.value, 2)}" in html, name
        for text in (html, table):
            assert f"[{number(low, 2)}, {number(high, 2)}]" in text
    assert number(geometry.mean_effective_rank, 2) in table


def test_what_is_not_known_is_left_out(found: mk.Alignment) -> None:
    single = aligned(random_features(60, 30, 3, length=60), ranks=[2])
    html = render_alignment(single)
    assert "n/a (one sequence)" in html
    assert 'id="layers"' not in html
    assert "held out on sequences" not in html
    assert "n/a (one sequence)" in str(single)


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_page_in_a_browser(found: mk.Alignment, tmp_path: Path, width: int, scheme: str) -> None:
    path = tmp_path / "alignment.html"
    write_alignment(found, path)
    driver = open_browser(path, width, scheme)
    try:
        assert_fits(driver, width, scheme)
        assert driver.get_log("browser") == []
        assert len(driver.find_elements("css selector", "figure svg")) == 5
    finally:
        driver.quit()
