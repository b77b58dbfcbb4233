"""What each step of an answer did, for those who ask: `speculation: {"trace": true}`."""

from __future__ import annotations

import msgspec

from smart_serve.frontend.tokenizer import TextTokenizer
from smart_serve.messages import TokenChunk
from smart_serve.step_trace import NodeFate, StepTrace


class AnswerToken(msgspec.Struct, frozen=True):
    """One token of the answer and whom it came from."""

    text: str
    bytes: tuple[int, ...]
    """Of its text: a token may be part of a character."""
    accepted: bool
    """True: the drafter had foreseen it. False: the target's own."""


class DraftNode(msgspec.Struct, frozen=True):
    """One node of the step's draft tree."""

    text: str
    parent: int
    """0: the root, the token before the step's first; n: the n-th node of the list."""
    path_prob: float
    """How likely, by the controller's belief, the target accepts the path to it."""
    fate: NodeFate


class DecodeStep(msgspec.Struct, frozen=True):
    """One forward of the target with the draft trees of its batch. Times in ms."""

    policy: str
    batch: int
    """Sequences that decoded together."""
    batch_nodes: int
    """Draft nodes verified, over the batch."""
    draft_ms: float
    verify_ms: float
    step_ms: float
    predicted_ms: float
    plain_ms: float
    """Predicted for a step without drafts at this batch."""
    tree: tuple[DraftNode, ...]
    """This answer's; nodes that were pruned, the best of them, come last."""


class SpeculationNews(msgspec.Struct, frozen=True):
    """The tokens of one step and how they came about. Stop strings are not looked for in them."""

    tokens: tuple[AnswerToken, ...]
    step: DecodeStep | None
    """None: the prompt's own forward gave the token."""


def speculation_news(chunk: TokenChunk, tokenizer: TextTokenizer) -> SpeculationNews:
    """Special tokens have no text and are left out of the answer."""
    tokens = []
    for place, token in enumerate(chunk.token_ids):
        if token not in tokenizer.special_ids:
            data = tokenizer.token_bytes(token)
            text = data.decode("utf-8", "replace")
            tokens.append(AnswerToken(text, tuple(data), place < chunk.num_accepted))
    step = None if chunk.trace is None else _decode_step(chunk.trace, tokenizer)
    return SpeculationNews(tuple(tokens), step)


def _decode_step(trace: StepTrace, tokenizer: TextTokenizer) -> DecodeStep:
    tree = tuple(
        DraftNode(
            text=tokenizer.token_bytes(node.token_id).decode("utf-8", "replace"),
            parent=node.parent,
            path_prob=node.path_prob,
            fate=node.fate,
        )
        for node in trace.nodes
    )
    same = {name: getattr(trace, name) for name in DecodeStep.__struct_fields__ if name != "tree"}
    return DecodeStep(**same, tree=tree)
