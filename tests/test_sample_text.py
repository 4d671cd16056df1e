"""The default text: docstrings of the standard library, the same for the same seed."""

from __future__ import annotations

import sys

from markovlm._sample_text import standard_library_docstrings


def test_gives_as_much_as_asked_from_many_modules() -> None:
    before = set(sys.modules)
    texts, names = standard_library_docstrings(20_000)
    assert 20_000 <= sum(map(len, texts)) < 20_000 + 2 * max(map(len, texts))
    assert len(texts) == len(names)
    assert len(set(names)) >= 6
    assert all(text.strip() for text in texts)
    assert set(sys.modules) == before  # modules are read, never imported


def test_depends_on_the_seed_alone() -> None:
    assert standard_library_docstrings(3_000) == standard_library_docstrings(3_000)
    assert standard_library_docstrings(3_000) != standard_library_docstrings(3_000, seed=1)


def test_a_larger_sample_begins_with_the_smaller() -> None:
    small, _ = standard_library_docstrings(3_000)
    large, _ = standard_library_docstrings(6_000)
    assert large[: len(small)] == small
