"""Features of a request's pictures, from a vision encoder to the target that needs them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from ray.serve.handle import DeploymentHandle

from deploy.failures import RAY_FAILURES, REPLICA_LOST, as_own_error, first_line
from vision.image import CheckedImage

logger = logging.getLogger("ray.serve")

TRIES = 3
"""Encoders that may be lost under one request."""


class PictureFeatures:
    """Owned by a target replica."""

    def __init__(self, vision: DeploymentHandle) -> None:
        # By reference, whatever Serve's default is: they may be larger than its messages.
        self._encode = vision.options(method_name="encode", _by_reference=True)

    async def of(
        self, images: Sequence[CheckedImage], trace_parent: str | None
    ) -> list[NDArray[np.float32]]:
        """[num_tokens, hidden] of each picture. Raises `SmartServeError`."""
        if not images:
            return []
        # The same pictures go to the same encoder, which keeps their features.
        encoder = self._encode.options(session_id=images[0].content_hash)
        for tries_left in reversed(range(TRIES)):
            encoding = encoder.remote(list(images), trace_parent)
            try:
                features: list[NDArray[np.float32]] = await encoding
                return features
            except REPLICA_LOST as error:
                if tries_left == 0:
                    raise as_own_error(error) from None
                logger.warning("an encoder was lost: %s", first_line(error))
            except RAY_FAILURES as error:
                raise as_own_error(error) from None
            finally:
                # Ending the wait alone would leave the encoder at work.
                encoding.cancel()
        raise AssertionError("the last try returns or raises")
