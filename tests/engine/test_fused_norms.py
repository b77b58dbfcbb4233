"""Fused norms are the same function."""

from __future__ import annotations

import torch
from small_models import small_text_config
from torch import nn
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from smart_serve.models.norms import fuse_norms


@torch.inference_mode()
def test_a_fused_model_gives_the_same_logits() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(small_text_config()).eval()
        for module in model.modules():
            if isinstance(module, LlamaRMSNorm):
                module.weight.normal_()
    ids = torch.arange(3, 20).unsqueeze(0)
    before = model(input_ids=ids).logits
    names = set(model.state_dict())
    fuse_norms(model)
    assert set(model.state_dict()) == names
    fused = [module for module in model.modules() if isinstance(module, nn.RMSNorm)]
    assert len(fused) == 2 * model.config.num_hidden_layers + 1
    assert not any(isinstance(module, LlamaRMSNorm) for module in model.modules())
    torch.testing.assert_close(model(input_ids=ids).logits, before)
    # The control: another epsilon is noticed.
    for module in fused:
        module.eps = 0.1
    assert not torch.allclose(model(input_ids=ids).logits, before)
