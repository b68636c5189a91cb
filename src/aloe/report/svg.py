"""Small drawings as inline SVG. Colours and dashes are CSS classes s0, s1, ..., so that light, dark and print share one drawing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

NUM_COLOURS = 7
MAX_POINTS = 200
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 260, 58, 12, 10, 40
_BAR_WIDTH, _BAR_HEIGHT = 120, 14


class Line(NamedTuple):
    """A curve: its stage, its colour's number, and a value a step."""

    name: str
    colour: int
    values: Sequence[float]


class Scale(NamedTuple):
    """A stretch of numbers that a drawing shows."""

    low: float
    high: float

    def share(self, value: float) -> float:
        """Where the value lies, from 0 to 1."""
        return (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5


def row_scale(intervals: Sequence[tuple[float, float]]) -> Scale:
    """The scale that shows all intervals of a row, with a little air."""
    low, high = min(low for low, _ in intervals), max(high for _, high in intervals)
    air = 0.05 * (high - low) or 0.05
    return Scale(low - air, high + air)


def interval_bar(value: float, low: float, high: float, scale: Scale, colour: int, before: float | None, title: str) -> Markup:
    """A thin bar from low to high with a mark at the value; a dotted line where the first model stands."""
    at = [2 + (_BAR_WIDTH - 4) * scale.share(x) for x in (low, high, value)]
    dotted = "" if before is None else f'<path class="before" d="M{2 + (_BAR_WIDTH - 4) * scale.share(before):.1f} 0V{_BAR_HEIGHT}"/>'
    return Markup(
        f'<svg class="bar s{colour % NUM_COLOURS}" viewBox="0 0 {_BAR_WIDTH} {_BAR_HEIGHT}" width="{_BAR_WIDTH}" height="{_BAR_HEIGHT}" role="img">'
        f'<title>{escape(title)}</title><path class="axis" d="M0 7H{_BAR_WIDTH}"/>{dotted}'
        f'<rect class="span" x="{at[0]:.1f}" y="5" width="{max(1.0, at[1] - at[0]):.1f}" height="4"/>'
        f'<rect class="mark" x="{at[2] - 1.25:.1f}" y="1.5" width="2.5" height="11"/></svg>'
    )


def share_bar(parts: Sequence[tuple[str, int]], whole: int, title: str) -> Markup:
    """Parts of a whole side by side: (class, count)."""
    width, x, out = 240.0, 0.0, []
    for name, count in parts:
        step = width * count / whole if whole else 0.0
        out.append(f'<rect class="{escape(name)}" x="{x:.2f}" y="0" width="{step:.2f}" height="12"/>')
        x += step
    return Markup(f'<svg class="share" viewBox="0 0 240 12" width="240" height="12" role="img"><title>{escape(title)}</title>{"".join(out)}</svg>')


def line_sample(colour: int) -> Markup:
    """The stroke of a stage, for legends and column heads."""
    name = f"sample s{colour % NUM_COLOURS}"
    return Markup(f'<svg class="{name}" viewBox="0 0 28 8" width="28" height="8" aria-hidden="true"><path class="line" d="M0 4H28"/></svg>')


class _Frame(NamedTuple):
    """Where values stand in a chart."""

    xs: Scale
    ys: Scale

    def x(self, value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * self.xs.share(value)

    def y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * self.ys.share(value)


def line_chart(lines: Sequence[Line], x_name: str, y_name: str) -> Markup:
    """Curves over steps; both axes named with their units. Longer curves are means over equal runs of steps, see `run_length`."""
    curves = [(line, _points(line.values)) for line in lines]
    values = [y for _, points in curves for _, y in points]
    y_ticks = ticks(min(values), max(values))
    frame = _Frame(Scale(1, max([2.0, *(float(len(line.values)) for line in lines)])), Scale(y_ticks[0], y_ticks[-1]))
    label = escape(f"{y_name} over {x_name}: {', '.join(line.name for line in lines)}")
    inside = _axes(frame, y_ticks, x_name, y_name) + "".join(_curve(frame, line, points) for line, points in curves)
    return Markup(f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{inside}</svg>')


def _axes(frame: _Frame, y_ticks: Sequence[float], x_name: str, y_name: str) -> str:
    floor, right, left = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT, _LEFT - 6
    out = []
    for y in y_ticks:
        at = frame.y(y)
        out.append(f'<path class="grid" d="M{_LEFT} {at:.1f}H{right}"/><text class="end" x="{left}" y="{at + 4:.1f}">{tick_text(y)}</text>')
    for x in ticks(*frame.xs, 8, whole=True):
        if frame.xs.low <= x <= frame.xs.high:
            out.append(f'<text class="middle" x="{frame.x(x):.1f}" y="{floor + 16}">{tick_text(x)}</text>')
    out.append(f'<path class="axis" d="M{_LEFT} {floor}H{right}"/>')
    out.append(f'<text class="middle name" x="{(_LEFT + right) / 2}" y="{_HEIGHT - 4}">{escape(x_name)}</text>')
    out.append(f'<text class="middle name" transform="translate(13 {(_TOP + floor) / 2}) rotate(-90)">{escape(y_name)}</text>')
    return "".join(out)


def _curve(frame: _Frame, line: Line, points: Sequence[tuple[float, float]]) -> str:
    path = "L".join(f"{frame.x(x):.1f} {frame.y(y):.1f}" for x, y in points)
    dot = f'<circle class="dot" cx="{frame.x(points[-1][0]):.1f}" cy="{frame.y(points[-1][1]):.1f}" r="3"/>'
    return f'<g class="s{line.colour % NUM_COLOURS}"><title>{escape(line.name)}</title><path class="line" d="M{path}"/>{dot}</g>'


def run_length(values: Sequence[float]) -> int:
    """How many steps one point of a curve stands for."""
    return max(1, math.ceil(len(values) / MAX_POINTS))


def _points(values: Sequence[float]) -> list[tuple[float, float]]:
    run = run_length(values)
    parts = [values[i : i + run] for i in range(0, len(values), run)]
    return [(1 + i * run + (len(part) - 1) / 2, sum(part) / len(part)) for i, part in enumerate(parts)]


def ticks(low: float, high: float, most: int = 6, *, whole: bool = False) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`."""
    if not high > low:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / (most - 1)
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= rough * 0.999)
    if whole:
        step = max(1.0, math.ceil(step))
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def tick_text(value: float) -> str:
    """A tick without trailing zeros, with a real minus sign."""
    return f"{value:.10g}".replace("-", "\N{MINUS SIGN}") if abs(value) > 1e-12 else "0"
