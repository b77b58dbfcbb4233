"""Saves the models in the folder layout that `from_pretrained` and the drafters read."""

import json
import os
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    CLIPImageProcessorPil,
    GenerationConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from smart_serve.bundled.architecture import IMAGE_SIDE_PX, PATCH_SIDE_PX, text_config
from smart_serve.bundled.tokenizer import IMAGE
from smart_serve.drafters.feature_network import FeatureDraftNetwork

# The repository carries both models: all safetensors together stay within this.
WEIGHTS_LIMIT_BYTES = 16_000_000
DRAFTER_ARCHITECTURE = "MsdDraftModel"


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """The processor: any picture is resized to 96 x 96 px and stands for 64 image tokens."""
    side = {"height": IMAGE_SIDE_PX, "width": IMAGE_SIDE_PX}
    images = CLIPImageProcessorPil(size=side, crop_size=side, do_center_crop=False)
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH_SIDE_PX,
        vision_feature_select_strategy="default",
        chat_template=tokenizer.chat_template,
        image_token=IMAGE,
        num_additional_image_tokens=1,
    )


def export_target(
    target: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    """Save weights (bfloat16), tokenizer and processor to `folder`, file by file at one stroke."""
    rounded = LlavaForConditionalGeneration(target.config)
    rounded.load_state_dict(target.state_dict())
    rounded = rounded.to(torch.bfloat16)
    rounded.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=160,
    )
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        rounded.save_pretrained(scratch)
        build_processor(tokenizer).save_pretrained(scratch)
        _move(Path(scratch), folder)


def export_drafter(drafter: FeatureDraftNetwork, image_token: int, folder: Path) -> None:
    """Save the drafter's weights (bfloat16) and its config to `folder`."""
    config = text_config(layers=1).to_dict()
    config |= {
        "architectures": [DRAFTER_ARCHITECTURE],
        "image_token_index": image_token,
        "dtype": "bfloat16",
    }
    weights = {
        name: weight.detach().to(torch.bfloat16).contiguous()
        for name, weight in drafter.state_dict().items()
    }
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        save_file(weights, Path(scratch) / "model.safetensors", metadata={"format": "pt"})
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (Path(scratch) / "config.json").write_text(text)
        _move(Path(scratch), folder)


def load_drafter(folder: Path) -> FeatureDraftNetwork:
    """The drafter of `folder`, in float32."""
    from safetensors.torch import load_file
    from transformers import LlamaConfig

    drafter = FeatureDraftNetwork(LlamaConfig.from_json_file(folder / "config.json"))
    drafter.load_state_dict(load_file(folder / "model.safetensors"))
    return drafter.float()


def _move(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        file.chmod(0o644)
        os.replace(file, folder / file.name)
