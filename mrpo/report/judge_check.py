"""`report.html` of a judge check: a page that asks nothing of the network."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mrpo.atomic import write_text
from mrpo.calibration.agreement import Agreement, PlaceAgreement
from mrpo.calibration.kappa import BANDS, POOR
from mrpo.calibration.labels import Mark
from mrpo.calibration.measure import CheckResult, Disagreement
from mrpo.calibration.tables import coefficient_text, number_text, shares_text
from mrpo.report import charts
from mrpo.report.pages import page_template

MAX_DISAGREEMENTS = 60  # shown; `rulings.jsonl` has all
LEFT, RIGHT, TOP, ROW = 110.0, 12.0, 26.0, 34.0  # of the drawing of kappa, in SVG units
WIDTH = 760.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """A band of Landis and Koch, in SVG units."""

    name: str
    x: float
    width: float


@dataclass(frozen=True, slots=True, kw_only=True)
class KappaRow:
    """Kappa of one mark, in SVG units."""

    name: str
    y: float
    x: float
    low: float
    high: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KappaFigure:
    """Kappa with its interval over the bands."""

    height: float
    bands: list[Band]
    ticks: list[charts.Tick]
    rows: list[KappaRow]
    description: str


def write_judge_check(folder: Path, result: CheckResult) -> Path:
    """Write the page.

    Returns:
        Its path.
    """
    path = folder / "report.html"
    write_text(path, render_judge_check(result))
    return path


def render_judge_check(result: CheckResult) -> str:
    """The page as HTML. What policies, labellers and judges wrote is escaped like everything else."""
    measures = result.measures
    places = [item for item in measures.places if item.mark == Mark.VALID]
    return page_template("judge_check.html.j2").render(
        result=result,
        measures=measures,
        valid=next(item for item in measures.marks if item.mark == Mark.VALID),
        figure=kappa_figure(measures.marks),
        places=places,
        errors=place_errors(places),
        shown=shown_disagreements(measures.disagreements),
        chart=charts,
        figure_width=WIDTH,
        coefficient=coefficient_text,
        number=number_text,
        shares=shares_text,
        share=charts.percent,
        raters=[*measures.annotators, *measures.judge_and_annotators],
    )


def kappa_figure(marks: Sequence[Agreement]) -> KappaFigure | None:
    """Geometry of the drawing; None where kappa is not defined for any mark."""
    known = [(item.mark, item.kappa) for item in marks if item.kappa is not None]
    if not known:
        return None
    start = min(0.0, math.floor(min(kappa.low for _, kappa in known) * 5) / 5)

    def to_x(value: float) -> float:
        return round(LEFT + (value - start) / (1 - start) * (WIDTH - LEFT - RIGHT), 1)

    edges = [*BANDS, (1.0, "")]
    bands = [
        Band(name=name, x=to_x(low), width=round(to_x(high) - to_x(low), 1))
        for (low, name), (high, _) in itertools.pairwise(edges)
    ]
    if start < 0:
        bands.insert(0, Band(name=POOR, x=LEFT, width=round(to_x(0.0) - LEFT, 1)))
    rows = [
        KappaRow(
            name=name,
            y=TOP + ROW * (index + 0.5),
            x=to_x(kappa.value),
            low=to_x(kappa.low),
            high=to_x(kappa.high),
            text=number_text(kappa),
        )
        for index, (name, kappa) in enumerate(known)
    ]
    num_ticks = round((1 - start) * 5)
    return KappaFigure(
        height=TOP + ROW * len(rows) + 26,
        bands=bands,
        ticks=[
            charts.Tick(at=to_x(value), label=f"{value:.1f}".replace("-", "−"))
            for value in (start + index / 5 for index in range(num_ticks + 1))
        ],
        rows=rows,
        description="Cohen's kappa. " + "; ".join(f"{row.name}: {row.text}" for row in rows),
    )


def place_errors(places: Sequence[PlaceAgreement]) -> charts.BarPlot | None:
    """Errors of both sorts by the place of the step; None where there is no error to draw."""
    kind = [_share_of(item.table[0][1], sum(item.table[0])) for item in places]
    strict = [_share_of(item.table[1][0], sum(item.table[1])) for item in places]
    if not any(value for value in (*kind, *strict)):
        return None
    columns = [("labelled 0, ruled 1", "kind", kind), ("labelled 1, ruled 0", "strict", strict)]
    return charts.bar_plot([item.place for item in places], columns, what="Errors by the place of the step")


def shown_disagreements(found: Sequence[Disagreement]) -> list[Disagreement]:
    """As many as fit a page, taken evenly from all."""
    if len(found) <= MAX_DISAGREEMENTS:
        return list(found)
    return [found[index * len(found) // MAX_DISAGREEMENTS] for index in range(MAX_DISAGREEMENTS)]


def _share_of(part: int, whole: int) -> float | None:
    return part / whole if whole else None
