"""Teaches the vision tower, alone, to name what stands at each of the nine places."""

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

HEAD_CLASSES = (len(KINDS) + 1, len(COLOURS), len(SIZES))


class PlaceReader(nn.Module):
    """A vision tower with a throw-away head: each place reads a learnt mean of the patches.

    The mean starts on the place's own window of the grid. With free attention queries instead,
    training stays for very long where it names colours but no places.
    """

    def __init__(self) -> None:
        super().__init__()
        config = vision_config()
        # Plain matrix products beat the fused CPU attention's bfloat16 backward pass by far.
        config._attn_implementation = "eager"
        self.tower = CLIPVisionModel(config)
        self.window = nn.Parameter(_window_logits())
        self.norm = nn.LayerNorm(config.hidden_size)
        self.hidden = nn.Linear(config.hidden_size, 2 * config.hidden_size)
        self.head = nn.Linear(2 * config.hidden_size, sum(HEAD_CLASSES))

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits [B, 9, classes] of kind, colour and size from pixels [B, 3, 96, 96]."""
        patches = self.norm(self.tower(pixel_values=pixel_values).last_hidden_state[:, 1:])
        read = self.window.softmax(dim=-1) @ nn.functional.gelu(self.hidden(patches))
        logits: torch.Tensor = self.head(read)
        return logits.split(HEAD_CLASSES, dim=-1)


def _window_logits() -> torch.Tensor:
    """Logits [9, 64] of a Gaussian window over the patch grid around each place's centre."""
    side = IMAGE_SIDE_PX // PATCH_SIDE_PX
    patch = (torch.arange(side) + 0.5) / side
    place = (torch.arange(3) + 0.5) / 3
    along = -((patch - place[:, None]) ** 2) / (2 * 0.12**2)
    logits = along[:, None, :, None] + along[None, :, None, :]
    return logits.reshape(len(PLACES), side * side)


def to_pixel_values(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Normalised float32 [B, 3, H, W] from uint8 [B, H, W, 3], as the image processor does it."""
    mean = torch.tensor(OPENAI_CLIP_MEAN)
    std = torch.tensor(OPENAI_CLIP_STD)
    return ((torch.from_numpy(pixels).float() / 255 - mean) / std).permute(0, 3, 1, 2)


def place_loss(logits: tuple[torch.Tensor, ...], labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of kinds everywhere and of colours and sizes at occupied places."""
    occupied = labels[..., 0] > 0
    kind = nn.functional.cross_entropy(logits[0].flatten(0, 1), labels[..., 0].flatten())
    colour = nn.functional.cross_entropy(logits[1][occupied], labels[..., 1][occupied])
    size = nn.functional.cross_entropy(logits[2][occupied], labels[..., 2][occupied])
    return kind + colour + size


def places_right(logits: tuple[torch.Tensor, ...], labels: torch.Tensor) -> tuple[float, float]:
    """Share of occupied places named wholly right, and of pictures with all nine right."""
    best = torch.stack([part.argmax(-1) for part in logits], dim=-1)
    occupied = labels[..., 0] > 0
    right = torch.where(occupied, (best == labels).all(-1), best[..., 0] == 0)
    return right[occupied].float().mean().item(), right.all(-1).float().mean().item()


def train(pool: PicturePool, steps: int, batch: int, peak: float, out: Path) -> None:
    """Train and save the tower's weights to `out`."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    reader = PlaceReader()
    optimiser = torch.optim.AdamW(reader.parameters(), lr=peak, weight_decay=0.02)
    schedule, filled = Schedule(peak, steps), pool.filled()
    for step in range(steps):
        if step % 50 == 0:
            filled = pool.filled()
        pixels, classes = pool.batch(rng, batch, filled)
        labels = torch.from_numpy(classes).long()
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate(step)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = tuple(part.float() for part in reader(to_pixel_values(pixels)))
        loss = place_loss(logits, labels)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimiser.step()
        if step % 50 == 49:
            occupied, whole = places_right(logits, labels)
            sys.stdout.write(
                f"{step + 1:5d} of {steps}  loss {loss.item():.3f}  places {occupied:.3f}  "
                f"pictures {whole:.3f}  {schedule.elapsed_s():.0f} s  pool {filled}\n"
            )
            sys.stdout.flush()
        if step % 500 == 499 or step + 1 == steps:
            torch.save(reader.tower.state_dict(), out)


def main() -> None:
    """Train the vision tower on a pool of pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", type=Path, required=True, help="folder made by the pool script")
    parser.add_argument("--out", type=Path, required=True, help="file for the tower's weights")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=7e-4)
    args = parser.parse_args()
    train(PicturePool(args.pool), args.steps, args.batch, args.rate, args.out)


if __name__ == "__main__":
    main()
