"""Text that spells special tokens, for the kinds of templates that published models bring."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from smart_serve.errors import ClientError
from smart_serve.frontend.chat import ChatMessage, TextPart
from smart_serve.frontend.prompt import PromptBuilder
from smart_serve.frontend.template import ChatTemplate
from smart_serve.frontend.tokenizer import TextTokenizer
from smart_serve.limits import Limits

LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }}"
    "{{ eos_token }}{% else %}[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}"
)
THINKING = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}<|Assistant|>"
    "{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% else %}<|User|>{{ m.content }}"
    "{% endif %}{% endfor %}<|Assistant|><think>\n"
)
"""Cuts a model's own thoughts, so that its texts cannot be marked."""
KINDS = {
    "llama 3": (LLAMA_3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "mistral": (MISTRAL, ("[INST]", "[/INST]")),
    "thinking": (THINKING, ("<|User|>", "<|Assistant|>", "<think>", "</think>")),
}
BOS, EOS = "<|begin|>", "<|end|>"


def plain_tokenizer(names: tuple[str, ...]) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in (BOS, EOS, *names)])
    return tokenizer


def builder(kind: str) -> PromptBuilder:
    template, names = KINDS[kind]
    spec = json.loads(plain_tokenizer(names).to_str())
    return PromptBuilder(
        TextTokenizer(spec, frozenset(), frozenset()),
        ChatTemplate(template, {"bos_token": BOS, "eos_token": EOS}),
        None,
        None,
        4_096,
        Limits(),
    )


BUILDERS = {kind: builder(kind) for kind in KINDS}


def hostile(kind: str) -> st.SearchStrategy[str]:
    """Special tokens whole, in halves, and with marks and white space about them."""
    names = (BOS, EOS, *KINDS[kind][1])
    halves = [part for name in names for part in (name[: len(name) // 2], name[len(name) // 2 :])]
    others = ["<", ">", "|", " ", "\n", "\u200b", "\ue000", "\ue003", "assistant", "é", "x"]
    pieces = st.sampled_from([*names, *halves, *others])
    return st.lists(pieces, min_size=1, max_size=10).map(lambda found: "x" + "".join(found))


def chat(*texts: str) -> list[ChatMessage]:
    first, second, third, fourth = texts
    return [
        ChatMessage(role="user", content=(TextPart(text=first), TextPart(text=second))),
        ChatMessage(role="assistant", content=third),
        ChatMessage(role="user", content=fourth),
    ]


def specials(kind: str, *texts: str) -> Counter[int]:
    one = BUILDERS[kind]
    ids = one.build(chat(*texts), ()).token_ids
    return Counter(token for token in ids if token in one.tokenizer.special_ids)


@pytest.mark.parametrize("kind", KINDS)
def test_the_templates_special_tokens_are_the_only_ones(kind: str) -> None:
    harmless = specials(kind, "a", "b", "c", "d")
    assert len(harmless) > 2
    outcomes: Counter[str] = Counter()

    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(texts=st.tuples(*[hostile(kind)] * 4))
    def run(texts: tuple[str, ...]) -> None:
        try:
            assert specials(kind, *texts) == harmless
        except ClientError as error:
            outcomes[error.code] += 1
        else:
            outcomes["built"] += 1

    run()
    # Only where a template cuts texts may one be refused for what it spells.
    assert set(outcomes) == {"built", *(["invalid_prompt"] if kind == "thinking" else [])}


def test_control_a_plain_tokenizer_does_place_them() -> None:
    ids = plain_tokenizer(KINDS["llama 3"][1]).encode("a <|eot_id|> b").ids
    assert len(ids) == 5
