"""Canaries in the report and in the estimate of a run's judge."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mrpo.config import Config
from mrpo.judge_cost.estimate import phases_of
from mrpo.judge_cost.sample import sample_rows
from mrpo.report.facts import counts
from mrpo.report.load import load_run
from tests.unit.synthetic_run import make_run


def test_the_report_says_how_many_known_steps_were_ruled_wrong_and_when_most(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps_done=3)
    before = dict(counts(load_run(run.path)))
    run.log_metrics(4, {"rollout/completions": 8.0, "judge/canary_steps": 20.0, "judge/canary_error_rate": 0.1})
    run.log_metrics(5, {"rollout/completions": 8.0, "judge/canary_steps": 30.0, "judge/canary_error_rate": 0.6})
    after = dict(counts(load_run(run.path)))
    run.close()
    assert "canary steps ruled wrong" not in before
    assert after["canary steps ruled wrong"].startswith("20 of 50 (40")
    assert after["canary steps ruled wrong"].endswith("; most in step 5: 60 %")


def test_a_run_of_which_no_canary_was_wrong_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps_done=1)
    run.log_metrics(2, {"rollout/completions": 8.0, "judge/canary_steps": 20.0, "judge/canary_error_rate": 0.0})
    found = dict(counts(load_run(run.path)))
    run.close()
    assert found["canary steps ruled wrong"] == "none of 20"


def test_the_estimate_counts_them(tmp_path: Path) -> None:
    config = replace(Config(), cache_dir=str(tmp_path))
    sample = sample_rows(config, data_is_known=True)
    with_canaries = replace(config, judge=replace(config.judge, canary_share=0.25))
    for plain, more in zip(phases_of(config, sample), phases_of(with_canaries, sample), strict=True):
        assert more.step_calls == pytest.approx(1.25 * plain.step_calls)
        assert more.answer_calls == plain.answer_calls
