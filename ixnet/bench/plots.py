"""Plots as SVG, without any library: lines over linear or logarithmic axes, and bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#0b62a3", "#c4510a", "#2c7d32", "#7a3e9d", "#a3234f", "#5f6368")
_WIDTH, _HEIGHT = 640, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 16, 34, 48


@dataclass(frozen=True)
class Axis:
    """title: with the unit."""

    title: str
    logarithmic: bool = False


@dataclass(frozen=True)
class Series:
    """A line, or one colour of bars. points: (x, y)."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Plot:
    """bars: a group of bars for each x, which is an index into `labels`. ticks: of x, (x, text)
    where numbers would not do."""

    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    bars: bool = False
    labels: tuple[str, ...] = ()
    ticks: tuple[tuple[float, str], ...] = ()


def number(value: float) -> str:
    """A tick's text."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:g}{suffix}"
    return f"{value:g}"


def nice_ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    """Round numbers that cover a range."""
    if logarithmic:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        return [10.0**k for k in range(first, max(last, first + 1) + 1)]
    if high == low:
        high += abs(high) or 1.0
    span = high - low
    step = 10 ** math.floor(math.log10(span / 4))
    step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= 6)
    first = math.floor(low / step)
    return [step * k for k in range(first, math.ceil(high / step) + 1)]


class _Scale:
    """From values to pixels."""

    def __init__(self, ticks: Sequence[float], axis: Axis, start: float, end: float) -> None:
        self._log = axis.logarithmic
        self._low, self._high = self._value(ticks[0]), self._value(ticks[-1])
        self._start, self._end = start, end

    def _value(self, x: float) -> float:
        return math.log10(x) if self._log else x

    def __call__(self, x: float) -> float:
        share = (self._value(x) - self._low) / ((self._high - self._low) or 1)
        return self._start + share * (self._end - self._start)


def _text(x: float, y: float, text: str, anchor: str = "middle", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, name: str) -> str:
    return f'<line class="{name}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def usable(plot: Plot) -> tuple[Series, ...]:
    """Its series, less the points that its axes can't show, less those without any."""

    def fits(x: float, y: float) -> bool:
        return (x > 0 or not plot.x.logarithmic) and (y > 0 or not plot.y.logarithmic)

    kept = [Series(s.name, tuple(p for p in s.points if fits(*p))) for s in plot.series]
    return tuple(s for s in kept if s.points)


def svg(plot: Plot) -> str:
    """The plot as an SVG element."""
    series = usable(plot)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(plot.title)}">',
        _text(_WIDTH / 2, 16, plot.title, more='class="title"'),
    ]
    if not series:
        return "".join([*parts, _text(_WIDTH / 2, _HEIGHT / 2, "no data"), "</svg>"])
    xs = [x for s in series for x, _ in s.points]
    ys = [y for s in series for _, y in s.points]
    y_low = min(ys) if plot.y.logarithmic else min(0.0, *ys)
    y_ticks = nice_ticks(y_low, max(ys), plot.y.logarithmic)
    y_scale = _Scale(y_ticks, plot.y, _HEIGHT - _BOTTOM, _TOP)
    parts += _y_axis(plot, y_ticks, y_scale)
    if plot.bars:
        parts += _bars(plot, series, y_scale)
    else:
        x_ticks = [x for x, _ in plot.ticks] or nice_ticks(min(xs), max(xs), plot.x.logarithmic)
        x_scale = _Scale(x_ticks, plot.x, _LEFT, _WIDTH - _RIGHT)
        parts += _x_axis(plot, x_ticks, x_scale)
        parts += _lines(series, x_scale, y_scale)
    parts.append(_text((_LEFT + _WIDTH) / 2, _HEIGHT - 6, plot.x.title))
    parts += _legend(series)
    return "".join([*parts, "</svg>"])


def _y_axis(plot: Plot, ticks: Sequence[float], scale: _Scale) -> list[str]:
    parts = [_text(14, _HEIGHT / 2, plot.y.title, more=f'transform="rotate(-90 14 {_HEIGHT / 2})"')]
    for tick in ticks:
        parts.append(_line(_LEFT, scale(tick), _WIDTH - _RIGHT, scale(tick), "grid"))
        parts.append(_text(_LEFT - 6, scale(tick) + 4, number(tick), "end"))
    return parts


def _x_axis(plot: Plot, ticks: Sequence[float], scale: _Scale) -> list[str]:
    names = dict(plot.ticks)
    parts = []
    for tick in ticks:
        parts.append(_line(scale(tick), _TOP, scale(tick), _HEIGHT - _BOTTOM, "grid"))
        label = names.get(tick, number(tick))
        parts.append(_text(scale(tick), _HEIGHT - _BOTTOM + 16, label))
    return parts


def _lines(series: Sequence[Series], x: _Scale, y: _Scale) -> list[str]:
    parts = []
    for i, s in enumerate(series):
        colour = COLOURS[i % len(COLOURS)]
        points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in s.points)
        parts.append(f'<polyline class="line" stroke="{colour}" points="{points}"/>')
        if len(s.points) <= 40:
            parts += [
                f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="2.5" fill="{colour}">'
                f"<title>{escape(s.name)}: {a:g}, {b:g}</title></circle>"
                for a, b in s.points
            ]
    return parts


def _bars(plot: Plot, series: Sequence[Series], y: _Scale) -> list[str]:
    parts = []
    room = (_WIDTH - _LEFT - _RIGHT) / max(len(plot.labels), 1)
    width = room * 0.7 / len(series)
    for i, s in enumerate(series):
        for index, value in s.points:
            left = _LEFT + room * (index + 0.15) + width * i
            top, bottom = (
                y(value),
                y(max(0.0, 0.0)) if not plot.y.logarithmic else _HEIGHT - _BOTTOM,
            )
            parts.append(
                f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" '
                f'height="{max(bottom - top, 0):.1f}" fill="{COLOURS[i % len(COLOURS)]}">'
                f"<title>{escape(s.name)}: {value:g}</title></rect>"
            )
    for index, label in enumerate(plot.labels):
        parts.append(_text(_LEFT + room * (index + 0.5), _HEIGHT - _BOTTOM + 16, label))
    return parts


def _legend(series: Sequence[Series]) -> list[str]:
    parts = []
    for i, s in enumerate(series):
        y = _TOP + 12 + 15 * i
        parts.append(
            f'<rect x="{_LEFT + 8}" y="{y - 8}" width="10" height="10" '
            f'fill="{COLOURS[i % len(COLOURS)]}"/>'
        )
        parts.append(_text(_LEFT + 23, y + 1, s.name, "start"))
    return parts
