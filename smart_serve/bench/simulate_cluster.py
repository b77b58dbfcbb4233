"""`smart-serve simulate-cluster`: routers over fleets of mixed devices, and what a decision costs.

The fleets are simulated; the microseconds are real, and of this machine.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from smart_serve.bench import options
from smart_serve.bench.simulator.cluster import ROUTERS, ClusterFigures, Fleet, run_cluster
from smart_serve.bench.simulator.device import DEVICES
from smart_serve.bench.simulator.machine import Machine
from smart_serve.bench.simulator.server import Kind
from smart_serve.bench.simulator.shapes import SHAPES
from smart_serve.config import SpeculationConfig
from smart_serve.messages import LoadReport, PrefixKey, RequestShape
from smart_serve.routing.assign import Offer, assign
from smart_serve.routing.plan import PlanBounds, plan_for
from smart_serve.routing.prefixes import MAX_REMEMBERED
from smart_serve.routing.report_book import ReportBook

MODEL = "llava-1.5-7b"
RENTED = {"h100": (64, 3.0), "l40s": (32, 1.0), "l4": (8, 0.7)}
"""Places and price per hour: what fits beside the weights, and what such GPUs cost to rent in 2025,
rounded. Only the proportions count."""
SHARES = {"h100": 4, "l40s": 6, "l4": 10}
"""Of a mixed fleet, by number."""


T = TypeVar("T")


class DecisionCost(msgspec.Struct, frozen=True, kw_only=True):
    """Microseconds of the router's processor, decoding from MessagePack included."""

    replicas: int
    report_us: float
    assign_us: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--replicas", type=options.batches, default="20,200", help="fleet sizes")
    loads = "requests, as shares of what the fleet could serve"
    parser.add_argument("--load", type=options.numbers, default="0.3,0.6,0.8,0.95", help=loads)
    routers = f"of {', '.join(ROUTERS)}"
    parser.add_argument(
        "--routers", type=options.words_of(ROUTERS), default=",".join(ROUTERS), help=routers
    )
    each = "requests for each replica (%(default)s)"
    parser.add_argument("--requests", type=options.count, default=400, help=each)
    parser.add_argument("--seed", type=options.count, default=1)
    cost = "also measure what a report and an assignment cost the router, at these fleet sizes"
    parser.add_argument("--cost", type=options.batches, help=cost)
    parser.add_argument("--json", type=Path, help="write the figures to this file")


def run(args: argparse.Namespace) -> int:
    """Simulate, print a table, write the JSON."""
    rows: list[ClusterFigures | DecisionCost] = []
    print("SIMULATED: step times from a roofline over public figures, random requests")
    for size, load, router in itertools.product(args.replicas, args.load, args.routers):
        row = run_cluster(router, mixed_fleet(size), load, args.requests * size, args.seed)
        rows.append(row)
        print(_line(row), flush=True)
    for size in args.cost or ():
        cost = decision_cost(size)
        rows.append(cost)
        print(
            f"measured {size:>5} replicas: {cost.report_us:.0f} us a report, "
            f"{cost.assign_us:.0f} us an assignment"
        )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(rows), indent=2) + b"\n")
    return 0


def mixed_fleet(num_replicas: int) -> Fleet:
    """Three kinds of GPU in the proportions of `SHARES`; the fastest first where one is odd."""
    total = sum(SHARES.values())
    counts = {name: num_replicas * share // total for name, share in SHARES.items()}
    for name in itertools.islice(itertools.cycle(SHARES), num_replicas - sum(counts.values())):
        counts[name] += 1
    kinds = ((Kind(Machine(DEVICES[n], SHAPES[MODEL]), *RENTED[n]), c) for n, c in counts.items())
    return Fleet(tuple((kind, count) for kind, count in kinds if count))


def decision_cost(num_replicas: int, rounds: int = 5_000) -> DecisionCost:
    """What the router does with a report (decode, sums, plan, encode) and with a request."""
    book, bounds = ReportBook(), PlanBounds(SpeculationConfig())
    servers = mixed_fleet(num_replicas).servers()
    reports = [server.report(server.kind.name) for server in servers]
    decoder, encoder = msgspec.msgpack.Decoder(LoadReport), msgspec.msgpack.Encoder()

    def sent(turn: int) -> list[bytes]:
        """Since the turn before each replica has served another prompt."""
        changed = (
            msgspec.structs.replace(one, prefixes=_names(place, turn), drafter_id="d")
            for place, one in enumerate(reports)
        )
        return [encoder.encode(one) for one in changed]

    def take(data: bytes) -> None:
        report = decoder.decode(data)
        book.record(report, 0.0)
        encoder.encode(plan_for(report, book, bounds, 0))

    def choose(place: int) -> None:
        keys = (PrefixKey(768, place), PrefixKey(576, _names(place % num_replicas, turns)[0]))
        shape = RequestShape(prompt_tokens=800, max_tokens=100, prefixes=keys)
        chosen = assign(shape, book.pools(0.0), offers, book.holders(shape.prefixes))
        book.note_assigned(chosen.pool, chosen.replica, 0.0)

    turns = max(1, rounds // num_replicas)
    _mean_us(take, sent(0))
    report_us = statistics.median(_mean_us(take, sent(turn)) for turn in range(1, 1 + turns))
    offers = tuple(Offer(name) for name in SHARES)
    assign_us = _mean_us(choose, range(rounds))
    return DecisionCost(replicas=num_replicas, report_us=report_us, assign_us=assign_us)


def _names(place: int, turn: int) -> tuple[int, ...]:
    """As many prefixes as a replica tells of, all its own, as long as real names; the oldest gives
    way to a new one at each turn."""
    first = 2**63 + 2**32 * place + turn
    return tuple(range(first, first + MAX_REMEMBERED))


def _mean_us(action: Callable[[T], None], items: Sequence[T]) -> float:
    start = time.process_time()
    for item in items:
        action(item)
    return 1e6 * (time.process_time() - start) / len(items)


def _line(row: ClusterFigures) -> str:
    return (
        f"simulated {row.replicas:>5} replicas  load {row.load:.2f}  {row.router:<12}"
        f"{row.tokens_per_s:>9.0f} tokens/s  p50 {row.p50_ms / 1e3:>6.2f} s"
        f"  p99 {row.p99_ms / 1e3:>6.2f} s  {row.price_per_million:>6.3f} per million tokens"
        f"  prompts found {row.cached_share:>4.0%}"
    )
