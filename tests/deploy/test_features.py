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
from smart_serve.messages import GenerateRequest, ImageSpan, SamplingParams
from vision.image import CheckedImage

pytestmark = pytest.mark.serve


def picture(data: bytes) -> CheckedImage:
    return CheckedImage(data, "PNG", 1, 1, content_hash=data.hex())


@pytest.fixture(scope="module", params=[2, 2**20], ids=["by value", "by reference"])
def features(
    app: ServedApp, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[PictureFeatures]:
    from ray import serve

    # Here, because Ray's workers cannot import this module.
    class Encoder:
        def __init__(self, died: Path) -> None:
            self._died = died
            self._calls = 0

        async def encode(self, images: Any, trace_parent: Any) -> list[Any]:
            if images[0].data == b"deadly" and not self._died.exists():
                self._died.touch()
                os._exit(1)
            if images[0].data == b"broken":
                raise ClientError("not a picture", param="messages")
            if images[0].data == b"strange":
                raise ZeroDivisionError
            self._calls += 1
            return [np.array([[len(one.data), self._calls]], np.float32) for one in images]

    died = tmp_path_factory.mktemp("encoder") / "died"
    kind = serve.deployment(Encoder, name="encoder", ray_actor_options={"num_cpus": 0})
    handle = serve.run(kind.bind(died), name="encoder", route_prefix=None)
    yield PictureFeatures(handle, hidden_size=request.param)
    serve.delete("encoder")
    assert died.exists()


def of(features: PictureFeatures, *data: bytes) -> list[Any]:
    pictures = [picture(one) for one in data]
    spans = tuple(ImageSpan(n, 1, one.content_hash) for n, one in enumerate(pictures))
    asked = GenerateRequest(
        request_id="r1", token_ids=(0,) * len(spans), image_spans=spans, sampling=SamplingParams()
    )

    async def ask() -> list[Any]:
        return await features.of(asked, pictures)

    return asyncio.run(ask())


def test_another_encoder_takes_over_from_one_that_dies(features: PictureFeatures) -> None:
    assert of(features) == []
    assert [one[0, 0] for one in of(features, b"deadly", b"x")] == [6.0, 1.0]


def test_what_is_kept_is_not_asked_for_again(features: PictureFeatures) -> None:
    before = features.num_kept
    first = of(features, b"aaa", b"bb")
    assert features.num_kept == before
    # The encoder counts its calls in what it answers.
    assert [one[0, 1] for one in first] == [first[0][0, 1]] * 2
    again = of(features, b"bb", b"c", b"aaa", b"bb")
    assert features.num_kept == before + 3
    assert [one[0, 0] for one in again] == [2.0, 1.0, 3.0, 2.0]
    assert [one[0, 1] for one in again] == [first[0][0, 1] + i for i in (0, 1, 0, 0)]


def test_refusals_arrive_as_they_are_and_faults_in_our_words(features: PictureFeatures) -> None:
    with pytest.raises(ClientError, match="not a picture"):
        of(features, b"broken")
    with pytest.raises(ServerError, match="the server failed on this request"):
        of(features, b"strange")
