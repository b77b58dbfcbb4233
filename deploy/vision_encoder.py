"""The vision deployment: checked pictures to features."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.args import AppArgs
from deploy.metrics.exporter import Exporter
from deploy.node import accelerator_type, use_threads
from deploy.spans import begin
from smart_serve.config import dtype_on
from smart_serve.models.folders import resolve_model
from vision.image import CheckedImage

logger = logging.getLogger("ray.serve")


class VisionEncoderReplica:
    """The vision tower alone. Its answer travels straight to the target."""

    def __init__(self, args: AppArgs) -> None:
        import torch  # only where it runs: the builder of the application imports this module too

        from vision.encoder import VisionEncoder

        use_threads(None)
        device = args.device_for(args.vision_gpus)
        dtype = getattr(torch, dtype_on(device, args.dtype))
        self._encoder = VisionEncoder(resolve_model(args.model), dtype, device)
        # One thread: pictures of several requests take turns, and the event loop stays free.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vision")
        self._metrics = Exporter("vision-encoder", device_type=accelerator_type())
        self._export(0.0)

    async def encode(
        self, images: list[CheckedImage], trace_parent: str | None = None
    ) -> list[NDArray[np.float32]]:
        """Features of each picture, float32 [num_tokens, hidden].

        Raises `ClientError` when a picture does not decode.
        """
        logger.info("encoding %d pictures", len(images))
        loop, begun = asyncio.get_running_loop(), time.monotonic()
        span = begin("encode", trace_parent, pictures=len(images))
        try:
            return await loop.run_in_executor(self._thread, self._encoder.encode, images)
        finally:
            span.end()
            self._export(time.monotonic() - begun)

    async def cache_stats(self) -> dict[str, Any]:
        """Hits, misses, entries and bytes of the feature cache."""
        stats = self._encoder.cache_stats()
        return {name: getattr(stats, name) for name in stats.__struct_fields__}

    def check_health(self) -> None:
        """Serve asks every few seconds, and Ray forgets a gauge that is not set again."""
        self._export(0.0)

    def _export(self, encode_s: float) -> None:
        stats, to = self._encoder.cache_stats(), self._metrics
        to.raise_to("pictures", stats.misses, source="encoded")
        to.raise_to("pictures", stats.hits, source="cached")
        to.set("feature_cache_bytes", stats.size_bytes)
        to.add("encode_seconds", encode_s)
