"""An outage of the judge in the report."""

from __future__ import annotations

from pathlib import Path

from mrpo.report.facts import counts
from mrpo.report.load import load_run
from tests.unit.synthetic_run import make_run


def test_the_report_says_how_long_and_when_there_was_no_judge(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps_done=3)
    before = dict(counts(load_run(run.path)))
    run.log_metrics(4, {"rollout/completions": 8.0, "judge/outage_s": 125.0})
    once = dict(counts(load_run(run.path)))
    run.log_metrics(5, {"rollout/completions": 8.0, "judge/outage_s": 10.0})
    twice = dict(counts(load_run(run.path)))
    run.close()
    assert "time without a judge" not in before
    assert once["time without a judge"] == "2 min 5 s, in step 4"
    assert twice["time without a judge"] == "2 min 15 s, in 2 steps from 4 on"
