"""Every limit of the server, finite by default, in one place."""

from __future__ import annotations

from typing import Annotated

import msgspec


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one request, and one replica, may use.

    The defaults suit a small public endpoint; an operator raises them knowingly.
    """

    max_body_bytes: int = 20 * 2**20
    """Bytes of one HTTP request body. Ray Serve itself has no such limit."""
    max_held_bytes: int = 2**30
    """Bytes of all bodies under way at one ingress replica; a body that is alone has room."""
    max_requests: int = 1_024
    """Requests under way at one ingress replica. Above this or the former one, 429 is answered
    before a byte of the body is read."""
    body_timeout_s: float = 60.0
    """How long one body may take to arrive."""
    max_images: int = 8
    """Pictures in one request."""
    max_image_bytes: int = 10 * 2**20
    """Encoded bytes of one picture."""
    max_image_pixels: int = 33_177_600
    """Pixels of one picture by its header (8K UHD); checked before decoding."""
    max_image_side_px: int = 16_384
    """Of either side of one picture, by its header."""
    max_messages: int = 256
    """Turns of one conversation."""
    max_text_chars: int = 1_000_000
    """Characters of all texts of one request, checked before tokenising."""
    max_completion_tokens: int = 4_096
    """What a request may ask for; one that asks for nothing gets it, as far as its context goes."""
    max_choices: int = 8
    """Answers of one request: n, or prompts times n. Each takes a place in the batch."""
    max_logit_bias: int = 1_024
    """Tokens that one request may bias."""
    max_stop_strings: int = 4
    """As the OpenAI API documents it."""
    max_stop_chars: int = 256
    """Of one stop string; a stream holds back what may be the beginning of one."""
    max_running: int = 64
    """Sequences in one replica's batch."""
    max_waiting: int = 256
    """Sequences queued at one replica before it answers 429."""
    max_events_per_s: Annotated[float, msgspec.Meta(gt=0.0)] = 250.0
    """Events of all streams of one replica; where there would be more, one event tells of several
    steps, but there is one every 0.1 s. On its way an event costs the processors a millisecond or
    more (`smart_serve/bench/results/cpu-2-cores-through-ray.json` has what tokens cost)."""
    request_timeout_s: float = 600.0
    """From arrival to the last token."""
    max_resumptions: int = 3
    """How often one request may go on at another replica because its own was lost. A request that
    ends every replica which takes it is likely the culprit."""
