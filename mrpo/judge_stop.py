"""The end of a job whose budget for the judge is spent. A ruling that was refused for that is no ruling: nothing may be
learned from it or counted for it, so the job ends, and goes on with a larger budget where it stopped. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from mrpo.config import JudgeConfig
from mrpo.errors import JudgeBudgetError
from mrpo.judge_bill import limits_of
from mrpo.judge_spending import Spending, sum_of
from mrpo.scoring import Trace
from mrpo.trace_row import TraceRow
from mrpo.types import FailureReason, JudgeFailure

SETTING = re.compile(r"judge\.max_\w+")


def require_budget(traces: Iterable[Trace]) -> None:
    """Check that no ruling on these completions was refused for want of a budget.

    Raises:
        JudgeBudgetError: one was.
    """
    for trace in traces:
        for call in (trace.judgement, trace.answer_judgement):
            if call is not None and isinstance(call.outcome, JudgeFailure):
                _require(call.outcome.reason, call.outcome.detail)


def require_budget_of_rows(rows: Sequence[TraceRow]) -> None:
    """`require_budget`, of completions on record.

    Raises:
        JudgeBudgetError: a ruling was refused.
    """
    for row in rows:
        _require(row.judge_failure, row.judge_detail)
        _require(row.answer_judge_failure, row.answer_judge_detail)


def require_some_left(spent: Mapping[str, Spending], judge: JudgeConfig) -> None:
    """Check that a job which goes on may pay for one request at least, by what one took so far.

    Raises:
        JudgeBudgetError: it may not.
    """
    requests = sum_of(spent).requests
    for name, limit, taken in limits_of(spent, judge):
        if requests and limit - taken < taken / requests:
            raise JudgeBudgetError(
                f"the run's budget for the judge is spent ({name}={limit:.12g}: {taken:,.12g} spent)"
            )


def larger(error: JudgeBudgetError) -> str:
    """The settings that ended a job as arguments to fill in: `judge.max_requests=<more>`."""
    names = dict.fromkeys(SETTING.findall(str(error)))
    return " ".join(f"{name}=<more>" for name in names)


def _require(reason: str | None, detail: str | None) -> None:
    if reason == FailureReason.BUDGET:
        raise JudgeBudgetError(detail or "the run's budget for the judge is spent")
