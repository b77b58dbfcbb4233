"""Line plots as inline SVG: no script, no font, no file of anyone else."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH_PX, HEIGHT_PX = 640, 340
LEFT_PX, RIGHT_PX, TOP_PX, BOTTOM_PX = 56, 12, 12, 44
LEGEND_PX, LETTER_PX = 20, 7
"""Height of a line of the legend, and width of a letter in it, about."""
NUM_COLOURS = 9
"""Classes c0 to c8 of the style sheet."""
STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --grid: #d9dee3; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ec; --paper: #14171a; --grid: #353b42; }
}
svg text { fill: var(--ink); font-size: 12px; } svg .title { font-weight: 600; }
.end { text-anchor: end; } .middle { text-anchor: middle; }
.grid { stroke: var(--grid); } .guide { stroke: var(--ink); stroke-dasharray: 4 4; }
g polyline { fill: none; stroke: var(--c); stroke-width: 2; } g line { stroke: var(--c); }
g circle { fill: var(--c); }
.c0 { --c: #2f7de1; } .c1 { --c: #e07a1f; } .c2 { --c: #2c9f5b; } .c3 { --c: #d0404a; }
.c4 { --c: #8b62c9; } .c5 { --c: #94684f; } .c6 { --c: #d766b4; } .c7 { --c: #7b858f; }
.c8 { --c: #1fa6b8; }
"""
"""Of what the classes here name."""


@dataclass(frozen=True, slots=True)
class Point:
    """One mark; `low` and `high` are the ends of its error bar."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """One line."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Axis:
    """From value to pixel."""

    label: str
    low: float
    high: float
    is_log: bool = False

    @staticmethod
    def over(label: str, values: Sequence[float], *, is_log: bool) -> Axis:
        """From 0 (or, logarithmic, the least value) to the greatest."""
        high = max(values)
        low = min(values) if is_log else 0.0
        if high <= low:
            high = 2.0 * low if is_log else low + 1.0
        return Axis(label, low, high, is_log)

    def share(self, value: float) -> float:
        """Where `value` stands between the ends, 0 to 1."""
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round values: powers of two when logarithmic, else about five."""
        if self.is_log:
            first, last = math.ceil(math.log2(self.low)), math.floor(math.log2(self.high))
            return [2.0**n for n in range(first, last + 1, max(1, (last - first) // 8))]
        rough = (self.high - self.low) / 5
        size = 10.0 ** math.floor(math.log10(rough))
        step = next(m * size for m in (1, 2, 5, 10) if m * size >= rough)
        return [step * n for n in range(int(self.high / step + 1e-9) + 1)]


@dataclass(frozen=True, slots=True)
class Plot:
    """Lines over common axes; `level` is a dashed line across, `diagonal` one from 0 to 1."""

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_x: bool = True
    log_y: bool = False
    level: float | None = None
    diagonal: bool = False

    def figure(self) -> str:
        """An HTML figure with its legend."""
        if not any(series.points for series in self.series):
            return ""
        legend = "".join(
            f'<li class="c{i % NUM_COLOURS}">{html.escape(series.name)}</li>'
            for i, series in enumerate(self.series)
        )
        title = html.escape(self.title)
        return (
            f"<figure><figcaption>{title}</figcaption>"
            f'<svg viewBox="0 0 {WIDTH_PX} {HEIGHT_PX}" role="img" aria-label="{title}">'
            f"{self._drawing()}</svg><ul>{legend}</ul></figure>"
        )

    def image(self) -> str:
        """An SVG file of its own, with title, legend and styles; it has one point at least."""
        top = 2 * LEGEND_PX
        title = html.escape(self.title)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{title}" '
            f'viewBox="0 {-top} {WIDTH_PX} {HEIGHT_PX + top}" font-family="sans-serif">'
            f"<style>{STYLE}</style>"
            f'<rect y="{-top}" width="100%" height="100%" fill="var(--paper)"/>'
            f'<text x="{LEFT_PX}" y="{16 - top}" class="title">{title}</text>'
            f"{self._legend()}{self._drawing()}</svg>\n"
        )

    def _drawing(self) -> str:
        points = [point for series in self.series for point in series.points]
        values = [v for p in points for v in (p.y, p.high) if v is not None]
        x = Axis.over(self.x_label, [p.x for p in points], is_log=self.log_x)
        y = Axis.over(self.y_label, values, is_log=self.log_y)
        marks = "".join(
            _line(series, i % NUM_COLOURS, x, y) for i, series in enumerate(self.series)
        )
        return f"{_grid(x, y)}{self._guides(x, y)}{marks}"

    def _legend(self) -> str:
        parts, at = [], LEFT_PX
        for i, series in enumerate(self.series):
            parts.append(
                f'<g class="c{i % NUM_COLOURS}"><circle cx="{at + 4}" cy="-8" r="4"/></g>'
                f'<text x="{at + 12}" y="-4">{html.escape(series.name)}</text>'
            )
            at += 24 + LETTER_PX * len(series.name)
        return "".join(parts)

    def _guides(self, x: Axis, y: Axis) -> str:
        ends: list[tuple[float, float, float, float]] = []
        if self.level is not None:
            ends.append((x.low, self.level, x.high, self.level))
        if self.diagonal:
            ends.append((0.0, 0.0, min(x.high, y.high), min(x.high, y.high)))
        return "".join(
            f'<line class="guide" x1="{_x(x, a):.1f}" y1="{_y(y, b):.1f}" '
            f'x2="{_x(x, c):.1f}" y2="{_y(y, d):.1f}"/>'
            for a, b, c, d in ends
        )


def _line(series: Series, colour: int, x: Axis, y: Axis) -> str:
    places = [(p, _x(x, p.x), _y(y, p.y)) for p in series.points]
    path = " ".join(f"{px:.1f},{py:.1f}" for _, px, py in places)
    parts = [f'<g class="c{colour}"><polyline points="{path}"/>']
    for point, px, py in places:
        if point.low is not None and point.high is not None:
            parts.append(
                f'<line x1="{px:.1f}" x2="{px:.1f}" '
                f'y1="{_y(y, point.low):.1f}" y2="{_y(y, point.high):.1f}"/>'
            )
        told = html.escape(f"{series.name}: {point.y:.3g} at {point.x:g}")
        parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3"><title>{told}</title></circle>')
    return "".join(parts) + "</g>"


def _grid(x: Axis, y: Axis) -> str:
    bottom, right = HEIGHT_PX - BOTTOM_PX, WIDTH_PX - RIGHT_PX
    parts = []
    for tick in y.ticks():
        at = _y(y, tick)
        parts.append(
            f'<line class="grid" x1="{LEFT_PX}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>'
        )
        parts.append(f'<text x="{LEFT_PX - 6}" y="{at + 4:.1f}" class="end">{tick:g}</text>')
    for tick in x.ticks():
        at = _x(x, tick)
        parts.append(
            f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP_PX}" y2="{bottom}"/>'
        )
        parts.append(f'<text x="{at:.1f}" y="{bottom + 16}" class="middle">{tick:g}</text>')
    middle = (TOP_PX + bottom) / 2
    parts.append(
        f'<text x="{(LEFT_PX + right) / 2}" y="{HEIGHT_PX - 6}" class="middle">'
        f"{html.escape(x.label)}</text>"
        f'<text transform="translate(14 {middle}) rotate(-90)" class="middle">'
        f"{html.escape(y.label)}</text>"
    )
    return "".join(parts)


def _x(axis: Axis, value: float) -> float:
    return LEFT_PX + axis.share(value) * (WIDTH_PX - LEFT_PX - RIGHT_PX)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT_PX - BOTTOM_PX - axis.share(value) * (HEIGHT_PX - TOP_PX - BOTTOM_PX)
