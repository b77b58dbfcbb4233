"""Drafters by name or folder."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from transformers import LlamaConfig

from smart_serve.checkpoint import Checkpoint, Prefixes, build_module
from smart_serve.config import EngineConfig
from smart_serve.drafters.draft_model import DraftModel
from smart_serve.drafters.eagle import Eagle
from smart_serve.drafters.eagle3 import Eagle3, Eagle3Module
from smart_serve.drafters.feature_network import FeatureDraftNetwork
from smart_serve.drafters.measure import GRID, measure_layer_cost, still_holds
from smart_serve.drafters.network import DraftNetwork
from smart_serve.drafters.network_drafter import NetworkDrafter
from smart_serve.drafters.ngram import NgramDrafter
from smart_serve.drafters.pickled import with_safetensors
from smart_serve.drafters.protocol import SharedDrafter
from smart_serve.drafters.target_parts import TargetParts
from smart_serve.errors import ConfigError
from smart_serve.models.families import load_target
from smart_serve.models.fingerprint import fingerprint
from smart_serve.models.folders import resolve_drafter, resolve_model
from smart_serve.speculation.cost import Curve
from smart_serve.speculation.cost_store import CostStore
from smart_serve.speculation.selector import FILE_NAME, Selector

NGRAM = "ngram"
DRAFT_MODEL = "draft_model:"
_EAGLE_LAYOUT = {"fc.": "fc.", "layers.": "layers.", "embed_tokens.": "embed_tokens."}
_EAGLE3_LAYOUT = {
    name: name for name in ("midlayer.", "fc.", "norm.", "lm_head.", "d2t", "embed_tokens.")
}
_EMBEDDING = "embed_tokens.weight"

ModuleT = TypeVar("ModuleT", FeatureDraftNetwork, Eagle3Module)


def load_drafter(
    drafter: str, model_folder: Path, config: EngineConfig, store: CostStore | None = None
) -> SharedDrafter:
    """The drafter that `drafter` names, with what it costs on this device: from the `store` (by
    default the user's) or measured now.

    "ngram": prompt lookup. "draft_model:FOLDER": a language model. FOLDER, or "bundled": an EAGLE,
    MSD or EAGLE-3 checkpoint, told apart by its tensors. `model_folder` is the target's. Raises
    `ConfigError`.
    """
    target = TargetParts(model_folder, getattr(torch, config.dtype_name), config.device)
    loaded: NgramDrafter | NetworkDrafter
    if drafter == NGRAM:
        loaded = NgramDrafter(target.image_token_id, max_tokens=config.kv_tokens)
        shape: dict[str, object] = {"kind": loaded.info.kind}
    else:
        if drafter.startswith(DRAFT_MODEL):
            folder = resolve_model(drafter.removeprefix(DRAFT_MODEL))
            network = _draft_model(folder, target)
        else:
            folder = resolve_drafter(drafter)
            network = _checkpoint_network(folder, target)
        shape = network.shape
        num_blocks = config.kv_tokens // config.block_tokens + 1
        own = folder / FILE_NAME
        loaded = NetworkDrafter(
            network,
            num_blocks=num_blocks,
            block_tokens=config.block_tokens,
            selector=Selector.read(own) if own.exists() else None,
        )
    key = fingerprint("drafter", shape, target.dtype, torch.device(target.device), GRID)
    store = store or CostStore.of_user()
    costs = store.get(
        key,
        Curve,
        measure=lambda: measure_layer_cost(loaded),
        still_holds=lambda curve: still_holds(curve, loaded),
    )
    loaded.set_layer_cost(costs)
    return loaded


def _draft_model(folder: Path, target: TargetParts) -> DraftNetwork:
    model = load_target(folder, target.dtype, target.device)
    target.check_vocabulary(folder, model.vocab_size)
    multimodal = None not in (model.image_token_id, target.image_token_id)
    return DraftModel(
        model,
        target.vocab_size,
        target.image_token_id,
        sees_images=multimodal and model.hidden_size == target.hidden_size,
    )


def _checkpoint_network(folder: Path, target: TargetParts) -> DraftNetwork:
    checkpoint = Checkpoint(with_safetensors(folder))
    names = checkpoint.names()
    if any(name.startswith("midlayer.") for name in names):
        return _eagle3(checkpoint, target)
    if "fc.weight" in names:
        return _eagle(checkpoint, target)
    raise ConfigError(
        f"{folder} holds neither an EAGLE, MSD nor EAGLE-3 drafter; "
        f"for a whole language model say '{DRAFT_MODEL}{folder}'"
    )


def _eagle(checkpoint: Checkpoint, target: TargetParts) -> Eagle:
    config = _llama_config(checkpoint)
    _check_hidden_size(config.hidden_size, target)
    names = checkpoint.names()
    module = build_module(
        lambda: FeatureDraftNetwork(
            config,
            fc_bias="fc.bias" in names,
            qkv_bias="layers.0.self_attn.q_proj.bias" in names,
        )
    )
    _fill(module, checkpoint, _EAGLE_LAYOUT, target)
    return Eagle(module, target.head(), target.image_token_id)


def _eagle3(checkpoint: Checkpoint, target: TargetParts) -> Eagle3:
    config, names = _llama_config(checkpoint), checkpoint.names()
    target_hidden = checkpoint.config.get("target_hidden_size", config.hidden_size)
    _check_hidden_size(target_hidden, target)
    maps_vocabulary = "d2t" in names
    draft_vocab = checkpoint.config.get("draft_vocab_size", config.vocab_size)
    if not maps_vocabulary and draft_vocab != target.vocab_size:
        raise ConfigError(f"{checkpoint.folder}: 'd2t' is missing for a reduced vocabulary")
    module = build_module(
        lambda: Eagle3Module(config, target_hidden, draft_vocab, maps_vocabulary=maps_vocabulary)
    )
    _fill(module, checkpoint, _EAGLE3_LAYOUT, target)
    network = Eagle3(module, target.num_layers)
    limit = min(target.vocab_size, network.num_embeddings)
    if network.target_ids.min() < 0 or network.target_ids.max() >= limit:
        raise ConfigError(f"{checkpoint.folder}: 'd2t' leads outside the target's vocabulary")
    return network


def _fill(module: ModuleT, checkpoint: Checkpoint, layout: Prefixes, target: TargetParts) -> None:
    """Weights from the drafter's checkpoint; embeddings that it leaves out are the target's."""
    own = _EMBEDDING in checkpoint.names()
    if not own:
        del module.embed_tokens
    checkpoint.load_into(module, layout, target.dtype, target.device)
    if not own:
        module.embed_tokens = target.embedding()


def _llama_config(checkpoint: Checkpoint) -> LlamaConfig:
    return LlamaConfig(**checkpoint.config)


def _check_hidden_size(hidden_size: int, target: TargetParts) -> None:
    if hidden_size != target.hidden_size:
        raise ConfigError(
            f"the drafter's hidden size {hidden_size} is not the target's "
            f"{target.hidden_size}: it was made for another model"
        )
