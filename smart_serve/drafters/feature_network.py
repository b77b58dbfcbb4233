"""The network of EAGLE-1/2 and MSD drafters: a decoder layer (or few) over fused features.

Training and serving share these weights, named as in the published checkpoints (``fc.weight``,
``layers.0.*``).
"""

import copy

import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRotaryEmbedding


class FeatureDraftNetwork(nn.Module):
    """Predicts the target's next last hidden state ("feature") from a token and a feature.

    Draft position t takes token x_{t+1} and the target's feature h_t, and gives the predicted
    feature h_{t+1}; the target's own head turns that into the distribution of x_{t+2}.
    There is no input norm, no final norm and no head of its own.
    """

    def __init__(
        self, config: LlamaConfig, *, fc_bias: bool = True, qkv_bias: bool = False
    ) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, hidden)
        self.fc = nn.Linear(2 * hidden, hidden, bias=fc_bias)
        layers = (_layer(config, index, qkv_bias) for index in range(config.num_hidden_layers))
        self.layers = nn.ModuleList(layers)
        self.rotary_emb = rotary_embedding(config)

    def fuse(self, token_embeds: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Layer inputs [.., N, h] of text positions, from the embedding of x_{t+1} and h_t.

        Image positions do not come here: their input is the projected visual embedding itself.
        """
        fused: torch.Tensor = self.fc(torch.cat((token_embeds, features), dim=-1))
        return fused

    def forward(
        self,
        inputs: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predicted features [B, N, h] from layer inputs [B, N, h] and RoPE positions [B, N],
        or [3, B, N] under M-RoPE. How it is trained; serving runs the layers over packed rows."""
        rotary = self.rotary_emb(inputs, position_ids)
        hidden = inputs
        for layer in self.layers:
            hidden = layer(
                hidden,
                attention_mask=attention_mask,
                position_ids=position_ids,
                position_embeddings=rotary,
            )
        return hidden


def is_mrope(config: LlamaConfig) -> bool:
    """Whether its positions have three axes, as in drafters of Qwen2-VL targets."""
    return "mrope_section" in config.rope_parameters


def rotary_embedding(config: LlamaConfig) -> nn.Module:
    """Of one axis or three, as the configuration says."""
    if not is_mrope(config):
        return LlamaRotaryEmbedding(config)  # type: ignore[no-any-return]
    config = copy.deepcopy(config)
    config.rope_parameters["rope_type"] = "default"  # published: "mrope"
    return Qwen2VLRotaryEmbedding(config)  # type: ignore[no-any-return]


def _layer(config: LlamaConfig, index: int, qkv_bias: bool) -> nn.Module:
    """A stock decoder layer, but for what published checkpoints hold: the first layer has no
    `input_layernorm`, and drafters of Qwen2 targets have biases on q, k and v alone."""
    layer = LlamaDecoderLayer(config, layer_idx=index)
    if index == 0:
        layer.add_module("input_layernorm", nn.Identity())
    if qkv_bias:
        for name in ("q_proj", "k_proj", "v_proj"):
            linear = getattr(layer.self_attn, name)
            biased = nn.Linear(linear.in_features, linear.out_features, bias=True)
            layer.self_attn.add_module(name, biased)
    module: nn.Module = layer
    return module
