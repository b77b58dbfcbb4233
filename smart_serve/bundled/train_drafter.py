"""Trains the MSD drafter on the target's features, through the depths it will draft to."""

import argparse
import sys
from pathlib import Path

import torch
from torch import nn
from transformers import AutoTokenizer, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from smart_serve.bundled import DRAFTER_FOLDER, TARGET_FOLDER
from smart_serve.bundled.architecture import text_config
from smart_serve.bundled.batches import Batch, RowStream, load
from smart_serve.bundled.export import export_drafter, load_drafter
from smart_serve.bundled.rollout import DraftInputs, drafted, rollout
from smart_serve.bundled.schedule import Schedule
from smart_serve.bundled.train_target import embed, run_language_model
from smart_serve.drafters.feature_network import FeatureDraftNetwork

# Weight of the feature loss beside the cross-entropy; EAGLE-1 has them 10 : 1 the other way.
FEATURE_LOSS_WEIGHT = 0.5
# Deeper drafts are reached less often, so they count less.
DEPTH_DECAY = 0.85
# Rows whose answers do not fit the picture, so that drafts after an unlikely token are learnt.
SLIP_SHARE = 0.1


def draft_inputs(target: LlavaForConditionalGeneration, batch: Batch) -> DraftInputs:
    """Run the target over a batch and collect what its drafter would be given."""
    embeds = embed(target, batch)
    return DraftInputs(
        embeds=embeds,
        is_image=batch.packed.tokens == target.config.image_token_index,
        features=run_language_model(target, embeds, batch).float(),
        packed=batch.packed,
    )


def new_drafter(target: LlavaForConditionalGeneration) -> FeatureDraftNetwork:
    """A drafter with the target's embeddings, which training leaves as they are."""
    drafter = FeatureDraftNetwork(text_config(layers=1))
    drafter.embed_tokens.load_state_dict(target.model.language_model.embed_tokens.state_dict())
    drafter.embed_tokens.requires_grad_(False)
    return drafter


def draft_loss(
    drafter: FeatureDraftNetwork, head: nn.Linear, inputs: DraftInputs, depths: int
) -> tuple[torch.Tensor, list[float]]:
    """Loss over all depths, and the share of tokens drafted as the target says, per depth."""
    loss = torch.zeros(())
    agreement = []
    predicted = rollout(drafter, inputs, depths)
    for depth, entries in enumerate(drafted(inputs.packed, depths)):
        feature, wanted = predicted[depth][entries].float(), inputs.features[entries]
        with torch.no_grad():
            p_target = head(wanted).float().softmax(dim=-1)
        logits = head(feature).float()
        cross_entropy = -(p_target * logits.log_softmax(dim=-1)).sum(-1).mean()
        distance = nn.functional.smooth_l1_loss(feature, wanted)
        loss = loss + DEPTH_DECAY**depth * (cross_entropy + FEATURE_LOSS_WEIGHT * distance)
        agreed = logits.argmax(-1) == p_target.argmax(-1)
        agreement.append(agreed.float().mean().item())
    return loss, agreement


def load_pair(
    target_folder: Path,
) -> tuple[LlavaForConditionalGeneration, PreTrainedTokenizerFast]:
    """The frozen float32 target and its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(target_folder)
    target = LlavaForConditionalGeneration.from_pretrained(
        target_folder, dtype=torch.float32, attn_implementation="eager"
    )
    return target.eval().requires_grad_(False), tokenizer


def train(args: argparse.Namespace) -> None:
    """Train and export the drafter; every 200 steps the folder gets the state so far."""
    torch.manual_seed(0)
    target, tokenizer = load_pair(args.target)
    drafter = new_drafter(target)
    if args.resume:
        resumed = load_drafter(args.resume).state_dict()
        # The embeddings are this target's, whichever target the drafter was trained on before.
        resumed["embed_tokens.weight"] = drafter.embed_tokens.weight.data
        drafter.load_state_dict(resumed)
    trained = [parameter for parameter in drafter.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=args.rate, weight_decay=0.01, betas=(0.9, 0.95))
    stream = RowStream(args.pool, tokenizer, args.batch, args.row_tokens, args.seed, SLIP_SHARE)
    batches, step = load(stream), 0
    schedule = Schedule(args.rate, args.steps, args.minutes)
    while schedule.done(step) < 1:
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate(step)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.no_grad():
                inputs = draft_inputs(target, next(batches))
            loss, agreement = draft_loss(drafter, target.lm_head, inputs, args.depths)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 0.5)
        optimiser.step()
        step += 1
        if step % 25 == 0:
            shares = " ".join(f"{share:.3f}" for share in agreement)
            sys.stdout.write(
                f"{step:5d}  {schedule.done(step):4.0%}  loss {loss.item():.4f}  "
                f"agreement {shares}  {schedule.elapsed_s():.0f} s\n"
            )
            sys.stdout.flush()
        if step % 200 == 0 or schedule.done(step) >= 1:
            export_drafter(drafter, tokenizer.image_token_id, args.out)


def main() -> None:
    """Train the drafter."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", type=Path, required=True, help="folder made by the pool script")
    parser.add_argument("--target", type=Path, default=TARGET_FOLDER)
    parser.add_argument("--resume", type=Path, help="go on from this drafter folder")
    parser.add_argument("--out", type=Path, default=DRAFTER_FOLDER)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--row-tokens", type=int, default=288)
    parser.add_argument("--depths", type=int, default=4)
    parser.add_argument("--rate", type=float, default=8e-4)
    parser.add_argument("--minutes", type=float, help="stop by the clock, not by the steps")
    parser.add_argument("--seed", type=int, default=100)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
