"""Measures the bundled pair on pictures of the held-out renderer.

Answers come from plain transformers `generate`, greedy, in float32; an answer counts when the
whole text is right. Draft acceptance is measured on the answers that the target gave.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from smart_serve.bundled import DRAFTER_FOLDER, TARGET_FOLDER
from smart_serve.bundled.batches import Batch
from smart_serve.bundled.chats import Chat, Row
from smart_serve.bundled.export import load_drafter
from smart_serve.bundled.judge import BATCH, Judge, Reply
from smart_serve.bundled.packing import pack
from smart_serve.bundled.rollout import drafted, rollout
from smart_serve.bundled.train_drafter import draft_inputs
from smart_serve.bundled.trials import ALL_TOPICS, Trial, trials
from smart_serve.drafters.feature_network import FeatureDraftNetwork

# Blank pictures are a control of the controls: a small share of the questions does.
BLANK_PICTURES = 60

Counts = NDArray[np.float64]


def acceptance(
    judge: Judge,
    drafter: FeatureDraftNetwork,
    asked: list[Trial],
    replies: list[Reply],
    depths: int,
) -> Counts:
    """Counts [2, depths]: drafts right given that all before are right, and how many there were.

    A chain that was right so far holds the target's own tokens, so that running the drafter
    over the target's answer gives its greedy chain from every start at once.
    """
    counts = np.zeros((2, depths))
    for start in range(0, len(asked), BATCH):
        part = slice(start, start + BATCH)
        counts += _batch_acceptance(judge, drafter, asked[part], replies[part], depths)
    return counts


@torch.inference_mode()
def _batch_acceptance(
    judge: Judge,
    drafter: FeatureDraftNetwork,
    asked: list[Trial],
    replies: list[Reply],
    depths: int,
) -> Counts:
    rows = [_row(reply) for reply in replies]
    longest = max(len(row.chats[0].tokens) for row in rows)
    packed = pack(rows, longest, pad=judge.processor.tokenizer.pad_token_id)
    pictures = [trial.picture for trial in asked]
    pixels = judge.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    inputs = draft_inputs(judge.target, Batch(pixels, packed))
    counts = np.zeros((2, depths))
    alive = torch.ones_like(packed.is_first)
    steps = zip(rollout(drafter, inputs, depths), drafted(packed, depths), strict=True)
    for depth, (feature, entries) in enumerate(steps):
        if depth > 0:
            alive = torch.gather(alive, 1, packed.previous)
        tried = entries & alive
        alive = tried & (judge.target.lm_head(feature).argmax(-1) == packed.next_token)
        counts[:, depth] = int(alive.sum()), int(tried.sum())
    return counts


def _row(reply: Reply) -> Row:
    """A reply as a row of its own, with its answer marked."""
    said = (False,) * len(reply.prompt) + (True,) * len(reply.answer)
    return Row((), (Chat((*reply.prompt, *reply.answer), said, sees_prefix=False),))


def report(judge: Judge, drafter: FeatureDraftNetwork, args: argparse.Namespace) -> None:
    """Print a line per topic: accuracy, accuracy on blank pictures, acceptance per depth."""
    total = np.zeros((2, args.depths))
    sys.stdout.write("topic        right   blank   accepted drafts by depth\n")
    for topic in ALL_TOPICS:
        asked = list(trials(args.pictures, args.seed, topic))
        right, replies = judge.accuracy(asked)
        hidden = list(trials(min(BLANK_PICTURES, args.pictures), args.seed, topic, blank=True))
        blank, _ = judge.accuracy(hidden)
        counts = acceptance(judge, drafter, asked, replies, args.depths)
        total += counts
        sys.stdout.write(f"{topic:<11}  {right:.3f}   {blank:.3f}   {_shares(counts)}\n")
        wrong = (
            f"    {t.exchange.question} -> {r.text}   (right: {t.exchange.answer})\n"
            for t, r in zip(asked, replies, strict=True)
            if r.text != t.exchange.answer
        )
        for _, line in zip(range(args.wrong), wrong, strict=False):
            sys.stdout.write(line)
        sys.stdout.flush()
    sys.stdout.write(f"all topics                   {_shares(total)}\n")


def _shares(counts: Counts) -> str:
    return " ".join(f"{share:.3f}" for share in counts[0] / np.maximum(counts[1], 1))


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
    began = time.monotonic()
    report(Judge(args.target), load_drafter(args.drafter), args)
    sys.stdout.write(f"{time.monotonic() - began:.0f} s\n")


if __name__ == "__main__":
    main()
