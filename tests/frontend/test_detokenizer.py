"""Streamed text, joined, is the one-shot text cut at the first stop string."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smart_serve.bundled import TARGET_FOLDER
from smart_serve.frontend.detokenizer import Detokenizer
from smart_serve.frontend.tokenizer import TextTokenizer
from tests.frontend.tokenizers_under_test import loaded, sentencepiece_like


def _sentencepiece() -> TextTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        return loaded(sentencepiece_like("first")[0], Path(folder))


TOKENIZERS = {"bundled": TextTokenizer.from_folder(TARGET_FOLDER), "bytes": _sentencepiece()}
STOPS = st.lists(st.text("ab c\n.é", min_size=1, max_size=4), max_size=3).map(tuple)


def one_shot(tokenizer: TextTokenizer, ids: list[int], stop: tuple[str, ...]) -> str:
    text = tokenizer.decode(ids)
    ends = [(text.find(word) + len(word), text.find(word)) for word in stop if word in text]
    return text[: min(ends)[1]] if ends else text


def stream(
    tokenizer: TextTokenizer, ids: list[int], sizes: list[int], stop: tuple[str, ...]
) -> tuple[list[str], bool]:
    detokenizer = Detokenizer(tokenizer, stop)
    shown, at = [], 0
    for size in [*sizes, len(ids)]:
        shown.append(detokenizer.push(ids[at : at + size]))
        at += size
    shown.append(detokenizer.flush())
    return shown, detokenizer.finished_by_stop


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=300, deadline=None)
@given(
    ids=st.lists(st.integers(0, 300), max_size=40),
    sizes=st.lists(st.integers(0, 4), max_size=30),
    stop=STOPS,
)
@example(ids=[0, 198, 169, 2, 198, 3, 169], sizes=[1] * 7, stop=())
def test_any_chunking_gives_the_one_shot_text(
    name: str, ids: list[int], sizes: list[int], stop: tuple[str, ...]
) -> None:
    tokenizer = TOKENIZERS[name]
    shown, stopped = stream(tokenizer, ids, sizes, stop)
    assert "".join(shown) == one_shot(tokenizer, ids, stop)
    assert stopped == any(word in tokenizer.decode(ids) for word in stop)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(text=st.text("abc é漢😀\n.", max_size=30), stop=STOPS)
def test_real_text_streams_token_by_token(name: str, text: str, stop: tuple[str, ...]) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text)
    shown, _ = stream(tokenizer, ids, [1] * len(ids), stop)
    assert "".join(shown) == one_shot(tokenizer, ids, stop)
    assert "\ufffd" not in "".join(shown)


def test_text_is_shown_as_soon_as_it_is_safe() -> None:
    tokenizer = TOKENIZERS["bundled"]
    detokenizer = Detokenizer(tokenizer, ("###",))
    assert detokenizer.push(tokenizer.encode("one two")) == "one two"
    assert detokenizer.push(tokenizer.encode(" #")) == " "
    assert detokenizer.push(tokenizer.encode("x")) == "#x"
    assert detokenizer.push(tokenizer.encode("##")) == ""
    assert detokenizer.push(tokenizer.encode("# more")) == ""
    assert detokenizer.finished_by_stop
    assert detokenizer.push(tokenizer.encode("later")) == detokenizer.flush() == ""


def test_control_decoding_each_token_alone_is_wrong() -> None:
    tokenizer = TOKENIZERS["bundled"]
    ids = tokenizer.encode("漢字")
    assert "".join(tokenizer.decode([index]) for index in ids) != "漢字"
