"""Line plots as inline SVG: no script, no font, no file of anyone else."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH_PX, HEIGHT_PX = 640, 340
LEFT_PX, RIGHT_PX, TOP_PX, BOTTOM_PX = 56, 12, 12, 44
NUM_COLOURS = 9
"""Classes c0 to c8 of the page's style sheet."""


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
        points = [point for series in self.series for point in series.points]
        if not points:
            return ""
        values = [v for p in points for v in (p.y, p.high) if v is not None]
        x = Axis.over(self.x_label, [p.x for p in points], is_log=self.log_x)
        y = Axis.over(self.y_label, values, is_log=self.log_y)
        marks = "".join(
            _line(series, i % NUM_COLOURS, x, y) for i, series in enumerate(self.series)
        )
        legend = "".join(
            f'<li class="c{i % NUM_COLOURS}">{html.escape(series.name)}</li>'
            for i, series in enumerate(self.series)
        )
        title = html.escape(self.title)
        return (
            f"<figure><figcaption>{title}</figcaption>"
            f'<svg viewBox="0 0 {WIDTH_PX} {HEIGHT_PX}" role="img" aria-label="{title}">'
            f"{_grid(x, y)}{self._guides(x, y)}{marks}</svg><ul>{legend}</ul></figure>"
        )

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
