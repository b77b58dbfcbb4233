"""`python -m smart_serve.bench.host_time`: what a step takes the host, for a device waits as long.

The engine and its drafter pack and launch their passes as on a GPU, but what they launch does
nothing: one hidden state stands behind every row, so that a tree's likeliest path is always
accepted. What is left is the host's own work, and a head and draws over a tiny vocabulary; steps of
more rows than a graph holds run the layers, too.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from smart_serve.bench import options
from smart_serve.config import EngineConfig
from smart_serve.drafters.feature_network import FeatureDraftNetwork
from smart_serve.drafters.forward import GraphedDraftForward
from smart_serve.drafters.load import load_drafter
from smart_serve.drafters.network_drafter import NetworkDrafter
from smart_serve.engine.build import load_parts, make_forward, target_costs
from smart_serve.engine.engine import Engine
from smart_serve.engine.graphs import GraphedForward
from smart_serve.messages import GenerateRequest, SamplingParams
from smart_serve.models.target import Hidden
from smart_serve.paging.buckets import BUCKETS, Replay, ResultT
from smart_serve.paging.rows import PackedStep
from smart_serve.speculation.cost_store import CostStore

PROMPT_TOKENS = 128
WARM_UP_STEPS = 8
ANSWER_TOKENS = 1_600
"""Of one request, at most; enough for a hundred steps that accept sixteen."""
CERTAINTY = 50.0
"""Standard deviation of the hidden state: drafts must be surer than those of a random one."""
SMALL = LlamaConfig(
    vocab_size=64,
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=4,
    eos_token_id=0,
)


@dataclass(frozen=True, slots=True)
class HostTime:
    """Of one run's decode steps, milliseconds each."""

    steps_ms: tuple[float, ...]
    nodes: int
    """Draft nodes of the last step."""
    accepted: int
    """Of those."""


class Still(Generic[ResultT]):
    """Captures nothing: the results stand as they are."""

    def __init__(self, result: Callable[[int], ResultT]) -> None:
        """`result`: of so many rows."""
        self._result = result

    def __call__(
        self, forward: Callable[[PackedStep], ResultT], step: PackedStep
    ) -> tuple[ResultT, Replay]:
        return self._result(len(step.token_ids)), lambda: None


def small_pair(folder: Path) -> tuple[Path, Path]:
    """Random checkpoints of a target and of an EAGLE drafter, as small as they can be."""
    # The same ones each time: whether a tree grows must not depend on what its likeliest token is.
    generator = torch.Generator().manual_seed(0)
    for name, of_config in (("target", LlamaForCausalLM), ("drafter", FeatureDraftNetwork)):
        SMALL.save_pretrained(folder / name)
        weights = {
            key: SMALL.initializer_range * torch.randn(value.shape, generator=generator)
            for key, value in of_config(SMALL).state_dict().items()
        }
        save_file(weights, folder / name / "model.safetensors")
    return folder / "target", folder / "drafter"


def still_engine(max_running: int, device: str) -> Engine:
    """A pair without its layers."""
    each = PROMPT_TOKENS + ANSWER_TOKENS
    config = EngineConfig(device=device, max_running=max_running, kv_tokens=max_running * each)
    with tempfile.TemporaryDirectory() as folder:
        target, draft = small_pair(Path(folder))
        store = CostStore(Path(folder) / "costs")
        drafter = load_drafter(str(draft), target, config, store)
        model, cache = load_parts(target, config)
        forward = make_forward(model, cache, config)
        costs = target_costs(model, cache, forward, config, store)
    assert isinstance(drafter, NetworkDrafter)
    generator = torch.Generator().manual_seed(0)
    state = CERTAINTY * torch.randn(1, model.hidden_size, generator=generator)
    state = state.to(model.device, model.dtype)

    def hidden(rows: int) -> Hidden:
        return Hidden(*[state.repeat(rows, 1)] * 2)

    still = GraphedForward(model, cache, max_running, capture=Still(hidden))
    drafter.run_by(partial(GraphedDraftForward, capture=Still(lambda n: state.repeat(n, 1))))
    return Engine(model, cache, config, costs, drafter, still)


def run_steps(engine: Engine, policy: str, batch: int, num_steps: int) -> HostTime:
    """`num_steps` decode steps of `batch` requests, fewer where their answers end before."""
    sequences = [
        engine.add(
            GenerateRequest(
                request_id=str(i),
                token_ids=tuple(1 + (i + j) % 60 for j in range(PROMPT_TOKENS)),
                sampling=SamplingParams(
                    max_tokens=ANSWER_TOKENS,
                    seed=i,
                    temperature=0.0,
                    ignore_eos=True,
                    policy=policy,
                ),
            )
        )
        for i in range(batch)
    ]
    while not all(sequence.num_generated for sequence in sequences):
        engine.step()
    times = []
    for _ in range(WARM_UP_STEPS + num_steps):
        clock = time.perf_counter()
        engine.step()
        times.append(1e3 * (time.perf_counter() - clock))
        if any(sequence.finish_reason for sequence in sequences):
            break
    seen = engine.last_step
    assert seen is not None
    for sequence in sequences:
        engine.abort(sequence)
    return HostTime(tuple(times[WARM_UP_STEPS:]), seen.forest.num_nodes, int(seen.accepted.sum()))


def main(words: Sequence[str] | None = None) -> int:
    """Print a line a policy and batch."""
    parser = argparse.ArgumentParser(prog="python -m smart_serve.bench.host_time")
    parser.add_argument(
        "--policies", type=options.policies, default=("off", "chain:3", "eagle2:20x4")
    )
    parser.add_argument("--batch", type=options.batches, default=(1, 8, 24, 128))
    parser.add_argument("--steps", type=options.count, default=60, help="of a run (%(default)s)")
    parser.add_argument("--rounds", type=options.count, default=5, help="runs each (%(default)s)")
    parser.add_argument("--device", default="cpu", help="of the heads and draws (%(default)s)")
    asked = parser.parse_args(words)
    engine = still_engine(max(asked.batch), asked.device)
    runs: dict[tuple[str, int], list[HostTime]] = {}
    for _ in range(asked.rounds):
        for policy in asked.policies:
            for batch in asked.batch:
                run = run_steps(engine, policy, batch, asked.steps)
                runs.setdefault((policy, batch), []).append(run)
    print("host milliseconds a step: median of the runs' medians (least, largest)")
    for (policy, batch), found in runs.items():
        medians = [statistics.median(run.steps_ms) for run in found]
        spread = f"{statistics.median(medians):.2f} ({min(medians):.2f}, {max(medians):.2f})"
        last = found[-1]
        beyond = ", layers included" if batch + last.nodes > BUCKETS[-1] else ""
        drafted = f"{last.nodes} nodes, {last.accepted} accepted{beyond}"
        print(f"{policy:>12} batch {batch:>3}: {spread}  {drafted}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
