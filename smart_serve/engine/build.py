"""From folders and configuration to an engine that is ready to serve."""

from __future__ import annotations

from pathlib import Path

import torch

from smart_serve.config import EngineConfig
from smart_serve.drafters.protocol import Drafter
from smart_serve.engine.engine import Engine
from smart_serve.engine.measure import measure_costs
from smart_serve.models.families import load_target
from smart_serve.paging.kv_cache import KvCache


def build_engine(
    model_folder: Path, config: EngineConfig, drafter: Drafter | None, *, progress: bool = False
) -> Engine:
    """Load the language model of `model_folder` and measure what its steps cost here."""
    model = load_target(model_folder, getattr(torch, config.dtype), config.device)
    num_blocks = config.kv_tokens // config.block_tokens + 1
    cache = KvCache(model.kv_shape, num_blocks, config.block_tokens, model.dtype, model.device)
    costs = measure_costs(model, cache, config.max_running, progress=progress)
    return Engine(model, cache, config, costs, drafter)
