"""`report.html` of a run: one file that asks nothing of the network."""

from __future__ import annotations

from pathlib import Path

import yaml

from mrpo.atomic import write_text
from mrpo.eval.summary import EvalSummary, compare, summarize
from mrpo.report import charts, facts
from mrpo.report.comparison import accumulation_plot, comparison_table, headlines, position_plot, stage_bars
from mrpo.report.curves import draw_curves
from mrpo.report.faults import fault_rows, faults_text
from mrpo.report.images import data_uri
from mrpo.report.load import RunData, load_run
from mrpo.report.pages import page_template
from mrpo.report.traces import choose_traces


def write_report(folder: Path) -> Path:
    """Render a run's report into its folder, from what is there so far.

    Returns:
        The path of `report.html`.

    Raises:
        DataError: `folder` is no run folder, or a file in it is damaged.
    """
    path = folder / "report.html"
    write_text(path, render(load_run(folder)))
    return path


def render(run: RunData) -> str:
    """The report as HTML. What the policy wrote is escaped like everything else."""
    summaries = {name: summarize(rows) for name, rows in run.evaluations.items()}
    shown: dict[str, EvalSummary] = {name: item for name, item in summaries.items() if name in ("before", "after")}
    if not shown:  # an evaluation during training is better than none
        shown = {name.replace("_", " "): summary for name, summary in list(summaries.items())[-1:]}
    both = {"before", "after"} <= run.evaluations.keys()
    overlaps = [share for _, share in run.series("judge/overlap_share")]
    return page_template("report.html.j2").render(
        run=run,
        date=facts.date(run.state.created_s),
        wall=facts.duration(run.total("time/step_s")),
        notices=facts.notices(run),
        headlines=headlines(shown),
        shown=shown,
        table=comparison_table(shown),
        comparison=compare(run.evaluations["before"], run.evaluations["after"]) if both else None,
        positions=position_plot(shown),
        stages=stage_bars(shown),
        accumulation=accumulation_plot(shown),
        curves=draw_curves(run, summaries),
        time_parts=facts.time_parts(run),
        overlap=sum(overlaps) / len(overlaps) if overlaps else None,
        faults=fault_rows(run.faults),
        faults_text=faults_text(run.faults),
        cards=choose_traces(run),
        settings=facts.settings(run.config, supervised=run.is_supervised),
        counts=facts.counts(run),
        config_yaml=yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True),
        data_uri=data_uri,
        duration=facts.duration,
        percent=charts.percent,
        significant=charts.significant,
        chart=charts,
    )
