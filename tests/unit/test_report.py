"""The report of whole and of partial runs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from mrpo.report.__main__ import main
from mrpo.report.charts import (
    HEIGHT,
    WIDTH,
    Mark,
    Series,
    bar_plot,
    line_plot,
    nice_ticks,
    percent,
    significant,
    stacked_plot,
    trailing_mean,
)
from mrpo.report.load import load_run, load_summaries
from mrpo.report.render import write_report
from mrpo.report.traces import choose_traces
from mrpo.run_folder import RunFolder
from mrpo.run_reading import RunStatus
from tests.unit.synthetic_run import config_tree, make_record, make_run

ALL_SECTIONS = ["Held-out questions, before and after", "Training", "Where the time went", "10 traces", "The run"]


def sections(html: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", html)


def rendered(run: RunFolder) -> str:
    run.close()
    return write_report(run.path).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the report of a finished run."""
    run = make_run(tmp_path_factory.mktemp("runs"), num_questions=120)
    run.set_status(RunStatus.FINISHED)
    return run.path, rendered(run)


def test_a_whole_run_has_every_section_and_no_warning(whole: tuple[Path, str]) -> None:
    _, html = whole
    assert sections(html) == ALL_SECTIONS
    assert "was interrupted" not in html and "There is no evaluation" not in html
    for part in (
        "Answer accuracy",
        "Early failures",
        "of failing completions",
        "Valid steps a completion",
        "Truncated",
    ):
        assert part in html
    for title in ("Accuracy", "Reward", "KL to the reference", "Entropy", "Gradient norm", "Time of a step"):
        assert f"<figcaption><b>{title}</b>" in html


def test_the_report_asks_nothing_of_the_network(whole: tuple[Path, str]) -> None:
    _, html = whole
    assert not re.search(r"(?:https?:)?//[\w-]+\.", html)
    assert not re.search(r"<(?:script|link|iframe)\b|@import|url\(", html)
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert sources and all(source.startswith("data:image/") for source in sources)


def test_the_numbers_are_those_of_the_evaluations(whole: tuple[Path, str]) -> None:
    folder, html = whole
    after = load_summaries(folder)["after"]
    assert after.accuracy is not None and after.early_share is not None
    for interval in (after.accuracy, after.early_share):
        cell = f"{interval.value * 100:.1f}\u00a0% [{interval.low * 100:.1f},\u00a0{interval.high * 100:.1f}]"
        assert cell in html


def test_ten_traces_with_signs_images_and_penalties(whole: tuple[Path, str]) -> None:
    folder, html = whole
    cards = choose_traces(load_run(folder))
    assert len(cards) == 10
    assert html.count('<article class="card">') == html.count("data:image/png;base64,") == 10
    mended = [card for card in cards if card.heading.startswith("Mended")]
    assert mended and all(not card.views[0].correct and card.views[1].correct for card in mended)
    assert {view.label for card in cards for view in card.views} >= {"before", "after", "training step 1, sample 3"}
    training = [view for card in cards for view in card.views if view.rewards]
    assert len(training) == 3
    for view in training:
        assert all(step.advantage is not None and step.valid is not None for step in view.steps)
        assert all(step.advantage < 0 for step in view.steps if step.valid is False and step.advantage)
    assert "✓" in html and "✗" in html


def test_the_choice_of_traces_is_the_same_every_time(whole: tuple[Path, str]) -> None:
    folder, _ = whole
    assert choose_traces(load_run(folder)) == choose_traces(load_run(folder))


def test_counts_of_failures_are_said_plainly(whole: tuple[Path, str]) -> None:
    folder, html = whole
    run = load_run(folder)
    failed = run.total("judge/failures/timeout")
    assert failed > 0
    assert f"{failed:.0f} of 320" in html and f"timeout {failed:.0f}" in html
    assert re.search(r"evaluated completions have no verdicts because the judge failed \(bad_json \d+\)", html)
    for label in ("groups dropped", "answer-only groups, no gold rationale", "cut by the token limit"):
        assert label in html


def test_what_the_policy_writes_is_data(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "demo", config_tree())
    record = make_record(1, [True], correct=True)
    attack = "<script>alert('x')</script><img src=x onerror=alert(1)>{{ 7 * 7 }}"
    completion = replace(
        record.completion,
        text=attack,
        answer=attack,
        steps=[replace(step, text=attack) for step in record.completion.steps],
    )
    example = replace(record.example, question=attack, rationale=attack)
    run.write_evaluation("before", [replace(record, completion=completion, example=example)])
    html = rendered(run)
    assert "<script" not in html and "<img src=x" not in html
    assert html.count("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;") >= 4
    assert "{{ 7 * 7 }}" in html


def test_a_run_with_only_an_evaluation_before(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps_done=0, num_questions=30, evaluations=("before",))
    html = rendered(run)
    assert sections(html) == ["Held-out questions", "10 traces", "The run"]
    assert "There is no evaluation after training" in html
    assert "going on, or was killed: 0 of 40 steps" in html


def test_a_run_without_judge(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps_done=6, num_questions=30, evaluations=("before", "after"), judged=False)
    run.set_status(RunStatus.FINISHED)
    html = rendered(run)
    assert sections(html) == ALL_SECTIONS
    assert "No judge ruled on the evaluated steps" in html
    assert "no judge was asked" in html
    assert "Stage of the first failure" not in html and "<b>Early failures</b>" not in html


def test_an_interrupted_run(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps_done=3, num_questions=30, evaluations=("before",))
    run.set_status(RunStatus.INTERRUPTED, "stopped by the user")
    with run.metrics_path.open("a") as file:
        file.write('{"step": 4, "acc')
    html = rendered(run)
    assert "interrupted after 3 of 40 steps" in html
    assert "half written and left out" in html
    assert "Training" in sections(html)


def test_a_run_with_an_evaluation_during_training_only(tmp_path: Path) -> None:
    html = rendered(make_run(tmp_path, steps_done=2, num_questions=10, evaluations=("step_20",)))
    assert "no evaluation before training" in html
    assert "step 20, n = 10" in html


def test_a_run_that_did_nothing_yet(tmp_path: Path) -> None:
    html = rendered(RunFolder.create(tmp_path, "demo", config_tree()))
    assert sections(html) == ["The run"]
    assert "no evaluation on held-out questions" in html


def test_an_image_that_is_gone_is_named(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "demo", config_tree())
    run.write_evaluation("before", [make_record(1, [True], correct=True, image="/gone/scan.png")])
    assert "image not readable: /gone/scan.png" in rendered(run)


def test_the_command_writes_the_report(whole: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    folder, html = whole
    (folder / "report.html").unlink()
    assert main([f"run={folder}"]) == 0
    assert capsys.readouterr().out == f"report: {folder}/report.html\n"
    assert (folder / "report.html").read_text(encoding="utf-8") == html


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "expected: python -m mrpo.report run="), (["run=/nowhere"], "is no run folder"), (["rnu=x"], "got rnu=x")],
)
def test_the_command_explains_itself_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_ticks_are_round_and_cover_the_data() -> None:
    assert nice_ticks(0.0, 0.93) == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0])
    assert nice_ticks(3.0, 3.0)[0] <= 3.0 <= nice_ticks(3.0, 3.0)[-1]
    for low, high in ((-2.3, 17.0), (1e-6, 3e-6), (0.0, 12345.0), (-1.0, -0.5)):
        ticks = nice_ticks(low, high)
        assert ticks[0] <= low + 1e-9 and ticks[-1] >= high - 1e-9 and 2 <= len(ticks) <= 7


def test_curves_stay_inside_the_drawing() -> None:
    points = [(float(step), (-1) ** step * step * 0.1) for step in range(1, 60)]
    plot = line_plot("x", [Series(label="x", points=points, style="a")])
    assert plot is not None
    for x, y in re.findall(r"([\d.-]+),([\d.-]+)", plot.lines[0].path):
        assert 0 <= float(x) <= WIDTH and 0 <= float(y) <= HEIGHT
    assert line_plot("x", [Series(label="x", points=[], style="a")]) is None


def test_marks_alone_make_a_plot() -> None:
    plot = line_plot("x", [], marks=[Mark(label="before", step=0, value=0.5, low=0.4, high=0.6)], is_share=True)
    assert plot is not None
    (whisker,) = plot.whiskers
    assert whisker.y_high < whisker.y < whisker.y_low


def test_a_stack_needs_steps_that_all_parts_have() -> None:
    first = Series(label="a", points=[(1, 1.0), (2, 1.0)], style="a")
    second = Series(label="b", points=[(2, 3.0)], style="b")
    plot = stacked_plot("x", [first, second], unit="s")
    assert plot is not None and [line.last for line in plot.lines] == ["1", "3"]
    assert stacked_plot("x", [first, Series(label="c", points=[], style="c")], unit="s") is None


def test_bars_without_a_value_are_not_drawn() -> None:
    plot = bar_plot(["1", "2"], [("before", "before", [0.5, None]), ("after", "after", [0.25, 0.75])], what="x")
    assert [bar.label for bar in plot.bars] == ["before, 1: 50 %", "after, 1: 25 %", "after, 2: 75 %"]
    assert plot.bars[0].height == pytest.approx(2 * plot.bars[1].height, abs=0.2)


def test_numbers_are_written_for_people() -> None:
    assert [percent(value) for value in (0.0, 0.004, 0.0812, 0.5, 1.0)] == ["0 %", "0.4 %", "8.1 %", "50 %", "100 %"]
    assert [significant(value) for value in (0.0, -0.04, 12345.6, 2e-5)] == ["0", "−0.04", "12,346", "2e−5"]


def test_trailing_mean_uses_no_later_value() -> None:
    points = [(float(step), float(step)) for step in range(25)]  # a window of two
    assert trailing_mean(points)[:3] == [(0.0, 0.0), (1.0, 0.5), (2.0, 1.5)]
