"""From finished and judged completions to rewards, advantages and training samples (algorithm §2 to §4). Pure.

Letters: G group size, N completions of the global batch, T completion tokens, K steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mrpo.advantages import advantage_function, shape_step_advantages
from mrpo.config import (
    AlgorithmConfig,
    AnswerKind,
    JudgeFailurePolicy,
    RewardConfig,
    Schedule,
    Shaping,
    TruncatedPolicy,
)
from mrpo.errors import JudgeUnavailableError, MRPOError
from mrpo.rewards.components import process_reward, step_count_reward
from mrpo.types import (
    Completion,
    Example,
    FailureReason,
    FinishReason,
    JudgeFailure,
    Judgement,
    TrainSample,
    Verdicts,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A finished completion and its ruling. Made by the controller."""

    example: Example
    completion: Completion
    judgement: Judgement | None  # None: nothing to judge (no judge, no gold rationale, no step)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredTrace:
    """A completion with its rewards and advantages. Read by the learner (as `TrainSample`), run folder and metrics."""

    trace: Trace
    answer_reward: float  # [0, 1]
    process_reward: float | None  # [0, 1]; None: not judged, judgement failed, or its group is scored without
    step_count_reward: float  # at most 0
    reward: float | None  # weighted sum; None: the group has process rewards and this completion has none
    advantage: float  # of the completion within its group; 0 outside the baseline
    token_advantages: list[float]  # [T]
    in_baseline: bool  # counted in its group's mean and deviation; False: no gradient
    verdicts_used: list[bool] | None  # [K] that shaping went by; None: not shaped


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringCounts:
    """What became of the batch, so that nothing is dropped silently."""

    num_completions: int
    num_groups: int
    groups_dropped: int  # fewer than two completions were left
    groups_unjudged: int  # answer-only by nature: no gold rationale or no judge
    groups_answer_only: int  # answer-only because a judgement failed
    num_judged: int  # completions with verdicts
    num_unrated: int  # completions of groups that are answer-only by nature
    num_without_steps: int
    num_truncated: int
    num_excluded: int  # out of the baseline for any reason
    judge_failures: dict[FailureReason, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredBatch:
    """The scored completions of one optimizer step, in canonical order."""

    traces: list[ScoredTrace]  # [N]
    counts: ScoringCounts

    def train_samples(self) -> list[TrainSample]:
        """What the learner gets: all completions of the baselines, those with zero advantage too (they feel the KL)."""
        return [
            TrainSample(
                key=scored.trace.completion.key,
                image=scored.trace.example.image,
                prompt_token_ids=scored.trace.completion.prompt_token_ids,
                completion_token_ids=scored.trace.completion.completion_token_ids,
                advantages=scored.token_advantages,
                rollout_logprobs=scored.trace.completion.rollout_logprobs,
                policy_version=scored.trace.completion.policy_version,
            )
            for scored in self.traces
            if scored.in_baseline and scored.trace.completion.completion_token_ids
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rated:
    """A completion's rewards before it is compared with its group."""

    trace: Trace
    valid: bool  # may enter the baseline
    answer: float
    process: float | None
    step_count: float
    group_has_process: bool


def score_group_batch(
    traces: Sequence[Trace],
    *,
    group_size: int,
    algorithm: AlgorithmConfig,
    reward: RewardConfig,
    on_failure: JudgeFailurePolicy,
    answer_reward: Callable[[str, str], float],
    prompt_order: Sequence[str] | None = None,
) -> ScoredBatch:
    """Score the global batch of one optimizer step.

    Args:
        traces: [N] all completions of all groups, in any order.
        group_size: G; every prompt id has exactly so many.
        algorithm: advantage, shaping and what happens to truncated completions.
        reward: components and weights.
        on_failure: what happens to a completion whose judgement failed.
        answer_reward: (answer, gold) → [0, 1].
        prompt_order: prompt ids in canonical order; None: in order of their first appearance in `traces`.

    Returns:
        The same completions by (prompt order, sample index), so that arrival order changes nothing.

    Raises:
        JudgeUnavailableError: a judgement failed under `on_failure=fail`.
        MRPOError: an incomplete group, a group judged in part, or another number of verdicts than steps.
    """
    groups = _groups(traces, group_size, prompt_order)
    rated: list[_Rated] = []
    unjudged_groups = failed_groups = 0
    for group in groups:
        unjudged = _is_unjudged(group)
        failed = not unjudged and any(_counts_as_failure(trace, algorithm) for trace in group)
        if failed and on_failure == JudgeFailurePolicy.FAIL:
            _raise_failure(group)
        answer_only = failed and on_failure == JudgeFailurePolicy.ANSWER_ONLY
        unjudged_groups += unjudged
        failed_groups += answer_only
        with_process = not (unjudged or answer_only)
        rated += [_rate(trace, with_process, algorithm, reward, answer_reward) for trace in group]

    weights = [reward.answer_weight, reward.process_weight, reward.step_count_weight]
    components = [_components(item) for item in rated]
    valid = [item.valid for item in rated]
    advantages = advantage_function(algorithm.advantage)(components, weights, group_size, algorithm.eps, valid)
    kept = _kept(valid, group_size)
    scored = [
        _scored(item, advantage, in_baseline, weights, algorithm)
        for item, advantage, in_baseline in zip(rated, advantages.tolist(), kept, strict=True)
    ]
    groups_dropped = sum(not any(kept[first : first + group_size]) for first in range(0, len(kept), group_size))
    counts = _count(scored, len(groups), groups_dropped, unjudged_groups, failed_groups, group_size)
    return ScoredBatch(traces=scored, counts=counts)


def _groups(traces: Sequence[Trace], group_size: int, prompt_order: Sequence[str] | None) -> list[list[Trace]]:
    """Traces by prompt, in canonical order."""
    by_prompt: dict[str, list[Trace]] = {prompt_id: [] for prompt_id in prompt_order or ()}
    for trace in traces:
        by_prompt.setdefault(trace.completion.prompt_id, []).append(trace)
    for prompt_id, group in by_prompt.items():
        group.sort(key=lambda trace: trace.completion.sample_index)
        indices = [trace.completion.sample_index for trace in group]
        if indices != list(range(group_size)):
            raise MRPOError(f"prompt {prompt_id!r} has samples {indices}, expected 0 to {group_size - 1} once each")
    return list(by_prompt.values())


def _is_unjudged(group: Sequence[Trace]) -> bool:
    """Whether nobody rules on this group, by its nature: no gold rationale, or no judge."""
    if group[0].example.rationale is None:
        return True
    asked = [trace.judgement is not None for trace in group if trace.completion.steps]
    if any(asked) and not all(asked):
        missing = next(t.completion.key for t in group if t.completion.steps and t.judgement is None)
        raise MRPOError(f"completion {missing} has steps and no judgement, unlike others of its group")
    return bool(asked) and not any(asked)


def _outcome(trace: Trace) -> Verdicts | JudgeFailure | None:
    return None if trace.judgement is None else trace.judgement.outcome


def _is_masked(trace: Trace, algorithm: AlgorithmConfig) -> bool:
    truncated = trace.completion.finish_reason == FinishReason.TRUNCATED
    return truncated and algorithm.truncated == TruncatedPolicy.MASK


def _counts_as_failure(trace: Trace, algorithm: AlgorithmConfig) -> bool:
    """Whether a failed judgement matters: of a masked completion nothing is used anyway."""
    return isinstance(_outcome(trace), JudgeFailure) and not _is_masked(trace, algorithm)


def _raise_failure(group: Sequence[Trace]) -> None:
    for trace in group:
        outcome = _outcome(trace)
        if isinstance(outcome, JudgeFailure):
            raise JudgeUnavailableError(
                f"judgement of {trace.completion.key} failed ({outcome.reason}: {outcome.detail}) and "
                "judge.on_failure=fail; mend the judge, or set judge.on_failure=exclude or answer_only"
            )


def _rate(
    trace: Trace,
    with_process: bool,
    algorithm: AlgorithmConfig,
    reward: RewardConfig,
    answer_reward: Callable[[str, str], float],
) -> _Rated:
    process = _process(trace) if with_process else None
    return _Rated(
        trace=trace,
        valid=not _is_masked(trace, algorithm) and (process is not None or not with_process),
        answer=rate_answer(trace, reward, answer_reward),
        process=process,
        step_count=step_count_reward(len(trace.completion.steps), reward.min_steps, reward.max_steps),
        group_has_process=with_process,
    )


def _process(trace: Trace) -> float | None:
    """Share of valid steps, 0 without steps; None where the judgement failed."""
    if not trace.completion.steps:
        return 0.0
    verdicts = _verdicts(trace)
    return None if verdicts is None else process_reward(verdicts)


def _verdicts(trace: Trace) -> list[bool] | None:
    """[K] the ruling on the steps; None where there is none."""
    outcome = _outcome(trace)
    if not isinstance(outcome, Verdicts):
        return None
    valid, num_steps = outcome.valid, len(trace.completion.steps)
    if len(valid) != num_steps:
        raise MRPOError(f"completion {trace.completion.key} has {num_steps} steps and {len(valid)} verdicts")
    return valid


def rate_answer(trace: Trace, reward: RewardConfig, answer_reward: Callable[[str, str], float]) -> float:
    """The answer's reward in [0, 1]; without an answer tag that of the whole text, or 0 under `answer_kind=exact`."""
    answer = trace.completion.answer
    if answer is None:
        if reward.answer_kind == AnswerKind.EXACT:
            return 0.0  # by equality an answer has to be marked as one
        answer = trace.completion.text
    return answer_reward(answer, trace.example.answer)


def _components(item: _Rated) -> list[float]:
    """[R] in the order of the weights. A part that a whole group lacks is 0 for all of it, and changes no advantage."""
    return [item.answer, item.process or 0.0, item.step_count]


def _kept(valid: Sequence[bool], group_size: int) -> list[bool]:
    """[N] valid, in a group with at least two valid ones: one alone has nothing to be compared with."""
    kept: list[bool] = []
    for first in range(0, len(valid), group_size):
        group = valid[first : first + group_size]
        kept += group if sum(group) >= 2 else [False] * group_size
    return kept


def _scored(
    item: _Rated, advantage: float, in_baseline: bool, weights: Sequence[float], algorithm: AlgorithmConfig
) -> ScoredTrace:
    completion = item.trace.completion
    shaping = in_baseline and algorithm.shaping == Shaping.MRPO and algorithm.schedule != Schedule.NONE
    verdicts = _verdicts(item.trace) if shaping else None
    total = sum(weight * part for weight, part in zip(weights, _components(item), strict=True))
    return ScoredTrace(
        trace=item.trace,
        answer_reward=item.answer,
        process_reward=item.process,
        step_count_reward=item.step_count,
        reward=None if item.group_has_process and item.process is None else total,
        advantage=advantage,
        token_advantages=shape_step_advantages(
            advantage,
            verdicts,
            completion.spans,
            len(completion.completion_token_ids),
            item.answer,
            threshold=algorithm.threshold,
            base=algorithm.base,
            schedule=algorithm.schedule,
        ),
        in_baseline=in_baseline,
        verdicts_used=verdicts,
    )


def _count(
    scored: Sequence[ScoredTrace], num_groups: int, dropped: int, unjudged: int, failed: int, group_size: int
) -> ScoringCounts:
    outcomes = [_outcome(item.trace) for item in scored]
    completions = [item.trace.completion for item in scored]
    return ScoringCounts(
        num_completions=len(scored),
        num_groups=num_groups,
        groups_dropped=dropped,
        groups_unjudged=unjudged,
        groups_answer_only=failed,
        num_judged=sum(isinstance(outcome, Verdicts) for outcome in outcomes),
        num_unrated=unjudged * group_size,
        num_without_steps=sum(not completion.steps for completion in completions),
        num_truncated=sum(completion.finish_reason == FinishReason.TRUNCATED for completion in completions),
        num_excluded=sum(not item.in_baseline for item in scored),
        judge_failures=dict(Counter(outcome.reason for outcome in outcomes if isinstance(outcome, JudgeFailure))),
    )
