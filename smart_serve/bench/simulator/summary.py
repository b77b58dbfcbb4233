"""What one policy is worth beside the others, over all batch sizes of a simulated setting."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Sequence

import msgspec
import msgspec.structs

from smart_serve.bench.oracle import TREES
from smart_serve.bench.simulator.run import Figures, plain_step_s
from smart_serve.bench.simulator.simulation import Setting, Simulation

FIXED_STEPS = 30
"""A fixed tree learns nothing: its mean over so many steps of a batch is within two per cent."""


class Best(msgspec.Struct, frozen=True):
    """The fixed tree that hindsight chooses for a batch."""

    tree: str
    """`off` where none pays."""
    speedup: float


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """`smart` in one setting. All of it is simulated."""

    device: str
    model: str
    wire_ms: float
    least_speedup: float
    """Over `off`, of all batches."""
    over_rivals: dict[str, float]
    """Geometric mean over the batches of its rate over each other policy's."""
    share_of_oracle: float
    """The same against the best fixed tree of each batch."""
    least_share: float
    """Of the oracle, of all batches."""
    simulated: bool = True


def best_tree(setting: Setting, batch: int) -> Best:
    """Of the trees that `bench --oracle` tries, and no tree."""
    at_hand = msgspec.structs.replace(setting, wire_ms=0.0)
    plain = batch / plain_step_s(setting, batch)
    found = [Best("off", 1.0)]
    for tree in TREES:
        tokens, step_ms = _fixed_step(tree, at_hand, batch)
        found.append(Best(tree, 1e3 * tokens / (step_ms + setting.wire_ms) / plain))
    return max(found, key=lambda best: best.speedup)


@functools.cache
def _fixed_step(tree: str, setting: Setting, batch: int) -> tuple[float, float]:
    """Mean tokens and milliseconds of a step; the wire is added by whoever asks."""
    simulation = Simulation(tree, setting, batch)
    simulation.step()  # The drafter reads the prompts.
    steps = [simulation.step() for _ in range(FIXED_STEPS)]
    return statistics.mean(s.tokens for s in steps), statistics.mean(s.step_ms for s in steps)


def summary(rows: Sequence[Figures], oracle: Sequence[Best]) -> Summary:
    """Of one setting's rows; `oracle` is the best tree of each batch, in order."""
    smart = [row for row in rows if row.policy == "smart"]
    rivals = dict.fromkeys(row.policy for row in rows if row.policy not in ("smart", "off"))
    shares = [row.speedup / best.speedup for row, best in zip(smart, oracle, strict=True)]
    return Summary(
        device=smart[0].device,
        model=smart[0].model,
        wire_ms=smart[0].wire_ms,
        least_speedup=min(row.speedup for row in smart),
        over_rivals={
            name: statistics.geometric_mean(
                row.speedup / other.speedup
                for row, other in zip(
                    smart, (other for other in rows if other.policy == name), strict=True
                )
            )
            for name in rivals
        },
        share_of_oracle=statistics.geometric_mean(shares),
        least_share=min(shares),
    )
