"""The table of all HTTP routes: who may call each, what it takes and what it answers."""

from __future__ import annotations

from typing import Literal

import msgspec

from deploy.pool_state import PoolState
from smart_serve.openai.answer import (
    ChatChunk,
    ChatCompletion,
    Detokenized,
    ModelCard,
    ModelList,
    TextCompletion,
    Tokens,
)
from smart_serve.openai.openapi import Operation, openapi_document
from smart_serve.openai.schema import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from smart_serve.routing.cluster_view import ReplicaView

Access = Literal["public", "key", "operator"]
"""Everybody; holders of a key; holders of an operator's key. Without keys, all routes are open."""


class Health(msgspec.Struct, frozen=True):
    """Ready to answer: target replicas by pool."""

    status: Literal["ok"]
    replicas: dict[str, int]


class Liveness(msgspec.Struct, frozen=True):
    """The process answers; whether it can serve is told by `Health`."""

    status: Literal["ok"]


class Status(msgspec.Struct, frozen=True):
    """What the router knows of the cluster."""

    pools: dict[str, PoolState]
    replicas: tuple[ReplicaView, ...]
    assigned: dict[str, int]
    """Per pool, requests assigned since its replicas last reported."""


class Route(Operation, frozen=True, kw_only=True):
    """One operation and who may call it."""

    access: Access = "key"


_PICTURE = (  # 32 × 32, all red
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAACAAAAAgAQMAAABJtOi3AAAAA1BMVEXcKChLAffeAAAA"
    "DElEQVR42mNgGNwAAACgAAGO+7G0AAAAAElFTkSuQmCC"
)
_QUESTION = [
    {"type": "text", "text": "What is in the picture?"},
    {"type": "image_url", "image_url": {"url": _PICTURE}},
]
_CONVERSATION = {"model": "model", "messages": [{"role": "user", "content": _QUESTION}]}

ROUTES: tuple[Route, ...] = (
    Route(
        method="POST",
        path="/v1/chat/completions",
        operation="createChatCompletion",
        summary="Answer a conversation of text and pictures",
        request=ChatRequest,
        example={**_CONVERSATION, "max_tokens": 64, "temperature": 0},
        answer=ChatCompletion,
        event=ChatChunk,
    ),
    Route(
        method="POST",
        path="/v1/completions",
        operation="createCompletion",
        summary="Continue texts or token ids, without a chat template",
        request=CompletionRequest,
        example={"model": "model", "prompt": "The picture shows", "max_tokens": 64},
        answer=TextCompletion,
        event=TextCompletion,
    ),
    Route(
        method="GET",
        path="/v1/models",
        operation="listModels",
        summary="The served model",
        answer=ModelList,
    ),
    Route(
        method="GET",
        path="/v1/models/{model:path}",
        operation="retrieveModel",
        summary="One served model",
        answer=ModelCard,
    ),
    Route(
        method="POST",
        path="/tokenize",
        operation="tokenize",
        summary="The tokens that the target would read",
        request=TokenizeRequest,
        example=_CONVERSATION,
        answer=Tokens,
    ),
    Route(
        method="POST",
        path="/detokenize",
        operation="detokenize",
        summary="The text of token ids",
        request=DetokenizeRequest,
        example={"model": "model", "tokens": [1, 2, 3]},
        answer=Detokenized,
    ),
    Route(
        method="GET",
        path="/health",
        operation="health",
        summary="Whether requests can be answered: 200, else 503",
        answer=Health,
        access="public",
    ),
    Route(
        method="GET",
        path="/live",
        operation="live",
        summary="Whether the process answers",
        answer=Liveness,
        access="public",
    ),
    Route(
        method="GET",
        path="/status",
        operation="status",
        summary="The load of every target replica",
        answer=Status,
        access="operator",
    ),
    Route(
        method="GET",
        path="/openapi.json",
        operation="openapi",
        summary="This document",
        answer=dict,
        access="public",
    ),
)

CONSOLE_ROUTES: tuple[Route, ...] = (
    Route(
        method="GET",
        path="/console",
        operation="console",
        summary="The console, a page for people; its calls ask for the key",
        answer=str,
        access="public",
    ),
    Route(
        method="GET",
        path="/console/{file}",
        operation="consoleFile",
        summary="The console's scripts and styles",
        answer=str,
        access="public",
    ),
)
"""For people with a browser: no part of the API, which the OpenAPI document describes."""

OPENAPI: bytes = msgspec.json.encode(openapi_document(ROUTES))
