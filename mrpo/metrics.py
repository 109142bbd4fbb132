"""The measures of a training step: typed values that merge exactly, and the functions that compute them. Pure.

A mean carries its total and its weight, so that means of parts are never averaged. What has no observation is absent
from the result, never 0. Names are `field/measure`; shares are in [0, 1], `_s` are seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Protocol, Self

from mrpo.eval.cascade import Stage, failure_stage
from mrpo.eval.intervals import Interval
from mrpo.eval.record import EvalRecord
from mrpo.eval.summary import summarize
from mrpo.rewards.repetition import repeated_ngram_share, repeated_step_share
from mrpo.trace_row import TraceRow, row_of_evaluation, row_of_trace
from mrpo.types import FailureReason, FinishReason, LearnStats

if TYPE_CHECKING:
    from mrpo.scoring import ScoredTrace


MAX_POSITION = 8  # of a reasoning step in `steps/valid_share_at`; the last one holds all later steps too


class Metric(Protocol):
    """A value that can be merged with another part's before it becomes a number."""

    def merge(self, other: Self) -> Self:
        """The value over both parts."""
        ...

    def value(self) -> float | None:
        """The number; None without an observation."""
        ...


@dataclass(frozen=True, slots=True)
class Mean:
    """A weighted mean, kept as total and weight."""

    total: float
    weight: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Mean:
        """The plain mean of `values`; of booleans, the share that is true."""
        items = list(values)
        return cls(float(sum(items)), float(len(items)))

    def merge(self, other: Mean) -> Mean:
        """Mean over both parts."""
        return Mean(self.total + other.total, self.weight + other.weight)

    def value(self) -> float | None:
        """Total over weight."""
        return self.total / self.weight if self.weight else None


@dataclass(frozen=True, slots=True)
class Sum:
    """A count or an amount."""

    total: float

    def merge(self, other: Sum) -> Sum:
        """Sum of both parts."""
        return Sum(self.total + other.total)

    def value(self) -> float | None:
        """The sum, 0 included."""
        return float(self.total)


@dataclass(frozen=True, slots=True)
class Max:
    """A largest value."""

    largest: float | None

    @classmethod
    def of(cls, values: Iterable[float]) -> Max:
        """The largest of `values`."""
        return cls(max(values, default=None))

    def merge(self, other: Max) -> Max:
        """The larger of both parts."""
        return Max.of(item for item in (self.largest, other.largest) if item is not None)

    def value(self) -> float | None:
        """The largest."""
        return self.largest


def merge(*parts: Mapping[str, Metric]) -> dict[str, Metric]:
    """Merge the metrics of parts of a batch (ranks, micro-batches, steps) by name."""
    result: dict[str, Metric] = {}
    for part in parts:
        for name, metric in part.items():
            result[name] = result[name].merge(metric) if name in result else metric
    return result


def reduce(metrics: Mapping[str, Metric]) -> dict[str, float]:
    """Numbers by name; a metric without an observation is left out."""
    values = {name: metric.value() for name, metric in metrics.items()}
    return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """Where the wall time of a step went, in seconds. The four parts do not overlap."""

    rollout_s: float  # first request handed out to last completion ended, judging included that runs meanwhile
    judge_s: float  # from there to the last verdict: judging that generation does not hide
    learn_s: float  # optimizer step
    sync_s: float  # new weights to the engines
    step_s: float  # the whole step; what the parts leave is the controller's own work
    judge_overlap_share: float | None  # of the time in which some call was open, how much generation hid; None: no call


def split_times(
    rows: Sequence[TraceRow], *, started_s: float, learn_s: float, sync_s: float, step_s: float
) -> StepTimes:
    """Part generation from judging, which starts as soon as a completion ends and so runs beside it.

    Args:
        rows: the step's completions, with the times of rollout and judging.
        started_s: `time.time()` when the first request was handed out.
        learn_s, sync_s, step_s: as measured by the controller.
    """
    rollout_end = max((row.rollout_ended_s for row in rows), default=started_s)
    judged = _union([(start, end) for start, _, end in _calls(rows)])
    open_s = sum(end - start for start, end in judged)
    hidden_s = sum(max(0.0, min(end, rollout_end) - max(start, started_s)) for start, end in judged)
    return StepTimes(
        rollout_s=max(0.0, rollout_end - started_s),
        judge_s=max(0.0, judged[-1][1] - rollout_end) if judged else 0.0,
        learn_s=learn_s,
        sync_s=sync_s,
        step_s=step_s,
        judge_overlap_share=hidden_s / open_s if open_s > 0 else None,
    )


def step_metrics(
    traces: Sequence[ScoredTrace],
    stats: LearnStats | None,
    *,
    threshold: float,
    policy_version: int,
    started_s: float,
    sync_s: float,
    step_s: float,
) -> dict[str, float]:
    """All numbers of one training step, as logged.

    Args:
        traces: every completion of the step, also those that got no gradient.
        stats: of the optimizer step; None where no group could be learned from, so that none was made.
        threshold: an answer reward above it counts as right.
        policy_version: of the weights that the step updated.
        started_s: `time.time()` when the first request was handed out.
        sync_s: seconds the weight update took.
        step_s: wall seconds of the whole step.
    """
    rows = [row_of_trace(trace, threshold=threshold) for trace in traces]
    learn_s = stats.seconds if stats else 0.0
    times = split_times(rows, started_s=started_s, learn_s=learn_s, sync_s=sync_s, step_s=step_s)
    parts = [reward_metrics(rows), cascade_metrics(rows), completion_metrics(rows), judge_metrics(rows)]
    parts += [group_metrics(rows), time_metrics(rows, times), policy_metrics(stats) if stats else {}]
    parts += [staleness_metrics(rows, policy_version)]
    return reduce(merge(*parts))


def sync_metrics(published: Mapping[str, float] | None) -> dict[str, float]:
    """What new weights took on their way; `published` as `mrpo.protocols.Learner.publish` returns it."""
    if published is None:
        return {}
    return {
        "sync/bytes": published["bytes"],
        "sync/buckets": published["buckets"],
        "sync/publish_s": published["seconds"],
    }


def step_distributions(traces: Sequence[ScoredTrace]) -> dict[str, list[float]]:
    """Single events of a step, for histograms: seconds of every completion, and of every call to the judge."""
    completions = [scored.trace.completion for scored in traces]
    rulings = [ruling for scored in traces for ruling in (scored.trace.judgement, scored.trace.answer_judgement)]
    return {
        "rollout/request_s": [completion.ended_s - completion.started_s for completion in completions],
        "judge/call_s": [
            ruling.ended_s - ruling.sent_s for ruling in rulings if ruling is not None and ruling.sent_s is not None
        ],
    }


def evaluation_metrics(records: Sequence[EvalRecord]) -> dict[str, float]:
    """The numbers of one evaluation; a share has its 95 % interval beside it, as `_low` and `_high`."""
    summary = summarize([row_of_evaluation(record) for record in records])
    intervals: dict[str, Interval | None] = {
        "eval/accuracy": summary.accuracy,
        "eval/early_share": summary.early_share,
        **{f"eval/{stage}_share_failing": share for stage, share in summary.stage_shares.items()},
        "eval/valid_share": summary.valid_share,
        "eval/valid_steps": summary.valid_steps,
        "eval/steps": summary.steps,
        "eval/accumulation_rate": summary.accumulation_rate,
    }
    result = {
        "eval/questions": float(summary.num_questions),
        "eval/correct": float(summary.num_correct),
        "eval/judged": float(summary.num_judged),
        "eval/judge_failed": float(summary.num_judge_failed),
        "eval/answer_judge_failed": float(summary.num_answer_judge_failed),
        "eval/without_steps": float(summary.num_without_steps),
        "eval/truncated": float(summary.num_truncated),
    }
    for name, interval in intervals.items():
        if interval is not None:
            result |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return result


def reward_metrics(rows: Sequence[TraceRow]) -> dict[str, Metric]:
    """Rewards over the completions that have them: a failed judgement has no process reward, and none is assumed."""
    return {
        "reward/mean": Mean.of(row.reward for row in rows if row.reward is not None and row.in_baseline),
        "reward/answer": Mean.of(row.answer_reward for row in rows if row.answer_reward is not None),
        "reward/process": Mean.of(row.process_reward for row in rows if row.process_reward is not None),
        "reward/step_count": Mean.of(row.step_count_reward for row in rows if row.step_count_reward is not None),
        "accuracy": Mean.of(row.correct for row in rows),
    }


def cascade_metrics(rows: Sequence[TraceRow]) -> dict[str, Metric]:
    """Where reasoning first fails, over the judged completions."""
    verdicts = [row.valid for row in rows if row.valid]
    stages = [failure_stage(valid) for valid in verdicts]
    return {
        "cascade/early_share": Mean.of(stage == Stage.EARLY for stage in stages),
        "cascade/early_share_failing": Mean.of(stage == Stage.EARLY for stage in stages if stage is not None),
        "cascade/failing_share": Mean.of(stage is not None for stage in stages),
        "steps/valid_share": Mean.of(step for valid in verdicts for step in valid),
        **{
            f"steps/valid_share_at/{position}": Mean.of(
                step
                for valid in verdicts
                for step in valid[position - 1 : None if position == MAX_POSITION else position]
            )
            for position in range(1, MAX_POSITION + 1)
        },
    }


def completion_metrics(rows: Sequence[TraceRow]) -> dict[str, Metric]:
    """Shape of the completions."""
    lengths = [row.num_completion_tokens for row in rows]
    truncated = [row.finish_reason == FinishReason.TRUNCATED for row in rows]
    return {
        "completion/tokens": Mean.of(lengths),
        "completion/tokens_max": Max.of(lengths),
        "completion/truncated": Sum(sum(truncated)),
        "completion/truncated_share": Mean.of(truncated),
        "completion/answered_share": Mean.of(row.answer is not None for row in rows),
        "completion/repetition": Mean.of(_observed(repeated_ngram_share(row.text) for row in rows)),
        "answer/words": Mean.of(len(row.answer.split()) for row in rows if row.answer is not None),
        "steps/count": Mean.of(len(row.steps) for row in rows),
        "steps/none_share": Mean.of(not row.steps for row in rows),
        "steps/repeated_share": Mean.of(_observed(repeated_step_share(row.steps) for row in rows)),
        "steps/token_coverage": Mean(
            float(sum(row.num_step_tokens for row in rows)), float(sum(row.num_think_tokens for row in rows))
        ),
    }


def judge_metrics(rows: Sequence[TraceRow]) -> dict[str, Metric]:
    """What was asked of the judge and how it answered; without a judge only that nothing was asked."""
    asked = [row for row in rows if row.judge_attempts is not None]
    answers = [row for row in rows if row.answer_judge_attempts is not None]
    sent = [(start, at, end) for start, at, end in _calls(rows) if at is not None]
    result: dict[str, Metric] = {
        "judge/asked": Sum(len(asked)),
        "judge/failure_share": Mean.of(row.judge_failure is not None for row in asked),
        "judge/requests": Sum(sum((row.judge_attempts or 0) + (row.answer_judge_attempts or 0) for row in rows)),
        "judge/answers_asked": Sum(len(answers)),
        "judge/answer_failure_share": Mean.of(row.answer_judge_failure is not None for row in answers),
        "judge/queue_s": Mean.of(at - start for start, at, _ in sent),  # for a free slot and the rate limit
        "judge/latency_s": Mean.of(end - at for _, at, end in sent),  # first request to ruling, retries included
        "judge/latency_max_s": Max.of(end - at for _, at, end in sent),
    }
    for reason in FailureReason:
        count = sum((row.judge_failure == reason) + (row.answer_judge_failure == reason) for row in rows)
        if count:
            result[f"judge/failures/{reason}"] = Sum(count)
    return result


def group_metrics(rows: Sequence[TraceRow]) -> dict[str, Metric]:
    """Groups of completions of one prompt, and those that teach nothing."""
    groups = [list(group) for _, group in groupby(sorted(rows, key=_prompt), key=_prompt)]
    baselines = [[row for row in group if row.in_baseline] for group in groups]
    kept = [group for group in baselines if len(group) >= 2]
    ungraded = [group for group in kept if all(row.process_reward is None for row in group)]
    no_rationale = [group for group in ungraded if all(row.gold_rationale is None for row in group)]
    after_failure = [group for group in ungraded if any(row.judge_failure is not None for row in group)]
    return {
        "groups/count": Sum(len(groups)),
        "groups/dropped": Sum(len(groups) - len(kept)),
        "groups/constant": Sum(sum(len({row.reward for row in group}) == 1 for group in kept)),
        "groups/answer_only": Sum(len(ungraded)),
        "groups/answer_only_no_rationale": Sum(len(no_rationale)),
        "groups/answer_only_judge_failed": Sum(len(after_failure)),
        "advantage/abs": Mean.of(abs(item) for row in rows for item in row.token_advantages or []),
    }


def time_metrics(rows: Sequence[TraceRow], times: StepTimes) -> dict[str, Metric]:
    """Wall time by part, and the engines' throughput."""
    num_tokens = sum(row.num_completion_tokens for row in rows)
    overlap = times.judge_overlap_share
    return {
        "time/rollout_s": Sum(times.rollout_s),
        "time/judge_s": Sum(times.judge_s),
        "time/learn_s": Sum(times.learn_s),
        "time/sync_s": Sum(times.sync_s),
        "time/step_s": Sum(times.step_s),
        "judge/overlap_share": Mean.of([] if overlap is None else [overlap]),
        "rollout/tokens": Sum(num_tokens),
        "rollout/tokens_per_s": Mean(float(num_tokens), times.rollout_s),
        "rollout/completions": Sum(len(rows)),
    }


def staleness_metrics(rows: Sequence[TraceRow], policy_version: int) -> dict[str, Metric]:
    """Updates between the weights that sampled and those that are updated; 0 where training is on-policy."""
    ages = [float(policy_version - row.policy_version) for row in rows]
    return {"rollout/staleness": Mean.of(ages), "rollout/staleness_max": Max.of(ages)}


def policy_metrics(stats: LearnStats) -> dict[str, Metric]:
    """The optimizer step; token means weigh by the tokens behind them."""
    tokens = float(stats.num_tokens)
    return {
        "policy/loss": Mean.of([stats.loss]),
        "policy/kl": Mean(stats.kl * tokens, tokens),
        "policy/clip_share": Mean(stats.clip_share * tokens, tokens),
        "policy/entropy": Mean(stats.entropy * tokens, tokens),
        "policy/grad_norm": Mean.of([stats.grad_norm]),
        "policy/lr": Mean.of([stats.lr]),
        "policy/tokens": Sum(stats.num_tokens),
        "policy/micro_batches": Sum(stats.num_micro_batches),
        **{f"policy/{name}": Mean.of([value]) for name, value in stats.extra.items()},
    }


def _observed(values: Iterable[float | None]) -> Iterable[float]:
    return (value for value in values if value is not None)


def _prompt(row: TraceRow) -> str:
    return row.prompt_id


def _calls(rows: Sequence[TraceRow]) -> list[tuple[float, float | None, float]]:
    """Calls to the judge, about steps and answers: when handed over, first sent, and ended."""
    times = [(row.judge_started_s, row.judge_sent_s, row.judge_ended_s) for row in rows]
    times += [(row.answer_judge_started_s, row.answer_judge_sent_s, row.answer_judge_ended_s) for row in rows]
    return [(start, sent, end) for start, sent, end in times if start is not None and end is not None]


def _union(intervals: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Disjoint intervals that cover the same time, in order."""
    merged: list[tuple[float, float]] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged
