"""Turns rows into tensors: token ids, positions, who sees whom, and what is to be predicted."""

import msgspec
import numpy as np
import torch

from smart_serve.bundled.chats import Row


class Packed(msgspec.Struct, frozen=True):
    """A batch of B rows of N tokens."""

    tokens: torch.Tensor  # [B, N] int64
    positions: torch.Tensor  # [B, N] int64
    sees: torch.Tensor  # [B, N, N] bool: query, key
    previous: torch.Tensor  # [B, N] int64: index of the token before; 0 for a first token
    is_first: torch.Tensor  # [B, N] bool: a `<s>` or padding, which has no token before
    next_token: torch.Tensor  # [B, N] int64: the answer token to predict, -100 elsewhere


class _Block(msgspec.Struct, frozen=True):
    start: int
    stop: int
    sees_prefix: bool


def pack(rows: list[Row], row_tokens: int, pad: int) -> Packed:
    """Pack rows; what is left of a row is padding that sees itself alone."""
    shape = (len(rows), row_tokens)
    tokens = np.full(shape, pad, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    previous = np.zeros(shape, dtype=np.int64)
    is_first = np.ones(shape, dtype=bool)
    next_token = np.full(shape, -100, dtype=np.int64)
    sees = np.zeros((*shape, row_tokens), dtype=bool)
    sees |= np.eye(row_tokens, dtype=bool)
    for index, row in enumerate(rows):
        prefix_length = len(row.prefix)
        tokens[index, :prefix_length] = row.prefix
        _link(positions[index], previous[index], is_first[index], _Block(0, prefix_length, False))
        sees[index, :prefix_length, :prefix_length] = _causal(prefix_length)
        start = prefix_length
        for chat in row.chats:
            stop = start + len(chat.tokens)
            block = _Block(start, stop, chat.sees_prefix)
            tokens[index, start:stop] = chat.tokens
            _link(positions[index], previous[index], is_first[index], block, prefix_length)
            sees[index, start:stop, start:stop] = _causal(stop - start)
            if chat.sees_prefix:
                sees[index, start:stop, :prefix_length] = True
            said = np.flatnonzero(chat.is_answer) + start
            next_token[index, previous[index, said]] = tokens[index, said]
            start = stop
    return Packed(*map(torch.from_numpy, (tokens, positions, sees, previous, is_first, next_token)))


def _causal(length: int) -> np.ndarray:
    return np.tril(np.ones((length, length), dtype=bool))


def _link(
    positions: np.ndarray,
    previous: np.ndarray,
    is_first: np.ndarray,
    block: _Block,
    prefix_length: int = 0,
) -> None:
    """Fill in positions and predecessors of one block of a row."""
    offset = prefix_length if block.sees_prefix else 0
    positions[block.start : block.stop] = np.arange(block.stop - block.start) + offset
    previous[block.start : block.stop] = np.arange(block.start, block.stop) - 1
    is_first[block.start : block.stop] = False
    if block.sees_prefix:
        previous[block.start] = prefix_length - 1
    else:
        previous[block.start] = 0
        is_first[block.start] = True


def additive_mask(sees: torch.Tensor) -> torch.Tensor:
    """Attention bias [B, 1, N, N]: 0 where seen, very negative elsewhere."""
    return torch.zeros(sees.shape).masked_fill(~sees, -1e4)[:, None]
