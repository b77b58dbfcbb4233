"""Packed rows teach the same as separate prompts, and rollouts draft the same as decoding."""

import numpy as np
import pytest
import torch

from smart_serve.bundled import DRAFTER_FOLDER, TARGET_FOLDER
from smart_serve.bundled.batches import Batch
from smart_serve.bundled.chats import RowWriter
from smart_serve.bundled.export import load_drafter
from smart_serve.bundled.packing import Packed, pack
from smart_serve.bundled.pool import to_input
from smart_serve.bundled.render import render
from smart_serve.bundled.rollout import DraftInputs, drafted, rollout
from smart_serve.bundled.scene import sample_scene
from smart_serve.bundled.train_drafter import draft_inputs, load_pair
from smart_serve.bundled.train_vision import to_pixel_values

ROW_TOKENS = 288
TARGET, TOKENIZER = load_pair(TARGET_FOLDER)


def _batch(seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng)
    row = RowWriter(TOKENIZER, ROW_TOKENS).write(scene, rng)
    pixels = to_pixel_values(np.array(to_input(render(scene, rng)))[None])
    return Batch(pixels, pack([row], ROW_TOKENS, TOKENIZER.pad_token_id))


def _chain(packed: Packed, entry: int) -> list[int]:
    """The indices of a token and all before it, back to its `<s>`."""
    chain = [entry]
    while not packed.is_first[0, chain[-1]]:
        chain.append(int(packed.previous[0, chain[-1]]))
    return chain[::-1]


def _ends(packed: Packed) -> list[int]:
    """Where answers end: tokens whose next token is `</s>`."""
    ends = packed.next_token[0] == TOKENIZER.eos_token_id
    return [int(end) for end in ends.nonzero()[:, 0]]


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_packed_rows_equal_separate_prompts(seed: int) -> None:
    batch = _batch(seed)
    with torch.inference_mode():
        features = draft_inputs(TARGET, batch).features
        for end in _ends(batch.packed):
            chain = _chain(batch.packed, end)
            tokens = batch.packed.tokens[:, chain]
            assert TOKENIZER.decode(tokens[0, :1]) == "<s>"
            pictured = bool((tokens == TOKENIZER.image_token_id).any())
            pixels = batch.pixel_values if pictured else None
            alone = TARGET.model(input_ids=tokens, pixel_values=pixels, use_cache=False)
            assert torch.allclose(alone.last_hidden_state[0], features[0, chain], atol=2e-4)


def test_answers_and_their_ends_are_supervised() -> None:
    packed = _batch(5).packed
    said = packed.next_token[0][packed.next_token[0] != -100]
    text = TOKENIZER.decode(said)
    assert text.startswith("The picture shows") or "</s> The picture shows" in text
    assert "USER" not in text
    assert "ASSISTANT" not in text
    assert text.endswith(".</s>")


def test_rollout_equals_step_by_step_drafting() -> None:
    inputs = draft_inputs(TARGET, _batch(6))
    drafter = load_drafter(DRAFTER_FOLDER)
    depths = 4
    with torch.inference_mode():
        predicted = rollout(drafter, inputs, depths)
        entries = drafted(inputs.packed, depths)[-1][0].nonzero()[:, 0].tolist()
        for entry in entries[:: max(1, len(entries) // 5)]:
            expected = _draft_chain(drafter, inputs, entry, depths)
            assert torch.allclose(predicted[-1][0, entry], expected, atol=1e-4)


def _draft_chain(drafter, inputs: DraftInputs, entry: int, depths: int) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """The feature at `entry` when the last `depths` entries are drafted one after another."""
    chain = _chain(inputs.packed, entry)
    tokens, features = chain[1:], inputs.features[0, chain[:-1]].clone()
    embeds, is_image = inputs.embeds[0, tokens], inputs.is_image[0, tokens, None]
    length = len(tokens)
    mask = torch.full((length, length), -1e9).triu(1)[None, None]
    drafter.config._attn_implementation = "eager"
    for at in range(length - depths, length):
        layer_inputs = torch.where(is_image, embeds, drafter.fuse(embeds, features))
        out = drafter(layer_inputs[None], torch.arange(length)[None], mask)[0]
        if at + 1 < length:
            features[at + 1] = out[at]
    result: torch.Tensor = out[-1]
    return result
