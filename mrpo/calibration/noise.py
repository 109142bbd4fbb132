"""A judge made worse on purpose, by `judge.noise`: what its measures come to is known beforehand."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mrpo.judge_noise import flip_verdicts
from mrpo.protocols import JudgePool
from mrpo.types import AnswerJudgement, AnswerRequest, Judgement, JudgeRequest, Verdicts


@dataclass(frozen=True, slots=True)
class NoisyJudge:
    """A `mrpo.protocols.JudgePool` whose verdicts flip with a probability, anew in every asking."""

    judge_pool: JudgePool
    probability: float
    seed: int

    async def judge(self, request: JudgeRequest) -> Judgement:
        """The ruling with its flips; they follow from the request's key."""
        judgement = await self.judge_pool.judge(request)
        if not isinstance(judgement.outcome, Verdicts):
            return judgement
        outcome, _ = flip_verdicts(
            judgement.outcome, probability=self.probability, seed=self.seed, step=0, key=request.key
        )
        return replace(judgement, outcome=outcome)

    async def judge_answer(self, request: AnswerRequest) -> AnswerJudgement:
        """As it is: noise is about steps."""
        return await self.judge_pool.judge_answer(request)
