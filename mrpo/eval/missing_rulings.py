"""Rulings that an earlier try did not get, asked for again about the completion that is there; what is there stays."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from mrpo.collection import answer_ruling, reward_of, step_ruling
from mrpo.eval.record import record_of
from mrpo.protocols import JudgePool
from mrpo.scoring import Trace
from mrpo.tasks import first_failure_ends_all
from mrpo.trace_row import TraceRow, row_of_evaluation
from mrpo.types import Completion, Example, FinishReason, Step


async def ask_again(
    rows: Sequence[TraceRow], examples: Mapping[str, Example], judge: JudgePool | None, *, threshold: float
) -> list[TraceRow]:
    """Rows with the rulings they lacked, as far as they are to be had now. Attempts add up.

    Args:
        rows: each lacks a ruling, on the steps or on the answer.
        examples: their questions, by id.
        judge: None: there is none any more, and rows stay as they are.
        threshold: an answer reward above it counts as right.
    """
    async with first_failure_ends_all() as group:
        asked = [
            group.create_task(_ask_again(row, examples[row.prompt_id], judge, threshold=threshold)) for row in rows
        ]
    return [task.result() for task in asked]


async def _ask_again(row: TraceRow, example: Example, judge: JudgePool | None, *, threshold: float) -> TraceRow:
    completion = _completion_of(row)
    steps, answer = await asyncio.gather(
        step_ruling(judge if row.judge_failure is not None else None, completion, example),
        answer_ruling(judge if row.answer_judge_failure is not None else None, completion, example),
    )
    trace = Trace(
        example=example,
        completion=completion,
        judgement=steps,
        answer_reward=None if answer is None else reward_of(answer),
        answer_judgement=answer,
    )
    now = row_of_evaluation(record_of(trace, threshold=threshold))
    if steps is not None:
        row = replace(
            row,
            alignment=now.alignment,
            contribution=now.contribution,
            judge_failure=now.judge_failure,
            judge_detail=now.judge_detail,
            judge_attempts=(row.judge_attempts or 0) + steps.attempts,
            judge_model=now.judge_model,
            judge_rubric=now.judge_rubric,
            judge_started_s=now.judge_started_s,
            judge_sent_s=now.judge_sent_s,
            judge_ended_s=now.judge_ended_s,
        )
    if answer is not None:
        row = replace(
            row,
            correct=now.correct,
            answer_judge_failure=now.answer_judge_failure,
            answer_judge_detail=now.answer_judge_detail,
            answer_judge_attempts=(row.answer_judge_attempts or 0) + answer.attempts,
            answer_judge_model=now.answer_judge_model,
            answer_judge_rubric=now.answer_judge_rubric,
            answer_judge_started_s=now.answer_judge_started_s,
            answer_judge_sent_s=now.answer_judge_sent_s,
            answer_judge_ended_s=now.answer_judge_ended_s,
        )
    return row


def _completion_of(row: TraceRow) -> Completion:
    """What the judge sees of a completion; its tokens are not kept, their numbers stay in the row."""
    places = zip(row.steps, row.char_spans, strict=True)
    return Completion(
        prompt_id=row.prompt_id,
        sample_index=row.sample_index,
        prompt_token_ids=[],
        completion_token_ids=[],
        rollout_logprobs=[],
        text=row.text,
        steps=[Step(text=text, start=start, end=end) for text, (start, end) in places],
        spans=[(start, end) for start, end in row.token_spans],
        answer=row.answer,
        think_tokens=row.num_think_tokens,
        step_tokens=row.num_step_tokens,
        finish_reason=FinishReason(row.finish_reason),
        policy_version=row.policy_version,
        started_s=row.rollout_started_s,
        ended_s=row.rollout_ended_s,
    )
