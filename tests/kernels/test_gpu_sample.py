"""The sampling kernel gives the reference's tokens for the same logits and uniforms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from triton_interpreter import DEVICE, GPU_MARKS

from kernels.gpu import sample as gpu_sample
from kernels.sample import counter_uniform, sample, target_probs

pytestmark = GPU_MARKS
VOCAB = 2_100
"""More than one tile of the vocabulary, and not a whole number of them."""
ROWS = [8, pytest.param(60, marks=pytest.mark.slow)]
"""Interpreted, a row takes up to a second."""


def in_turn(values: list[float], rows: int) -> torch.Tensor:
    return torch.from_numpy(np.resize(np.asarray(values), rows))


class Draws:
    """Rows of every kind of sampling; [rows, vocab] logits as peaked as a model's."""

    def __init__(self, seed: int, rows: int, vocab: int = VOCAB) -> None:
        rng = np.random.default_rng(seed)
        generator = torch.Generator().manual_seed(seed)
        self.logits = torch.randn(rows, vocab, generator=generator) * 3
        self.temperatures = in_turn([1.0, 0.3, 1.7, 0.0, 1.0], rows)
        self.top_ps = in_turn([0.95, 1.0, 0.5], rows)
        self.top_ks = in_turn([0, 50, 7, 10 * vocab], rows)
        self.min_ps = in_turn([0.0, 0.0, 0.05, 0.0, 0.0, 0.0, 1.0], rows)
        self.uniforms = torch.from_numpy(rng.random(rows))

    @property
    def arguments(self) -> tuple[torch.Tensor, ...]:
        controls = (self.temperatures, self.top_ps, self.top_ks, self.min_ps)
        return (self.logits, *controls, self.uniforms)

    def by_kernel(self) -> torch.Tensor:
        return gpu_sample.sample(*(array.to(DEVICE) for array in self.arguments)).cpu()

    def by_reference(self) -> torch.Tensor:
        return sample(*self.arguments)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_tokens_are_the_references(dtype: torch.dtype, rows: int) -> None:
    draws = Draws(0, rows)
    draws.logits = draws.logits.to(dtype)
    expected = draws.by_reference()
    assert torch.equal(draws.by_kernel(), expected)
    # The control: a uniform a little off shows somewhere.
    draws.uniforms = (draws.uniforms + 0.02) % 1.0
    assert not torch.equal(draws.by_kernel(), expected)


@pytest.mark.parametrize("rows", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_ties_are_broken_by_the_lower_token(rows: int) -> None:
    """Equal logits at the edge of top-k and top-p, and zeros of both signs among them."""
    draws = Draws(1, rows, vocab=50)
    draws.logits = (draws.logits / 3).round()
    draws.logits[:, ::2] = torch.where(draws.logits[:, ::2] == 0, -0.0, draws.logits[:, ::2])
    draws.temperatures = in_turn([0.5, 1.0], rows)
    draws.top_ks = in_turn([0, 5, 11, 12, 3], rows)
    kept = target_probs(*draws.arguments[:-1]) > 0
    for uniform in (0.0, 1 - 2**-53):
        draws.uniforms.fill_(uniform)
        expected = kept.int().argmax(1) if uniform == 0.0 else 49 - kept.flip(1).int().argmax(1)
        assert torch.equal(draws.by_kernel(), expected)


def test_as_temperature_vanishes_the_likeliest_token_is_left() -> None:
    draws = Draws(4, rows=4, vocab=50)
    draws.temperatures = in_turn([5e-324, 1e-310, 1e-39, 1e-30], 4)
    draws.top_ps = in_turn([1.0, 5e-324], 4)
    assert torch.equal(draws.by_kernel(), draws.logits.argmax(dim=-1))


def test_a_row_does_not_depend_on_its_batch() -> None:
    draws = Draws(2, rows=3)
    together = draws.by_kernel()
    alone = Draws(2, rows=3)
    for i in range(3):
        for name in ("logits", "temperatures", "top_ps", "top_ks", "min_ps", "uniforms"):
            setattr(alone, name, getattr(draws, name)[i : i + 1])
        assert torch.equal(alone.by_kernel(), together[i : i + 1])


def test_an_impossible_token_is_never_drawn() -> None:
    draws = Draws(3, rows=4)
    draws.logits[:, 900:] = -torch.inf
    draws.uniforms.fill_(1 - 2**-53)
    assert int(draws.by_kernel().max()) < 900


def test_uniforms_are_the_hosts_bit_for_bit() -> None:
    seeds = np.asarray([0, 1, -1, 2**63 - 1, -(2**63), 123_456_789] * 100)
    positions = np.arange(600) * 7919
    on_device = (torch.from_numpy(array).to(DEVICE) for array in (seeds, positions))
    got = gpu_sample.uniforms(*on_device).cpu().numpy()
    assert got.tolist() == counter_uniform(seeds, positions).tolist()
    # The control: other keys, other numbers.
    assert not np.isin(got, counter_uniform(seeds, positions + 1)).any()
