"""What a request must be for the engine to take it: refused here, it never holds a block."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from smart_serve.errors import ClientError
from smart_serve.messages import GenerateRequest, ImageSpan
from smart_serve.models.target import TargetModel


def check_request(
    request: GenerateRequest,
    features: Sequence[NDArray[np.float32]],
    model: TargetModel,
    max_context: int,
) -> None:
    """Raises `ClientError` for a request that could not run to its end.

    `features`: [length, hidden] for each of the request's image spans.
    """
    prompt, wanted = len(request.token_ids), request.sampling.max_tokens
    if prompt == 0:
        raise ClientError("the prompt is empty", code="empty_prompt", param="messages")
    if min(request.token_ids) < 0 or max(request.token_ids) >= model.vocab_size:
        raise ClientError("a token id is outside the vocabulary", param="prompt_token_ids")
    if any(token >= model.vocab_size for token in request.sampling.logit_bias):
        raise ClientError("a token id is outside the vocabulary", param="logit_bias")
    if not 0 <= request.num_resumed <= prompt:
        raise ClientError("more tokens are resumed than there are", param="num_resumed")
    if prompt + wanted > max_context:
        raise ClientError(
            f"the prompt has {prompt} tokens and max_tokens is {wanted}, together more than "
            f"the context of {max_context}",
            code="context_length_exceeded",
            param="max_tokens",
        )
    if len(features) != len(request.image_spans):
        raise ClientError(
            f"{len(request.image_spans)} pictures in the prompt, features for {len(features)}",
            param="images",
        )
    free_from = 0
    for span, array in zip(request.image_spans, features, strict=True):
        end = span.start + span.length
        if not free_from <= span.start <= end <= prompt:
            raise ClientError("the places of the pictures do not fit the prompt", param="images")
        if array.shape != (span.length, model.hidden_size):
            raise ClientError("a picture's features do not fit its place", param="images")
        if model.has_mrope and not _is_grid_of(span):
            raise ClientError("a picture's grid does not fit its place", param="images")
        free_from = end


def _is_grid_of(span: ImageSpan) -> bool:
    rows, columns = span.grid or (0, 0)
    return min(rows, columns) > 0 and rows * columns == span.length
