"""The weights in the repository: their format, their size, and that they know their job."""

import json

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from smart_serve.bundled import DRAFTER_FOLDER, EXAMPLE_PICTURE, EXAMPLE_QUESTION, TARGET_FOLDER
from smart_serve.bundled.evaluate import acceptance
from smart_serve.bundled.example import EXAMPLE_SCENE
from smart_serve.bundled.export import DRAFTER_ARCHITECTURE, WEIGHTS_LIMIT_BYTES, load_drafter
from smart_serve.bundled.judge import Judge
from smart_serve.bundled.questions import Exchange, describe
from smart_serve.bundled.trials import TOPICS, Trial, trials

PICTURES = 60
DRAFTER_SHAPES = {
    "embed_tokens.weight": (640, 256),
    "fc.weight": (256, 512),
    "fc.bias": (256,),
    "layers.0.self_attn.q_proj.weight": (256, 256),
    "layers.0.self_attn.k_proj.weight": (256, 256),
    "layers.0.self_attn.v_proj.weight": (256, 256),
    "layers.0.self_attn.o_proj.weight": (256, 256),
    "layers.0.post_attention_layernorm.weight": (256,),
    "layers.0.mlp.gate_proj.weight": (640, 256),
    "layers.0.mlp.up_proj.weight": (640, 256),
    "layers.0.mlp.down_proj.weight": (256, 640),
}


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge()


def test_weights_stay_within_the_budget() -> None:
    files = [folder / "model.safetensors" for folder in (TARGET_FOLDER, DRAFTER_FOLDER)]
    assert sum(file.stat().st_size for file in files) <= WEIGHTS_LIMIT_BYTES


def test_drafter_has_the_keys_and_shapes_of_msd() -> None:
    with safe_open(DRAFTER_FOLDER / "model.safetensors", "pt") as weights:
        tensors = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == DRAFTER_SHAPES
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    config = json.loads((DRAFTER_FOLDER / "config.json").read_text())
    assert config["architectures"] == [DRAFTER_ARCHITECTURE]
    assert config["image_token_index"] == 3
    assert config["num_hidden_layers"] == 1


def test_drafter_embeds_tokens_as_the_target_does(judge: Judge) -> None:
    embeddings = load_drafter(DRAFTER_FOLDER).embed_tokens.weight
    assert torch.equal(embeddings, judge.target.get_input_embeddings().weight)


@pytest.mark.parametrize("topic", TOPICS)
def test_target_answers_about_heldout_pictures(judge: Judge, topic: str) -> None:
    right, _ = judge.accuracy(list(trials(PICTURES, seed=1, topic=topic)))
    assert right >= 0.9


@pytest.mark.parametrize("topic", TOPICS)
def test_blank_pictures_make_the_answers_wrong(judge: Judge, topic: str) -> None:
    """The control: the answers come from the pictures, not from the questions."""
    right, _ = judge.accuracy(list(trials(PICTURES, seed=1, topic=topic, blank=True)))
    assert right <= {"yes_no": 0.7, "place": 0.7, "count_some": 0.5}.get(topic, 0.35)


def test_drafter_is_accepted(judge: Judge) -> None:
    asked = list(trials(20, seed=2, topic="describe"))
    _, replies = judge.accuracy(asked)
    right, tried = acceptance(judge, load_drafter(DRAFTER_FOLDER), asked, replies, depths=4)
    assert (right / tried >= 0.8).all()


def test_a_new_drafter_is_not_accepted(judge: Judge) -> None:
    """The control: the measure tells a trained drafter from one whose layer is forgotten."""
    drafter = load_drafter(DRAFTER_FOLDER)
    torch.nn.init.zeros_(drafter.fc.weight)
    asked = list(trials(8, seed=2, topic="describe"))
    _, replies = judge.accuracy(asked)
    right, tried = acceptance(judge, drafter, asked, replies, depths=2)
    assert (right / tried < 0.4).all()


def test_odd_questions_get_an_answer(judge: Judge) -> None:
    picture = Image.new("RGB", (120, 100), "white")
    questions = ["", "qwx zzz", "What is the capital of France?", "こんにちは 🎈", "a" * 200]
    asked = [Trial(picture, Exchange("odd", question, "")) for question in questions]
    assert all(reply.text for reply in judge.replies(asked))


def test_example_picture_is_described(judge: Judge) -> None:
    with Image.open(EXAMPLE_PICTURE) as picture:
        trial = Trial(picture.convert("RGB"), Exchange("describe", EXAMPLE_QUESTION, ""))
    assert judge.replies([trial])[0].text == describe(EXAMPLE_SCENE)
