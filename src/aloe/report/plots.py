"""Drawings of an evaluation as inline SVG: forest plots, reliability and risk-coverage curves. Classes and colours as in `svg`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

from aloe.report.svg import NUM_COLOURS, Scale, tick_text, ticks

_ROW, _HEAD, _TOP, _FOOT = 20, 28, 6, 40
_NAMES, _PLOT, _TEXT = 210, 360, 200
_WIDTH = _NAMES + _PLOT + _TEXT
_SIDE, _MARGIN = 250, 46


class Row(NamedTuple):
    """An interval in a forest plot, or a heading where there is no interval."""

    label: str
    colour: int = 0
    interval: tuple[float, float, float] | None = None
    """Value, low, high."""
    text: str = ""
    weak: bool = False
    """Drawn hollow: nothing is claimed."""


class Curve(NamedTuple):
    """Points in the unit square; `spans` are vertical intervals at the points."""

    name: str
    colour: int
    points: Sequence[tuple[float, float]]
    spans: Sequence[tuple[float, float]] = ()


def forest(rows: Sequence[Row], x_name: str, zero: float | None = None) -> Markup:
    """Intervals below each other on one axis; `zero` draws a line there, and the axis is symmetric about it."""
    ends = [x for row in rows if row.interval for x in row.interval]
    if zero is not None:
        reach = max([abs(x - zero) for x in ends] or [1.0])
        ends += [zero - reach, zero + reach]
    marks = ticks(min(ends), max(ends))
    scale = Scale(marks[0], marks[-1])
    at = [_TOP]
    for row in rows:
        at.append(at[-1] + (_ROW if row.interval else _HEAD))
    height = at[-1] + _FOOT
    out = [_grid(marks, scale, at[-1], x_name, zero)]
    out += [_forest_row(row, y, scale) for row, y in zip(rows, at, strict=False)]
    label = escape(f"{x_name}: " + "; ".join(f"{row.label} {row.text}" for row in rows))
    return Markup(f'<svg class="chart forest" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{label}">{"".join(out)}</svg>')


def _x(value: float, scale: Scale) -> float:
    return _NAMES + _PLOT * scale.share(value)


def _grid(marks: Sequence[float], scale: Scale, floor: float, x_name: str, zero: float | None) -> str:
    out = []
    for mark in marks:
        x = _x(mark, scale)
        out.append(f'<path class="grid" d="M{x:.1f} {_TOP}V{floor}"/><text class="middle" x="{x:.1f}" y="{floor + 16}">{tick_text(mark)}</text>')
    if zero is not None:
        out.append(f'<path class="axis" d="M{_x(zero, scale):.1f} {_TOP}V{floor}"/>')
    out.append(f'<path class="axis" d="M{_NAMES} {floor}H{_NAMES + _PLOT}"/>')
    out.append(f'<text class="middle name" x="{_NAMES + _PLOT / 2}" y="{floor + 34}">{escape(x_name)}</text>')
    return "".join(out)


def _forest_row(row: Row, y: float, scale: Scale) -> str:
    if row.interval is None:
        return f'<text class="name strong" x="0" y="{y + 19:.1f}">{escape(_short(row.label, 60))}</text>'
    value, low, high = (_x(x, scale) for x in row.interval)
    middle = y + _ROW / 2
    mark = f'<rect class="{"hollow" if row.weak else "mark"}" x="{value - 4:.1f}" y="{middle - 4:.1f}" width="8" height="8"/>'
    return (
        f'<g class="s{row.colour % NUM_COLOURS}"><title>{escape(f"{row.label}: {row.text}")}</title>'
        f'<path class="whisker" d="M{low:.1f} {middle:.1f}H{high:.1f}M{low:.1f} {middle - 4:.1f}v8M{high:.1f} {middle - 4:.1f}v8"/>{mark}'
        f'<text class="name" x="12" y="{middle + 4:.1f}">{escape(_short(row.label, 30))}</text>'
        f'<text x="{_NAMES + _PLOT + 12}" y="{middle + 4:.1f}">{escape(row.text)}</text></g>'
    )


def unit_square(curves: Sequence[Curve], x_name: str, y_name: str, *, diagonal: bool) -> Markup:
    """Curves over [0, 1] x [0, 1]."""
    size = _SIDE + _MARGIN + 12
    out = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = _MARGIN + _SIDE * tick, 12 + _SIDE * (1 - tick)
        out.append(f'<path class="grid" d="M{_MARGIN} {y:.1f}H{_MARGIN + _SIDE}M{x:.1f} 12V{12 + _SIDE}"/>')
        out.append(f'<text class="end" x="{_MARGIN - 6}" y="{y + 4:.1f}">{tick_text(tick)}</text>')
        out.append(f'<text class="middle" x="{x:.1f}" y="{12 + _SIDE + 16}">{tick_text(tick)}</text>')
    if diagonal:
        out.append(f'<path class="before" d="M{_MARGIN} {12 + _SIDE}L{_MARGIN + _SIDE} 12"/>')
    out += [_square_curve(curve) for curve in curves]
    out.append(f'<text class="middle name" x="{_MARGIN + _SIDE / 2}" y="{12 + _SIDE + 36}">{escape(x_name)}</text>')
    out.append(f'<text class="middle name" transform="translate(12 {12 + _SIDE / 2}) rotate(-90)">{escape(y_name)}</text>')
    label = escape(f"{y_name} over {x_name}: {', '.join(curve.name for curve in curves)}")
    return Markup(f'<svg class="chart square" viewBox="0 0 {size} {12 + _SIDE + 44}" role="img" aria-label="{label}">{"".join(out)}</svg>')


def _square_curve(curve: Curve) -> str:
    places = [(_MARGIN + _SIDE * x, 12 + _SIDE * (1 - y)) for x, y in curve.points]
    line = f'<path class="line" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in places)}"/>' if len(places) > 1 else ""
    spans = "".join(
        f'<path class="whisker" d="M{x:.1f} {12 + _SIDE * (1 - low):.1f}V{12 + _SIDE * (1 - high):.1f}"/>'
        for (x, _), (low, high) in zip(places, curve.spans, strict=False)
    )
    dots = "".join(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places) if len(places) <= 12 else ""
    return f'<g class="s{curve.colour % NUM_COLOURS}"><title>{escape(curve.name)}</title>{spans}{line}{dots}</g>'


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"
