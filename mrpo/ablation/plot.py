"""`results.svg`: accuracy and early failures of every variant, a point a seed with its interval, the mean over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from mrpo.ablation.results import Aggregate, ResultRow, aggregate
from mrpo.atomic import write_with

PANELS = (("accuracy", "Answer accuracy"), ("early", "Early failures, of all judged"))
WIDTH, ROW_HEIGHT, FRAME_HEIGHT = 10.0, 0.36, 1.8  # inches
SEED_SPREAD = 0.6  # rows that the points of one variant take
INK, SOFT, RULE, POINT, DEFAULT = "#1d2430", "#5d6675", "#dfe2e6", "#1f5fbf", "#c2610a"
STYLE = {
    "svg.hashsalt": "mrpo",  # the same numbers give the same file
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": SOFT,
    "axes.edgecolor": RULE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """One line of the plot: an axis's name, or a setting with its seeds."""

    text: str
    item: Aggregate | None = None
    rows: tuple[ResultRow, ...] = ()


def write_plot(folder: Path, rows: Sequence[ResultRow]) -> None:
    """Draw what is finished, atomically; settings without a finished seed keep their line and have no point."""
    with matplotlib.rc_context(STYLE):
        figure = draw(rows)
        write_with(folder / "results.svg", lambda path: _save(figure, path))


def draw(rows: Sequence[ResultRow]) -> Figure:
    """Two panels side by side, variants as lines, grouped by axis."""
    lines = _lines(rows)
    size = (WIDTH, FRAME_HEIGHT + ROW_HEIGHT * len(lines))
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.06))
    panels = figure.subplots(1, len(PANELS), sharey=True)
    for panel, (measure, title) in zip(panels, PANELS, strict=True):
        _draw_panel(panel, lines, measure, title)
    _name_lines(panels[0], lines)
    study = rows[0].study if rows else ""
    seeds = len({row.seed for row in rows})
    figure.suptitle(f"Ablation study “{study}”", x=0.02, ha="left", fontsize=13, fontweight="bold")
    figure.supxlabel(
        f"Held-out questions. Dot: one seed after training, with its 95 % interval; bar: mean over {seeds} "
        f"seed{'s' if seeds != 1 else ''}; ring: before training.\nOrange: the default, its mean as a dashed line.",
        x=0.02,
        ha="left",
        fontsize=8.5,
        color=SOFT,
    )
    return figure


def _lines(rows: Sequence[ResultRow]) -> list[_Line]:
    lines: list[_Line] = []
    axis = None
    for item in aggregate(rows):
        if item.axis != axis:
            axis = item.axis
            lines.append(_Line(text=axis.replace("_", " ")))
        own = tuple(row for row in rows if (row.axis, row.settings) == (item.axis, item.settings))
        lines.append(_Line(text=item.label, item=item, rows=own))
    return lines


def _draw_panel(panel: Any, lines: Sequence[_Line], measure: str, title: str) -> None:
    panel.set_title(title, loc="left", fontsize=10.5)
    panel.set_xlim(-0.02, 1.02)
    panel.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    panel.grid(axis="x", color=RULE, linewidth=0.8)
    panel.set_axisbelow(True)
    panel.tick_params(length=0)
    panel.set_ylim(len(lines) - 0.4, -0.6)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    for place, line in enumerate(lines):
        if line.item is None:
            if place:
                panel.axhline(place - 0.5, color=RULE, linewidth=0.8)
            continue
        colour = DEFAULT if line.item.is_default else POINT
        _draw_seeds(panel, line, place, measure, colour)
        spread = line.item.spreads[f"{measure}_after"]
        if spread is not None:
            half = SEED_SPREAD / 2 + 0.06
            panel.plot([spread.mean] * 2, [place - half, place + half], color=colour, linewidth=2.6, zorder=4)
    defaults = {line.item.spreads[f"{measure}_after"] for line in lines if line.item and line.item.is_default}
    for spread in defaults:
        if spread is not None:
            panel.axvline(spread.mean, color=DEFAULT, linewidth=1, linestyle=(0, (4, 3)), alpha=0.8, zorder=1)


def _draw_seeds(panel: Any, line: _Line, place: int, measure: str, colour: str) -> None:
    """A dot a seed with its interval, from top to bottom in the order of seeds."""
    for number, row in enumerate(line.rows):
        at = place + SEED_SPREAD * ((number + 0.5) / len(line.rows) - 0.5)
        names = (f"{measure}_before", f"{measure}_after", f"{measure}_after_low", f"{measure}_after_high")
        before, after, low, high = (getattr(row, name) for name in names)
        if before is not None:
            panel.plot(before, at, "o", markersize=3.6, markerfacecolor="white", markeredgecolor=SOFT, zorder=2)
        if after is not None:
            panel.plot([low, high], [at, at], color=colour, linewidth=1.1, alpha=0.75, zorder=3)
            panel.plot(after, at, "o", markersize=4.2, color=colour, zorder=5)


def _name_lines(panel: Any, lines: Sequence[_Line]) -> None:
    panel.set_yticks(range(len(lines)), [line.text for line in lines])
    for line, label in zip(lines, panel.get_yticklabels(), strict=True):
        label.set_color(INK if line.item is None or not line.item.is_default else DEFAULT)
        label.set_fontweight("bold" if line.item is None else "normal")


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasSVG(figure)
    figure.savefig(path, format="svg", metadata={"Date": None, "Title": "Ablation study"})
