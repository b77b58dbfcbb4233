"""A multimodal target's sequence as a drafter without eyes reads it."""

from __future__ import annotations

from smart_serve.paging.rows import Ints


def without_images(token_ids: Ints, image_token_id: int | None) -> Ints:
    """The tokens of an input that are no image tokens, and its last one, the root, in any case."""
    if image_token_id is None:
        return token_ids
    kept = token_ids != image_token_id
    kept[-1] = True
    text: Ints = token_ids[kept]
    return text
