"""Attention of ragged rows on the GPU's side: interpreted here, against a dense softmax."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from dense_rows import dense_rows, seen_by
from triton_interpreter import DEVICE, GPU_MARKS

from kernels.gpu.tree_attention import attend, num_splits
from kernels.tree_attention import TILE_ROWS, RaggedAttention, tree_attention
from smart_serve.engine.packing import ancestors
from smart_serve.models.target import KvShape
from smart_serve.paging.kv_cache import KvCache
from smart_serve.paging.padded import pack_padded
from smart_serve.paging.ragged import RaggedBuffer, pack_ragged, ragged_rows
from smart_serve.paging.rows import Rows, joined

BLOCK_TOKENS = 8
pytestmark = GPU_MARKS


@dataclass(frozen=True)
class Shape:
    """Trees (or, by name, causal chunks) of `sizes` rows behind `contexts` committed tokens."""

    sizes: tuple[int, ...]
    contexts: tuple[int, ...]
    heads: int = 4
    kv_heads: int = 2
    dim: int = 64
    dtype: torch.dtype = torch.float32
    causal: tuple[int, ...] = ()
    earlier_rows: int = 0


class Case:
    """Random rows over a random cache, ready for either form of the kernel."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        rng, generator = np.random.default_rng(1), torch.Generator().manual_seed(1)
        self.rows = self._rows(rng)
        self.together = joined(self.rows)
        num_blocks = 1 + max(max(blocks) for blocks in self.together.blocks)
        size = (num_blocks, BLOCK_TOKENS, shape.kv_heads, shape.dim)
        self.keys = torch.randn(size, generator=generator).to(shape.dtype).to(DEVICE)
        self.values = torch.randn(size, generator=generator).to(shape.dtype).to(DEVICE)
        self.cache = KvCache(
            KvShape(1, shape.kv_heads, shape.dim), num_blocks, BLOCK_TOKENS, shape.dtype, DEVICE
        )
        self.cache.keys, self.cache.values = [self.keys], [self.values]
        n = sum(shape.sizes)
        query = torch.randn(shape.heads, n, shape.dim, generator=generator)
        self.query = query.to(shape.dtype).to(DEVICE).transpose(0, 1)  # as it comes from a model
        self.scale = shape.dim**-0.5

    def _rows(self, rng: np.random.Generator) -> list[Rows]:
        shape, rows = self.shape, []
        needed = [
            -(-(c + n + shape.earlier_rows) // BLOCK_TOKENS)
            for c, n in zip(shape.contexts, shape.sizes, strict=True)
        ]
        blocks = np.split(1 + rng.permutation(sum(needed) + 3), np.cumsum(needed))
        for i, (n, context) in enumerate(zip(shape.sizes, shape.contexts, strict=True)):
            size = n + shape.earlier_rows
            visible = np.tri(size, dtype=np.bool_)
            if i not in shape.causal:
                visible = ancestors(np.asarray([rng.integers(0, r) for r in range(1, size)], int))
            zeros = np.zeros(n, np.int64)
            rows.append(dense_rows(blocks[i].tolist(), context, zeros, zeros, visible[-n:]))
        return rows

    def ragged(self) -> RaggedAttention:
        rows = pack_ragged(self.together, self.cache).attention.rows
        assert isinstance(rows, RaggedAttention)
        return rows

    def attend(self, ragged: RaggedAttention) -> torch.Tensor:
        """The Triton kernel, interpreted where there is no GPU."""
        tables = (ragged.tiles, ragged.sequences, ragged.blocks, ragged.prefixes, ragged.ancestors)
        return attend(
            self.query,
            self.keys,
            self.values,
            tables,
            tile_rows=TILE_ROWS,
            max_slots=ragged.max_slots,
            scale=self.scale,
        )

    def plain(self, dtype: torch.dtype) -> torch.Tensor:
        """Dense softmax, sequence by sequence, in plain PyTorch."""
        outputs, first = [], 0
        for r in self.rows:
            n, num_slots = len(r.token_ids), int(r.num_slots[0])
            table, visible = torch.tensor(r.blocks[0]), torch.from_numpy(seen_by(r))
            repeat = self.shape.heads // self.shape.kv_heads
            keys, values = (
                x.cpu()[table].flatten(0, 1)[:num_slots].to(dtype).repeat_interleave(repeat, 1)
                for x in (self.keys, self.values)
            )
            query = self.query[first : first + n].cpu().to(dtype)
            scores = torch.einsum("nhd,shd->hns", query, keys) * self.scale
            scores = scores.masked_fill(~visible, -torch.inf)
            outputs.append(torch.einsum("hns,shd->nhd", scores.softmax(dim=-1), values))
            first += n
        return torch.cat(outputs)

    def error(self, got: torch.Tensor) -> float:
        return float((got.cpu().double() - self.plain(torch.float64)).abs().max())

    @property
    def allowed(self) -> float:
        """Twice what plain PyTorch in the same type is off."""
        return 2 * self.error(self.plain(self.shape.dtype))


TREES = Shape((1, 5, 17, 40), (1, 30, 7, 64))
SHAPES = {
    "mixed trees": TREES,
    "one token each": Shape((1, 1, 1), (9, 1, 70)),
    "bfloat16, head 128": replace(TREES, dim=128, dtype=torch.bfloat16),
    "float16": replace(TREES, dtype=torch.float16),
    "float16, head 128, eight heads to one": replace(
        TREES, heads=8, kv_heads=1, dim=128, dtype=torch.float16
    ),
    "seven heads to one": replace(TREES, heads=14),
    "one head to one": replace(TREES, heads=2),
    "eight heads to one": Shape((3, 20), (40, 9), heads=8, kv_heads=1, dim=128),
    "odd head": replace(TREES, dim=20),
    "more than one word": Shape((70, 3), (5, 200)),
    "a tree of 272": Shape((272,), (3,), heads=1, kv_heads=1, dim=16),
    "a chunk wider than the trees": Shape((9, 150), (20, 11), causal=(1,)),
    "later layers of a drafter": Shape((3, 4), (6, 21), earlier_rows=9),
    "long context, split": Shape((2, 9), (2_100, 300), heads=2),
}


@pytest.mark.parametrize("name", SHAPES)
def test_rows_get_what_dense_attention_gives(name: str) -> None:
    case = Case(SHAPES[name])
    assert case.error(case.attend(case.ragged())) <= case.allowed


def test_the_long_context_was_split() -> None:
    """The control for the case above: it must take the second kernel."""
    assert num_splits(4, 2_109) == 8
    assert num_splits(4, 200) == 1
    assert num_splits(10_000, 100_000) == 1


def test_both_forms_agree() -> None:
    case = Case(TREES)
    padded = pack_padded(
        [joined(case.rows[:2]), joined(case.rows[2:])], case.cache, case.keys
    ).attention.rows
    expected = tree_attention(case.query, case.keys, case.values, padded, case.scale)
    torch.testing.assert_close(case.attend(case.ragged()), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "wrong", ["mask off by one", "committed off by one", "another's block", "a row's neighbour"]
)
def test_wrong_numbers_show(wrong: str) -> None:
    """The control: the comparison sees one wrong entry in any of the tables."""
    case = Case(TREES)
    ragged = case.ragged()
    if wrong == "mask off by one":
        ragged.ancestors.copy_(ragged.ancestors << 1)
    elif wrong == "committed off by one":
        ragged.sequences[2, 1] -= 1
    elif wrong == "another's block":
        ragged.blocks[1] = ragged.blocks[-1]
    else:
        ragged.prefixes[1] += 2  # A root sees its first child.
    assert case.error(case.attend(ragged)) > 100 * case.allowed


def test_padding_changes_nothing_and_gives_zeros() -> None:
    case = Case(TREES)
    step = ragged_rows(case.together, BLOCK_TOKENS)
    exact = case.attend(case.ragged())
    tiles, blocks = 96 // TILE_ROWS + 9, step.size.blocks + 5
    size = replace(step.size, rows=96, words=3, tiles=tiles, sequences=9, blocks=blocks)
    buffer = RaggedBuffer(size, torch.device(DEVICE))
    assert size.holds(step.size)
    for _ in range(2):
        buffer.fill(step)
    case.query = torch.cat((case.query, torch.full((33, 4, 64), torch.nan, device=DEVICE)))
    padded = buffer.packed(case.cache, step.first_rows, 500).attention.rows
    got = case.attend(padded)
    assert torch.equal(got[:63], exact)
    assert torch.equal(got[63:], torch.zeros_like(got[63:]))
