"""Rows and evaluations as a benchmark makes them, shared by the tests of what is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mrpo.eval.evaluation import Evaluation, EvaluationFacts
from mrpo.trace_row import TraceRow, row_of_evaluation
from mrpo.types import FailureReason
from tests.unit.synthetic_run import make_record


def make_row(
    number: int, *, correct: bool, valid: list[bool] | FailureReason | None = None, **changes: Any
) -> TraceRow:
    """Question `number`; `valid` rules on both alignment and contribution."""
    row = row_of_evaluation(make_record(number, valid, correct=correct))
    return replace(row, dataset="vqa_rad", **changes) if "dataset" not in changes else replace(row, **changes)


def unrated(row: TraceRow) -> TraceRow:
    """The row, had the judge failed on its answer."""
    return replace(
        row,
        correct=False,
        answer_judge_failure=FailureReason.TIMEOUT.value,
        answer_judge_detail="no reply in 60 s",
        answer_judge_attempts=3,
    )


def make_facts(model: str = "ours", **changes: Any) -> EvaluationFacts:
    """What there is to know of an evaluation."""
    facts = EvaluationFacts(
        model=model,
        seed=0,
        judge="judge-model",
        step_rubric="steps-1",
        answer_rubric="answer-1",
        open_rules={"vqa_rad": "non_yes_no", "slake": "non_yes_no"},
        command="make eval MODEL=x SETS=vqa_rad,slake",
    )
    return replace(facts, **changes)


def make_evaluation(rows: Sequence[TraceRow], model: str = "ours", **changes: Any) -> Evaluation:
    """An evaluation of these rows."""
    return Evaluation(facts=make_facts(model, **changes), rows=list(rows))
