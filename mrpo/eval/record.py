"""One evaluated question. Made by the evaluation, read by the run folder, the metrics and the report."""

from __future__ import annotations

from dataclasses import dataclass

from mrpo.types import AnswerJudgement, Completion, Example, Judgement


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalRecord:
    """A question, the greedy completion and what was found about it."""

    example: Example
    completion: Completion
    judgement: Judgement | None  # None: not judged (no judge, no gold rationale or no step)
    correct: bool  # False also where the answer's judgement failed: it stays in n, and is no success
    valid: list[bool] | None  # [K]; None: not judged, or the judge failed
    answer_judgement: AnswerJudgement | None = None  # None: not rated by the judge
