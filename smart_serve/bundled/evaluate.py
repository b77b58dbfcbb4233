"""Measures the bundled pair on pictures of the held-out renderer.

Answers come from plain transformers `generate`, greedy, in float32; an answer counts when the
whole text is right. Draft acceptance is measured on the answers that the target gave.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

from smart_serve.bundled import DRAFTER_FOLDER, TARGET_FOLDER
from smart_serve.bundled.batches import Batch
from smart_serve.bundled.chats import Chat, Row
from smart_serve.bundled.export import load_drafter
from smart_serve.bundled.packing import pack
from smart_serve.bundled.questions import Exchange, ask
from smart_serve.bundled.render_heldout import render_heldout
from smart_serve.bundled.rollout import drafted, rollout
from smart_serve.bundled.scene import KINDS, Scene, sample_scene
from smart_serve.bundled.train_drafter import draft_inputs
from smart_serve.drafters.feature_network import FeatureDraftNetwork

TOPICS = ("count_all", "count_some", "colour", "place", "yes_no", "describe")
MAX_ANSWER_TOKENS = 100
BATCH = 60


class Trial(msgspec.Struct, frozen=True):
    """A picture, a question about it and the right answer."""

    picture: Image.Image
    exchange: Exchange


class Reply(msgspec.Struct, frozen=True):
    """What the target said: its text, and the token ids of prompt and answer."""

    text: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]


class Judge:
    """Puts questions to a target."""

    def __init__(self, folder: Path = TARGET_FOLDER) -> None:
        self.processor: LlavaProcessor = AutoProcessor.from_pretrained(folder)
        self.target = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        self.target.eval()

    @torch.inference_mode()
    def replies(self, trials: list[Trial]) -> list[Reply]:
        """Greedy answers to a batch of trials, in their order."""
        prompts = [self._prompt(trial.exchange.question) for trial in trials]
        pictures = [trial.picture for trial in trials]
        inputs = self.processor(
            text=prompts, images=pictures, padding=True, padding_side="left", return_tensors="pt"
        )
        output = self.target.generate(**inputs, do_sample=False, max_new_tokens=MAX_ANSWER_TOKENS)
        width = inputs["input_ids"].shape[1]
        return [
            self._reply(ids[mask.bool()], row[width:])
            for ids, mask, row in zip(
                inputs["input_ids"], inputs["attention_mask"], output, strict=True
            )
        ]

    def _prompt(self, question: str) -> str:
        parts = [{"type": "image"}, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": parts}]
        return str(self.processor.apply_chat_template(messages, add_generation_prompt=True))

    def _reply(self, prompt: torch.Tensor, said: torch.Tensor) -> Reply:
        tokenizer = self.processor.tokenizer
        answer = [token for token in said.tolist() if token != tokenizer.pad_token_id]
        text = tokenizer.decode(answer, skip_special_tokens=True).strip()
        return Reply(str(text), tuple(prompt.tolist()), tuple(answer))


def trials(pictures: int, seed: int, topic: str, blank: bool = False) -> Iterator[Trial]:
    """One question of a topic about each held-out picture; `blank` hides the shapes."""
    rng = np.random.default_rng((seed, TOPICS.index(topic)))
    for _ in range(pictures):
        scene = _askable(topic, rng)
        picture = render_heldout(Scene(()) if blank else scene, rng)
        yield Trial(picture, ask(scene, topic, rng))


def _askable(topic: str, rng: np.random.Generator) -> Scene:
    """A scene in which the question has its usual answer: some kind occurs just once."""
    while True:
        scene = sample_scene(rng)
        if topic != "colour" or any(len(scene.of(kind)) == 1 for kind in KINDS):
            return scene


def accuracy(judge: Judge, asked: list[Trial]) -> tuple[float, list[Reply]]:
    """Share of answers right as a whole, and the answers."""
    replies = [
        reply
        for start in range(0, len(asked), BATCH)
        for reply in judge.replies(asked[start : start + BATCH])
    ]
    right = [
        reply.text == trial.exchange.answer for reply, trial in zip(replies, asked, strict=True)
    ]
    return sum(right) / len(right), replies


@torch.inference_mode()
def acceptance(
    judge: Judge,
    drafter: FeatureDraftNetwork,
    asked: list[Trial],
    replies: list[Reply],
    depths: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Per depth: drafts right given that all before are right, and how many there were.

    A chain that was right so far holds the target's own tokens, so that running the drafter
    over the target's answer gives its greedy chain from every start at once.
    """
    rows = [Row((), (Chat((*r.prompt, *r.answer), _says(r), sees_prefix=False),)) for r in replies]
    longest = max(len(row.chats[0].tokens) for row in rows)
    packed = pack(rows, longest, pad=judge.processor.tokenizer.pad_token_id)
    pictures = [trial.picture for trial in asked]
    pixels = judge.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    inputs = draft_inputs(judge.target, Batch(pixels, packed))
    right, tried = np.zeros(depths), np.zeros(depths)
    alive = torch.ones_like(packed.is_first)
    steps = zip(rollout(drafter, inputs, depths), drafted(packed, depths), strict=True)
    for depth, (feature, entries) in enumerate(steps):
        if depth > 0:
            alive = torch.gather(alive, 1, packed.previous)
        entries = entries & alive
        alive = entries & (judge.target.lm_head(feature).argmax(-1) == packed.next_token)
        right[depth], tried[depth] = int(alive.sum()), int(entries.sum())
    return right, tried


def _says(reply: Reply) -> tuple[bool, ...]:
    return (False,) * len(reply.prompt) + (True,) * len(reply.answer)


def main() -> None:
    """Print accuracy per topic and acceptance per draft depth."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=100, help="pictures per topic")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--depths", type=int, default=6)
    parser.add_argument("--target", type=Path, default=TARGET_FOLDER)
    parser.add_argument("--drafter", type=Path, default=DRAFTER_FOLDER)
    parser.add_argument("--wrong", type=int, default=0, help="show so many wrong answers a topic")
    args = parser.parse_args()
    judge, drafter, began = Judge(args.target), load_drafter(args.drafter), time.monotonic()
    print("topic        right   blank   accepted drafts by depth")
    for topic in TOPICS:
        asked = list(trials(args.pictures, args.seed, topic))
        right, replies = accuracy(judge, asked)
        blank, _ = accuracy(judge, list(trials(min(60, args.pictures), args.seed, topic, True)))
        kept, tried = np.zeros(args.depths), np.zeros(args.depths)
        for start in range(0, len(asked), BATCH):
            part = slice(start, start + BATCH)
            kept_here, tried_here = acceptance(
                judge, drafter, asked[part], replies[part], args.depths
            )
            kept, tried = kept + kept_here, tried + tried_here
        shares = " ".join(f"{share:.3f}" for share in kept / np.maximum(tried, 1))
        print(f"{topic:<11}  {right:.3f}   {blank:.3f}   {shares}")
        wrong = (
            f"    {t.exchange.question} -> {r.text}   (right: {t.exchange.answer})"
            for t, r in zip(asked, replies, strict=True)
            if r.text != t.exchange.answer
        )
        for _, line in zip(range(args.wrong), wrong, strict=False):
            print(line)
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
