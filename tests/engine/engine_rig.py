"""Engines over the small random folders, with costs that are given instead of measured."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from small_models import IMAGE_TOKEN
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlavaForConditionalGeneration

from smart_serve.config import EngineConfig, SpeculationConfig
from smart_serve.drafters.eagle import Eagle
from smart_serve.drafters.feature_network import FeatureDraftNetwork
from smart_serve.drafters.network_drafter import NetworkDrafter
from smart_serve.drafters.protocol import Drafter
from smart_serve.engine.engine import Engine
from smart_serve.engine.sequence import Sequence
from smart_serve.messages import GenerateRequest, ImageSpan, SamplingParams
from smart_serve.models.families import load_target
from smart_serve.paging.kv_cache import KvCache
from smart_serve.speculation.cost import CostTable, Curve

IMAGE_ROWS = 4
FLAT_COSTS = CostTable((1,), (64,), ((Curve((1.0, 512.0), (50.0, 51.0)),),))
"""A target so slow that speculation always pays, whatever this machine measures."""


@dataclass(frozen=True)
class Case:
    """A prompt, and what transformers' own generate says to it."""

    token_ids: tuple[int, ...]
    spans: tuple[ImageSpan, ...]
    features: tuple[np.ndarray, ...]
    answer: tuple[int, ...] = ()

    def request(self, sampling: SamplingParams | None = None, name: str = "r") -> GenerateRequest:
        return GenerateRequest(
            request_id=name,
            token_ids=self.token_ids,
            image_spans=self.spans,
            sampling=sampling or SamplingParams(max_tokens=ANSWER_TOKENS),
        )


ANSWER_TOKENS = 20


def make_cases(folder: Path, count: int, *, pictures: int) -> list[Case]:
    """Prompts of 3 to 24 tokens for a Llama; for a LLaVA with 0 to `pictures` pictures, in turn."""
    rng = np.random.default_rng(5)
    loader = LlavaForConditionalGeneration if pictures else AutoModelForCausalLM
    model = loader.from_pretrained(folder).eval()
    return [_make_case(model, rng, i % (pictures + 1), f"hash{i}") for i in range(count)]


def _make_case(model: Any, rng: np.random.Generator, num_pictures: int, name: str) -> Case:
    ids = rng.integers(3, IMAGE_TOKEN, int(rng.integers(3, 25))).tolist()
    starts = np.sort(rng.integers(0, len(ids) + 1, num_pictures))
    spans, features = [], []
    inputs: dict[str, torch.Tensor] = {}
    for index, start in enumerate((starts + IMAGE_ROWS * np.arange(num_pictures)).tolist()):
        ids[start:start] = [IMAGE_TOKEN] * IMAGE_ROWS
        spans.append(ImageSpan(start, IMAGE_ROWS, f"{name}-{index}"))
    if num_pictures:
        pixels = torch.from_numpy(rng.normal(size=(num_pictures, 3, 24, 24))).float()
        inputs["pixel_values"] = pixels
        with torch.inference_mode():
            encoded = model.get_image_features(pixel_values=pixels).pooler_output
        features = [rows.reshape(IMAGE_ROWS, -1).numpy() for rows in encoded]
    with torch.inference_mode():
        out = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
            max_new_tokens=ANSWER_TOKENS,
            do_sample=False,
            **inputs,
        )
    return Case(tuple(ids), tuple(spans), tuple(features), tuple(out[0, len(ids) :].tolist()))


def make_engine(
    folder: Path,
    drafter: Drafter | None = None,
    policy: str = "eagle2",
    *,
    costs: CostTable = FLAT_COSTS,
    overlap: bool = True,
    **options: Any,
) -> Engine:
    speculation = SpeculationConfig(
        policy=policy,
        max_depth=5,
        top_k=4,
        eagle2_nodes=20,
        eagle2_depth=4,
        eagle2_top_k=3,
        overlap=overlap,
    )
    options = {"kv_tokens": 2048, "block_tokens": 4, **options}
    config = EngineConfig(speculation=speculation, **options)
    model = load_target(folder, torch.float32, "cpu")
    blocks = config.kv_tokens // config.block_tokens + 1
    cache = KvCache(model.kv_shape, blocks, config.block_tokens, model.dtype, model.device)
    return Engine(model, cache, config, costs, drafter)


def random_feature_drafter(folder: Path, kv_tokens: int = 2048) -> NetworkDrafter:
    """Untrained, so it is nearly always wrong."""
    config = AutoConfig.from_pretrained(folder)
    text = getattr(config, "text_config", config)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = FeatureDraftNetwork(text).eval()
        head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
    eagle = Eagle(network, head, IMAGE_TOKEN if text is not config else None)
    return NetworkDrafter(eagle, num_blocks=kv_tokens // 4 + 1, block_tokens=4)


def run_all(
    engine: Engine,
    cases: Seq[Case],
    sampling: SamplingParams | Seq[SamplingParams] | None = None,
    *,
    every: int = 0,
) -> list[Sequence]:
    """Run to the end; with `every`, a new request arrives only each `every` steps."""
    params = [sampling] * len(cases) if not isinstance(sampling, list) else sampling
    waiting = [(case, chosen) for case, chosen in zip(cases, params, strict=True)][::-1]
    sequences: list[Sequence] = []
    steps = 0
    while waiting or engine.scheduler.has_work:
        while waiting and (not every or steps % every == 0):
            case, chosen = waiting.pop()
            sequences.append(engine.add(case.request(chosen, str(len(sequences))), case.features))
            if every:
                break
        engine.step()
        steps += 1
        assert steps < 5_000, "the engine makes no progress"
    engine.scheduler.pool.check_idle()
    return sequences


def answers(sequences: Seq[Sequence]) -> list[tuple[int, ...]]:
    return [tuple(sequence.tokens[sequence.num_prompt :]) for sequence in sequences]
