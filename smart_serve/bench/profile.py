"""`smart-serve profile`: what the steps of a target and the passes of its drafter cost here.

It measures anew and keeps the tables where the next start finds them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch

from smart_serve.bench import options
from smart_serve.bench.figures import Costs
from smart_serve.bench.measured_limits import Limits
from smart_serve.bench.models import add_model_arguments, add_widen_arguments, measured_models
from smart_serve.bench.report import costs_page
from smart_serve.bench.roof import Limit
from smart_serve.config import EngineConfig
from smart_serve.drafters.load import load_drafter
from smart_serve.engine.build import load_parts, make_forward, target_costs
from smart_serve.models.fingerprint import device_name
from smart_serve.models.folders import resolve_model
from smart_serve.speculation.cost import CostTable, Curve
from smart_serve.speculation.cost_store import CostStore


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model_arguments(parser)
    add_widen_arguments(parser)
    default = EngineConfig()
    text = "largest batch (%(default)s)"
    parser.add_argument("--max-running", type=options.count, default=default.max_running, help=text)
    text = "tokens of KV cache: larger contexts are measured where they fit (%(default)s)"
    parser.add_argument("--kv-tokens", type=options.count, default=default.kv_tokens, help=text)
    text = "folder for the tables (%(default)s); with max-running and kv-tokens as the server has"
    parser.add_argument("--keep", type=Path, default=CostStore.of_user().folder, help=text)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the tables to it")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write a page with plots to it")


def run(args: argparse.Namespace) -> int:
    """Measure, keep, print."""
    where = f"{args.widen or args.model} on {device_name(torch.device(args.device))}"
    with measured_models(args):
        return _measure(args, where)


def _measure(args: argparse.Namespace, where: str) -> int:
    config = EngineConfig(
        dtype=args.dtype,
        device=args.device,
        max_running=args.max_running,
        kv_tokens=args.kv_tokens,
    )
    store, folder = CostStore(args.keep, renews=True), resolve_model(args.model)
    drafter = load_drafter(str(args.drafter), folder, config, store)
    model, cache = load_parts(folder, config)
    forward = make_forward(model, cache, config, progress=True)
    table = target_costs(model, cache, forward, config, store, progress=True)
    costs = Costs(table, drafter.info.layer_cost)
    limits = Limits.measured(model, drafter)
    print(
        f"{where} in {config.dtype_name}, {torch.get_num_threads()} threads; kept in {store.folder}"
    )
    roof = limits.roof
    print(f"measured: {roof.copy_gb_s:.1f} GB/s copied, {roof.matrix_tflops:.2f} TFLOPS multiplied")
    _print_target(costs.target, limits.target)
    if costs.drafter is not None:
        _print_drafter(costs.drafter, limits.drafter)
    if args.json:
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(costs), indent=2) + b"\n")
    if args.report:
        args.report.write_text(
            costs_page(f"Costs of {where}, {config.dtype_name}", costs), encoding="utf-8"
        )
    return 0


def _print_target(table: CostTable, limit: Limit) -> None:
    print("target step, ms at packed tokens (and times its limit)")
    for batch, row in zip(table.batches, table.curves, strict=True):
        for context, curve in zip(table.contexts, row, strict=False):
            least = [limit.least_ms(rows, rows, batch * context) for rows in curve.x]
            print(f"  batch {batch:>3}, context {context:>5}:  {_cells(curve, least)}")


def _print_drafter(curve: Curve, limit: Limit | None) -> None:
    print("drafting pass, ms at rows (and times its limit)")
    print(f"  {_cells(curve, [limit.least_ms(rows) for rows in curve.x] if limit else None)}")


def _cells(curve: Curve, least: Sequence[float] | None) -> str:
    cells = [f"{x:.0f}: {y:.2f}" for x, y in zip(curve.x, curve.y, strict=True)]
    if least is not None:
        times = (f" ({y / limit:.2f})" for y, limit in zip(curve.y, least, strict=True))
        cells = [cell + more for cell, more in zip(cells, times, strict=True)]
    return "  ".join(cells)
