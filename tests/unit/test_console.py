"""What the console shows, on a terminal and in a log file."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import pytest

from mrpo.console import Console, duration, time_shares
from mrpo.eval.summary import summarize
from mrpo.metrics import evaluation_metrics
from mrpo.trace_row import row_of_evaluation
from tests.unit.synthetic_run import make_record

METRICS = {
    "reward/mean": 1.25,
    "accuracy": 0.5,
    "cascade/early_share": 0.375,
    "rollout/tokens_per_s": 4321.4,
    "time/rollout_s": 3.0,
    "time/judge_s": 0.5,
    "time/learn_s": 1.25,
    "time/sync_s": 0.25,
    "time/step_s": 5.0,
}


class Terminal(io.StringIO):
    """A file that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_log_file_gets_one_plain_line_every_few_steps() -> None:
    file = io.StringIO()
    with Console(20, file=file, plain_every=5) as console:
        for step in range(1, 21):
            console.step(step, METRICS)
    lines = file.getvalue().splitlines()
    assert [line.split(" | ")[0] for line in lines] == [f"step {n}/20" for n in (1, 5, 10, 15, 20)]
    assert lines[1] == (
        "step 5/20 | reward 1.250 | accuracy 0.500 | early failures 0.375 | 4,321 tokens/s | 5.0 s a step | "
        "1:15 left | rollout 60% judge 10% learn 25% sync 5%"
    )
    assert "\x1b" not in file.getvalue()


def test_absent_measures_are_left_out() -> None:
    file = io.StringIO()
    with Console(1, file=file) as console:
        console.step(1, {"accuracy": 1.0})
    assert file.getvalue() == "step 1/1 | accuracy 1.000\n"


def test_stages_say_how_long_they_took_and_whether_they_failed() -> None:
    file = io.StringIO()
    with Console(1, file=file) as console:
        with console.stage("starting [engine]"), console.stage("starting learner"):
            pass
        with pytest.raises(RuntimeError), console.stage("weights"):
            raise RuntimeError("no")
    lines = file.getvalue().splitlines()
    assert lines[:2] == ["starting [engine] …", "starting learner …"]
    assert lines[2:5] == ["✓ starting learner: 0.0 s", "✓ starting [engine]: 0.0 s", "weights …"]
    assert lines[5].startswith("✗ weights: failed after 0.0 s")


def test_a_terminal_gets_a_live_display_with_everything_in_it() -> None:
    file = Terminal()
    with Console(8, file=file) as console:
        console.step(2, METRICS)
        with console.stage("evaluation"):
            console.note("a line that stays")
            live = console._live
            assert live is not None
            live.refresh()
    text = file.getvalue()
    for part in ("step 2/8", "0:30 left", "reward 1.250", "rollout 60%", "evaluation 0 s", "a line that stays"):
        assert part in text


def test_a_terminal_shows_what_the_run_waits_for_while_it_waits() -> None:
    file, said = Terminal(), ["judge: out for 23 s (refused), 3 calls wait, asking again …"]
    with Console(20, file=file) as console, console.watching(lambda: said[0] if said else None):
        assert console._live is not None
        console._live.refresh()
        assert "judge: out for 23 s (refused), 3 calls wait" in file.getvalue()
        said.clear()
        written = len(file.getvalue())
        console._live.refresh()
        assert "judge" not in file.getvalue()[written:]


def test_log_records_go_through_the_same_console() -> None:
    file = io.StringIO()
    with Console(1, file=file) as console:
        handler = console.log_handler()
        handler.emit(logging.LogRecord("mrpo", logging.WARNING, "", 0, "disk [almost] full", None, None))
    assert "disk [almost] full" in file.getvalue()


def test_the_end_shows_before_and_after_with_intervals_and_the_report() -> None:
    file = io.StringIO()
    before = [make_record(n, [n % 2 == 0, True], correct=n % 4 == 0) for n in range(100)]
    after = [make_record(n, [n % 10 != 0, True], correct=n % 2 == 0) for n in range(100)]
    with Console(5, file=file) as console:
        console.evaluation("before", 0, evaluation_metrics(before))
        console.step(5, METRICS)
        summaries = {
            name: summarize([row_of_evaluation(item) for item in items])
            for name, items in (("before", before), ("after", after))
        }
        console.finish(summaries, report=Path("/runs/x/report.html"), wall_s=3723.0)
    text = file.getvalue()
    assert (
        "evaluation before (step 0): 100 questions, accuracy 25.0% (17.5–34.3), early failures 50.0% (40.4–59.6)"
        in text
    )
    assert "25.0% (17.5–34.3)" in text and "50.0% (40.4–59.6)" in text and "10.0% (5.5–17.4)" in text
    assert "5 of 5 steps, 1:02:03" in text
    assert "report: /runs/x/report.html" in text


def test_the_end_of_a_run_without_judge_or_evaluation() -> None:
    file = io.StringIO()
    with Console(5, file=file) as console:
        console.finish({}, report=None, wall_s=2.0)
        console.finish(
            {"after": summarize([row_of_evaluation(make_record(1, None, correct=True))])}, report=None, wall_s=2
        )
    text = file.getvalue()
    assert text.startswith("0 of 5 steps, 0:02\n")
    assert "accuracy" in text and "early failures" not in text and "before" not in text


def test_time_shares_are_of_the_whole_step() -> None:
    assert time_shares(METRICS) == {"rollout": 0.6, "judge": 0.1, "learn": 0.25, "sync": 0.05}
    assert time_shares({}) == {}


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0.4, 59.6, 61, 3600)] == ["0:00", "1:00", "1:01", "1:00:00"]
