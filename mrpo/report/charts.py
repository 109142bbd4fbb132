"""Geometry of the report's plots: data to SVG paths and ticks. What they look like is the template's affair."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 360, 190  # of the drawing, in SVG units
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 24  # margins for the ticks
SMOOTHED_SHARE = 0.08  # of the steps go into the trailing mean

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A measure over steps; `style` is a CSS class."""

    label: str
    points: Points
    style: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A value with its interval at one step: an evaluation among the curves."""

    label: str
    step: float
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A tick's place in SVG units, and its label."""

    at: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A drawn series: the values, their trailing mean, and the last mean in words."""

    label: str
    style: str
    path: str
    smooth_path: str
    last: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Whisker:
    """A drawn mark, in SVG units."""

    label: str
    x: float
    y: float
    y_low: float
    y_high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LinePlot:
    """A plot over steps, or a stack of areas."""

    title: str
    unit: str
    description: str  # the plot in words, for those who cannot see it
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line]
    whiskers: list[Whisker]
    is_stacked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar of a bar plot, in SVG units."""

    style: str
    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BarPlot:
    """Grouped bars."""

    description: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    bars: list[Bar]


def line_plot(
    title: str,
    series: Sequence[Series],
    *,
    unit: str = "",
    marks: Sequence[Mark] = (),
    is_share: bool = False,
) -> LinePlot | None:
    """Curves over steps, each with its trailing mean; None where there is nothing to draw.

    Args:
        title: of the plot.
        series: empty ones are left out.
        unit: shown beside the title.
        marks: evaluations with intervals.
        is_share: values lie in [0, 1], the axis stays there, and they are written as per cent.
    """
    series = [item for item in series if item.points]
    if not series and not marks:
        return None
    write = percent if is_share else significant
    values = [value for item in series for _, value in item.points] + [end for m in marks for end in (m.low, m.high)]
    steps = [step for item in series for step, _ in item.points] + [mark.step for mark in marks]
    y_values = nice_ticks(min(values), max(values))
    if is_share:
        y_values = [value for value in y_values if -1e-9 <= value <= 1 + 1e-9]
    to_x = _scale(min(steps), max(steps), LEFT, WIDTH - RIGHT)
    to_y = _scale(y_values[0], y_values[-1], HEIGHT - BOTTOM, TOP)
    lines = []
    words = []
    for item in series:
        smooth = trailing_mean(item.points)
        words.append(f"{item.label}: from {write(smooth[0][1])} to {write(smooth[-1][1])}")
        lines.append(
            Line(
                label=item.label,
                style=item.style,
                path=_path(item.points, to_x, to_y),
                smooth_path=_path(smooth, to_x, to_y),
                last=write(smooth[-1][1]),
            )
        )
    words += [f"evaluation {mark.label}: {write(mark.value)}" for mark in marks]
    return LinePlot(
        title=title,
        unit=unit,
        description=f"{title}. {'; '.join(words)}",
        x_ticks=_step_ticks(min(steps), max(steps), to_x),
        y_ticks=_value_ticks(y_values, to_y, is_share=is_share),
        lines=lines,
        whiskers=[
            Whisker(
                label=f"{mark.label}: {write(mark.value)}",
                x=to_x(mark.step),
                y=to_y(mark.value),
                y_low=to_y(mark.low),
                y_high=to_y(mark.high),
            )
            for mark in marks
        ],
        is_stacked=False,
    )


def stacked_plot(title: str, series: Sequence[Series], *, unit: str) -> LinePlot | None:
    """Areas upon each other, smoothed, over the steps at which every series has a value; None where there is none."""
    shared = set.intersection(*({step for step, _ in item.points} for item in series))
    if not shared:
        return None
    smooth = [trailing_mean([point for point in item.points if point[0] in shared]) for item in series]
    steps = [step for step, _ in smooth[0]]
    floors = [[0.0] * len(steps)]
    for points in smooth:
        floors.append([floor + value for floor, (_, value) in zip(floors[-1], points, strict=True)])
    y_values = nice_ticks(0.0, max(floors[-1]))
    to_x = _scale(steps[0], steps[-1], LEFT, WIDTH - RIGHT)
    to_y = _scale(0.0, y_values[-1], HEIGHT - BOTTOM, TOP)
    lines = []
    for item, points, low, high in zip(series, smooth, floors, floors[1:], strict=False):
        top = _path(list(zip(steps, high, strict=True)), to_x, to_y)
        bottom = _path(list(zip(steps[::-1], low[::-1], strict=True)), to_x, to_y)
        outline, last = f"{top}L{bottom[1:]}Z", significant(points[-1][1])
        lines.append(Line(label=item.label, style=item.style, path=outline, smooth_path="", last=last))
    return LinePlot(
        title=title,
        unit=unit,
        description=f"{title}. " + "; ".join(f"{line.label}: {line.last} {unit} at the end" for line in lines),
        x_ticks=_step_ticks(steps[0], steps[-1], to_x),
        y_ticks=_value_ticks(y_values, to_y, is_share=False),
        lines=lines,
        whiskers=[],
        is_stacked=True,
    )


def bar_plot(
    groups: Sequence[str], columns: Sequence[tuple[str, str, Sequence[float | None]]], *, what: str
) -> BarPlot:
    """Bars side by side in groups.

    Args:
        groups: labels below the axis.
        columns: (label, CSS class, share per group or None for no bar), drawn in this order within a group.
        what: one bar in words, for the description.
    """
    highest = max((value for _, _, values in columns for value in values if value is not None), default=0.0)
    y_values = nice_ticks(0.0, highest)
    to_y = _scale(0.0, y_values[-1], HEIGHT - BOTTOM, TOP)
    span = (WIDTH - LEFT - RIGHT) / max(1, len(groups))
    width = min(34.0, span * 0.78 / max(1, len(columns)))
    bars, ticks = [], []
    for index, group in enumerate(groups):
        centre = LEFT + (index + 0.5) * span
        ticks.append(Tick(at=centre, label=group))
        for number, (label, style, values) in enumerate(columns):
            value = values[index]
            if value is None:
                continue
            top = to_y(value)
            x = centre + (number - len(columns) / 2) * width
            height = HEIGHT - BOTTOM - top
            words = f"{label}, {group}: {percent(value)}"
            bars.append(Bar(style=style, x=x + 1, y=top, width=width - 2, height=height, label=words))
    return BarPlot(
        description=f"{what}. " + "; ".join(bar.label for bar in bars),
        x_ticks=ticks,
        y_ticks=_value_ticks(y_values, to_y, is_share=True),
        bars=bars,
    )


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` + 1 round values that cover [low, high]; a flat range is widened."""
    if high - low < 1e-12 * max(1.0, abs(high)):
        pad = abs(high) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def trailing_mean(points: Points) -> list[tuple[float, float]]:
    """Each value averaged with the few before it."""
    window = max(1, round(len(points) * SMOOTHED_SHARE))
    means = []
    for index, (step, _) in enumerate(points):
        part = [value for _, value in points[max(0, index - window + 1) : index + 1]]
        means.append((step, sum(part) / len(part)))
    return means


def percent(value: float) -> str:
    """A share as per cent: whole from 10 % on, two significant digits below."""
    return f"{value * 100:.0f} %" if value == 0 or abs(value) >= 0.0995 else f"{value * 100:.2g} %"


def significant(value: float) -> str:
    """Three significant digits, thousands separated, a true minus."""
    size = abs(value)
    if size != 0 and (size < 1e-3 or size >= 1e7):
        mantissa, exponent = f"{value:.1e}".split("e")
        text = f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    elif size >= 100:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.3g}"
    return text.replace("-", "−")


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """Linear map from data to SVG units; a single value lies in the middle."""
    if high == low:
        return lambda value: (start + end) / 2
    return lambda value: round(start + (value - low) / (high - low) * (end - start), 1)


def _path(points: Points, to_x: Callable[[float], float], to_y: Callable[[float], float]) -> str:
    return "M" + "L".join(f"{to_x(step)},{to_y(value)}" for step, value in points)


def _value_ticks(values: Sequence[float], to_y: Callable[[float], float], *, is_share: bool) -> list[Tick]:
    """Ticks written with just the decimals that tell them apart."""
    factor, unit = (100, " %") if is_share else (1, "")
    scaled = [value * factor for value in values]
    step = scaled[1] - scaled[0]
    if not is_share and (step < 1e-3 or scaled[-1] >= 1e5):
        return [Tick(at=to_y(value), label=significant(value)) for value in values]
    decimals = next(count for count in range(8) if abs(round(step, count) - step) < step * 1e-6)
    labels = [f"{value:,.{decimals}f}{unit}".replace("-", "−") for value in scaled]
    return [Tick(at=to_y(value), label=label) for value, label in zip(values, labels, strict=True)]


def _step_ticks(low: float, high: float, to_x: Callable[[float], float]) -> list[Tick]:
    values = [value for value in nice_ticks(low, high) if low <= value <= high and value == int(value)]
    return [Tick(at=to_x(value), label=f"{value:.0f}") for value in values or [low]]
