"""Tokens per second with a drafter in another process behind a slowed wire, with and without
overlapping: `python -m deploy.step_channel.overlap_bench --wire-ms 20`.

The same questions are asked in turns; the answers must be the same.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from deploy.step_channel.client import RemoteDrafter
from deploy.step_channel.handshake import new_nonce
from deploy.step_channel.server import DrafterServer
from smart_serve.config import EngineConfig, SpeculationConfig
from smart_serve.drafters.load import load_drafter
from smart_serve.drafters.protocol import DraftBatch, DrafterInfo, Proposal
from smart_serve.llm import LLM
from smart_serve.messages import SamplingParams
from smart_serve.models.folders import resolve_model
from smart_serve.speculation.controller import SpeculationController

START_S = 120.0
"""For the drafter's process to load and measure."""


class SlowedDrafter:
    """A remote drafter whose questions take `wire_ms` longer to get there."""

    def __init__(self, remote: RemoteDrafter, wire_ms: float) -> None:
        self._remote = remote
        self._wire_s = wire_ms / 1e3
        # The connection belongs to this thread alone.
        self._wire = ThreadPoolExecutor(1)
        self.num_questions = self.num_ahead = 0
        """In all, and those that were asked while something else was verified."""

    @property
    def info(self) -> DrafterInfo:
        return self._remote.info

    def propose(self, batch: DraftBatch) -> Proposal:
        self.num_questions += 1
        return self._wire.submit(self._late, batch).result()

    def ask(self, batch: DraftBatch) -> Callable[[], Proposal]:
        self.num_questions += 1
        self.num_ahead += 1
        return self._wire.submit(self._late, batch).result

    def close(self, sequence_ids: Sequence[int]) -> None:
        self._wire.submit(self._remote.close, sequence_ids)

    def _late(self, batch: DraftBatch) -> Proposal:
        time.sleep(self._wire_s)
        return self._remote.propose(batch)


class Bench:
    """One target, and the drafter's process."""

    def __init__(self, args: argparse.Namespace, path: Path, secret: bytes) -> None:
        self._args = args
        self._llm = LLM(
            args.model, drafter=None, policy=args.policy, max_running=args.batch,
            kv_tokens=args.kv_tokens,
        )  # fmt: skip
        remote = _connected(path, secret)
        print(f"wire {remote.wire_ms:.3f} ms, slowed by {args.wire_ms:g} ms")
        self._drafter = SlowedDrafter(remote, args.wire_ms)
        self._prompts = [{"prompt": f"Tell a story of {i} shapes."} for i in range(args.batch)]

    def use(self, overlap: bool) -> None:
        """A controller that has learnt nothing, and some answers from which it learns."""
        engine = self._llm.engine
        speculation = SpeculationConfig(policy=self._args.policy, overlap=overlap)
        engine.config = msgspec.structs.replace(engine.config, speculation=speculation)
        eos = engine.model.eos_token_ids
        engine.set_controller(SpeculationController(speculation, engine.costs, None, eos))
        engine.set_drafter(self._drafter)
        self.answers()

    def answers(self) -> tuple[float, list[tuple[int, ...]]]:
        """(tokens per second, the answers)"""
        sampling = SamplingParams(
            max_tokens=self._args.tokens, temperature=0.0, ignore_eos=True,
        )  # fmt: skip
        clock = time.perf_counter()
        answers = [one.token_ids for one in self._llm.generate(self._prompts, sampling)]
        return sum(map(len, answers)) / (time.perf_counter() - clock), answers

    def run(self) -> None:
        """Rounds in turns, and their medians."""
        rates: dict[bool, list[float]] = {False: [], True: []}
        said: list[list[tuple[int, ...]]] = []
        for _ in range(self._args.rounds):
            for overlap in rates:
                self.use(overlap)
                rate, answers = self.answers()
                rates[overlap].append(rate)
                said.append(answers)
        for overlap, name in ((False, "one after the other"), (True, "overlapped")):
            each = ", ".join(f"{rate:.0f}" for rate in rates[overlap])
            print(f"{name:>20}: {statistics.median(rates[overlap]):.0f} tokens/s ({each})")
        gain = statistics.median(rates[True]) / statistics.median(rates[False])
        same = all(answers == said[0] for answers in said)
        ahead, of = self._drafter.num_ahead, self._drafter.num_questions
        print(f"{ahead} of {of} questions, warm-up included, were for one half of the batch")
        print(f"gain {gain:.2f}, answers {'the same' if same else 'NOT the same'}")


def _serve(args: dict[str, Any], path: Path, secret: bytes) -> None:
    config = EngineConfig(kv_tokens=args["kv_tokens"])
    drafter = load_drafter(args["drafter"], resolve_model(args["model"]), config)
    server = DrafterServer(drafter, secret, unix_path=path)
    server.start()
    multiprocessing.Event().wait()


def _connected(path: Path, secret: bytes) -> RemoteDrafter:
    deadline = time.monotonic() + START_S
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError("the drafter does not start")
        time.sleep(0.1)
    return RemoteDrafter(secret, unix_path=path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--drafter", default="bundled")
    parser.add_argument("--policy", default="smart")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--kv-tokens", type=int, default=16384)
    parser.add_argument("--wire-ms", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    secret = new_nonce()
    with tempfile.TemporaryDirectory(prefix="ss-") as folder:
        path = Path(folder, "d")
        spawned = multiprocessing.get_context("spawn")
        server = spawned.Process(target=_serve, args=(vars(args), path, secret), daemon=True)
        server.start()
        try:
            Bench(args, path, secret).run()
        finally:
            server.terminate()
            server.join()


if __name__ == "__main__":
    main()
