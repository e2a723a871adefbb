"""Draw small plots as SVG for the report, without matplotlib, which the light installation does not have.

Colours are those of the page, so that a plot follows its light or dark scheme.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 20, 14, 46
COLORS = ("var(--one)", "var(--two)", "var(--good)", "var(--quiet)")


@dataclass(frozen=True)
class Series:
    """Points of one kind, joined by a line or not."""

    name: str
    points: Sequence[tuple[float, float]]
    line: bool = False
    labels: Sequence[str] = ()
    """Of each point, written beside it."""
    band: Sequence[tuple[float, float]] = ()
    """The lowest and highest of each point, shaded between."""
    color: str = ""
    """One of the page's; the next one if not given."""


def bars(names: Sequence[str], values: Sequence[float], form: str = ".3f", unit: str = "") -> str:
    """Horizontal bars from zero, each with its value."""
    row, left, width = 26, 150, WIDTH
    most = max((value for value in values if math.isfinite(value)), default=0.0) or 1.0
    room = width - left - 90
    lines = []
    for number, (name, value) in enumerate(zip(names, values, strict=True)):
        y, length = 8 + number * row, max(1.0, room * min(value, most) / most)
        lines.append(
            f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{escape(_short(name))}</text>'
            f'<rect x="{left}" y="{y}" width="{length:.1f}" height="17" rx="2" fill="var(--one)"/>'
            f'<text x="{left + length + 7:.1f}" y="{y + 13}">{value:{form}}{escape(unit)}</text>'
        )
    return _svg("".join(lines), width, 16 + row * len(names))


def xy(
    series: Sequence[Series],
    x: str,
    y: str,
    *,
    log_y: bool = False,
    limit: float | None = None,
    diagonal: bool = False,
) -> str:
    """Points, lines and bands over two axes. `limit` is a line across; with `diagonal` both axes are the same."""
    spread = [point for one in series for point in one.points]
    xs = [point[0] for point in spread]
    ys = [point[1] for point in spread] + [end for one in series for pair in one.band for end in pair]
    ys += [] if limit is None else [limit]
    if diagonal:
        xs = ys = [*xs, *ys]
    across = _Axis(xs, _LEFT, WIDTH - _RIGHT)
    up = _Axis(ys, HEIGHT - _BOTTOM, _TOP, log=log_y)
    drawn = [_axes(across, up, x, y)]
    if diagonal:
        low, high = across.low, across.high
        drawn.append(_line([(low, low), (high, high)], across.at, up.at, "var(--quiet)", dashed=True))
    if limit is not None:
        drawn.append(_line([(across.low, limit), (across.high, limit)], across.at, up.at, "var(--bad)", dashed=True))
    for number, one in enumerate(series):
        color = _color(one, number)
        if one.band:
            there = [point[0] for point in one.points]
            edge = [(at, low) for at, (low, _) in zip(there, one.band, strict=True)]
            edge += [(at, high) for at, (_, high) in reversed(list(zip(there, one.band, strict=True)))]
            path = " ".join(f"{across.at(a):.1f},{up.at(b):.1f}" for a, b in edge)
            drawn.append(f'<polygon points="{path}" fill="{color}" opacity=".18"/>')
        if one.line:
            drawn.append(_line(one.points, across.at, up.at, color))
        drawn.append(_points(one, across.at, up.at, color))
    if len(series) > 1:
        drawn.append(_legend(series))
    return _svg("".join(drawn), WIDTH, HEIGHT)


class _Axis:
    """From values to places, with round marks."""

    def __init__(self, values: Sequence[float], start: float, end: float, *, log: bool = False) -> None:
        self.start, self.end = start, end
        finite = [value for value in values if math.isfinite(value)]
        self.log = log and bool(finite) and min(finite) > 0
        low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
        if self.log:
            low, high = 10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high) + 1e-9)
            count = round(math.log10(high / low))
            self.marks = [low * 10**n for n in range(count + 1)]
        else:
            step = _step((high - low) or abs(high) or 1.0)
            low, high = math.floor(low / step) * step, math.ceil(high / step) * step
            if low == high:
                high += step
            self.marks = [low + step * n for n in range(round((high - low) / step) + 1)]
        self.low, self.high = low, high

    def at(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def _step(span: float) -> float:
    """A round distance between marks that gives about five of them."""
    rough = span / 5
    power = 10 ** math.floor(math.log10(rough))
    return float(power) * next((n for n in (1, 2, 5, 10) if n * power >= rough), 10)


def _axes(across: _Axis, up: _Axis, x: str, y: str) -> str:
    lines = []
    for mark in up.marks:
        place = up.at(mark)
        lines.append(
            f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{place:.1f}" y2="{place:.1f}" stroke="var(--line)"/>'
            f'<text x="{_LEFT - 7}" y="{place + 4:.1f}" text-anchor="end" class="mark">{mark:.4g}</text>'
        )
    for mark in across.marks:
        place = across.at(mark)
        lines.append(
            f'<text x="{place:.1f}" y="{HEIGHT - _BOTTOM + 17}" text-anchor="middle" class="mark">{mark:,.6g}</text>'
        )
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    lines.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle" class="mark">{escape(x)}</text>')
    high = (HEIGHT - _BOTTOM + _TOP) / 2
    lines.append(
        f'<text transform="translate(13 {high}) rotate(-90)" text-anchor="middle" class="mark">{escape(y)}</text>'
    )
    return "".join(lines)


def _line(
    points: Sequence[tuple[float, float]],
    x: Callable[[float], float],
    y: Callable[[float], float],
    color: str,
    *,
    dashed: bool = False,
) -> str:
    path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)
    dashes = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.6"{dashes}/>'


def _points(one: Series, x: Callable[[float], float], y: Callable[[float], float], color: str) -> str:
    if one.line and not one.labels:
        return ""
    drawn = []
    for number, (a, b) in enumerate(one.points):
        drawn.append(f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="3.6" fill="{color}" fill-opacity=".75"/>')
        if one.labels:
            # To the side where there is room.
            near_the_end = x(a) > WIDTH - 130
            side, anchor = (-8, "end") if near_the_end else (8, "start")
            label = escape(one.labels[number])
            drawn.append(f'<text x="{x(a) + side:.1f}" y="{y(b) - 6:.1f}" text-anchor="{anchor}">{label}</text>')
    return "".join(drawn)


def _color(one: Series, number: int) -> str:
    return one.color or COLORS[number % len(COLORS)]


def _legend(series: Sequence[Series]) -> str:
    lines = []
    for number, one in enumerate(series):
        y, color = _TOP + 8 + 17 * number, _color(one, number)
        lines.append(
            f'<rect x="{_LEFT + 10}" y="{y - 8}" width="10" height="10" fill="{color}"/>'
            f'<text x="{_LEFT + 26}" y="{y + 1}">{escape(one.name)}</text>'
        )
    return "".join(lines)


def _svg(inside: str, width: int, height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-size="12" fill="currentColor" role="img">{inside}</svg>'
    )


def _short(name: str, most: int = 22) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
