"""A completion with all that was found about it, flat: the row of a Parquet file, of the metrics and of the report.

Letters: T completion tokens, K reasoning steps. Times are `time.time()` of the host that took them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mrpo.eval.record import EvalRecord
from mrpo.types import AnswerJudgement, Completion, Example, JudgeFailure, Judgement, Verdicts

if TYPE_CHECKING:
    from mrpo.scoring import ScoredTrace


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRow:
    """A row as the report and the tests read it; the fields are the columns."""

    key: str
    prompt_id: str
    sample_index: int
    dataset: str
    split: str
    image: str
    question: str
    gold_answer: str
    gold_rationale: str | None
    text: str
    answer: str | None
    correct: bool
    finish_reason: str
    num_prompt_tokens: int
    num_completion_tokens: int
    num_think_tokens: int
    num_step_tokens: int
    steps: list[str]  # [K]
    char_spans: list[list[int]]  # [K][2] half-open, in `text`
    token_spans: list[list[int]]  # [K][2] half-open
    alignment: list[bool] | None  # [K]; None: no verdicts
    contribution: list[bool] | None  # [K]
    judge_failure: str | None  # a FailureReason; None with alignment None: the completion was not judged
    judge_detail: str | None
    judge_attempts: int | None
    judge_model: str | None  # that replied; None: none did
    judge_rubric: str | None  # version
    answer_judge_failure: str | None  # a FailureReason; the answer's reward is None then
    answer_judge_detail: str | None
    answer_judge_attempts: int | None  # None: the answer was not rated by the judge
    answer_judge_model: str | None
    answer_judge_rubric: str | None
    answer_reward: float | None
    process_reward: float | None
    step_count_reward: float | None
    reward: float | None  # weighted sum of all parts; None: a part that its group has is missing here
    advantage: float | None
    token_advantages: list[float] | None  # [T]
    in_baseline: bool | None  # False: left out of its group's baseline, no gradient
    policy_version: int
    rollout_started_s: float
    rollout_ended_s: float
    judge_started_s: float | None  # handed over
    judge_sent_s: float | None  # first HTTP request; None also where none was made or its time was lost
    judge_ended_s: float | None
    answer_judge_started_s: float | None
    answer_judge_sent_s: float | None
    answer_judge_ended_s: float | None

    @property
    def valid(self) -> list[bool] | None:
        """[K]: the judge's ruling on every step; None where there is none."""
        if self.alignment is None or self.contribution is None:
            return None
        return Verdicts(alignment=self.alignment, contribution=self.contribution).valid


def row_of_trace(scored: ScoredTrace, *, threshold: float) -> TraceRow:
    """The row of a completion of training.

    Args:
        scored: rewards and advantages.
        threshold: an answer reward above it counts as right.
    """
    trace = scored.trace
    return TraceRow(
        **_common(trace.example, trace.completion, trace.judgement, trace.answer_judgement),
        correct=scored.answer_reward is not None and scored.answer_reward > threshold,
        answer_reward=scored.answer_reward,
        process_reward=scored.process_reward,
        step_count_reward=scored.step_count_reward,
        reward=scored.reward,
        advantage=scored.advantage,
        token_advantages=scored.token_advantages,
        in_baseline=scored.in_baseline,
    )


def row_of_evaluation(record: EvalRecord) -> TraceRow:
    """The row of an evaluated question: no rewards and no advantages."""
    return TraceRow(
        **_common(record.example, record.completion, record.judgement, record.answer_judgement),
        correct=record.correct,
        answer_reward=None,
        process_reward=None,
        step_count_reward=None,
        reward=None,
        advantage=None,
        token_advantages=None,
        in_baseline=None,
    )


def _common(
    example: Example,
    completion: Completion,
    judgement: Judgement | None,
    answer_judgement: AnswerJudgement | None,
) -> dict[str, Any]:
    outcome = judgement.outcome if judgement else None
    answer_outcome = answer_judgement.outcome if answer_judgement else None
    answer_failure = answer_outcome if isinstance(answer_outcome, JudgeFailure) else None
    return {
        "key": completion.key,
        "prompt_id": completion.prompt_id,
        "sample_index": completion.sample_index,
        "dataset": example.dataset,
        "split": example.split,
        "image": example.image,
        "question": example.question,
        "gold_answer": example.answer,
        "gold_rationale": example.rationale,
        "text": completion.text,
        "answer": completion.answer,
        "finish_reason": completion.finish_reason.value,
        "num_prompt_tokens": len(completion.prompt_token_ids),
        "num_completion_tokens": len(completion.completion_token_ids),
        "num_think_tokens": completion.think_tokens,
        "num_step_tokens": completion.step_tokens,
        "steps": [step.text for step in completion.steps],
        "char_spans": [[step.start, step.end] for step in completion.steps],
        "token_spans": [list(span) for span in completion.spans],
        "alignment": outcome.alignment if isinstance(outcome, Verdicts) else None,
        "contribution": outcome.contribution if isinstance(outcome, Verdicts) else None,
        "judge_failure": outcome.reason.value if isinstance(outcome, JudgeFailure) else None,
        "judge_detail": outcome.detail if isinstance(outcome, JudgeFailure) else None,
        "judge_attempts": judgement.attempts if judgement else None,
        "judge_model": judgement.model if judgement else None,
        "judge_rubric": judgement.rubric if judgement else None,
        "answer_judge_failure": answer_failure.reason.value if answer_failure else None,
        "answer_judge_detail": answer_failure.detail if answer_failure else None,
        "answer_judge_attempts": answer_judgement.attempts if answer_judgement else None,
        "answer_judge_model": answer_judgement.model if answer_judgement else None,
        "answer_judge_rubric": answer_judgement.rubric if answer_judgement else None,
        "policy_version": completion.policy_version,
        "rollout_started_s": completion.started_s,
        "rollout_ended_s": completion.ended_s,
        "judge_started_s": judgement.started_s if judgement else None,
        "judge_sent_s": judgement.sent_s if judgement else None,
        "judge_ended_s": judgement.ended_s if judgement else None,
        "answer_judge_started_s": answer_judgement.started_s if answer_judgement else None,
        "answer_judge_sent_s": answer_judgement.sent_s if answer_judgement else None,
        "answer_judge_ended_s": answer_judgement.ended_s if answer_judgement else None,
    }
