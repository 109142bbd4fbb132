"""Figures of failure cascades for any number of models: data to SVG geometry. The template decides on their looks.

Stage bars: where the reasoning first fails. FAR curve: how much of the rest fails too, by where the first failure lies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mrpo.eval import published
from mrpo.eval.cascade import NUM_FAR_BINS, CascadeSummary, Stage
from mrpo.eval.intervals import Interval
from mrpo.report.charts import Tick, nice_ticks, percent

WIDTH = 820  # of every figure, in SVG units
LABEL_END, BAR_END = 230, 730  # of a stage figure: names, bars, then the numbers
ROW, BAR = 30, 20  # heights
HEAD = 8
PLOT_LEFT, PLOT_RIGHT, PLOT_TOP, PLOT_BOTTOM = 46, 560, 12, 262  # of a FAR figure; its legend stands right of it
LEGEND_ROW = 20
FAR_HEIGHT = 306
MAX_LABEL = 27  # characters
NUM_STYLES = 6  # of our models; more begin again
REST = "rest"  # failing later than early, not told apart in print


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A piece of a bar, in SVG units."""

    style: str  # early | mid | late | none | rest
    x: float
    width: float
    text: str  # on it, where there is room
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One model."""

    label: str
    title: str
    is_published: bool
    y: float
    parts: list[Part]
    whisker: tuple[float, float] | None  # 95 % interval of the early share, in SVG units
    number: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFigure:
    """Horizontal bars, one a model."""

    name: str
    title: str
    unit: str
    description: str
    height: float
    x_ticks: list[Tick]
    bars: list[Bar]
    styles: list[tuple[str, str]]  # style and meaning of the pieces that occur


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A bin's mean, in SVG units."""

    x: float
    y: float
    whisker: tuple[float, float] | None  # None: published, or one value or equal ones
    title: str
    note: str  # beside it: the completions behind it; empty where it is published


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One model."""

    label: str
    title: str
    style: str  # own0 … or pub0 …
    is_published: bool
    path: str
    points: list[Point]
    legend_y: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FarFigure:
    """Curves over the first-failure point."""

    name: str
    title: str
    unit: str
    description: str
    height: float
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    curves: list[Curve]


STAGE_WORDS = {
    Stage.EARLY.value: "early",
    Stage.MID.value: "mid",
    Stage.LATE.value: "late",
    REST: "mid or late, not printed apart",
    "none": "no failure",
}


def stages_of_failing(models: Mapping[str, CascadeSummary]) -> StageFigure | None:
    """Stages as shares of the failing completions, the paper's own bars below; None without a failure."""
    failing = {name: item for name, item in models.items() if item.num_failing}
    if not failing:
        return None
    rows = [
        (
            name,
            False,
            {stage.value: _value(item.of_failing[stage]) for stage in Stage},
            item.of_failing[Stage.EARLY],
            f"n = {item.num_failing:,}",
        )
        for name, item in failing.items()
    ]
    for row in published.CASCADES:
        shares = {stage.value: share / 100 for stage, share in row.stages.items()}
        if len(shares) < len(Stage):
            shares[REST] = 1 - sum(shares.values())
        rows.append((row.name, True, shares, None, "published"))
    return _stage_figure("stages", "Stage of the first failure", "share of failing completions", rows)


def stages_of_all(models: Mapping[str, CascadeSummary]) -> StageFigure | None:
    """Stages as shares of all judged completions; None where nothing was judged."""
    rows = [
        (
            name,
            False,
            {
                **{stage.value: _value(item.of_all[stage]) for stage in Stage},
                "none": 1 - item.num_failing / item.num_judged,
            },
            item.of_all[Stage.EARLY],
            f"n = {item.num_judged:,}",
        )
        for name, item in models.items()
        if item.num_judged
    ]
    return _stage_figure("stages_of_all", "The same, of all", "share of judged completions", rows) if rows else None


def far_figure(models: Mapping[str, CascadeSummary]) -> FarFigure | None:
    """Mean FAR in five bins of the first-failure point, the published curves beside ours; None where we have none."""
    ours = {name: item.curve for name, item in models.items() if item.accumulation is not None}
    if not ours:
        return None
    rows: list[tuple[str, bool, Sequence[Interval | float | None]]] = [
        *((name, False, curve) for name, curve in ours.items()),
        *((row.name, True, [value / 100 for value in row.far]) for row in published.CASCADES),
    ]
    highest = max(_high(value) for _, _, values in rows for value in values if value is not None)
    y_values = [value for value in nice_ticks(0.0, highest) if value <= 1 + 1e-9]
    span = (PLOT_RIGHT - PLOT_LEFT) / NUM_FAR_BINS

    def to_y(share: float) -> float:
        return round(PLOT_BOTTOM - share / y_values[-1] * (PLOT_BOTTOM - PLOT_TOP), 1)

    curves, words = [], []
    for number, (name, is_published, values) in enumerate(rows):
        # Side by side within a bin, so that the intervals of several models do not hide each other.
        shift = (number - (len(ours) - 1) / 2) * min(7.0, 0.6 * span / len(ours)) if not is_published else 0.0
        points = [
            _point(name, index, value, PLOT_LEFT + (index + 0.5) * span + shift, to_y)
            for index, value in enumerate(values)
            if value is not None
        ]
        style = f"pub{number - len(ours)}" if is_published else f"own{number % NUM_STYLES}"
        curves.append(
            Curve(
                label=_short(name),
                title=f"{name}, published" if is_published else name,
                style=style,
                is_published=is_published,
                path="M" + "L".join(f"{point.x},{point.y}" for point in points),
                points=points,
                legend_y=PLOT_TOP + 10 + (number + (len(ours) < len(rows) and is_published)) * LEGEND_ROW,
            )
        )
        words += [point.title for point in points]
    return FarFigure(
        name="far",
        title="After the first failure",
        unit="mean share of invalid steps (FAR), by where the first failure lies (FFP); numbers: completions behind a "
        "point",
        description="Mean failure accumulation rate by first-failure point. " + "; ".join(words),
        height=max(FAR_HEIGHT, curves[-1].legend_y + 16),
        x_ticks=[
            Tick(
                at=PLOT_LEFT + (index + 0.5) * span,
                label=f"{index / NUM_FAR_BINS:.1f}–{(index + 1) / NUM_FAR_BINS:.1f}",
            )
            for index in range(NUM_FAR_BINS)
        ],
        y_ticks=[Tick(at=to_y(value), label=f"{value * 100:.0f} %") for value in y_values],
        curves=curves,
    )


def _stage_figure(
    name: str, title: str, unit: str, rows: Sequence[tuple[str, bool, Mapping[str, float], Interval | None, str]]
) -> StageFigure:
    bars = []
    for number, (label, is_published, shares, early, note) in enumerate(rows):
        parts, start = [], 0.0
        for style, share in shares.items():
            if share > 0:
                words = percent(share)
                parts.append(
                    Part(
                        style=style,
                        x=round(_bar_x(start), 1),
                        width=round(share * (BAR_END - LABEL_END), 1),
                        text=words if share > 0.1 else "",
                        title=f"{label}, {STAGE_WORDS[style]}: {words}",
                    )
                )
            start += share
        bars.append(
            Bar(
                label=_short(label),
                title=label,
                is_published=is_published,
                y=HEAD + number * ROW,
                parts=parts,
                whisker=(round(_bar_x(early.low), 1), round(_bar_x(early.high), 1)) if early is not None else None,
                number=note,
            )
        )
    used = {part.style for bar in bars for part in bar.parts}
    return StageFigure(
        name=name,
        title=title,
        unit=unit,
        description=f"{title}, {unit}. " + "; ".join(part.title for bar in bars for part in bar.parts),
        height=HEAD + len(rows) * ROW + 50,
        x_ticks=[Tick(at=_bar_x(share / 4), label=f"{share * 25} %") for share in range(5)],
        bars=bars,
        styles=[(style, words) for style, words in STAGE_WORDS.items() if style in used],
    )


def _bar_x(share: float) -> float:
    return LABEL_END + share * (BAR_END - LABEL_END)


def _point(name: str, index: int, value: Interval | float, x: float, to_y: Callable[[float], float]) -> Point:
    place = f"{name}, FFP {(index + 0.5) / NUM_FAR_BINS:.1f}"
    if isinstance(value, Interval):
        ends = [f"{percent(value.low)}–{percent(value.high)}"] if value.has_width else []
        return Point(
            x=round(x, 1),
            y=to_y(value.value),
            whisker=(to_y(value.low), to_y(value.high)) if value.has_width else None,
            title=", ".join([f"{place}: {percent(value.value)}", *ends, f"n = {value.num:,}"]),
            note=f"{value.num:,}",
        )
    return Point(x=round(x, 1), y=to_y(value), whisker=None, title=f"{place}: {percent(value)}, published", note="")


def _value(interval: Interval | None) -> float:
    return interval.value if interval is not None else 0.0


def _high(value: Interval | float) -> float:
    return value.high if isinstance(value, Interval) else value


def _short(label: str) -> str:
    """Cut in the middle: names of runs often begin alike."""
    if len(label) <= MAX_LABEL:
        return label
    head = (MAX_LABEL - 1) // 2
    return f"{label[:head]}…{label[head + 1 - MAX_LABEL :]}"
