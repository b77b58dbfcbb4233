"""`smart-serve ask`: one question, its answer as it comes."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from smart_serve.client import chat_body, data_url, delta_text, get_json, stream_chat
from smart_serve.commands.server import add_server_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("text", help="the question")
    text = "a picture that comes before it; may be given several times"
    parser.add_argument(
        "--image", type=Path, action="append", default=[], metavar="FILE", help=text
    )
    parser.add_argument("--model", help="as the server names it; not needed where it serves one")
    text = "most tokens of the answer (%(default)s)"
    parser.add_argument("--max-tokens", type=int, default=256, metavar="N", help=text)
    text = "0 takes the likeliest tokens (%(default)s)"
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help=text)
    parser.add_argument("--seed", type=int, help="the same seed gives the same answer")
    parser.add_argument("--policy", help="speculation policy of this request; off: plain decoding")
    add_server_arguments(parser)


def run(options: argparse.Namespace) -> None:
    """Asks. With --json the whole answer and its usage at the end, in one object."""
    body = _body(options)
    pieces, usage = [], None
    for event in stream_chat(options.url, body):
        pieces.append(delta_text(event))
        usage = event.get("usage") or usage
        if not options.json:
            print(pieces[-1], end="", flush=True)
    if options.json:
        print(json.dumps({"text": "".join(pieces), "usage": usage}))
        return
    print()
    if usage is not None and "speculation" in usage:
        told = usage["speculation"]
        print(
            f"[{usage['completion_tokens']} tokens in {told['target_steps']} target steps, "
            f"{told['tokens_per_step']:.2f} tokens per step]",
            file=sys.stderr,
        )


def _body(options: argparse.Namespace) -> dict[str, Any]:
    model = options.model or get_json(f"{options.url}/v1/models")["data"][0]["id"]
    fields: dict[str, Any] = {"max_tokens": options.max_tokens, "temperature": options.temperature}
    if options.seed is not None:
        fields["seed"] = options.seed
    if options.policy is not None:
        fields["speculation"] = {"policy": options.policy}
    return chat_body(model, options.text, map(data_url, options.image), **fields)
