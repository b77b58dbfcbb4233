"""Serve the bundled model on this machine, ask about a picture, show what speculation did."""

from __future__ import annotations

import argparse
import signal
import socket
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

from deploy.local_cluster import local_cluster
from deploy.progress import ProgressLine
from smart_serve.bundled import EXAMPLE_PICTURE, EXAMPLE_QUESTION
from smart_serve.client import chat_body, data_url, delta_text, get_json, stream_chat
from smart_serve.errors import ConfigError, ServerError, SmartServeError

MAX_TOKENS = 256
ROUNDS = 5
"""Runs with and without speculation, one after the other, so that noise meets both alike."""
READY_S = 60.0


def main() -> int:
    options = _parse()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        check_port(options.port)
        _run(options)
    except SmartServeError as error:
        print(f"quickstart: {error.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.")
    return 0


def check_port(port: int) -> None:
    """Raises `ConfigError` unless 127.0.0.1:`port` is free."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", port))
        except OSError as error:
            message = f"port {port} is in use or not allowed; choose another with --port"
            raise ConfigError(message) from error


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="quickstart", description=__doc__, allow_abbrev=False)
    parser.add_argument("--once", action="store_true", help="stop after the answer")
    parser.add_argument("--image", type=Path, default=EXAMPLE_PICTURE, metavar="FILE")
    parser.add_argument("--ask", default=EXAMPLE_QUESTION, metavar="TEXT")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    if not 1 <= options.port <= 65535:
        parser.error("--port must be between 1 and 65535")
    if not options.image.is_file():
        parser.error(f"--image: there is no file {options.image}")
    return options


def _run(options: argparse.Namespace) -> None:
    begun = time.monotonic()
    with ProgressLine("Starting Ray") as line, local_cluster(options.port) as logs:
        # Again, because Ray has put its own handler there, which ends without cleaning up.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            model = _deploy(options.port, line)
        except (RuntimeError, ServerError) as error:
            message = f"the application did not start; its logs are in {logs}"
            raise ServerError(f"{message} ({str(error).splitlines()[0]})") from error
        line.close()
        url = f"http://127.0.0.1:{options.port}"
        print(f"Ready after {time.monotonic() - begun:.0f} s on {url}\n")
        _show(url, chat_body(model, options.ask, [data_url(options.image)], temperature=0), options)
        if not options.once:
            _serve_on(url)


def _deploy(port: int, line: ProgressLine) -> str:
    """Starts the application; returns the model's name once a target is ready with its drafter.

    Raises `RuntimeError` (Serve's) and `ServerError`.
    """
    from ray import serve

    from deploy.app import APP_NAME, build
    from deploy.args import AppArgs

    args = AppArgs(drafter_network="local")
    line.tell("Loading the model and measuring this machine")
    serve.run(build(args), name=APP_NAME, logging_config={"log_level": "WARNING"})
    line.tell("Waiting for the first report")
    target = serve.get_deployment_handle(f"target-{args.pools[0].name}", APP_NAME)
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        try:
            get_json(f"http://127.0.0.1:{port}/health")
            if target.describe.remote().result(timeout_s=READY_S)["wire_ms"] is not None:
                return args.served_name
        except ServerError as error:
            if error.status != 503:
                raise
        time.sleep(0.1)
    raise ServerError(f"no target with a drafter within {READY_S:.0f} s")


def _show(url: str, body: dict[str, Any], options: argparse.Namespace) -> None:
    body = {**body, "max_tokens": MAX_TOKENS}
    print(f"Picture:  {options.image}\nQuestion: {options.ask}\nAnswer:   ", end="", flush=True)
    usage, _ = _ask(url, body, show=True)
    print("\n")
    told = usage["speculation"]
    print("What speculation did")
    print(f"  tokens                   {usage['completion_tokens']}")
    print(f"  target steps             {told['target_steps']}")
    print(f"  tokens per step          {told['tokens_per_step']:.2f}")
    print(f"  draft nodes by step      {' '.join(map(str, told['tree_sizes']))}")
    speedup = told["predicted_speedup"]
    predicted = "none: too short an answer" if speedup is None else f"{speedup:.2f}x"
    print(f"  speedup, predicted       {predicted} over plain decoding, by the measured costs")
    print(f"  speedup, measured        {_compare(url, body)}")


def _compare(url: str, body: dict[str, Any]) -> str:
    """The same request with and without drafts, interleaved; medians of the decode time."""
    times: dict[str, list[float]] = {"smart": [], "off": []}
    texts = set()
    for _ in range(ROUNDS):
        for policy, taken in times.items():
            usage, text = _ask(url, {**body, "speculation": {"policy": policy}})
            taken.append(usage["speculation"]["decode_ms"])
            texts.add(text)
    smart, off = (statistics.median(taken) for taken in times.values())
    if smart <= 0:
        return "none: the answer has one token"
    same = "the same text" if len(texts) == 1 else "NOT the same text"
    times_told = f"decoding in {smart:.0f} ms, plainly in {off:.0f} ms"
    return f"{off / smart:.2f}x ({times_told}; medians of {ROUNDS} runs each, {same})"


def _ask(url: str, body: dict[str, Any], show: bool = False) -> tuple[dict[str, Any], str]:
    """Usage and text of one streamed answer."""
    usage, pieces = None, []
    for event in stream_chat(url, body):
        pieces.append(delta_text(event))
        if show:
            print(pieces[-1], end="", flush=True)
        usage = event.get("usage") or usage
    if usage is None or "speculation" not in usage:
        raise ServerError("the server did not say what the answer cost")
    return usage, "".join(pieces)


def _serve_on(url: str) -> None:
    print(f"""
Serving on {url} until Ctrl-C. Open {url}/console in a browser, or try:
  .venv/bin/smart-serve ask --url {url} --image {EXAMPLE_PICTURE} "How many shapes are there?"
  .venv/bin/smart-serve status --url {url}
  or any OpenAI client with base_url={url}/v1""")
    threading.Event().wait()


if __name__ == "__main__":
    sys.exit(main())
