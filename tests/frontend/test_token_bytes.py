"""The bytes of single tokens make up the text that was tokenised."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smart_serve.bundled import TARGET_FOLDER
from smart_serve.frontend.tokenizer import TextTokenizer
from tests.frontend.tokenizers_under_test import loaded, sentencepiece_like


@pytest.fixture(scope="module", params=["bundled", "prepend"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> object:
    """Byte-level notation, and SentencePiece's with byte tokens."""
    if request.param == "bundled":
        return TextTokenizer.from_folder(TARGET_FOLDER)
    return loaded(sentencepiece_like(request.param)[0], tmp_path_factory.mktemp("tokenizer"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
@given(text=st.text(st.characters(exclude_characters="\u2581", exclude_categories=["Cs"])))
def test_the_bytes_of_all_tokens_are_the_text(tokenizer: TextTokenizer, text: str) -> None:
    told = b"".join(map(tokenizer.token_bytes, tokenizer.encode(text)))
    assert told in (text.encode(), b" " + text.encode())  # some kinds begin with a space


def test_special_and_unknown_tokens(tmp_path: Path) -> None:
    tokenizer = loaded(sentencepiece_like("prepend")[0], tmp_path)
    special = tokenizer.special_tokens[0]
    assert tokenizer.token_bytes(special.id) == special.text.encode()
    assert tokenizer.token_bytes(10**6) == b""
