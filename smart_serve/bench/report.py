"""A benchmark's page: one HTML file with its plots and figures, readable without a network."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence

from smart_serve.bench.figures import Costs, Percentiles, Reliability, Report, Row
from smart_serve.bench.rounds import shown
from smart_serve.bench.svg import STYLE, Plot, Point, Series

_PAGE_STYLE = """
body { color: var(--ink); background: var(--paper); font: 15px/1.5 system-ui, sans-serif;
  max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
code { font-size: 0.9em; overflow-wrap: anywhere; }
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(22rem, 1fr)); gap: 1.5rem; }
figure { margin: 0; } figcaption { font-weight: 600; }
figure ul { list-style: none; display: flex; flex-wrap: wrap; gap: 0 1rem; margin: 0; padding: 0; }
figure li::before { content: "● "; color: var(--c); }
svg { width: 100%; height: auto; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; }
td, th { padding: 0.2rem 0.6rem; text-align: right; border-bottom: 1px solid var(--grid); }
td:first-child, th:first-child { text-align: left; }
"""
_COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("policy", lambda row: row.policy + (f" ({row.tree})" if row.tree else "")),
    ("batch", lambda row: str(row.batch)),
    ("T", lambda row: f"{row.temperature:g}"),
    ("tokens/s", lambda row: f"{row.tokens_per_s:.0f}"),
    ("× off", lambda row: f"{row.speedup.median:.2f}"),
    ("p10–p90", lambda row: f"{row.speedup.p10:.2f}–{row.speedup.p90:.2f}"),
    ("of oracle", lambda row: f"{row.of_oracle.median:.0%}" if row.of_oracle else ""),
    ("tokens/step", lambda row: f"{row.tokens_per_step:.2f}" if row.tokens_per_step else ""),
    ("nodes/step", lambda row: f"{row.nodes_per_step:.1f}" if row.tokens_per_step else ""),
    ("draft · wire · verify · controller · other", lambda row: _shares(row)),
    ("of limit: step · verify · draft", lambda row: _of_limit(row)),
    ("controller ms", lambda row: f"{row.controller_ms:.2f}" if row.controller_ms else ""),
    ("predicted/measured", lambda row: f"{row.prediction.median:.2f}" if row.prediction else ""),
    ("within 15 %", lambda r: f"{r.prediction.within_15_percent:.0%}" if r.prediction else ""),
    ("first token ms, p50 p95 p99", lambda row: _latency(row.first_token_ms)),
    ("between tokens ms, p50 p95 p99", lambda row: _latency(row.between_tokens_ms)),
)


def page(report: Report, policies: Sequence[str]) -> str:
    """The whole file; `policies` are plotted, in order, single trees are not."""
    rows = shown(report.rows, policies)
    machine = report.machine
    told = f"{machine.processor}, {machine.cores} cores, {machine.device}; torch {machine.torch}"
    if roof := report.roof:
        told += f"; measured {roof.copy_gb_s:.1f} GB/s, {roof.matrix_tflops:.2f} TFLOPS"
    figures = "".join(plot.figure() for plot in _plots(report, rows))
    return _document(
        "smart-serve bench",
        f"<p><code>{html.escape(report.command)}</code><br/>{html.escape(told)}<br/>"
        f"{html.escape(report.workload)}. Points are medians over the rounds, bars the first and "
        f"last decile.</p><main>{figures}</main>{_table(rows)}",
    )


def costs_page(title: str, costs: Costs) -> str:
    """The cost tables alone."""
    figures = "".join(plot.figure() for plot in cost_plots(costs))
    return _document(title, f"<main>{figures}</main>")


def cost_plots(costs: Costs) -> list[Plot]:
    """Of the target, by batch and context, and of the drafter."""
    table = costs.target
    series = [
        Series(
            f"batch {batch}, context {context}",
            tuple(Point(x, y) for x, y in zip(curve.x, curve.y, strict=True)),
        )
        for batch, row in zip(table.batches, table.curves, strict=True)
        for context, curve in zip(table.contexts, row, strict=False)
    ]
    ms = "ms"
    plots = [Plot("Target step", "packed tokens", ms, tuple(series), log_y=True)]
    if costs.drafter is not None:
        curve = costs.drafter
        points = tuple(Point(x, y) for x, y in zip(curve.x, curve.y, strict=True))
        plots.append(Plot("Drafting pass", "rows", ms, (Series("drafter", points),)))
    return plots


def _plots(report: Report, rows: Sequence[Row]) -> Iterator[Plot]:
    temperatures = sorted({row.temperature for row in rows})
    for temperature in temperatures:
        mine = [row for row in rows if row.temperature == temperature]
        suffix = f" at temperature {temperature:g}" if len(temperatures) > 1 else ""
        yield Plot(
            f"Speedup over plain decoding{suffix}",
            "batch",
            "× off",
            _by_policy(mine, lambda r: (r.speedup.median, r.speedup.p10, r.speedup.p90)),
            level=1.0,
        )
        drafted = [row for row in mine if row.nodes_per_step > 0]
        yield Plot(
            f"Draft nodes per sequence and step{suffix}",
            "batch",
            "nodes",
            _by_policy(drafted, lambda r: (r.nodes_per_step, None, None)),
        )
    if report.calibration is not None:
        both = (
            Series("draft confidence", _points(report.calibration.confidence)),
            Series("calibrated", _points(report.calibration.calibrated)),
        )
        yield Plot(
            "Acceptance of smart's draft tokens whose parent was accepted",
            "said",
            "accepted",
            both,
            log_x=False,
            diagonal=True,
        )
    if report.costs is not None:
        yield from cost_plots(report.costs)


def _by_policy(
    rows: Sequence[Row], value: Callable[[Row], tuple[float, float | None, float | None]]
) -> tuple[Series, ...]:
    names = dict.fromkeys(row.policy for row in rows)
    return tuple(
        Series(name, tuple(Point(row.batch, *value(row)) for row in rows if row.policy == name))
        for name in names
    )


def _points(reliability: Reliability) -> tuple[Point, ...]:
    return tuple(map(Point, reliability.said, reliability.accepted))


def _table(rows: Sequence[Row]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name, _ in _COLUMNS)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell(row))}</td>" for _, cell in _COLUMNS) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _shares(row: Row) -> str:
    shares = row.time_shares
    if shares is None:
        return ""
    return " · ".join(f"{getattr(shares, field):.1%}" for field in shares.__struct_fields__)


def _of_limit(row: Row) -> str:
    if row.of_limit is None:
        return ""
    shares = (row.of_limit.step, row.of_limit.verify, row.of_limit.draft)
    return " · ".join(f"{share:.0%}" for share in shares if share is not None)


def _latency(latency: Percentiles | None) -> str:
    return f"{latency.p50:.1f} {latency.p95:.1f} {latency.p99:.1f}" if latency else ""


def _document(title: str, body: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}{_PAGE_STYLE}</style></head>"
        f"<body><h1>{html.escape(title)}</h1>{body}</body></html>\n"
    )
