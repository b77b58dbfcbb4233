"""Batches of packed rows with their pictures, written by worker processes."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerFast

from smart_serve.bundled.chats import RowWriter
from smart_serve.bundled.packing import Packed, pack
from smart_serve.bundled.pool import PicturePool
from smart_serve.bundled.scene import from_labels, sample_scene
from smart_serve.bundled.train_vision import to_pixel_values


class Batch(msgspec.Struct, frozen=True):
    """Pictures [B, 3, 96, 96] and the rows about them."""

    pixel_values: torch.Tensor
    packed: Packed


class LabelledBatch(Batch, frozen=True):
    """A batch and what its pictures show: class indices [B, 9, 3]."""

    labels: torch.Tensor


class RowStream(IterableDataset[LabelledBatch]):
    """An endless stream of random batches.

    `slip_share` of the rows tell of another scene than the picture shows, as sampled answers do
    after an unlikely token: drafters are trained on some of those, targets on none.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: PreTrainedTokenizerFast,
        batch: int,
        row_tokens: int,
        seed: int,
        slip_share: float = 0.0,
    ) -> None:
        self._folder = folder
        self._tokenizer = tokenizer
        self._batch = batch
        self._row_tokens = row_tokens
        self._seed = seed
        self._slip_share = slip_share

    def __iter__(self) -> Iterator[LabelledBatch]:
        """Batches of this worker's own random stream."""
        worker = get_worker_info()
        rng = np.random.default_rng((self._seed, 0 if worker is None else worker.id))
        torch.set_num_threads(1)
        pool = PicturePool(self._folder)
        writer = RowWriter(self._tokenizer, self._row_tokens)
        filled = pool.filled()
        while True:
            pixels, labels = pool.batch(rng, self._batch, filled)
            scenes = [
                sample_scene(rng) if rng.random() < self._slip_share else from_labels(label)
                for label in labels
            ]
            rows = [writer.write(scene, rng) for scene in scenes]
            packed = pack(rows, self._row_tokens, self._tokenizer.pad_token_id)
            shown = torch.from_numpy(labels).long()
            yield LabelledBatch(to_pixel_values(pixels), packed, shown)


def load(stream: RowStream) -> Iterator[LabelledBatch]:
    """The batches of a stream, written ahead by one worker process."""
    loader: DataLoader[LabelledBatch] = DataLoader(
        stream, batch_size=None, num_workers=1, prefetch_factor=4
    )
    return iter(loader)
