"""Streams through Ray against the engine alone, in one run: `python -m deploy.through_ray`.

Streaming clients ask a server on this machine (HTTP, Ray Serve, a remote drafter), and in turn the
same questions go to an engine with its drafter in this process, as many at a time. What is between
the two is what Ray, HTTP and text cost. Once for each of Serve's settings.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from deploy.args import AppArgs
from deploy.local_cluster import local_cluster
from deploy.processes import cpu_seconds, stolen_seconds
from deploy.proxy import NODE, REPLICAS
from smart_serve.bench import options
from smart_serve.bench.figures import Load, Machine, Spread
from smart_serve.bench.over_http import HttpBench
from smart_serve.bench.simulator.shapes import SHAPES
from smart_serve.bench.workload import Question, picture_questions
from smart_serve.client import get_json
from smart_serve.errors import ServerError

_SERVES_OWN = {name: str(1 - int(value)) for name, value in REPLICAS.items()}
_HAPROXY = {**NODE, "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0"}
"""As it is shipped, but for the wait at the end, when no stream is left."""
SETTINGS = {
    "default": _SERVES_OWN,
    "throughput": {},
    "haproxy": {**_SERVES_OWN, **_HAPROXY},
    "both": _HAPROXY,
}
"""Environment of Ray's processes. The replicas' is the application's own (`deploy.proxy`)."""
READY_S = 120.0


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Under one of the settings."""

    setting: str
    clients: int
    alone_tokens_per_s: float
    """Medians over the rounds, as all of it."""
    tokens_per_s: float
    share: Spread
    """Of the engine alone, round by round."""
    first_token_ms: float
    cpu_ms_per_token: dict[str, float]
    """Processor time by what runs, the clients ("clients") among it."""
    stolen_share: float
    """Of this machine's processors, what others on its host had meanwhile. The more there is of it,
    the less these figures tell: what needs two cores suffers more than what needs one."""


class ThroughRay(msgspec.Struct, frozen=True, kw_only=True):
    """As it is written to JSON."""

    command: str
    machine: Machine
    workload: str
    settings: tuple[Figures, ...]


class Alone:
    """The engine and its drafter in this process."""

    def __init__(self, app: dict[str, Any], questions: Sequence[Question]) -> None:
        """`app`: fields of `AppArgs`; the engine is that of its first pool."""
        from deploy.node import use_threads
        from smart_serve.bench.prepared import prepared
        from smart_serve.engine.loop import EngineLoop
        from smart_serve.llm import LLM

        use_threads(None)  # as in a replica
        args = _app_args(app)
        config = args.engine_config(args.pools[0])
        fields = {name: getattr(config, name) for name in config.__struct_fields__}
        llm = LLM(args.model, args.drafter, args.policy, **fields)
        self._work = prepared(llm, questions)
        self._loop = EngineLoop(llm.engine)
        self._loop.start()
        self.device, self.policy = config.device, args.policy

    def tokens_per_s(self, clients: int) -> float:
        """All questions, so many at a time."""
        begun_s = time.perf_counter()
        tokens = asyncio.run(self._ask_all(clients))
        return tokens / (time.perf_counter() - begun_s)

    def stop(self) -> None:
        self._loop.stop()

    async def _ask_all(self, clients: int) -> int:
        left = iter(self._work)

        async def client() -> int:
            tokens = 0
            for request, features in left:
                async for chunk in self._loop.generate(request, features):
                    tokens += len(chunk.token_ids)
            return tokens

        return sum(await asyncio.gather(*(client() for _ in range(clients))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=options.batches, default="16", help="(%(default)s)")
    parser.add_argument("--requests", type=options.count, default=96)
    parser.add_argument("--rounds", type=options.count, default=5)
    settings = options.words_of(SETTINGS)
    parser.add_argument("--settings", type=settings, default=tuple(SETTINGS), help="(%(default)s)")
    text = "arguments of deploy.app:build as JSON, for other models, devices or replicas"
    parser.add_argument("--app", type=msgspec.json.decode, default={}, metavar="JSON", help=text)
    text = "the models in the shape of a big one, as `bench` does it"
    parser.add_argument("--widen", choices=sorted(SHAPES), help=text)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to it")
    parser.add_argument("--serve", type=int, metavar="PORT", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve is not None:
        serve_until_told(chosen.serve, chosen.app)
        return
    with widened(chosen.app, chosen.widen) as app:
        result = measure_all(app, chosen)
    if chosen.json is not None:
        chosen.json.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")


@contextmanager
def widened(app: dict[str, Any], name: str | None) -> Iterator[dict[str, Any]]:
    """`app` with its models in the shape of that big one, for a while."""
    if name is None:
        yield app
        return
    from smart_serve.bench.widened import widened_as

    args = _app_args(app)
    dtype_name = args.engine_config(args.pools[0]).dtype_name
    with widened_as(name, args.model, args.drafter or "bundled", dtype_name) as (target, drafter):
        yield {**app, "model": str(target), "drafter": str(drafter)}


def measure_all(app: dict[str, Any], chosen: argparse.Namespace) -> ThroughRay:
    """Each setting and number of clients, told as it comes."""
    questions = picture_questions(chosen.requests, seed=7)
    alone = Alone(app, questions)
    told = []
    for setting in chosen.settings:
        with served(SETTINGS[setting], app) as (url, process):
            bench = HttpBench(url, questions)
            for clients in chosen.clients:
                told.append(measure(setting, clients, alone, bench, process, chosen))
                print(_line(told[-1]), flush=True)
    alone.stop()
    return ThroughRay(
        command=" ".join(["python -m deploy.through_ray", *sys.argv[1:]]),
        machine=Machine.this(alone.device),
        workload=f"{chosen.requests} picture questions, seed 7",
        settings=tuple(told),
    )


def measure(
    setting: str,
    clients: int,
    alone: Alone,
    bench: HttpBench,
    process: int,
    chosen: argparse.Namespace,
) -> Figures:
    """Rounds of both, one after the other."""
    load = Load(batch=clients, temperature=0.0, requests=chosen.requests)
    bench.run(alone.policy, load, 0)
    alone.tokens_per_s(clients)
    rates, samples = [], []
    used: dict[str, float] = {}
    begun_s, stolen_s = time.perf_counter(), stolen_seconds()
    for _ in range(chosen.rounds):
        rates.append(alone.tokens_per_s(clients))
        before = cpu_seconds(process)
        samples.append(bench.run(alone.policy, load, 0))
        for name, seconds in cpu_seconds(process).items():
            used[name] = used.get(name, 0.0) + seconds - before.get(name, 0.0)
    elapsed_s = (time.perf_counter() - begun_s) * (os.cpu_count() or 1)
    through = [one.tokens / one.elapsed_s for one in samples]
    tokens = sum(one.tokens for one in samples)
    return Figures(
        setting=setting,
        clients=clients,
        alone_tokens_per_s=statistics.median(rates),
        tokens_per_s=statistics.median(through),
        share=Spread.of([ours / theirs for ours, theirs in zip(through, rates, strict=True)]),
        first_token_ms=statistics.median(ms for one in samples for ms in one.first_token_ms),
        cpu_ms_per_token={name: 1e3 * seconds / tokens for name, seconds in used.items()},
        stolen_share=(stolen_seconds() - stolen_s) / elapsed_s,
    )


@contextmanager
def served(environment: dict[str, str], app: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """URL and process of a server with that environment, once it is ready."""
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    words = [sys.executable, "-m", "deploy.through_ray", "--serve", str(port)]
    words += ["--app", msgspec.json.encode(app).decode()]
    server = subprocess.Popen(
        words, env={**os.environ, **environment}, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(url, server)
        yield url, server.pid
    finally:
        server.communicate()


def serve_until_told(port: int, app: dict[str, Any]) -> None:
    """The application on a Ray of its own, until standard input ends."""
    with local_cluster(port):
        from ray import serve

        from deploy.app import APP_NAME, build

        serve.run(build(_app_args(app)), name=APP_NAME, logging_config={"log_level": "WARNING"})
        sys.stdin.read()


def _app_args(app: dict[str, Any]) -> AppArgs:
    return AppArgs.model_validate({"drafter_network": "local", **app})


def _wait_until_ready(url: str, server: subprocess.Popen[bytes]) -> None:
    """Raises `ServerError`."""
    deadline = time.monotonic() + READY_S
    while server.poll() is None and time.monotonic() < deadline:
        time.sleep(0.5)
        try:
            replicas = get_json(f"{url}/status")["replicas"]
        except ServerError:
            continue
        if any(one["report"]["drafter_id"] for one in replicas):
            return
    raise ServerError("the application did not start")


def _line(one: Figures) -> str:
    cpu = "  ".join(f"{name} {ms:.2f}" for name, ms in one.cpu_ms_per_token.items() if ms >= 0.01)
    return (
        f"{one.setting:<12}{one.tokens_per_s:>6.0f} tokens/s, alone {one.alone_tokens_per_s:.0f}: "
        f"{one.share.median:.2f} ({one.share.p10:.2f}-{one.share.p90:.2f}), first token "
        f"{one.first_token_ms:.0f} ms, {one.stolen_share:.0%} of the processors stolen\n"
        f"  processor ms/token: {cpu}"
    )


if __name__ == "__main__":
    main()
