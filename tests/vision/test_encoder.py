"""The encoder gives what transformers' own LLaVA gives, whatever it is asked together with."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

from smart_serve.bundled import TARGET_FOLDER
from smart_serve.checkpoint import LANGUAGE_MODEL_LAYOUTS, Checkpoint, build_module
from smart_serve.errors import ClientError, ConfigError
from tests.vision.pictures import checked, noise
from vision.encoder import VisionEncoder
from vision.image import CheckedImage, decode_image
from vision.pixels import PixelProcessor

IMAGES = [checked(noise(seed, 20 + 9 * seed, 33)) for seed in range(3)]


def reference(folder: Path, image: CheckedImage) -> np.ndarray:
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = PixelProcessor.from_folder(folder)(decode_image(image))
    with torch.no_grad():
        return model.get_image_features(**inputs).pooler_output[0].numpy()


def test_features_equal_those_of_transformers(llava_folder: Path) -> None:
    encoder = VisionEncoder(llava_folder)
    for image, features in zip(IMAGES, encoder.encode(IMAGES), strict=True):
        assert features.shape == (encoder.num_tokens(image), encoder.hidden_size) == (4, 64)
        assert np.abs(features - reference(llava_folder, image)).max() < 1e-5


def test_features_of_the_bundled_model_equal_those_of_transformers() -> None:
    features = VisionEncoder(TARGET_FOLDER).encode(IMAGES[:1])[0]
    assert np.abs(features - reference(TARGET_FOLDER, IMAGES[0])).max() < 1e-5


@pytest.mark.parametrize("size", [(1, 1), (7, 1), (1, 7), (5, 3), (3, 5)])
def test_tiny_pictures_keep_their_channels(size: tuple[int, int]) -> None:
    # A side of 1 or 3 pixels can be mistaken for the channels of an array.
    red = decode_image(checked(Image.new("RGB", size, (255, 0, 0))))
    pixels = PixelProcessor.from_folder(TARGET_FOLDER)(red)["pixel_values"][0]
    assert pixels.shape == (3, 96, 96)
    assert pixels.std(dim=(1, 2)).max() < 1e-5
    assert pixels[0, 0, 0] > 0 > pixels[1, 0, 0]


def test_features_do_not_depend_on_the_batch(llava_folder: Path) -> None:
    together = VisionEncoder(llava_folder).encode(IMAGES)
    for image, features in zip(IMAGES, together, strict=True):
        alone = VisionEncoder(llava_folder).encode([image])[0]
        assert alone.tobytes() == features.tobytes()
    assert not np.array_equal(together[0], together[1])  # control: the pictures do differ


def test_a_picture_seen_before_is_not_encoded_again(llava_folder: Path) -> None:
    encoder = VisionEncoder(llava_folder)
    first = encoder.encode([IMAGES[0]])[0]
    assert encoder.encode([IMAGES[0], IMAGES[0]])[1] is first
    stats = encoder.cache_stats()
    assert (stats.hits, stats.misses, stats.entries) == (2, 1, 1)
    with pytest.raises(ValueError, match="read-only"):
        first[0, 0] = 0.0


def test_a_damaged_picture_is_the_clients_error(llava_folder: Path) -> None:
    whole = IMAGES[0]
    cut = CheckedImage(whole.data[:-20], "PNG", whole.width_px, whole.height_px, "cut")
    encoder = VisionEncoder(llava_folder)
    with pytest.raises(ClientError, match="damaged"):
        encoder.encode([cut])
    assert len(encoder.encode([whole])) == 1


@pytest.mark.parametrize("layout", ["hub", "memory"])
def test_every_published_key_layout_loads(llava_folder: Path, tmp_path: Path, layout: str) -> None:
    def rename(name: str) -> str:
        if layout == "hub":
            return name.replace("vision_tower.", "vision_tower.vision_model.")
        if name.startswith("language_model.lm_head."):
            return name.removeprefix("language_model.")
        name = name.replace("language_model.model.", "language_model.")
        return "model." + name

    tensors = load_file(llava_folder / "model.safetensors")
    save_file({rename(k): v for k, v in tensors.items()}, tmp_path / "model.safetensors")
    for file in ("config.json", "preprocessor_config.json"):
        (tmp_path / file).write_text((llava_folder / file).read_text())
    expected = VisionEncoder(llava_folder).encode(IMAGES[:1])[0]
    assert np.array_equal(VisionEncoder(tmp_path).encode(IMAGES[:1])[0], expected)
    load_language_model(tmp_path)


def load_language_model(folder: Path) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    checkpoint = Checkpoint(folder)
    config = LlamaConfig.from_dict(checkpoint.config["text_config"])
    model = build_module(lambda: LlamaForCausalLM(config))
    checkpoint.load_into(model, LANGUAGE_MODEL_LAYOUTS, torch.float32, "cpu")
    return model


def test_language_model_gives_transformers_logits(llava_folder: Path) -> None:
    whole = LlavaForConditionalGeneration.from_pretrained(llava_folder, dtype=torch.float32).eval()
    part = load_language_model(llava_folder)
    ids = torch.arange(9).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(whole(input_ids=ids).logits, part(input_ids=ids).logits)


def test_a_folder_without_model_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        VisionEncoder(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"config\.json"):
        VisionEncoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    with pytest.raises(ConfigError, match=r"model\.safetensors"):
        VisionEncoder(tmp_path)
