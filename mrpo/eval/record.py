"""One evaluated question. Made by the evaluation, read by the run folder, the metrics and the report."""

from __future__ import annotations

from dataclasses import dataclass

from mrpo.scoring import Trace
from mrpo.types import AnswerJudgement, Completion, Example, Judgement, Verdicts


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalRecord:
    """A question, the greedy completion and what was found about it."""

    example: Example
    completion: Completion
    judgement: Judgement | None  # None: not judged (no judge, no gold rationale or no step)
    correct: bool  # False also where the answer's judgement failed: it stays in n, and is no success
    valid: list[bool] | None  # [K]; None: not judged, or the judge failed
    answer_judgement: AnswerJudgement | None = None  # None: not rated by the judge


def record_of(trace: Trace, *, threshold: float) -> EvalRecord:
    """The record of an evaluated question; its answer is correct where its reward is above `threshold`."""
    outcome = trace.judgement.outcome if trace.judgement else None
    return EvalRecord(
        example=trace.example,
        completion=trace.completion,
        judgement=trace.judgement,
        answer_judgement=trace.answer_judgement,
        correct=trace.answer_reward is not None and trace.answer_reward > threshold,
        valid=outcome.valid if isinstance(outcome, Verdicts) else None,
    )
