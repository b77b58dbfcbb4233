"""From folders and configuration to an engine that is ready to serve."""

from __future__ import annotations

from pathlib import Path

import torch

from smart_serve.config import EngineConfig
from smart_serve.drafters.protocol import Drafter
from smart_serve.engine.engine import Engine
from smart_serve.engine.forward import EagerForward, Forward
from smart_serve.engine.graphs import GraphedForward
from smart_serve.engine.measure import cost_grid, measure_costs, still_holds
from smart_serve.models.families import load_target
from smart_serve.models.fingerprint import fingerprint
from smart_serve.models.target import TargetModel
from smart_serve.paging.kv_cache import KvCache
from smart_serve.speculation.cost import CostTable
from smart_serve.speculation.cost_store import CostStore


def build_engine(
    model_folder: Path,
    config: EngineConfig,
    drafter: Drafter | None,
    *,
    store: CostStore | None = None,
    progress: bool = False,
) -> Engine:
    """Load the language model of `model_folder`, and learn from the `store` (by default the user's)
    or by measuring what its steps cost here."""
    model, cache = load_parts(model_folder, config)
    forward = make_forward(model, cache, config, progress=progress)
    costs = target_costs(model, cache, forward, config, store, progress=progress)
    return Engine(model, cache, config, costs, drafter, forward)


def load_parts(model_folder: Path, config: EngineConfig) -> tuple[TargetModel, KvCache]:
    """The model and its KV cache."""
    model = load_target(model_folder, getattr(torch, config.dtype_name), config.device)
    num_blocks = config.kv_tokens // config.block_tokens + 1
    return model, KvCache(
        model.kv_shape, num_blocks, config.block_tokens, model.dtype, model.device
    )


def make_forward(
    model: TargetModel, cache: KvCache, config: EngineConfig, *, progress: bool = False
) -> Forward:
    """Graphs on a GPU; they are captured when prepared."""
    if model.device.type == "cuda":
        return GraphedForward(model, cache, config.max_running, progress=progress)
    return EagerForward(model, cache)


def target_costs(
    model: TargetModel,
    cache: KvCache,
    forward: Forward,
    config: EngineConfig,
    store: CostStore | None = None,
    *,
    progress: bool = False,
) -> CostTable:
    """What the target's steps cost here: stored, or measured now."""
    store = store or CostStore.of_user()
    grid = cost_grid(model, cache, forward, config.max_running)
    forward.prepare()
    return store.get(
        fingerprint("target", model.shape, model.dtype, model.device, grid, forward.stairs),
        CostTable,
        measure=lambda: measure_costs(model, forward, grid, progress=progress),
        still_holds=lambda table: still_holds(table, model, forward, grid),
    )
