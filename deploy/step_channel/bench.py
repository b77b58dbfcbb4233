"""Median round trip of `propose` over the step channel: `python -m deploy.step_channel.bench`.

With `--handle`, that of a call through a Serve handle too, which the channel stands in for.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from deploy.node import use_threads
from deploy.step_channel.client import RemoteDrafter
from deploy.step_channel.handshake import new_nonce
from deploy.step_channel.server import DrafterServer
from smart_serve.drafters.protocol import (
    DraftBatch,
    DrafterInfo,
    DraftInput,
    Outcome,
    Proposal,
    one_by_one,
)
from smart_serve.speculation.cost import Curve
from smart_serve.speculation.growth import Growth
from smart_serve.speculation.plan import GrowthPlan
from smart_serve.speculation.tree import Forest


class ChainDrafter:
    """Answers at once with a chain of `depth` nodes for each sequence: what is left is the wire."""

    def __init__(self, hidden_size: int, depth: int) -> None:
        self.info = DrafterInfo("chain", "hidden", hidden_size, (), Curve((1.0,), (0.0,)))
        self._depth = depth
        self._answers: dict[int, Proposal] = {}

    def propose(self, batch: DraftBatch) -> Proposal:
        trees = len(batch.inputs)
        if trees not in self._answers:
            self._answers[trees] = self._chains(trees)
        return self._answers[trees]

    def _chains(self, trees: int) -> Proposal:
        depth = self._depth
        rows = np.tile(np.arange(depth, dtype=np.int64), trees)
        ones = np.ones(trees * depth)
        offsets = np.arange(trees + 1, dtype=np.int64) * depth
        forest = Forest(offsets, rows, rows, rows + 1, ones, ones)
        return Proposal(Growth(forest, (), ()))

    def propose_together(self, batches: Sequence[DraftBatch]) -> Iterator[tuple[int, Outcome]]:
        return one_by_one(self, batches)

    def close(self, sequence_ids: Sequence[int]) -> None:
        """Nothing is held."""


def step_batch(num_sequences: int, tokens_each: int, hidden_size: int) -> DraftBatch:
    """A decode step's request in bfloat16."""
    growth = GrowthPlan(policy="smart", max_nodes=512, max_depth=8, top_k=10)
    tokens = np.arange(tokens_each, dtype=np.int64)
    vectors = torch.ones(num_sequences * tokens_each, hidden_size, dtype=torch.bfloat16)
    parts = enumerate(vectors.split(tokens_each))
    inputs = (DraftInput(i, 0, tokens, part) for i, part in parts)
    return DraftBatch(tuple(inputs), growth)


def median_ms(remote: RemoteDrafter, batch: DraftBatch, rounds: int) -> float:
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        remote.propose(batch)
        times.append((time.perf_counter() - begun) * 1e3)
    return statistics.median(times)


class Echo:
    """The least that a deployment can do."""

    async def __call__(self, value: bytes) -> bytes:
        return value


def handle_median_ms(rounds: int) -> float:
    """Of a call of another process through Serve, on a Ray of its own."""
    import ray  # only for this: the channel itself needs none
    from ray import serve

    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        ray.init(address="local", include_dashboard=False, log_to_driver=False, _temp_dir=folder)
        serve.start(proxy_location="Disabled")
        handle = serve.run(serve.deployment(Echo).bind(), name="echo", route_prefix=None)
        times = []
        for _ in range(rounds):
            begun = time.perf_counter()
            handle.remote(b"").result(timeout_s=30)
            times.append((time.perf_counter() - begun) * 1e3)
        serve.shutdown()
        ray.shutdown()
    return statistics.median(times)


def serve(secret: bytes, hidden_size: int, path: Path, told: Connection) -> None:
    """A drafter's process: tells its port, and ends when it is told to."""
    use_threads(None)
    drafter = ChainDrafter(hidden_size, depth=5)
    server = DrafterServer(drafter, secret, unix_path=path, tcp_host="127.0.0.1")
    server.start()
    told.send(server.tcp_port)
    told.recv()
    server.stop()


@contextmanager
def served(secret: bytes, hidden_size: int) -> Iterator[tuple[Path, int]]:
    """Socket and port of a drafter in a process of its own: two threads of one would wait for each
    other's interpreter."""
    start = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="smart-serve-") as folder:
        path, (mine, theirs) = Path(folder, "drafter.sock"), start.Pipe()
        process = start.Process(target=serve, args=(secret, hidden_size, path, theirs))
        process.start()
        try:
            yield path, mine.recv()
        finally:
            mine.send(None)
            process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--hidden-size", type=int, default=4096)
    parser.add_argument("--handle", action="store_true", help="compare with a call through Serve")
    options = parser.parse_args()
    secret = new_nonce()
    use_threads(None)  # as in a replica
    with served(secret, options.hidden_size) as (path, port):
        for name, remote in (
            ("unix", RemoteDrafter(secret, unix_path=path)),
            ("tcp", RemoteDrafter(secret, address=("127.0.0.1", port))),
        ):
            print(f"{name}: bare round trip {remote.wire_ms:.3f} ms")
            for sequences in (1, 8, 32):
                batch = step_batch(sequences, 4, options.hidden_size)
                kib = sequences * 4 * options.hidden_size * 2 / 1024
                took = median_ms(remote, batch, options.rounds)
                print(f"  {sequences:2d} sequences, {kib:5.0f} KiB of vectors: {took:.3f} ms")
            remote.disconnect()
    if options.handle:
        print(f"a call through a Serve handle: {handle_median_ms(options.rounds):.3f} ms")


if __name__ == "__main__":
    main()
