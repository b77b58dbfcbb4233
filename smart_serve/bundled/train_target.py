"""Trains the whole target on questions and answers, from a trained vision tower on."""

import argparse
import sys
from pathlib import Path

import torch
from torch import nn
from transformers import AutoTokenizer, LlavaForConditionalGeneration

from smart_serve.bundled import TARGET_FOLDER
from smart_serve.bundled.architecture import target_config
from smart_serve.bundled.batches import Batch, LabelledBatch, RowStream, load
from smart_serve.bundled.export import export_target
from smart_serve.bundled.packing import additive_mask
from smart_serve.bundled.schedule import Schedule
from smart_serve.bundled.train_vision import PlaceReader, place_loss

# The tower comes trained; it only needs to follow the projector.
TOWER_RATE = 0.25
# The patches go on naming their places, so that the tower goes on learning from every picture.
PLACE_LOSS_WEIGHT = 0.2


def embed(target: LlavaForConditionalGeneration, batch: Batch) -> torch.Tensor:
    """Input embeddings [B, N, h], with the projected pictures in the image tokens' places."""
    pictures = target.model.get_image_features(batch.pixel_values, return_dict=True)
    return _fill_in(target, torch.cat(list(pictures.pooler_output)), batch)


def _fill_in(
    target: LlavaForConditionalGeneration, features: torch.Tensor, batch: Batch
) -> torch.Tensor:
    """Token embeddings [B, N, h] with features [image tokens, h] in the image tokens' places."""
    tokens = batch.packed.tokens
    embeds = target.model.language_model.embed_tokens(tokens)
    is_image = tokens == target.config.image_token_index
    filled: torch.Tensor = embeds.masked_scatter(is_image[..., None], features.to(embeds.dtype))
    return filled


def run_language_model(
    target: LlavaForConditionalGeneration, embeds: torch.Tensor, batch: Batch
) -> torch.Tensor:
    """Last hidden states [B, N, h], after the final norm."""
    hidden: torch.Tensor = target.model.language_model(
        inputs_embeds=embeds,
        attention_mask=additive_mask(batch.packed.sees),
        position_ids=batch.packed.positions,
        use_cache=False,
    ).last_hidden_state
    return hidden


def answers_right(best: torch.Tensor, next_token: torch.Tensor) -> float:
    """Share of answers all of whose tokens are right under teacher forcing."""
    said = next_token != -100
    begins = said & ~torch.nn.functional.pad(said, (1, 0))[:, :-1]
    # Answers behind each other without a gap count as one: rare, and it only lowers the share.
    answer = begins.flatten().cumsum(0)[said.flatten()] - 1
    wrong = (best != next_token)[said]
    wrong_answers = torch.zeros(int(begins.sum()), dtype=torch.long)
    wrong_answers.index_add_(0, answer, wrong.long())
    return (wrong_answers == 0).float().mean().item()


def step_loss(
    target: LlavaForConditionalGeneration, reader: PlaceReader, batch: LabelledBatch
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean cross-entropy of the answers' tokens, the patches' loss, best tokens [B, N]."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pictures = target.model.get_image_features(batch.pixel_values, return_dict=True)
        named = place_loss(reader.read(pictures.last_hidden_state[:, 1:]), batch.labels)
        embeds = _fill_in(target, torch.cat(list(pictures.pooler_output)), batch)
        hidden = run_language_model(target, embeds, batch)
        said = batch.packed.next_token != -100
        logits = target.lm_head(hidden[said]).float()
    loss = nn.functional.cross_entropy(logits, batch.packed.next_token[said])
    best = torch.full_like(batch.packed.next_token, -100)
    best[said] = logits.detach().argmax(-1)
    return loss, named, best


def build_optimiser(
    target: LlavaForConditionalGeneration, reader: PlaceReader
) -> torch.optim.AdamW:
    """AdamW with a lower rate for the vision tower."""
    tower = list(target.model.vision_tower.parameters())
    known = {id(parameter) for parameter in tower}
    rest = [parameter for parameter in target.parameters() if id(parameter) not in known]
    rest += reader.head.parameters()
    groups = [{"params": rest, "scale": 1.0}, {"params": tower, "scale": TOWER_RATE}]
    return torch.optim.AdamW(groups, weight_decay=0.02, betas=(0.9, 0.98))


def train(args: argparse.Namespace) -> None:
    """Train, exporting now and then, so that the folder always holds the best so far."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    config = target_config(tokenizer.image_token_id)
    target = LlavaForConditionalGeneration._from_config(config, attn_implementation="eager")
    reader = PlaceReader(target.model.vision_tower)
    if args.tower:
        reader.load_state_dict(torch.load(args.tower, weights_only=True))
    if args.resume:
        # After the tower, whose head is wanted all the same: a new one would spoil the patches.
        target.load_state_dict(torch.load(args.resume, weights_only=True))
    optimiser = build_optimiser(target, reader)
    batches = load(RowStream(args.pool, tokenizer, args.batch, args.row_tokens, args.seed))
    schedule, step = Schedule(args.rate, args.steps, args.minutes), 0
    while schedule.done(step) < 1:
        batch = next(batches)
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate(step) * group["scale"]
        loss, named, best = step_loss(target, reader, batch)
        optimiser.zero_grad()
        (loss + PLACE_LOSS_WEIGHT * named).backward()
        nn.utils.clip_grad_norm_(target.parameters(), 1.0)
        optimiser.step()
        step += 1
        if step % 25 == 0:
            right = answers_right(best, batch.packed.next_token)
            sys.stdout.write(
                f"{step:5d}  {schedule.done(step):4.0%}  loss {loss.item():.4f}  "
                f"patches {named.item():.3f}  answers {right:.3f}  {schedule.elapsed_s():.0f} s\n"
            )
            sys.stdout.flush()
        if step % 100 == 0 or schedule.done(step) >= 1:
            torch.save(target.state_dict(), args.checkpoint)
            export_target(target, tokenizer, args.out)


def main() -> None:
    """Train the target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", type=Path, required=True, help="folder made by the pool script")
    parser.add_argument("--tower", type=Path, help="weights made by the vision script")
    parser.add_argument("--resume", type=Path, help="go on from this checkpoint")
    parser.add_argument("--checkpoint", type=Path, required=True, help="file for float32 weights")
    parser.add_argument("--tokenizer", type=Path, default=TARGET_FOLDER)
    parser.add_argument("--out", type=Path, default=TARGET_FOLDER)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--row-tokens", type=int, default=288)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--minutes", type=float, help="stop by the clock, not by the steps")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
