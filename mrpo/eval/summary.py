"""An evaluation in numbers with 95 % intervals: accuracy, and where the reasoning first fails (algorithm §6). Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mrpo.eval.cascade import FarBin, Stage, failure_accumulation_rate, failure_stage, far_curve
from mrpo.eval.intervals import Interval, mcnemar_p, mean_interval, wilson_interval
from mrpo.trace_row import TraceRow
from mrpo.types import FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSummary:
    """One evaluation. An interval is None where nothing was observed."""

    num_questions: int
    num_correct: int
    accuracy: Interval | None
    num_judged: int  # completions with verdicts
    num_judge_failed: int  # no verdicts on their steps
    num_answer_judge_failed: int  # no ruling on their answer; they stay in n and count as not correct
    num_without_steps: int  # completions with no reasoning step: there is nothing to judge
    num_truncated: int
    num_failing: int  # judged completions with at least one invalid step
    early_share: Interval | None  # over the judged completions
    stage_shares: dict[Stage, Interval | None]  # over the failing ones
    valid_share: Interval | None  # of all judged steps; steps of one completion are not independent
    valid_steps: Interval | None  # mean number a judged completion
    steps: Interval | None  # mean number a completion
    accumulation_rate: Interval | None  # mean FAR over the completions in which a step follows the first failure
    accumulation_curve: list[FarBin]
    first_failures: dict[int, int]  # step number (from 1) of the first failure: completions


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two evaluations of the same questions, paired by question."""

    num_paired: int
    num_gained: int  # wrong before, right after
    num_lost: int  # right before, wrong after
    p: float  # exact McNemar, two-sided


def summarize(rows: Sequence[TraceRow]) -> EvalSummary:
    """Summarise evaluated completions, one a question."""
    verdicts = [row.valid for row in rows if row.valid]
    stages = Counter(stage for valid in verdicts if (stage := failure_stage(valid)) is not None)
    num_failing = stages.total()
    rates = [rate for valid in verdicts if (rate := failure_accumulation_rate(valid)) is not None]
    num_correct = sum(row.correct for row in rows)
    flat = [step for valid in verdicts for step in valid]
    return EvalSummary(
        num_questions=len(rows),
        num_correct=num_correct,
        accuracy=wilson_interval(num_correct, len(rows)),
        num_judged=len(verdicts),
        num_judge_failed=sum(row.judge_failure is not None for row in rows),
        num_answer_judge_failed=sum(row.answer_judge_failure is not None for row in rows),
        num_without_steps=sum(not row.steps for row in rows),
        num_truncated=sum(row.finish_reason == FinishReason.TRUNCATED for row in rows),
        num_failing=num_failing,
        early_share=wilson_interval(stages[Stage.EARLY], len(verdicts)),
        stage_shares={stage: wilson_interval(stages[stage], num_failing) for stage in Stage},
        valid_share=wilson_interval(sum(flat), len(flat)),
        valid_steps=mean_interval([float(sum(valid)) for valid in verdicts]),
        steps=mean_interval([float(len(row.steps)) for row in rows]),
        accumulation_rate=mean_interval(rates),
        accumulation_curve=far_curve(verdicts),
        first_failures=dict(sorted(Counter(valid.index(False) + 1 for valid in verdicts if not all(valid)).items())),
    )


def compare(before: Sequence[TraceRow], after: Sequence[TraceRow]) -> Comparison | None:
    """Pair two evaluations by question; None where they share none."""
    right = {row.prompt_id: row.correct for row in before}
    pairs = [(right[row.prompt_id], row.correct) for row in after if row.prompt_id in right]
    if not pairs:
        return None
    gained, lost = pairs.count((False, True)), pairs.count((True, False))
    return Comparison(num_paired=len(pairs), num_gained=gained, num_lost=lost, p=mcnemar_p(gained, lost))
