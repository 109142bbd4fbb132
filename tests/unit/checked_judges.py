"""Judges that are functions, and labelled completions, for tests of what a check measures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mrpo.calibration.asking import Asked, ask, calls_of
from mrpo.calibration.labels import LabelledCompletion
from mrpo.calibration.measure import (
    Measures,
    measure,
)
from mrpo.phantom.language import rule_steps
from mrpo.types import (
    AnswerJudgement,
    AnswerRequest,
    JudgeFailure,
    Judgement,
    JudgeRequest,
    Verdicts,
)


@dataclass
class FunctionJudge:
    """A judge pool that is a function, and counts its calls."""

    rule: Callable[[JudgeRequest], Verdicts | JudgeFailure]
    num_calls: int = 0

    async def judge(self, request: JudgeRequest) -> Judgement:
        self.num_calls += 1
        return Judgement(
            key=request.key,
            outcome=self.rule(request),
            started_s=1.0,
            sent_s=2.0,
            ended_s=2.5,
            attempts=1,
            prompt_tokens=10,
            completion_tokens=4,
        )

    async def judge_answer(self, request: AnswerRequest) -> AnswerJudgement:
        raise NotImplementedError


def exact(request: JudgeRequest) -> Verdicts:
    """As the oracle rules."""
    return rule_steps(request.steps, question=request.question, answer=request.answer, rationale=request.rationale)


def verdicts(*marks: int) -> Verdicts:
    """Alignment as given, and no contribution."""
    return Verdicts(alignment=[bool(mark) for mark in marks], contribution=[False] * len(marks))


def labelled(*marks: int, id: str = "a", steps: list[str] | None = None) -> LabelledCompletion:
    """A completion of one annotator with these marks for alignment."""
    return LabelledCompletion(
        id=id,
        image=None,
        question="q",
        answer="a",
        rationale="r",
        steps=steps or [f"Step {k}." for k in range(len(marks))],
        labels={"": verdicts(*marks)},
    )


def check(
    judge: Any, completions: list[LabelledCompletion], *, repeats: int = 3, orders: int = 2
) -> tuple[Measures, list[Asked]]:
    """Ask for everything, and measure."""
    asked = asyncio.run(ask(judge, calls_of(completions, repeats=repeats, orders=orders, seed=0)))
    return measure(completions, asked, seed=0), asked
