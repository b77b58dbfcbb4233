"""Drafters by name or folder."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import LlamaConfig

from smart_serve.checkpoint import Checkpoint, build_module
from smart_serve.config import EngineConfig
from smart_serve.drafters.feature_drafter import FeatureDrafter
from smart_serve.drafters.feature_network import FeatureDraftNetwork
from smart_serve.drafters.measure import GRID, measure_layer_cost
from smart_serve.drafters.protocol import Drafter
from smart_serve.errors import ConfigError
from smart_serve.models.attention import ATTENTION
from smart_serve.models.fingerprint import fingerprint
from smart_serve.models.folders import resolve_drafter
from smart_serve.speculation.cost import Curve
from smart_serve.speculation.cost_store import CostStore

_NETWORK_LAYOUT = {"embed_tokens.": "embed_tokens.", "fc.": "fc.", "layers.": "layers."}
_HEAD_LAYOUTS = ({"language_model.lm_head.": ""}, {"lm_head.": ""})


def load_drafter(
    drafter: str, model_folder: Path, config: EngineConfig, store: CostStore | None = None
) -> Drafter:
    """The drafter in a folder ("bundled": our own), with what it costs on this device: from the
    `store` (by default the user's) or measured now.

    `model_folder` is the target's: feature drafters use the target's own head.
    """
    checkpoint = Checkpoint(resolve_drafter(drafter))
    dtype, device = getattr(torch, config.dtype), config.device
    network_config = LlamaConfig(**checkpoint.config)
    network_config._attn_implementation = ATTENTION
    network = build_module(lambda: FeatureDraftNetwork(network_config))
    checkpoint.load_into(network, _NETWORK_LAYOUT, dtype, device)
    feature_drafter = FeatureDrafter(
        network,
        _load_head(Checkpoint(model_folder), network_config, dtype, device),
        image_token_id=checkpoint.config.get("image_token_index"),
        num_blocks=config.kv_tokens // config.block_tokens + 1,
        block_tokens=config.block_tokens,
    )
    feature_drafter.set_layer_cost(
        (store or CostStore.of_user()).get(
            fingerprint("drafter", checkpoint.config, dtype, torch.device(device), GRID),
            Curve,
            lambda: measure_layer_cost(feature_drafter),
        )
    )
    return feature_drafter


def _load_head(
    target: Checkpoint, config: LlamaConfig, dtype: torch.dtype, device: str
) -> nn.Linear:
    text_config = target.config.get("text_config", target.config)
    if text_config["hidden_size"] != config.hidden_size:
        raise ConfigError(
            f"the drafter's hidden size {config.hidden_size} is not the target's "
            f"{text_config['hidden_size']}: it was made for another model"
        )
    vocab_size = text_config["vocab_size"]
    head = build_module(lambda: nn.Linear(config.hidden_size, vocab_size, bias=False))
    target.load_into(head, _HEAD_LAYOUTS, dtype, device)
    return head
