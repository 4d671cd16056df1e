"""Texts to windows and back: no character lost, no target twice, and every token shown as what it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from markovlm import _text
from markovlm._features import Features
from markovlm._text import cut_windows, printable_vocabulary, vocabulary_rows
from markovlm.errors import ShapeError, ValueRangeError
from tiny_models import SENTENCES, mini_tokenizer

HARD = "  The sea\U0001f30a is  calm\n\n tonight; Zwölf — \U0001f469\u200d\U0001f467 日本語\t\x00x\u0301 \ud7ff end  "
KINDS: list[dict[str, bool]] = [{}, {"trim": True}, {"words": True}]


def features_of(columns: dict[str, Any]) -> Features:
    n = len(columns["targets"])
    return Features(hidden=np.zeros((n, 1), np.float32), head=np.zeros((340, 1), np.float32), **columns)


def pieces(text: str, tokenizer: Any, context_length: int = 7, max_tokens: int = 10_000) -> tuple[str, ...]:
    windows = cut_windows([text], tokenizer, max_tokens=max_tokens, context_length=context_length)
    return features_of(windows.columns()).target_texts()


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("text", [*SENTENCES, HARD, " ab", "ab "])
def test_pieces_join_up_to_the_text(kind: dict[str, bool], text: str) -> None:
    # Where BOS stands in front, each token of the text is a target; elsewhere the first one is only a context.
    assert "".join(pieces(text, mini_tokenizer(begins=True, **kind))) == text
    tokenizer = mini_tokenizer(**kind)
    without = "".join(pieces(text, tokenizer))
    assert text.endswith(without)
    if not kind:
        (_, end), *_ = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        assert without == text[end:]


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40), size=st.integers(1, 9))
@example("\U0001f30a\U0001f30a", 1)
@example("\x00", 1)
@example("a \n", 2)
@example(" ", 1)
@example("<s>", 3)
def test_pieces_join_up_whatever_the_text(text: str, size: int) -> None:
    for kind in ({}, {"trim": True}):
        assert "".join(pieces(text, mini_tokenizer(begins=True, **kind), size)) == text


def test_pieces_of_a_character_over_several_tokens() -> None:
    tokenizer = mini_tokenizer(begins=True)
    assert pieces("a\U0001f30ab", tokenizer) == ("a", "\U0001f30a", "", "", "", "b")


@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.parametrize("context_length", [1, 5, 16, 1000])
def test_windows_cover_each_id_once(begins: bool, context_length: int) -> None:
    tokenizer = mini_tokenizer(begins=begins)
    texts = [SENTENCES[0], SENTENCES[2]]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    windows = cut_windows(texts, tokenizer, max_tokens=10_000, context_length=context_length)
    columns = windows.columns()
    first = 0 if begins else 1
    assert columns["targets"].tolist() == [i for text in ids for i in text[first:]]
    assert windows.begins_with == (1 if begins else None)
    lengths = np.bincount(columns["sequence_ids"])
    assert lengths.max() <= context_length
    assert np.array_equal(columns["positions"], np.concatenate([np.arange(length) for length in lengths]))
    inside = columns["positions"] > 0
    # Within a window, a context's last token is the target before it; at its front, BOS or the last target before.
    assert np.array_equal(columns["token_ids"][inside], columns["targets"][np.flatnonzero(inside) - 1])
    fronts = columns["token_ids"][~inside]
    if begins:
        assert set(fronts.tolist()) == {1}
    else:
        at = np.flatnonzero(~inside)
        starts_text = np.concatenate([[True], np.diff(columns["text_ids"]) > 0])[at]
        assert fronts[starts_text].tolist() == [text[0] for text in ids]
        assert np.array_equal(fronts[~starts_text], columns["targets"][at[~starts_text] - 1])
    assert columns["texts"] == tuple(texts)


def test_max_tokens_ends_in_the_middle_and_leaves_texts_unread() -> None:
    class Counting:
        def __init__(self) -> None:
            self.inner, self.texts = mini_tokenizer(), []
            self.is_fast, self.bos_token_id = True, None

        def __call__(self, text: str, **options: Any) -> Any:
            self.texts.append(text)
            return self.inner(text, **options)

    tokenizer = Counting()
    windows = cut_windows(list(SENTENCES), tokenizer, max_tokens=40, context_length=16)
    assert windows.num_contexts == 40
    assert len(windows.texts) < len(SENTENCES)
    assert SENTENCES[-1] not in tokenizer.texts


def test_a_long_text_is_tokenised_only_as_far_as_needed() -> None:
    text = " ".join(SENTENCES) * 400
    whole = cut_windows([text], mini_tokenizer(), max_tokens=100_000, context_length=50).columns()["targets"]
    part = cut_windows([text], mini_tokenizer(), max_tokens=120, context_length=50).columns()
    assert np.array_equal(part["targets"], whole[:120])
    assert part["texts"] == (text,)


def test_a_long_text_of_few_tokens_is_tokenised_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_text, "_GENEROUS_CHARACTERS", 1)  # the first 85 characters are 17 tokens: too few
    windows = cut_windows(["<pad>" * 100], mini_tokenizer(), max_tokens=20, context_length=50)
    assert windows.columns()["targets"].tolist() == [0] * 20


def test_token_ids_are_taken_as_they_are() -> None:
    windows = cut_windows([[5, 6, 7], np.array([8, 9], np.uint8)], None, max_tokens=10, context_length=10)
    columns = windows.columns()
    assert columns["targets"].tolist() == [6, 7, 9]
    assert columns["token_ids"].tolist() == [5, 6, 8]
    assert columns["texts"] == ()
    assert columns["target_spans"] is None
    assert windows.begins_with is None
    assert [text["tokens"] for text in windows.described] == [3, 2]


@pytest.mark.parametrize(
    ("texts", "error", "match"),
    [
        ([""], ValueRangeError, "text 0 has no token"),
        ([SENTENCES[0], "a"], ValueRangeError, "text 1 has a single token"),
        ([[3]], ValueRangeError, "text 0 has a single token"),
        ([[]], ValueRangeError, "text 0 has no token"),
        (["ab", [1, 2]], ValueRangeError, "mixture"),
        ([[1, 2], "ab"], ValueRangeError, "mixture"),
        (["ab\ud800"], ValueRangeError, "text 0 has half a surrogate pair at character 2"),
        ([1, 2, 3], ShapeError, "item 0 must be .* got int"),
        ([[1.5, 2.0]], ShapeError, "dtype float64"),
        ([[[1, 2]]], ShapeError, r"shape \(1, 2\)"),
        ([None], ShapeError, "got NoneType"),
    ],
)
def test_unusable_texts(texts: list[Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        cut_windows(texts, mini_tokenizer(), max_tokens=100, context_length=10)


def test_a_single_token_after_bos_has_a_target() -> None:
    columns = cut_windows(["a"], mini_tokenizer(begins=True), max_tokens=10, context_length=10).columns()
    assert columns["token_ids"].tolist() == [1]
    with pytest.raises(ValueRangeError, match=r"text 0 \(empty.txt\) has no token"):
        cut_windows([""], mini_tokenizer(begins=True), max_tokens=10, context_length=10, names=["empty.txt"])


@pytest.mark.parametrize("kind", [{}, {"words": True}], ids=str)
def test_vocabulary_shows_what_each_token_adds(kind: dict[str, bool]) -> None:
    tokenizer = mini_tokenizer(**kind)
    rows = vocabulary_rows(tokenizer)
    assert rows == len(tokenizer)
    shown = printable_vocabulary(tokenizer, rows + 2)
    assert len(shown) == rows + 2
    assert all(shown)  # none is invisible
    assert shown[:3] == ("<pad>", "<s>", "</s>")
    assert shown[rows:] == (f"<{rows}>", f"<{rows + 1}>")
    assert printable_vocabulary(tokenizer, 7) == shown[:7]
    ids = tokenizer("The sea is calm", add_special_tokens=False)["input_ids"]
    assert "".join(shown[i] for i in ids).lstrip() == "The sea is calm"
    parts = [shown[i] for i in tokenizer("\U0001f30a", add_special_tokens=False)["input_ids"]]
    assert [part for part in parts if part != " "] == ["<0xF0>", "<0x9F>", "<0x8C>", "<0x8A>"]


def test_vocabulary_of_a_tokenizer_with_gaps_and_one_without_a_fast_backend() -> None:
    class Slow:
        names = ("a", None, b"\xc3\xa4", b"\xe2\x82", "\u2581b")

        def __len__(self) -> int:
            return 4

        def get_vocab(self) -> dict[str, int]:
            return {"a": 0, "\u2581b": 4}

        def convert_ids_to_tokens(self, ids: list[int]) -> list[Any]:
            return [self.names[i] for i in ids]

        def decode(self, ids: list[int]) -> str:
            return {0: "a", 4: "b"}.get(ids[0], "")

    assert vocabulary_rows(Slow()) == 5
    assert printable_vocabulary(Slow(), 6) == ("a", "<1>", "ä", "<0xE2><0x82>", " b", "<5>")
