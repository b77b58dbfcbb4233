"""Our layers over packed rows compute what transformers' own modules do."""

from __future__ import annotations

import pytest
import torch
from small_models import small_text_config
from torch import nn
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as stock_turn
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRotaryEmbedding

from smart_serve.models.decoder import GatedMlp, Projection, RmsNorm
from smart_serve.models.rotary import RotaryEmbedding


def test_fused_projections_share_their_weights_with_the_parts() -> None:
    parts = [nn.Linear(6, size) for size in (4, 2, 3)]
    rows = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    before = torch.cat([part(rows) for part in parts], dim=-1)
    fused = Projection.fuse(*parts)
    torch.testing.assert_close(fused(rows), before)
    torch.testing.assert_close(torch.cat([part(rows) for part in parts], dim=-1), before)
    assert parts[2].weight.data_ptr() == fused.weight[6:].data_ptr()
    # The control: the parts are no copies.
    parts[1].weight.data.zero_()
    assert not torch.allclose(fused(rows), before)


@torch.inference_mode()
def test_norm_and_mlp() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(small_text_config()).eval()
    stock = model.model.layers[0]
    norm: LlamaRMSNorm = stock.post_attention_layernorm
    norm.weight.data.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(1))
    rows = torch.randn(7, model.config.hidden_size, generator=torch.Generator().manual_seed(2))
    ours = RmsNorm.of(norm)
    torch.testing.assert_close(ours(rows), norm(rows))
    assert not torch.allclose(RmsNorm(ours.weight, 0.1)(rows), norm(rows))
    expected = stock.mlp(rows)
    torch.testing.assert_close(GatedMlp.of(stock.mlp)(rows), expected)


@pytest.mark.parametrize("scaled", [False, True])
def test_rotation_of_one_axis(scaled: bool) -> None:
    config = small_text_config()
    if scaled:
        yarn = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0}
        config.rope_parameters = {**yarn, "original_max_position_embeddings": 64}
    stock = LlamaRotaryEmbedding(config)
    assert (stock.attention_scaling != 1.0) == scaled
    positions = torch.tensor([0, 1, 1, 2, 77])
    _compare(stock, positions, positions.unsqueeze(0))


def test_rotation_of_three_axes() -> None:
    config = small_text_config()
    config.rope_parameters = {**config.rope_parameters, "mrope_section": [2, 1, 1]}
    stock = Qwen2VLRotaryEmbedding(config)
    positions = torch.tensor([[0, 5, 5, 9], [0, 5, 6, 9], [0, 5, 7, 9]])
    _compare(stock, positions, positions.unsqueeze(1))


def _compare(stock: nn.Module, positions: torch.Tensor, stock_positions: torch.Tensor) -> None:
    dim = 2 * len(stock.get_buffer("inv_freq"))
    heads = torch.randn(positions.shape[-1], 3, dim, generator=torch.Generator().manual_seed(3))
    rotary = RotaryEmbedding(stock)
    cos, sin = stock(heads, stock_positions)
    stock_heads = heads.transpose(0, 1).unsqueeze(0)
    expected, _ = stock_turn(stock_heads, stock_heads, cos, sin)
    turned = rotary(positions, torch.float32).turn(heads)
    torch.testing.assert_close(turned, expected[0].transpose(0, 1))
    # The control: the rows' own positions matter, on each of their axes.
    for axis in range(positions.dim()):
        moved = positions.clone()
        moved[(axis, 1) if positions.dim() > 1 else 1] += 1
        assert not torch.allclose(rotary(moved, torch.float32).turn(heads), turned)
