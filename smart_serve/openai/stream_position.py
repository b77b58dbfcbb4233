"""Where a streamed answer stands: the id of each of its events, and what is missing after one.

The id is all there is to a stream: the server keeps nothing of it, so a client whose ingress died
sends its request again with `Last-Event-ID`, and any other ingress goes on. The answer is generated
again from the seed in the id, which gives the same text, and what the client has is left out.

An id is not signed: whoever alters one alters no answer but his own. It tells what the client has
by length and checksum, so that an answer which came out differently the second time, as reduced
precision allows on another device, is refused and never spliced onto the first.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import AsyncGenerator, AsyncIterator

import msgspec

from smart_serve.errors import ClientError, ServerError
from smart_serve.openai.shapes import TextNews

_PLACE = r"\.(?:-|(\d{1,8})([-=])([0-9a-f]{8}))"
_ID = re.compile(rf"((?:chatcmpl|cmpl)-[0-9a-f]{{24}})\.([0-9a-f]{{16}})((?:{_PLACE})+)")
_SEEDS = 2**64


class Place(msgspec.Struct, frozen=True):
    """What a client has of one choice, once its first event is sent."""

    chars: int = 0
    checksum: int = 0
    """CRC-32 of the text's UTF-8."""
    ended: bool = False

    def after(self, text: str, ended: bool = False) -> Place:
        return Place(self.chars + len(text), zlib.crc32(text.encode(), self.checksum), ended)

    def __str__(self) -> str:
        return f"{self.chars}{'=' if self.ended else '-'}{self.checksum:08x}"


class StreamPosition(msgspec.Struct, frozen=True):
    """Where a stream stands after one of its events."""

    name: str
    """The answer's id."""
    seed: int
    """Of its first choice."""
    places: tuple[Place | None, ...]
    """Of each choice; None: nothing was sent of it."""

    @staticmethod
    def parse(event_id: str) -> StreamPosition:
        """Reads what `str` wrote. Raises `ClientError` for anything else."""
        found = _ID.fullmatch(event_id)
        if found is None:
            message = "Last-Event-ID is not the id of an event of this server"
            raise ClientError(message, code="invalid_last_event_id", param="Last-Event-ID")
        places = tuple(
            Place(int(chars), int(checksum, 16), mark == "=") if mark else None
            for chars, mark, checksum in re.findall(_PLACE, found[3])
        )
        seed = int(found[2], 16)
        return StreamPosition(found[1], seed - _SEEDS * (seed >= _SEEDS // 2), places)

    def __str__(self) -> str:
        places = ".".join("-" if place is None else str(place) for place in self.places)
        return f"{self.name}.{self.seed % _SEEDS:016x}.{places}"

    def moved(self, index: int, place: Place) -> StreamPosition:
        """With another place of one choice."""
        places = (*self.places[:index], place, *self.places[index + 1 :])
        return StreamPosition(self.name, self.seed, places)


async def missing(
    news: AsyncIterator[TextNews], position: StreamPosition
) -> AsyncGenerator[TextNews]:
    """What of an answer's news a client at `position` does not have.

    Of a choice that had ended only the end comes, without text, for its figures. Raises
    `ServerError` when the answer is not the one that the client has begun to read.
    """
    known = dict(enumerate(position.places))
    seen = dict.fromkeys(known, Place())
    async for item in news:
        had = known[item.index]
        if had is None:
            yield item
            continue
        again = item.text[: had.chars - seen[item.index].chars]
        place = seen[item.index] = seen[item.index].after(again)
        fresh = item.text[len(again) :]
        is_there = place.chars == had.chars
        wrong = had.checksum != place.checksum if is_there else item.end is not None
        if wrong or (had.ended and fresh):
            message = "the answer came out differently this time: it cannot be gone on with"
            raise ServerError(message, code="stream_changed", status=409)
        if fresh or item.end is not None:
            yield msgspec.structs.replace(item, text=fresh)
