"""Clients that stream answers about pictures and check every character of them."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
from PIL import Image
from PIL.PngImagePlugin import PngInfo

MODEL = "smart-serve-bundled"
QUESTIONS = ("How many shapes are there?", "What is to the left?", "Describe the picture.")
COLOURS = ("red", "green", "blue", "orange")
SILENCE_S = 120.0
"""A stream that says nothing for so long is lost."""
RETRY_S = 0.2


@dataclass
class Heard:
    """One answer as it arrived."""

    number: int
    """Which request it answers."""
    text: str = ""
    completion_tokens: int = 0
    is_done: bool = False
    fault: str | None = None
    reconnects: list[float] = field(default_factory=list)
    """When the connection was lost, of `time.monotonic`."""
    times_s: list[float] = field(default_factory=list)
    """When it was sent, and of each event."""
    last_id: str | None = None
    stamp: str = ""
    """In its picture's file: the same picture to look at, and another one to every cache."""


KINDS = list(
    itertools.product(
        enumerate(COLOURS), QUESTIONS, ({"temperature": 0}, {"temperature": 0.9, "seed": 17})
    )
)
"""Of requests: each question about each picture, greedy and sampled."""


def body_of(one: Heard) -> dict[str, Any]:
    (side, colour), question, sampling = KINDS[one.number]
    picture = _picture(colour, side, one.stamp)
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": [picture, _text(question)]}],
        "max_tokens": 96,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        **sampling,
    }


class Clients:
    """`count` at a time, each asking one thing after another."""

    def __init__(self, url: str, seed: int, count: int) -> None:
        self._url = f"{url}/v1/chat/completions"
        self._seed = seed
        self._count = count

    def each_once(self) -> list[Heard]:
        """Every request, without faults around it: what it should be."""
        left = list(range(len(KINDS)))
        heard = asyncio.run(self._all(lambda _: left.pop() if left else None))
        return sorted(heard, key=lambda one: one.number)

    def until(self, end: Callable[[], bool]) -> list[Heard]:
        """Random ones until `end`, and then what has begun to its end."""
        chosen = [random.Random(f"{self._seed}/{i}") for i in range(self._count)]
        return asyncio.run(self._all(lambda i: None if end() else chosen[i].randrange(len(KINDS))))

    async def _all(self, following: Callable[[int], int | None]) -> list[Heard]:
        heard: list[Heard] = []
        limits = httpx.Limits(max_connections=self._count)
        async with httpx.AsyncClient(timeout=SILENCE_S, limits=limits) as client:

            async def one_after_another(index: int) -> None:
                while (number := following(index)) is not None:
                    # Every other picture was never seen before.
                    one = Heard(number, stamp=str(len(heard)) if len(heard) % 2 else "")
                    heard.append(one)
                    await self._ask(client, one)

            await asyncio.gather(*map(one_after_another, range(self._count)))
        return heard

    async def _ask(self, client: httpx.AsyncClient, heard: Heard) -> None:
        """To the end, over as many connections as that takes."""
        heard.times_s.append(time.monotonic())
        while not heard.is_done and heard.fault is None:
            if heard.times_s[-1] < time.monotonic() - SILENCE_S:
                heard.fault = "silence"
                return
            try:
                await self._listen(client, heard)
            except (httpx.TransportError, ConnectionError):
                heard.reconnects.append(time.monotonic())
                await asyncio.sleep(RETRY_S)

    async def _listen(self, client: httpx.AsyncClient, heard: Heard) -> None:
        headers = {} if heard.last_id is None else {"last-event-id": heard.last_id}
        body = body_of(heard)
        async with client.stream("POST", self._url, json=body, headers=headers) as response:
            if response.status_code != 200:
                text = (await response.aread()).decode(errors="replace")
                if '"error"' not in text:
                    # Not an answer of ours: the proxy lost the ingress before it had begun.
                    raise ConnectionError(text)
                heard.fault = f"status {response.status_code}: {text[:200]}"
                return
            async for line in response.aiter_lines():
                _note(heard, line)
        if not heard.is_done and heard.fault is None:
            raise ConnectionError("the stream ended before its end")


def _note(heard: Heard, line: str) -> None:
    if line.startswith("id: "):
        heard.last_id = line.removeprefix("id: ")
    if not line.startswith("data: "):
        return
    heard.times_s.append(time.monotonic())
    if line == "data: [DONE]":
        heard.is_done = True
        return
    event = json.loads(line.removeprefix("data: "))
    if "error" in event:
        heard.fault = event["error"]["message"]
        return
    for choice in event["choices"]:
        heard.text += choice["delta"].get("content") or ""
    if event.get("usage"):
        heard.completion_tokens = event["usage"]["completion_tokens"]


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _picture(colour: str, side: int, stamp: str) -> dict[str, Any]:
    picture = Image.new("RGB", (96, 64), "white")
    picture.paste(colour, (8 + 12 * side, 10, 30 + 12 * side, 40))
    buffer = io.BytesIO()
    text = PngInfo()
    text.add_text("stamp", stamp)
    picture.save(buffer, "PNG", pnginfo=text)
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
