"""Quality of the reasoning, by set and by kind of question: rulings on steps, and the cascades in them. Pure.

Alignment, contribution and validity are means over completions of the share of their steps, so that completions, which
are independent, are what is resampled, and a long one weighs no more than a short one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mrpo.eval.cascade import CascadeSummary, summarise_cascades
from mrpo.eval.intervals import Interval
from mrpo.eval.kinds import QuestionKind, question_kind
from mrpo.eval.results import by_dataset
from mrpo.eval.statistics import bootstrap_mean
from mrpo.trace_row import TraceRow


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningResult:
    """The reasoning of some completions. An interval is None where nothing was observed."""

    num: int  # completions
    num_judged: int  # with verdicts on at least one step
    num_judge_errors: int  # no verdicts on their steps: the judge failed
    num_without_steps: int  # nothing to judge
    alignment: Interval | None  # with the gold rationale
    contribution: Interval | None  # to the answer
    validity: Interval | None  # either of them
    cascade: CascadeSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningReport:
    """A model's reasoning on a benchmark."""

    overall: ReasoningResult
    by_set: dict[str, ReasoningResult]
    by_kind: dict[QuestionKind, ReasoningResult]  # kinds that occur


def summarise_reasoning(rows: Sequence[TraceRow], *, seed: int) -> ReasoningReport:
    """Reasoning quality of a model's completions.

    Args:
        rows: one a question.
        seed: of the bootstrap.
    """
    by_kind: dict[QuestionKind, list[TraceRow]] = {kind: [] for kind in QuestionKind}
    for row in rows:
        by_kind[question_kind(row.question)].append(row)
    return ReasoningReport(
        overall=_result(rows, seed),
        by_set={name: _result(part, seed) for name, part in by_dataset(rows).items()},
        by_kind={kind: _result(part, seed) for kind, part in by_kind.items() if part},
    )


def _result(rows: Sequence[TraceRow], seed: int) -> ReasoningResult:
    judged = [row for row in rows if row.valid]

    def mean_share(rulings: Sequence[Sequence[bool]]) -> Interval | None:
        return bootstrap_mean([sum(steps) / len(steps) for steps in rulings], seed=seed)

    verdicts = [row.valid for row in judged if row.valid]
    return ReasoningResult(
        num=len(rows),
        num_judged=len(judged),
        num_judge_errors=sum(row.judge_failure is not None for row in rows),
        num_without_steps=sum(not row.steps for row in rows),
        alignment=mean_share([row.alignment for row in judged if row.alignment]),
        contribution=mean_share([row.contribution for row in judged if row.contribution]),
        validity=mean_share(verdicts),
        cascade=summarise_cascades(verdicts, seed=seed),
    )
