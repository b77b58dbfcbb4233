"""Builds the tokenizer: byte-level BPE of 640 tokens, with the LLaVA-1.5 chat layout.

`python -m smart_serve.bundled.tokenizer` takes seconds. Every string can be encoded, since all
256 bytes are tokens. The first token of an answer carries its leading space (" There"), so a
prompt that ends with "ASSISTANT:" is cut into the same tokens as in training.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from smart_serve.bundled import TARGET_FOLDER
from smart_serve.bundled.architecture import MAX_POSITIONS, VOCABULARY
from smart_serve.bundled.phrasing import SYSTEM_PROMPTS
from smart_serve.bundled.questions import TOPIC_WEIGHTS, ask, ask_without_picture
from smart_serve.bundled.scene import sample_scene

BOS, EOS, PAD, IMAGE = "<s>", "</s>", "<pad>", "<image>"
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
  {%- set told = namespace(pictures='', text='') -%}
  {%- if message['content'] is string -%}
    {%- set told.text = message['content'] -%}
  {%- else -%}
    {%- for part in message['content'] -%}
      {%- if part['type'] in ('image', 'image_url') -%}
        {%- set told.pictures = told.pictures + '<image>\\n' -%}
      {%- elif part['type'] == 'text' -%}
        {%- set told.text = told.text + part['text'] -%}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {%- if message['role'] == 'system' -%}
    {{- told.text | trim + ' ' -}}
  {%- elif message['role'] == 'assistant' -%}
    {{- 'ASSISTANT: ' + told.text | trim + eos_token -}}
  {%- else -%}
    {{- 'USER: ' + told.pictures + told.text | trim + ' ' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- 'ASSISTANT:' -}}
{%- endif -%}
"""


def corpus(chats: int, seed: int) -> Iterator[str]:
    """Chats as plain text, from which the merges are learnt."""
    rng = np.random.default_rng(seed)
    topics = tuple(TOPIC_WEIGHTS)
    for index in range(chats):
        exchange = ask(sample_scene(rng), topics[index % len(topics)], rng)
        yield f"USER: \n{exchange.question} ASSISTANT: {exchange.answer}"
        exchange = ask_without_picture(rng)
        yield f"USER: {exchange.question} ASSISTANT: {exchange.answer}"
    yield from SYSTEM_PROMPTS


def build_tokenizer(chats: int = 6000, seed: int = 0) -> PreTrainedTokenizerFast:
    """Learn the merges and dress the tokenizer with its special tokens and chat template."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    # As Llama's decoder does: the space that an answer's first token carries is not shown.
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS, PAD, IMAGE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(corpus(chats, seed), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        extra_special_tokens={"image_token": IMAGE},
        model_max_length=MAX_POSITIONS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def main() -> None:
    """Build the tokenizer and save its files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=TARGET_FOLDER)
    args = parser.parse_args()
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(args.out)
    print(f"{len(tokenizer)} tokens saved to {args.out}")


if __name__ == "__main__":
    main()
