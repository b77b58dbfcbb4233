"""Teaches the vision tower, alone, to name what stands at each of the nine places.

A step of 64 pictures takes about 0.3 s on two cores.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import CLIPVisionModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from smart_serve.bundled.architecture import IMAGE_SIDE_PX, PATCH_SIDE_PX, vision_config
from smart_serve.bundled.pool import PicturePool
from smart_serve.bundled.scene import COLOURS, KINDS, PLACES, SIZES
from smart_serve.bundled.schedule import Schedule

# What each patch is asked: which place it lies in, and the kind, colour and size there.
HEAD_CLASSES = (len(PLACES), len(KINDS) + 1, len(COLOURS), len(SIZES))


class PlaceReader(nn.Module):
    """A vision tower with a throw-away linear head on every patch.

    Each patch names its own place and what stands there. A language model then finds "top left"
    by content alone; a head that reads places through fixed windows teaches the shapes as well,
    but leaves it to the language model to find out which patch is where, which takes it long.
    """

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.head = nn.Linear(vision_config().hidden_size, sum(HEAD_CLASSES))

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits [B, 64, classes] of place, kind, colour and size from pixels [B, 3, 96, 96]."""
        patches = self.tower(pixel_values=pixel_values).last_hidden_state[:, 1:]
        return self.read(patches)

    def read(self, patches: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The same from the tower's patch tokens [B, 64, width]."""
        logits: torch.Tensor = self.head(patches).float()
        parts: tuple[torch.Tensor, ...] = logits.split(HEAD_CLASSES, dim=-1)
        return parts


def new_tower() -> CLIPVisionModel:
    """An untrained vision tower."""
    config = vision_config()
    # Plain matrix products beat the fused CPU attention's bfloat16 backward pass by far.
    config._attn_implementation = "eager"
    return CLIPVisionModel(config)


def patch_places() -> torch.Tensor:
    """The place [64] that each patch's centre lies in."""
    side = IMAGE_SIDE_PX // PATCH_SIDE_PX
    third = ((torch.arange(side) + 0.5) / side * 3).long()
    return (third[:, None] * 3 + third[None, :]).flatten()


def to_pixel_values(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Normalised float32 [B, 3, H, W] from uint8 [B, H, W, 3], as the image processor does it."""
    mean = torch.tensor(OPENAI_CLIP_MEAN)
    std = torch.tensor(OPENAI_CLIP_STD)
    return ((torch.from_numpy(pixels).float() / 255 - mean) / std).permute(0, 3, 1, 2)


def place_loss(logits: tuple[torch.Tensor, ...], labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of every patch: place and kind everywhere, the rest where there is a shape.

    `labels` are class indices [B, 9, 3] of what stands at the places.
    """
    places = patch_places()
    wanted = labels[:, places]
    occupied = wanted[..., 0] > 0
    place, kind, colour, size = logits
    entropy = nn.functional.cross_entropy
    return (
        entropy(place.flatten(0, 1), places.repeat(len(labels)))
        + entropy(kind.flatten(0, 1), wanted[..., 0].flatten())
        + entropy(colour[occupied], wanted[..., 1][occupied])
        + entropy(size[occupied], wanted[..., 2][occupied])
    )


def places_right(logits: tuple[torch.Tensor, ...], labels: torch.Tensor) -> tuple[float, float]:
    """Share of occupied places named wholly right, and of pictures with all nine right.

    The patches of a place vote with their mean log-probabilities.
    """
    members = nn.functional.one_hot(patch_places()).float()
    votes = (members.T @ part.log_softmax(dim=-1) for part in logits[1:])
    best = torch.stack([vote.argmax(-1) for vote in votes], dim=-1)
    occupied = labels[..., 0] > 0
    right = torch.where(occupied, (best == labels).all(-1), best[..., 0] == 0)
    return right[occupied].float().mean().item(), right.all(-1).float().mean().item()


def train(
    pool: PicturePool, reader: PlaceReader, schedule: Schedule, batch: int, out: Path
) -> None:
    """Train and save the weights of tower and head to `out`."""
    rng = np.random.default_rng(0)
    optimiser = torch.optim.AdamW(reader.parameters(), weight_decay=0.02)
    filled, step = pool.filled(), 0
    while schedule.done(step) < 1:
        pixels, classes = pool.batch(rng, batch, filled)
        labels = torch.from_numpy(classes).long()
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate(step)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = reader(to_pixel_values(pixels))
        loss = place_loss(logits, labels)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimiser.step()
        step += 1
        if step % 50 == 0:
            occupied, whole = places_right(logits, labels)
            sys.stdout.write(
                f"{step:5d}  {schedule.done(step):4.0%}  loss {loss.item():.3f}  "
                f"places {occupied:.3f}  pictures {whole:.3f}  {schedule.elapsed_s():.0f} s\n"
            )
            sys.stdout.flush()
        if step % 500 == 0 or schedule.done(step) >= 1:
            torch.save(reader.state_dict(), out)


def main() -> None:
    """Train the vision tower on a pool of pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", type=Path, required=True, help="folder made by the pool script")
    parser.add_argument("--out", type=Path, required=True, help="file for the weights")
    parser.add_argument("--resume", type=Path, help="go on from these weights")
    parser.add_argument("--minutes", type=float, help="stop by the clock, not by the steps")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=7e-4)
    args = parser.parse_args()
    torch.manual_seed(0)
    reader = PlaceReader(new_tower())
    if args.resume:
        reader.load_state_dict(torch.load(args.resume, weights_only=True))
    schedule = Schedule(args.rate, args.steps, args.minutes)
    train(PicturePool(args.pool), reader, schedule, args.batch, args.out)


if __name__ == "__main__":
    main()
