"""The numbers of a step, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mrpo.choices import JudgeFailurePolicy
from mrpo.config import AlgorithmConfig, RewardConfig
from mrpo.eval.intervals import mcnemar_p, mean_interval, wilson_interval
from mrpo.eval.summary import compare, summarize
from mrpo.metrics import (
    MAX_POSITION,
    Max,
    Mean,
    Sum,
    completion_metrics,
    evaluation_metrics,
    merge,
    reduce,
    split_times,
    step_distributions,
    step_metrics,
)
from mrpo.scoring import ScoredTrace, Trace, score_group_batch
from mrpo.trace_row import TraceRow, row_of_evaluation
from mrpo.types import Example, FailureReason, FinishReason, LearnStats
from tests.unit.synthetic_run import START_S, make_completion, make_example, make_judgement, make_record

STATS = LearnStats(
    loss=0.25,
    kl=0.02,
    clip_share=0.1,
    entropy=0.7,
    grad_norm=1.5,
    lr=1e-4,
    num_tokens=40,
    num_micro_batches=2,
    seconds=3.0,
    extra={"logits_max": 9.0},
)


def test_means_of_parts_are_not_averaged() -> None:
    merged = reduce(merge({"x": Mean.of([1.0])}, {"x": Mean.of([0.0, 0.0, 0.0])}))
    assert merged == {"x": 0.25}


def test_sums_and_largest_values_merge() -> None:
    merged = merge({"n": Sum(2), "top": Max.of([1.0])}, {"n": Sum(3), "top": Max.of([])}, {"top": Max.of([4.0])})
    assert reduce(merged) == {"n": 5.0, "top": 4.0}


def test_what_was_not_observed_is_absent_and_not_zero() -> None:
    assert reduce({"mean": Mean.of([]), "top": Max.of([]), "n": Sum(0)}) == {"n": 0.0}


def trace(example: Example, sample: int, valid: list[bool] | FailureReason | None, answer: str | None) -> Trace:
    steps = [f"Step number {index} says so." for index in range(len(valid) if isinstance(valid, list) else 4)]
    completion = make_completion(example, steps, answer, sample_index=sample)
    return Trace(
        example=example,
        completion=completion,
        judgement=None if valid is None else make_judgement(completion, valid),
        answer_reward=float(answer == example.answer),
    )


def score(traces: list[Trace], on_failure: JudgeFailurePolicy = JudgeFailurePolicy.EXCLUDE) -> list[ScoredTrace]:
    return score_group_batch(
        traces,
        group_size=2,
        algorithm=AlgorithmConfig(),
        reward=RewardConfig(),
        on_failure=on_failure,
    ).traces


def numbers(traces: list[Trace], on_failure: JudgeFailurePolicy = JudgeFailurePolicy.EXCLUDE) -> dict[str, float]:
    return step_metrics(
        score(traces, on_failure), STATS, threshold=0.6, policy_version=0, started_s=START_S, sync_s=0.5, step_s=8.0
    )


def test_a_step_by_hand() -> None:
    judged, failing, bare = make_example(1), make_example(2), make_example(3, rationale=None)
    right, wrong = judged.answer, "lower right, 9"
    metrics = numbers(
        [
            trace(judged, 0, [True, True, True, True], right),  # reward 1 + 1 + 0
            trace(judged, 1, [False, True, False, False], wrong),  # 0 + 0.25 + 0, fails early
            trace(failing, 0, [True, True, True, False], right),  # alone left in its group: dropped
            trace(failing, 1, FailureReason.TIMEOUT, wrong),
            trace(bare, 0, None, right),  # 1 + 0
            trace(bare, 1, None, right),  # 1 + 0: equal rewards
        ]
    )
    expected = {
        "reward/mean": (2.0 + 0.25 + 1.0 + 1.0) / 4,
        "reward/answer": 4 / 6,
        "reward/process": (1.0 + 0.25 + 0.75) / 3,
        "reward/step_count": 0.0,
        "accuracy": 4 / 6,
        "cascade/early_share": 1 / 3,
        "cascade/early_share_failing": 1 / 2,
        "cascade/failing_share": 2 / 3,
        "steps/valid_share": 8 / 12,
        "steps/valid_share_at/1": 2 / 3,
        "steps/valid_share_at/2": 3 / 3,
        "steps/valid_share_at/3": 2 / 3,
        "steps/valid_share_at/4": 1 / 3,
        "steps/count": 4.0,
        "steps/none_share": 0.0,
        "steps/token_coverage": 1.0,
        "completion/truncated": 0.0,
        "completion/truncated_share": 0.0,
        "completion/answered_share": 1.0,
        "judge/asked": 4.0,
        "judge/requests": 4.0,
        "judge/failure_share": 1 / 4,
        "judge/failures/timeout": 1.0,
        "judge/queue_s": 0.125,
        "judge/latency_s": 0.375,
        "judge/latency_max_s": 0.375,
        "groups/count": 3.0,
        "groups/dropped": 1.0,
        "groups/constant": 1.0,
        "groups/answer_only": 1.0,
        "groups/answer_only_no_rationale": 1.0,
        "groups/answer_only_judge_failed": 0.0,
        "time/rollout_s": 2.0,
        "time/judge_s": 0.5,
        "time/learn_s": 3.0,
        "time/sync_s": 0.5,
        "time/step_s": 8.0,
        "judge/overlap_share": 0.0,
        "policy/kl": 0.02,
        "policy/clip_share": 0.1,
        "policy/entropy": 0.7,
        "policy/grad_norm": 1.5,
        "policy/lr": 1e-4,
        "policy/loss": 0.25,
        "policy/tokens": 40.0,
        "policy/logits_max": 9.0,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert metrics["rollout/tokens_per_s"] == pytest.approx(metrics["rollout/tokens"] / 2.0)


def test_a_group_scored_without_process_after_a_failure_is_counted_as_such() -> None:
    example = make_example(1)
    traces = [trace(example, 0, [True] * 4, example.answer), trace(example, 1, FailureReason.REFUSED, "wrong")]
    metrics = numbers(traces, JudgeFailurePolicy.ANSWER_ONLY)
    assert metrics["groups/answer_only"] == metrics["groups/answer_only_judge_failed"] == 1.0
    assert metrics["groups/dropped"] == metrics["groups/answer_only_no_rationale"] == 0.0
    assert "reward/process" not in metrics
    assert metrics["reward/mean"] == 0.5


def test_without_judge_and_learning_nothing_is_made_up() -> None:
    example = make_example(1, rationale=None)
    scored = score([trace(example, 0, None, None), trace(example, 1, None, None)])
    metrics = step_metrics(scored, None, threshold=0.6, policy_version=0, started_s=START_S, sync_s=0.0, step_s=2.5)
    assert not any(name.startswith(("policy/", "cascade/")) for name in metrics)
    assert not {"reward/process", "judge/failure_share", "judge/overlap_share", "steps/valid_share"} & metrics.keys()
    assert metrics["completion/truncated"] == 2.0
    assert metrics["time/learn_s"] == 0.0


def row(rollout_end: float, judge: tuple[float, float] | None) -> TraceRow:
    """A completion and its judging by seconds since the start."""
    record = make_record(1, [True], correct=True, ended_s=START_S + rollout_end)
    if judge is None:
        return row_of_evaluation(replace(record, judgement=None, valid=None))
    started_s, ended_s = START_S + judge[0], START_S + judge[1]
    ruling = make_judgement(record.completion, [True], started_s=started_s, ended_s=ended_s)
    return row_of_evaluation(replace(record, judgement=ruling))


def test_repetition_and_length_by_hand() -> None:
    one, two, three = (row(2.0, None) for _ in range(3))
    one = replace(
        one, text="so so so so so so", steps=["It is left.", "it is left", "So be it."], answer="left upper lung"
    )
    two = replace(two, text="a b c d e", steps=["It is left."], answer="")
    three = replace(three, text="too short", steps=[], answer=None)
    found = reduce(completion_metrics([one, two, three]))
    assert found["completion/repetition"] == pytest.approx((2 / 3 + 0) / 2)  # three fours, all equal; the last has none
    assert found["steps/repeated_share"] == pytest.approx((1 / 3 + 0) / 2)
    assert found["answer/words"] == pytest.approx((3 + 0) / 2)
    assert (
        not {"completion/repetition", "steps/repeated_share", "answer/words"}
        & reduce(completion_metrics([three])).keys()
    )


def test_judging_beside_generation_is_told_from_judging_after_it() -> None:
    rows = [row(2.0, (2.0, 5.0)), row(4.0, (4.0, 6.0)), row(10.0, (10.0, 12.0)), row(3.0, None)]
    times = split_times(rows, started_s=START_S, learn_s=1.0, sync_s=1.0, step_s=15.0)
    assert (times.rollout_s, times.judge_s) == pytest.approx((10.0, 2.0))
    # Calls were open from 2 to 6 and from 10 to 12; generation ran until 10.
    assert times.judge_overlap_share == pytest.approx(4 / 6)


def test_time_split_without_judging() -> None:
    times = split_times([row(3.0, None)], started_s=START_S, learn_s=0.0, sync_s=0.0, step_s=4.0)
    assert (times.rollout_s, times.judge_s, times.judge_overlap_share) == (3.0, 0.0, None)


def test_wilson_interval_by_the_textbook() -> None:
    found = wilson_interval(8, 10)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    nothing, everything = wilson_interval(0, 10), wilson_interval(10, 10)
    assert nothing is not None and (nothing.low, nothing.high) == pytest.approx((0.0, 0.2775328), abs=1e-6)
    assert everything is not None and everything.high == 1.0
    assert wilson_interval(0, 0) is None


def test_mean_interval_by_hand() -> None:
    found = mean_interval([1.0, 2.0, 3.0])
    assert found is not None
    assert (found.value, found.high - found.value) == pytest.approx((2.0, 1.959964 / 3**0.5), abs=1e-6)
    assert mean_interval([]) is None


def test_mcnemar_by_hand() -> None:
    assert mcnemar_p(5, 0) == 2 / 32
    assert mcnemar_p(1, 5) == pytest.approx(2 * (1 + 6) / 64)
    assert mcnemar_p(0, 0) == mcnemar_p(3, 3) == 1.0


def test_evaluation_by_hand() -> None:
    records = [
        make_record(1, [True, True, True, True], correct=True),
        make_record(2, [False, False, True, False], correct=False),  # early
        make_record(3, [True, False, False, True], correct=False),  # mid
        make_record(4, [True, True, True, False], correct=True),  # late
        make_record(5, FailureReason.BAD_JSON, correct=True),
        make_record(6, None, correct=False, finish_reason=FinishReason.TRUNCATED),
    ]
    summary = summarize([row_of_evaluation(record) for record in records])
    assert (summary.num_questions, summary.num_correct, summary.num_judged, summary.num_failing) == (6, 3, 4, 3)
    assert (summary.num_judge_failed, summary.num_truncated) == (1, 1)
    assert summary.first_failures == {1: 1, 2: 1, 4: 1}
    metrics = evaluation_metrics(records)
    expected = {
        "eval/accuracy": 0.5,
        "eval/early_share": 1 / 4,
        "eval/early_share_failing": 1 / 3,
        "eval/mid_share_failing": 1 / 3,
        "eval/late_share_failing": 1 / 3,
        "eval/valid_share": 10 / 16,
        "eval/valid_steps": 2.5,
        "eval/accumulation_rate": (2 / 3 + 1 / 2) / 2,  # nothing follows the late failure
        "eval/questions": 6.0,
        "eval/judged": 4.0,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert metrics["eval/accuracy_low"] < 0.5 < metrics["eval/accuracy_high"]


def test_evaluation_without_judge_has_accuracy_only() -> None:
    metrics = evaluation_metrics([make_record(1, None, correct=True)])
    assert metrics["eval/accuracy"] == 1.0
    assert not {"eval/early_share", "eval/valid_share", "eval/accumulation_rate"} & metrics.keys()


def test_comparison_pairs_by_question() -> None:
    before = [row_of_evaluation(make_record(n, None, correct=n in (1, 2))) for n in (1, 2, 3, 4)]
    after = [row_of_evaluation(make_record(n, None, correct=n in (2, 3, 4))) for n in (4, 3, 2, 1, 9)]
    found = compare(before, after)
    assert found is not None
    assert (found.num_paired, found.num_gained, found.num_lost) == (4, 2, 1)
    assert compare(before, after[-1:]) is None


def test_the_last_position_holds_all_later_steps_too() -> None:
    example = make_example(1)
    traces = [
        trace(example, 0, [True] * MAX_POSITION + [False] * 3, example.answer),
        trace(example, 1, [False] * 2, "wrong"),
    ]
    metrics = numbers(traces)
    assert metrics["steps/valid_share_at/1"] == 1 / 2
    assert metrics["steps/valid_share_at/3"] == 1.0
    assert metrics[f"steps/valid_share_at/{MAX_POSITION}"] == 1 / 4
    assert f"steps/valid_share_at/{MAX_POSITION + 1}" not in metrics


def test_staleness_is_the_distance_in_updates() -> None:
    example = make_example(1)
    traces = score([trace(example, number, [True] * 4, example.answer) for number in range(2)])
    version = traces[0].trace.completion.policy_version
    times = {"started_s": START_S, "sync_s": 0.5, "step_s": 8.0}
    metrics = step_metrics(traces, STATS, threshold=0.6, policy_version=version + 3, **times)
    assert metrics["rollout/staleness"] == metrics["rollout/staleness_max"] == 3.0


def test_events_of_a_step_are_single_completions_and_calls() -> None:
    judged, bare = make_example(1), make_example(2, rationale=None)
    traces = [trace(judged, number, [True] * 4, judged.answer) for number in range(2)]
    traces += [trace(bare, number, None, "wrong") for number in range(2)]
    events = step_distributions(score(traces))
    assert len(events["rollout/request_s"]) == 4
    assert events["judge/call_s"] == [0.375, 0.375]
