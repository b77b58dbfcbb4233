"""Features of pictures while encoders die or refuse."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served_app import ServedApp

from deploy.features import PictureFeatures
from smart_serve.errors import ClientError, ServerError
from vision.image import CheckedImage

pytestmark = pytest.mark.serve


def picture(data: bytes) -> CheckedImage:
    return CheckedImage(data, "PNG", 1, 1, content_hash=data.hex())


@pytest.fixture(scope="module")
def features(app: ServedApp, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PictureFeatures]:
    from ray import serve

    # Here, because Ray's workers cannot import this module.
    class Encoder:
        def __init__(self, died: Path) -> None:
            self._died = died

        async def encode(self, images: Any, trace_parent: Any) -> list[Any]:
            if images[0].data == b"deadly" and not self._died.exists():
                self._died.touch()
                os._exit(1)
            if images[0].data == b"broken":
                raise ClientError("not a picture", param="messages")
            if images[0].data == b"strange":
                raise ZeroDivisionError
            return [np.full((1, 2), len(image.data), np.float32) for image in images]

    died = tmp_path_factory.mktemp("encoder") / "died"
    kind = serve.deployment(Encoder, name="encoder", ray_actor_options={"num_cpus": 0})
    yield PictureFeatures(serve.run(kind.bind(died), name="encoder", route_prefix=None))
    serve.delete("encoder")
    assert died.exists()


def of(features: PictureFeatures, *data: bytes) -> list[Any]:
    async def ask() -> list[Any]:
        return await features.of([picture(one) for one in data], None)

    return asyncio.run(ask())


def test_another_encoder_takes_over_from_one_that_dies(features: PictureFeatures) -> None:
    assert of(features) == []
    assert [one.tolist() for one in of(features, b"deadly", b"x")] == [[[6.0, 6.0]], [[1.0, 1.0]]]


def test_refusals_arrive_as_they_are_and_faults_in_our_words(features: PictureFeatures) -> None:
    with pytest.raises(ClientError, match="not a picture"):
        of(features, b"broken")
    with pytest.raises(ServerError, match="the server failed on this request"):
        of(features, b"strange")
