"""Completions with their rulings and answer rewards: what training and evaluation have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from mrpo.choices import AnswerKind
from mrpo.errors import WeightSyncError
from mrpo.protocols import AnswerScorer, JudgePool, RolloutPool
from mrpo.scoring import Trace, answer_to_rate
from mrpo.types import (
    AnswerJudgement,
    AnswerRequest,
    Completion,
    Example,
    JudgeFailure,
    Judgement,
    JudgeRequest,
    RolloutRequest,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Collector:
    """Samples completions and has them judged while others are still being sampled."""

    rollout: RolloutPool
    judge: JudgePool | None
    answers: AnswerScorer
    answer_kind: AnswerKind
    span: Callable[[str], AbstractContextManager[object]] = nullcontext  # around what is left of judging at the end

    async def collect(
        self,
        examples: Mapping[str, Example],
        requests: Sequence[RolloutRequest],
        *,
        policy_version: int,
        judge_steps: bool = True,
    ) -> list[Trace]:
        """Sample all requests; judge each completion from the moment it ends.

        Args:
            examples: by prompt id.
            requests: what to sample.
            policy_version: of the weights that must have sampled it.
            judge_steps: ask the judge about steps too, where there are any and a gold rationale.

        Returns:
            Traces in the order of the requests.

        Raises:
            WeightSyncError: an engine sampled with other weights.
        """
        judging: dict[str, asyncio.Task[tuple[Judgement | None, AnswerJudgement | None]]] = {}
        completions: dict[str, Completion] = {}
        try:
            async for completion in self.rollout.generate(requests):
                if completion.policy_version != policy_version:
                    raise WeightSyncError(
                        f"{completion.key} was sampled by policy version {completion.policy_version}, expected "
                        f"{policy_version}; an engine missed a weight update"
                    )
                completions[completion.key] = completion
                example = examples[completion.prompt_id]
                judging[completion.key] = asyncio.create_task(
                    self._rulings(completion, example, judge_steps=judge_steps)
                )
            with self.span("judge"):
                rulings = dict(zip(judging, await asyncio.gather(*judging.values()), strict=True))
        finally:
            for task in judging.values():
                task.cancel()
            await asyncio.gather(*judging.values(), return_exceptions=True)  # none outlives the step
        pairs = [(completions[request.key], examples[request.prompt_id]) for request in requests]
        rewards = await self._answer_rewards(pairs, [rulings[request.key][1] for request in requests])
        return [
            Trace(
                example=example,
                completion=completion,
                judgement=rulings[completion.key][0],
                answer_reward=reward,
                answer_judgement=rulings[completion.key][1],
            )
            for (completion, example), reward in zip(pairs, rewards, strict=True)
        ]

    async def _rulings(
        self, completion: Completion, example: Example, *, judge_steps: bool
    ) -> tuple[Judgement | None, AnswerJudgement | None]:
        """On the steps, and on the answer where it is the judge's to rate; the two calls run side by side."""
        step_judge = self.judge if judge_steps else None
        if self.answer_kind != AnswerKind.JUDGE:
            return await step_ruling(step_judge, completion, example), None
        steps = asyncio.create_task(step_ruling(step_judge, completion, example))
        answer = asyncio.create_task(answer_ruling(self.judge, completion, example))
        try:
            return await asyncio.gather(steps, answer)
        finally:
            for call in (steps, answer):
                call.cancel()  # an error of one ends the other
            await asyncio.gather(steps, answer, return_exceptions=True)

    async def _answer_rewards(
        self, pairs: Sequence[tuple[Completion, Example]], rulings: Sequence[AnswerJudgement | None]
    ) -> list[float | None]:
        """[N] in [0, 1]; an answer that is empty or missing scores 0, one whose judgement failed has none."""
        texts = [answer_to_rate(completion, self.answer_kind) for completion, _ in pairs]
        if self.answer_kind == AnswerKind.JUDGE:
            return [_reward_of_text(text, ruling) for text, ruling in zip(texts, rulings, strict=True)]
        asked = [(text, example.answer) for text, (_, example) in zip(texts, pairs, strict=True) if text]
        scores = iter(await self.answers.score(asked))
        return [next(scores) if text else 0.0 for text in texts]


async def step_ruling(judge: JudgePool | None, completion: Completion, example: Example) -> Judgement | None:
    """A ruling, or None where there is nothing to rule on: no judge, no gold rationale, no step."""
    if judge is None or example.rationale is None or not completion.steps:
        return None
    request = JudgeRequest(
        key=completion.key,
        image=example.image,
        question=example.question,
        answer=example.answer,
        rationale=example.rationale,
        steps=[step.text for step in completion.steps],
    )
    return await judge.judge(request)


async def answer_ruling(judge: JudgePool | None, completion: Completion, example: Example) -> AnswerJudgement | None:
    """A ruling on the answer, or None where there is nothing to rule on: no judge asked, or no answer."""
    generated = answer_to_rate(completion, AnswerKind.JUDGE)
    if judge is None or not generated:
        return None
    return await judge.judge_answer(
        AnswerRequest(
            key=completion.key,
            image=example.image,
            question=example.question,
            answer=example.answer,
            generated=generated,
        )
    )


def _reward_of_text(text: str, ruling: AnswerJudgement | None) -> float | None:
    if not text:
        return 0.0
    assert ruling is not None, "an answer that is the judge's to rate was not sent to it"
    return reward_of(ruling)


def reward_of(ruling: AnswerJudgement) -> float | None:
    """1 where the judge calls the answer correct, else 0; None where it failed."""
    return None if isinstance(ruling.outcome, JudgeFailure) else float(ruling.outcome)
