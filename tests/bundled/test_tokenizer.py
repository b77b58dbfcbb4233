"""The tokenizer that lies in the target's folder."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from smart_serve.bundled import TARGET_FOLDER
from smart_serve.bundled.architecture import VOCABULARY
from smart_serve.bundled.tokenizer import CHAT_TEMPLATE, build_tokenizer

TOKENIZER: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(TARGET_FOLDER)
SPECIALS = ("<s>", "</s>", "<pad>", "<image>")


@given(st.text().filter(lambda text: not any(special in text for special in SPECIALS)))
def test_any_text_survives_the_round_trip_but_for_one_leading_space(text: str) -> None:
    tokens = TOKENIZER(text)["input_ids"]
    assert TOKENIZER.decode(tokens) == text.removeprefix(" ")


def test_size_and_special_tokens() -> None:
    assert len(TOKENIZER) == VOCABULARY
    assert TOKENIZER.convert_tokens_to_ids(list(SPECIALS)) == [0, 1, 2, 3]
    assert TOKENIZER.image_token_id == 3
    assert TOKENIZER.chat_template.strip() == CHAT_TEMPLATE.strip()


def test_words_of_the_domain_are_single_tokens() -> None:
    text = " There is a large yellow triangle at the bottom centre."
    assert len(TOKENIZER(text)["input_ids"]) == len(text.split()) + 1


@pytest.mark.parametrize("answer", ["There are two circles.", "Yes, there is a red circle."])
def test_prompt_is_cut_as_in_training(answer: str) -> None:
    content = [{"type": "image"}, {"type": "text", "text": "How many circles are there?"}]
    asked = [{"role": "user", "content": content}]
    answered = [*asked, {"role": "assistant", "content": answer}]
    prompt = TOKENIZER.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    whole = TOKENIZER.apply_chat_template(answered, tokenize=False)
    assert prompt == "<s>USER: <image>\nHow many circles are there? ASSISTANT:"
    cut = TOKENIZER(prompt)["input_ids"] + TOKENIZER(f" {answer}</s>")["input_ids"]
    assert TOKENIZER(whole)["input_ids"] == cut


def test_template_takes_strings_systems_and_several_turns() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " Hello "},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": [{"type": "text", "text": "Bye"}]},
    ]
    text = TOKENIZER.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    expected = "<s>Be brief. USER: Hello ASSISTANT: Hi.</s>USER: Bye ASSISTANT:"
    assert text == expected


def test_building_is_deterministic() -> None:
    first, second = (build_tokenizer(chats=300).backend_tokenizer.to_str() for _ in range(2))
    assert json.loads(first) == json.loads(second)
