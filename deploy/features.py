"""Features of a request's pictures, from a vision encoder to the target that needs them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from ray.serve.handle import DeploymentHandle

from deploy.by_value import BY_VALUE_BYTES
from deploy.failures import REPLICA_LOST, as_own_error, first_line
from smart_serve.messages import GenerateRequest
from vision.cache import FeatureCache
from vision.image import CheckedImage

logger = logging.getLogger("ray.serve")

TRIES = 3
"""Encoders that may be lost under one request."""
KEPT_BYTES = 256 * 2**20
"""Of the host's memory: some 27 pictures of LLaVA-1.5-7B, as many as an encoder keeps itself."""


class PictureFeatures:
    """Owned by a target replica. Keeps what came last: each turn of a conversation brings its
    pictures again."""

    def __init__(
        self, vision: DeploymentHandle, hidden_size: int, kept_bytes: int = KEPT_BYTES
    ) -> None:
        self._encode = vision.options(method_name="encode")
        self._token_bytes = hidden_size * np.dtype(np.float32).itemsize
        self._kept = FeatureCache(kept_bytes)

    @property
    def num_kept(self) -> int:
        """Pictures so far whose features were here already."""
        return self._kept.stats().hits

    async def of(
        self, request: GenerateRequest, images: Sequence[CheckedImage]
    ) -> list[NDArray[np.float32]]:
        """[num_tokens, hidden] of each of the request's pictures. Raises `SmartServeError`."""
        found: dict[str, NDArray[np.float32]] = {}
        missing: dict[str, CheckedImage] = {}
        for image in images:
            kept = self._kept.get(image.content_hash)
            if kept is None:
                missing[image.content_hash] = image
            else:
                found[image.content_hash] = kept
        if missing:
            came = await self._ask(request, list(missing.values()))
            for name, features in zip(missing, came, strict=True):
                # What came by reference holds a place in Ray's object store.
                found[name] = features if features.flags.owndata else features.copy()
                self._kept.put(name, found[name])
        return [found[image.content_hash] for image in images]

    async def _ask(
        self, request: GenerateRequest, images: list[CheckedImage]
    ) -> list[NDArray[np.float32]]:
        encoder = self._encode.options(
            # The same pictures go to the same encoder, which keeps their features.
            session_id=images[0].content_hash,
            _by_reference=self._size_bytes(request, images) > BY_VALUE_BYTES,
        )
        for tries_left in reversed(range(TRIES)):
            encoding = encoder.remote(images, request.trace_parent)
            try:
                features: list[NDArray[np.float32]] = await encoding
                return features
            except REPLICA_LOST as error:
                if tries_left == 0:
                    raise as_own_error(error) from None
                logger.warning("an encoder was lost: %s", first_line(error))
            except Exception as error:  # by value whatever an encoder fails with arrives as it is
                raise as_own_error(error) from None
            finally:
                # Ending the wait alone would leave the encoder at work.
                encoding.cancel()
        raise AssertionError("the last try returns or raises")

    def _size_bytes(self, request: GenerateRequest, images: Sequence[CheckedImage]) -> int:
        """Of the larger one of question and answer."""
        asked = {image.content_hash for image in images}
        tokens = sum(span.length for span in request.image_spans if span.content_hash in asked)
        return max(self._token_bytes * tokens, sum(len(image.data) for image in images))
