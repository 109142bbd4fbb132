"""`benchmark.html`: a page on one or more models, published numbers beside them; it asks nothing of the network."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mrpo.atomic import write_text
from mrpo.eval.benchmark import Benchmark, measure
from mrpo.eval.cascade import CascadeSummary
from mrpo.eval.evaluation import Evaluation
from mrpo.eval.lmms_eval import write_lmms_eval
from mrpo.eval.results import set_title
from mrpo.eval.table_files import write_tables
from mrpo.eval.tables import result_tables
from mrpo.report import benchmark_figures as geometry
from mrpo.report.benchmark_figures import FarFigure, StageFigure, far_figure, stages_of_all, stages_of_failing
from mrpo.report.pages import page_template

PAGE, FIGURES = "benchmark.html.j2", "benchmark_figures.html.j2"


def write_benchmark(folder: Path, evaluations: Sequence[Evaluation]) -> list[Path]:
    """Write all there is to show of some evaluations: page, figures, tables, and lmms-eval's files of each.

    Returns:
        The paths, the page first.

    Raises:
        DataError: there is nothing to show, or two evaluations cannot stand side by side.
    """
    benchmark = measure(evaluations)
    paths = [write_benchmark_report(benchmark, folder / "benchmark.html"), *write_tables(folder, benchmark)]
    paths += write_figures(folder, benchmark)
    for evaluation in evaluations:
        paths += write_lmms_eval(folder / "lmms_eval", evaluation)
    return paths


def write_benchmark_report(benchmark: Benchmark, path: Path) -> Path:
    """Write the page.

    Returns:
        `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, render_benchmark(benchmark))
    return path


def write_figures(folder: Path, benchmark: Benchmark) -> list[Path]:
    """Write the page's figures as SVG files of their own, as far as there is something to draw.

    Returns:
        Their paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    macros: Any = page_template(FIGURES).make_module({"geometry": geometry})
    paths = []
    for name, figure in _figures(benchmark).items():
        svg = str(macros.far(figure) if isinstance(figure, FarFigure) else macros.stages(figure))
        path = folder / f"{name}.svg"
        write_text(path, re.sub(r"\n\s*\n+", "\n", svg).strip() + "\n")
        paths.append(path)
    return paths


def render_benchmark(benchmark: Benchmark) -> str:
    """The page as HTML. What models and judges wrote is escaped like everything else."""
    template = page_template(PAGE)
    return template.render(
        benchmark=benchmark,
        tables={table.name: table for table in result_tables(benchmark)},
        figures=_figures(benchmark),
        errors=[(item.facts.model, error) for item in benchmark.models for error in item.judge_errors],
        set_title=set_title,
        geometry=geometry,
    )


def _figures(benchmark: Benchmark) -> dict[str, StageFigure | FarFigure]:
    cascades: Mapping[str, CascadeSummary] = {
        item.facts.model: item.reasoning.overall.cascade for item in benchmark.models
    }
    figures = (stages_of_failing(cascades), stages_of_all(cascades), far_figure(cascades))
    return {figure.name: figure for figure in figures if figure is not None}
