"""`reward.answer.kind=judge`: who is asked about answers, what a ruling is worth, and what a failed one does."""

from __future__ import annotations

import asyncio
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mrpo.choices import AnswerKind, JudgeFailurePolicy
from mrpo.config import AnswerConfig, Config, plain
from mrpo.console import Console
from mrpo.errors import DataError, JudgeUnavailableError
from mrpo.eval.record import EvalRecord
from mrpo.eval.summary import summarize
from mrpo.metrics import evaluation_metrics, judge_metrics, reduce, split_times
from mrpo.report.load import load_run
from mrpo.report.render import render
from mrpo.rows import read_rows
from mrpo.run_folder import RunFolder
from mrpo.run_session import judge_ledger
from mrpo.trace_row import row_of_evaluation
from mrpo.types import AnswerJudgement, AnswerRequest, FailureReason, JudgeFailure
from tests.unit.fakes import FakeJudge, phantom_example
from tests.unit.synthetic_run import START_S, config_tree, make_record
from tests.unit.test_controller import NO_STEPS, RIGHT, WRONG, G, World, make_world, with_config

NO_ANSWER = RIGHT.partition("<answer>")[0]
EMPTY_ANSWER = f"{NO_ANSWER}<answer>  </answer>"


def answers_judged(*, num_steps: int = 1, **sections: Any) -> Config:
    """A run in which the judge rates the answers; it may fail on one completion of each group of four."""
    reward = {"answer": AnswerConfig(kind=AnswerKind.JUDGE)}
    judge = {"max_failure_share": 0.25, **sections.pop("judge", {})}
    return with_config(num_steps=num_steps, **{"reward": reward, "judge": judge, **sections})


def first_of_each_group(request: AnswerRequest) -> FailureReason | None:
    return FailureReason.TIMEOUT if request.key.endswith("#0") else None


def rewards_by_text(world: World) -> dict[str, set[float | None]]:
    found: dict[str, set[float | None]] = {}
    for item in world.recorder.rollouts[1]:
        found.setdefault(item.trace.completion.text, set()).add(item.answer_reward)
    return found


def test_the_ruling_is_the_reward(tmp_path: Path) -> None:
    world = make_world(tmp_path, answers_judged(), texts=(RIGHT, WRONG))
    world.run()
    assert rewards_by_text(world) == {RIGHT: {1.0}, WRONG: {0.0}}
    assert len(world.judge.answer_calls) == len(world.judge.calls) == 2 * G
    metrics = world.recorder.metrics[1]
    assert (metrics["judge/asked"], metrics["judge/answers_asked"]) == (2.0 * G, 2.0 * G)
    assert metrics["judge/requests"] == 4.0 * G
    assert metrics["judge/answer_failure_share"] == 0.0


def test_a_request_holds_the_gold_answer_and_the_generated_one(tmp_path: Path) -> None:
    world = make_world(tmp_path, answers_judged(), texts=(WRONG,))
    world.run()
    example = phantom_example(0)
    for request in world.judge.answer_calls:
        assert (request.question, request.answer, request.generated) == (example.question, example.answer, "left")
        assert request.image.endswith(".png")


def test_steps_and_answers_are_judged_side_by_side(tmp_path: Path) -> None:
    world = make_world(tmp_path, answers_judged())
    world.judge.latency_s = 0.05
    world.run()
    assert world.judge.max_in_flight == 2 * 2 * G


def test_other_kinds_ask_nobody_about_answers(tmp_path: Path) -> None:
    world = make_world(tmp_path, with_config(num_steps=1))
    world.run()
    assert world.judge.answer_calls == []
    assert world.recorder.metrics[1]["judge/answers_asked"] == 0.0


@pytest.mark.parametrize("unanswered", [NO_ANSWER, EMPTY_ANSWER], ids=["no tag", "blank"])
def test_no_answer_scores_0_without_a_call(tmp_path: Path, unanswered: str) -> None:
    world = make_world(tmp_path, answers_judged(), texts=(unanswered, RIGHT))
    world.run()
    assert rewards_by_text(world) == {unanswered: {0.0}, RIGHT: {1.0}}
    answered = [item for item in world.recorder.rollouts[1] if item.trace.completion.text == RIGHT]
    assert {request.key for request in world.judge.answer_calls} == {item.trace.completion.key for item in answered}
    assert len(world.learner.batches[0]) == 2 * G, "no answer is no failed judgement"


def test_answers_are_judged_without_steps_and_without_rationale(tmp_path: Path) -> None:
    train = [phantom_example(number, rationale=False) for number in range(5)]
    world = make_world(tmp_path, answers_judged(), texts=(NO_STEPS, RIGHT), train=train)
    world.run()
    assert world.judge.calls == []
    assert len(world.judge.answer_calls) == 2 * G


@pytest.mark.parametrize("policy", [JudgeFailurePolicy.EXCLUDE, JudgeFailurePolicy.ANSWER_ONLY])
def test_an_answer_whose_judgement_failed_leaves_the_baseline_and_is_never_0(
    tmp_path: Path, policy: JudgeFailurePolicy
) -> None:
    """Without an answer's reward there is nothing to compare by, so that neither policy can keep the completion."""
    world = make_world(tmp_path, answers_judged(judge={"on_failure": policy}), texts=(RIGHT, WRONG))
    world.judge.failing_answers = first_of_each_group
    world.run()
    assert [sample.key[-2:] for sample in world.learner.batches[0]] == ["#1", "#2", "#3"] * 2
    for item in world.recorder.rollouts[1]:
        if item.trace.completion.sample_index == 0:
            assert (item.answer_reward, item.reward, item.advantage, item.in_baseline) == (None, None, 0.0, False)
            assert set(item.token_advantages) == {0.0}
            assert item.process_reward is not None, "its steps were ruled on"
        else:
            assert item.answer_reward in (0.0, 1.0)
    right = [item.answer_reward for item in world.recorder.rollouts[1] if item.answer_reward is not None]
    metrics = world.recorder.metrics[1]
    assert metrics["reward/answer"] == sum(right) / 6
    assert metrics["judge/answer_failure_share"] == 0.25
    assert metrics["judge/failures/timeout"] == 2.0


def test_a_failed_answer_judgement_ends_the_run_under_fail(tmp_path: Path) -> None:
    config = answers_judged(judge={"on_failure": JudgeFailurePolicy.FAIL})
    world = make_world(tmp_path, config)
    world.judge.failing_answers = first_of_each_group
    with pytest.raises(JudgeUnavailableError, match=r"#0 failed \(timeout: as told\) and judge\.on_failure=fail"):
        world.run()
    assert world.learner.batches == []
    assert world.recorder.checkpoints == [0]


def test_a_completion_without_one_of_its_rulings_has_failed(tmp_path: Path) -> None:
    """All 8 answers of 16 calls failed: these are all completions of the step."""
    world = make_world(tmp_path, answers_judged(judge={"max_failure_share": 0.99}))
    world.judge.failing_answers = lambda request: FailureReason.REFUSED
    with pytest.raises(JudgeUnavailableError, match="the judge failed on 8 of 8 completions of step 1"):
        world.run()


def test_an_evaluation_keeps_a_question_whose_answer_was_not_rated(tmp_path: Path) -> None:
    world = make_world(tmp_path, answers_judged(eval={"before": True}), texts=(RIGHT,))
    world.judge.failing_answers = lambda request: FailureReason.BAD_JSON if request.key == "t1#0" else None
    world.run()
    records = world.recorder.evaluations["before"]
    assert [record.correct for record in records] == [True, False, True]
    assert [record.valid is not None for record in records] == [True] * 3
    (listed,) = [
        record for record in records if record.answer_judgement and record.answer_judgement.outcome is not True
    ]
    assert listed.example.id == "t1"
    metrics = world.watcher.evaluations[0][2]
    assert (metrics["eval/questions"], metrics["eval/correct"]) == (3.0, 2.0)
    assert metrics["eval/accuracy"] == pytest.approx(2 / 3)
    assert (metrics["eval/answer_judge_failed"], metrics["eval/judge_failed"]) == (1.0, 0.0)


def test_an_evaluation_without_step_judging_still_rates_answers(tmp_path: Path) -> None:
    world = make_world(tmp_path, answers_judged(eval={"before": True, "judge": False}), texts=(RIGHT, WRONG))
    world.run()
    assert all("@" in request.key for request in world.judge.calls), "steps are judged in training alone"
    assert [request.key for request in world.judge.answer_calls[:3]] == ["t0#0", "t1#0", "t2#0"]
    assert {record.valid for record in world.recorder.evaluations["before"]} == {None}


def test_the_rows_count_every_request_for_a_run_without_a_ledger(tmp_path: Path) -> None:
    """3 questions and 8 completions, each with a call about its steps and one about its answer."""
    config = answers_judged(eval={"before": True})
    with RunFolder.create(tmp_path, "demo", plain(config)) as run:
        world = make_world(tmp_path, config, texts=(RIGHT, WRONG), recorder=run)
        world.judge.failing_answers = first_of_training
        world.run()
        assert (
            judge_ledger(run, config.judge).total.requests
            == len(world.judge.calls) + len(world.judge.answer_calls)
            == 2 * (3 + 2 * G)
        )
        assert judge_ledger(run, config.judge).total.requests == 2 * (3 + 2 * G), "counted twice once it has one"
        rows = read_rows(run.path / "rollouts" / "step_00001.parquet")
    failed = [row for row in rows if row.sample_index == 0]
    assert {(row.answer_judge_failure, row.answer_judge_detail) for row in failed} == {("timeout", "as told")}
    assert {row.answer_reward for row in failed} == {None}
    assert {row.correct for row in failed} == {False}
    assert {row.answer_judge_failure for row in rows if row not in failed} == {None}
    assert all(row.answer_judge_started_s is not None and row.answer_judge_ended_s is not None for row in rows)


def first_of_training(request: AnswerRequest) -> FailureReason | None:
    return first_of_each_group(request) if "@" in request.key else None


def test_an_error_about_one_answer_leaves_no_call_behind(tmp_path: Path) -> None:
    world = make_world(tmp_path, answers_judged())
    judge = Unreadable(diary=world.diary)
    judge.latency_s = 0.2
    world.judge = judge
    world.controller.collector = replace(world.controller.collector, judge=judge)
    with pytest.raises(DataError, match="no such image"):
        world.run()
    assert judge.calls, "steps were asked about at the same time"


class Unreadable(FakeJudge):
    """A judge whose caller cannot read the image."""

    async def judge_answer(self, request: AnswerRequest) -> AnswerJudgement:
        await asyncio.sleep(0)
        raise DataError("no such image")


def unrated(number: int) -> EvalRecord:
    """An evaluated question whose steps were ruled on and whose answer was not."""
    record = make_record(number, [True, True], correct=False)
    failure = JudgeFailure(reason=FailureReason.BAD_JSON, detail="made up")
    judgement = AnswerJudgement(key=record.completion.key, outcome=failure, started_s=1.0, ended_s=2.0, attempts=1)
    return replace(record, answer_judgement=judgement)


def test_people_are_told_of_answers_that_were_not_rated(tmp_path: Path) -> None:
    records = [make_record(1, [True], correct=True), unrated(2)]
    run = RunFolder.create(tmp_path, "demo", config_tree())
    run.write_evaluation("before", records)
    html = render(load_run(run.path))
    notice = "1 of 2 evaluated answers have no ruling because the judge failed (bad_json 1); they stay in n and count"
    assert notice in html
    assert "Answer not rated" in html
    file = io.StringIO()
    with Console(1, file=file) as console:
        console.evaluation("before", 0, evaluation_metrics(records))
        console.finish({"before": summarize([row_of_evaluation(item) for item in records])}, report=None, wall_s=1.0)
    assert "accuracy 50.0%" in file.getvalue()
    assert "1 answer judgements failed" in file.getvalue()
    assert "answers not rated (judge failed)" in file.getvalue()


def test_where_all_answers_were_rated_nothing_is_said(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "demo", config_tree())
    run.write_evaluation("before", [make_record(1, [True], correct=True)])
    html = render(load_run(run.path))
    assert "no ruling" not in html and "not rated" not in html and "knows no medicine" not in html


def test_the_report_says_that_the_lexical_judge_is_weak(tmp_path: Path) -> None:
    tree = config_tree()
    tree["judge"]["kind"] = "lexical"
    run = RunFolder.create(tmp_path, "demo", tree)
    run.write_evaluation("before", [make_record(1, [True], correct=True)])
    assert "knows no medicine" in render(load_run(run.path))


def test_time_spent_on_answers_is_judging_time() -> None:
    """Generation ends at 2 s; the steps are ruled on by then + 0.5 s, the answer from 2 s to 6 s, sent at 3 s."""
    record = make_record(1, [True], correct=True)
    ended_s = record.completion.ended_s
    judgement = AnswerJudgement(
        key="k", outcome=True, started_s=ended_s, sent_s=ended_s + 1.0, ended_s=ended_s + 4.0, attempts=1
    )
    row = row_of_evaluation(replace(record, answer_judgement=judgement))
    assert split_times([row], started_s=START_S, learn_s=0.0, sync_s=0.0, step_s=9.0).judge_s == 4.0
    metrics = reduce(judge_metrics([row]))
    assert metrics["judge/queue_s"] == (0.125 + 1.0) / 2
    assert metrics["judge/latency_s"] == (0.375 + 3.0) / 2
    assert metrics["judge/latency_max_s"] == 3.0
