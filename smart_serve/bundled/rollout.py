"""The drafter as decoding runs it: first on the target's features, then on its own.

At draft depth j an entry (one token of a row) takes the feature that the drafter itself
predicted at depth j - 1 for the token before. Its attention sees what it would see while
decoding: the last j entries as they were computed at depths j, j - 1, .. 1, and everything
older as computed from the target's features (training-time test of HASS and EAGLE-3).
"""

from typing import cast

import msgspec
import torch
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, apply_rotary_pos_emb

from smart_serve.bundled.packing import Packed, additive_mask
from smart_serve.drafters.feature_network import FeatureDraftNetwork

Cache = list[tuple[torch.Tensor, torch.Tensor]]


class DraftInputs(msgspec.Struct, frozen=True):
    """What the drafter sees of a batch of rows; entry i stands for token i and feature i - 1."""

    embeds: torch.Tensor  # [B, N, h]; pictures projected into the image tokens' places
    is_image: torch.Tensor  # [B, N] bool
    features: torch.Tensor  # [B, N, h]: the target's last hidden states
    packed: Packed


def rollout(drafter: FeatureDraftNetwork, inputs: DraftInputs, depths: int) -> list[torch.Tensor]:
    """Predicted features [B, N, h] at depths 0 .. depths - 1; entry i predicts feature i."""
    packed = inputs.packed
    # A draft position is one less than the position of its token; `<s>` has no entry.
    rotary = drafter.rotary_emb(inputs.embeds, (packed.positions - 1).clamp(min=0))
    bias = additive_mask(packed.sees & _may_be_seen(packed))
    before, cache, predicted = inputs.features, Cache(), []
    lineage = _lineage(packed, depths)
    for _ in range(depths):
        fused = drafter.fuse(inputs.embeds, _gather(before, packed.previous))
        hidden = torch.where(inputs.is_image[..., None], inputs.embeds.to(fused.dtype), fused)
        before = _layer(drafter, hidden, rotary, bias, cache, lineage)
        predicted.append(before)
    return predicted


def drafted(packed: Packed, depths: int) -> list[torch.Tensor]:
    """Entries [B, N] bool that decoding can reach at each depth: all of them inside an answer.

    The first token of an answer comes from the prompt's prefill, so nobody drafts it.
    """
    said = packed.next_token != -100
    inside = said & torch.gather(said, 1, packed.previous)
    reached = [inside]
    for _ in range(depths - 1):
        reached.append(inside & torch.gather(reached[-1], 1, packed.previous))
    return reached


def _may_be_seen(packed: Packed) -> torch.Tensor:
    """Keys that exist [B, N, N]: `<s>` has no entry, it only sees itself to be well-defined."""
    own = torch.eye(packed.tokens.shape[1], dtype=torch.bool)
    return ~packed.is_first[:, None, :] | own


def _gather(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Rows of values [B, N, h] at index [B, N]."""
    return torch.gather(values, 1, index[..., None].expand(-1, -1, values.shape[-1]))


def _lineage(packed: Packed, depths: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For m = 0, 1, ..: the entry m tokens before [B, N], and whether there is one [B, N]."""
    here = torch.arange(packed.tokens.shape[1]).expand_as(packed.previous)
    lineage = [(here, torch.ones_like(packed.is_first))]
    for _ in range(depths - 1):
        entry, exists = lineage[-1]
        before = torch.gather(packed.previous, 1, entry)
        exists = exists & ~torch.gather(packed.is_first, 1, before)
        lineage.append((before, exists))
    return lineage


def _layer(
    drafter: FeatureDraftNetwork,
    hidden: torch.Tensor,
    rotary: tuple[torch.Tensor, torch.Tensor],
    bias: torch.Tensor,
    cache: Cache,
    lineage: list[tuple[torch.Tensor, torch.Tensor]],
) -> torch.Tensor:
    """The drafter's decoder layer at the next depth; appends its keys and values to the cache."""
    layer = cast(LlamaDecoderLayer, drafter.layers[0])
    attention = layer.self_attn
    shape = (*hidden.shape[:2], -1, attention.head_dim)
    query, key, value = (
        project(hidden).view(shape).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    query, key = apply_rotary_pos_emb(query, key, *rotary)
    cache.append((key, value))
    mixed = _attend(query * attention.scaling, bias, cache, lineage)
    hidden = hidden + attention.o_proj(mixed.transpose(1, 2).flatten(2))
    residual: torch.Tensor = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return residual


def _attend(
    query: torch.Tensor,
    bias: torch.Tensor,
    cache: Cache,
    lineage: list[tuple[torch.Tensor, torch.Tensor]],
) -> torch.Tensor:
    """Attention [B, H, N, D] of the cache's last depth; see the module's docstring."""
    depth = len(cache) - 1
    recent = []
    for back in range(depth):
        entry, exists = lineage[back]
        bias = bias.scatter(3, entry[:, None, :, None], -1e4)
        index = entry[:, None, :, None].expand_as(query)
        keys, values = (part.gather(2, index) for part in cache[depth - back])
        missing = torch.where(exists, 0.0, -1e4)[:, None, :, None]
        recent.append(((query * keys).sum(-1, keepdim=True) + missing, values))
    old_keys, old_values = cache[0]
    scores = [query @ old_keys.transpose(2, 3) + bias, *(score for score, _ in recent)]
    weights = torch.cat(scores, dim=-1).float().softmax(dim=-1).to(query.dtype)
    width = old_keys.shape[2]
    mixed = weights[..., :width] @ old_values.to(query.dtype)
    for back, (_, values) in enumerate(recent):
        mixed = mixed + weights[..., width + back, None] * values.to(query.dtype)
    return mixed
