"""Puts questions to a target through plain transformers, and judges the answers."""

from pathlib import Path

import msgspec
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

from smart_serve.bundled import TARGET_FOLDER
from smart_serve.bundled.trials import Trial

MAX_ANSWER_TOKENS = 100
BATCH = 60


class Reply(msgspec.Struct, frozen=True):
    """What the target said: its text, and the token ids of prompt and answer."""

    text: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]


class Judge:
    """Holds a target, loaded in float32 as users load it."""

    def __init__(self, folder: Path = TARGET_FOLDER) -> None:
        self.processor: LlavaProcessor = AutoProcessor.from_pretrained(folder)
        self.target = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        self.target.eval()

    @torch.inference_mode()
    def replies(self, trials: list[Trial]) -> list[Reply]:
        """Greedy answers to a batch of trials, in their order."""
        inputs = self.processor(
            text=[self._prompt(trial) for trial in trials],
            images=[trial.picture for trial in trials],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        output = self.target.generate(**inputs, do_sample=False, max_new_tokens=MAX_ANSWER_TOKENS)
        width = inputs["input_ids"].shape[1]
        return [
            self._reply(ids[mask.bool()], row[width:])
            for ids, mask, row in zip(
                inputs["input_ids"], inputs["attention_mask"], output, strict=True
            )
        ]

    def accuracy(self, trials: list[Trial]) -> tuple[float, list[Reply]]:
        """Share of answers right as a whole, and the answers."""
        replies = [
            reply
            for start in range(0, len(trials), BATCH)
            for reply in self.replies(trials[start : start + BATCH])
        ]
        right = [r.text == t.exchange.answer for r, t in zip(replies, trials, strict=True)]
        return sum(right) / len(right), replies

    def _prompt(self, trial: Trial) -> str:
        """The chat so far; the picture comes with the first question."""
        messages: list[dict[str, object]] = []
        for exchange in trial.history:
            messages.append({"role": "user", "content": exchange.question})
            messages.append({"role": "assistant", "content": exchange.answer})
        messages.append({"role": "user", "content": trial.exchange.question})
        first = {"type": "text", "text": messages[0]["content"]}
        messages[0] = {"role": "user", "content": [{"type": "image"}, first]}
        return str(self.processor.apply_chat_template(messages, add_generation_prompt=True))

    def _reply(self, prompt: torch.Tensor, said: torch.Tensor) -> Reply:
        tokenizer = self.processor.tokenizer
        answer = [token for token in said.tolist() if token != tokenizer.pad_token_id]
        text = tokenizer.decode(answer, skip_special_tokens=True).strip()
        return Reply(str(text), tuple(prompt.tolist()), tuple(answer))
