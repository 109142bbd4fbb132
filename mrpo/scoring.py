"""From finished and judged completions to rewards, advantages and training samples (algorithm §2 to §4). Pure.

Letters: G group size, N completions of the global batch, T completion tokens, K steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mrpo.advantages.credit import Credited
from mrpo.advantages.registry import SHAPINGS, advantage_function
from mrpo.choices import STEP_CREDITING, AnswerKind, JudgeFailurePolicy, Schedule, Shaping, TruncatedPolicy
from mrpo.config import AlgorithmConfig, RewardConfig
from mrpo.errors import JudgeUnavailableError, MRPOError
from mrpo.rewards.components import process_reward, step_count_reward
from mrpo.types import (
    AnswerJudgement,
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
    answer_reward: float | None  # [0, 1]; None: the answer was for the judge to rate, and it failed
    answer_judgement: AnswerJudgement | None = None  # None: not rated by the judge


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredTrace:
    """A completion with its rewards and advantages. Read by the learner (as `TrainSample`), run folder and metrics."""

    trace: Trace
    answer_reward: float | None  # [0, 1]; None: its judgement failed
    process_reward: float | None  # [0, 1]; None: not judged, judgement failed, or its group is scored without
    step_count_reward: float  # at most 0
    reward: float | None  # weighted sum; None: a part that its group has is missing here
    advantage: float  # of the completion within its group; 0 outside the baseline
    token_advantages: list[float]  # [T]
    in_baseline: bool  # counted in its group's mean and deviation; False: no gradient
    verdicts_used: list[bool] | None  # [K] that token advantages went by; None: they went by none


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
    is_complete: bool  # has every reward that its group has
    valid: bool  # may enter the baseline
    process: float | None
    step_count: float
    verdicts: list[bool] | None  # [K] that its tokens may go by

    @property
    def completion(self) -> Completion:
        return self.trace.completion


def score_group_batch(
    traces: Sequence[Trace],
    *,
    group_size: int,
    algorithm: AlgorithmConfig,
    reward: RewardConfig,
    on_failure: JudgeFailurePolicy,
    prompt_order: Sequence[str] | None = None,
) -> ScoredBatch:
    """Score the global batch of one optimizer step.

    Args:
        traces: [N] all completions of all groups, in any order.
        group_size: G; every prompt id has exactly so many.
        algorithm: advantage, shaping and what happens to truncated completions.
        reward: components and weights.
        on_failure: what happens to a completion whose judgement failed.
        prompt_order: prompt ids in canonical order; None: in order of their first appearance in `traces`.

    Returns:
        The same completions by (prompt order, sample index), so that arrival order changes nothing.

    Raises:
        JudgeUnavailableError: a judgement failed under `on_failure=fail`.
        MRPOError: an incomplete group, a group judged in part, or another number of verdicts than steps.
    """
    groups = _groups(traces, group_size, prompt_order)
    uses_verdicts = rewards_use_verdicts(algorithm, reward)
    no_judge = not any(trace.judgement for trace in traces) and any(_can_be_judged(trace) for trace in traces)
    rated: list[_Rated] = []
    unjudged_groups = failed_groups = 0
    for group in groups:
        unjudged = no_judge or _is_unjudged(group)
        failed = uses_verdicts and not unjudged and any(_counts_as_failure(trace, algorithm) for trace in group)
        if on_failure == JudgeFailurePolicy.FAIL:
            _raise_failure([trace for trace in group if not _is_masked(trace, algorithm)], steps=failed)
        answer_only = failed and on_failure == JudgeFailurePolicy.ANSWER_ONLY
        unjudged_groups += unjudged
        failed_groups += answer_only
        with_process = not (unjudged or answer_only)
        rated += [
            _rate(trace, algorithm, reward, with_process=with_process, needs_process=with_process and uses_verdicts)
            for trace in group
        ]

    kept = _kept([item.valid for item in rated], group_size)
    advantages = _group_advantages(rated, group_size, algorithm, reward)
    scored: list[ScoredTrace] = []
    for first in range(0, len(rated), group_size):
        members = slice(first, first + group_size)
        scored += _scored_group(rated[members], advantages[members], kept[members], algorithm, reward)
    groups_dropped = sum(not any(kept[first : first + group_size]) for first in range(0, len(kept), group_size))
    counts = _count(scored, len(groups), groups_dropped, unjudged_groups, failed_groups, group_size)
    return ScoredBatch(traces=scored, counts=counts)


def rewards_use_verdicts(algorithm: AlgorithmConfig, reward: RewardConfig) -> bool:
    """Whether verdicts decide about any advantage. Where they don't, a judge is only a measure, and may fail."""
    return _is_shaped(algorithm) or reward.process_weight > 0


def judge_failures(
    traces: Sequence[Trace], algorithm: AlgorithmConfig, reward: RewardConfig
) -> tuple[int, list[JudgeFailure]]:
    """How many completions the judge was asked about in earnest, and why it failed on some: one failure a completion.

    Rulings on steps count where they decide about an advantage; where the judge only measures, its failures are seen in
    the metrics and stop nothing.
    """
    in_earnest = rewards_use_verdicts(algorithm, reward)
    num_judged, failures = 0, []
    for trace in traces:
        calls = (trace.answer_judgement, trace.judgement if in_earnest else None)
        outcomes = [call.outcome for call in calls if call is not None]
        num_judged += bool(outcomes)
        failures += [outcome for outcome in outcomes if isinstance(outcome, JudgeFailure)][:1]
    return num_judged, failures


def _is_shaped(algorithm: AlgorithmConfig) -> bool:
    """Whether verdicts decide about the advantages of tokens."""
    by_position = algorithm.shaping == Shaping.MRPO and algorithm.schedule == Schedule.NONE
    return algorithm.shaping != Shaping.NONE and not by_position


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


def _can_be_judged(trace: Trace) -> bool:
    return trace.example.rationale is not None and bool(trace.completion.steps)


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


def _raise_failure(group: Sequence[Trace], *, steps: bool) -> None:
    """Raise for the first failed judgement of an answer, or of steps where these matter."""
    for trace in group:
        answer = trace.answer_judgement.outcome if trace.answer_judgement else None
        for outcome in (answer, _outcome(trace) if steps else None):
            if isinstance(outcome, JudgeFailure):
                raise JudgeUnavailableError(
                    f"judgement of {trace.completion.key} failed ({outcome.reason}: {outcome.detail}) and "
                    "judge.on_failure=fail; mend the judge, or set judge.on_failure=exclude or answer_only"
                )


def _rate(
    trace: Trace, algorithm: AlgorithmConfig, reward: RewardConfig, *, with_process: bool, needs_process: bool
) -> _Rated:
    process = _process(trace) if with_process else None
    complete = trace.answer_reward is not None and (process is not None or not needs_process)
    return _Rated(
        trace=trace,
        is_complete=complete,
        valid=complete and not _is_masked(trace, algorithm),
        process=process,
        step_count=step_count_reward(len(trace.completion.steps), reward.min_steps, reward.max_steps),
        # Step credits are the process reward: a group scored without it has none of them.
        verdicts=_verdicts(trace) if with_process or algorithm.shaping not in STEP_CREDITING else None,
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


def answer_to_rate(completion: Completion, kind: AnswerKind) -> str:
    """The text that is compared with the gold answer, stripped; empty: it scores 0 without being looked at.

    Without an answer tag that is the whole text under `mixed`; by equality or by a judge an answer has to be marked.
    """
    if completion.answer is not None:
        return completion.answer.strip()
    return completion.text.strip() if kind == AnswerKind.MIXED else ""


def _group_advantages(
    rated: Sequence[_Rated], group_size: int, algorithm: AlgorithmConfig, reward: RewardConfig
) -> list[float]:
    """[N] one advantage per completion."""
    weights = _weights(reward)
    if algorithm.shaping in STEP_CREDITING:
        weights[1] = 0.0  # tokens get it, see `mrpo.advantages`
    components = [_components(item) for item in rated]
    valid = [item.valid for item in rated]
    function = advantage_function(algorithm.advantage)
    return function(components, weights, group_size, algorithm.eps, valid).tolist()


def _weights(reward: RewardConfig) -> list[float]:
    return [reward.answer_weight, reward.process_weight, reward.step_count_weight]


def _components(item: _Rated) -> list[float]:
    """[R] in the order of the weights. A part that a whole group lacks is 0 for all of it, and changes no advantage."""
    return [item.trace.answer_reward or 0.0, item.process or 0.0, item.step_count]


def _kept(valid: Sequence[bool], group_size: int) -> list[bool]:
    """[N] valid, in a group with at least two valid ones: one alone has nothing to be compared with."""
    kept: list[bool] = []
    for first in range(0, len(valid), group_size):
        group = valid[first : first + group_size]
        kept += group if sum(group) >= 2 else [False] * group_size
    return kept


def _scored_group(
    rated: Sequence[_Rated],
    advantages: Sequence[float],
    kept: Sequence[bool],
    algorithm: AlgorithmConfig,
    reward: RewardConfig,
) -> list[ScoredTrace]:
    """The completions of one prompt with the advantages of their tokens; outside the baseline these are 0."""
    shaped = _is_shaped(algorithm)
    verdicts = [item.verdicts if shaped and in_ else None for item, in_ in zip(rated, kept, strict=True)]
    credited = [
        Credited(
            advantage=advantage,
            verdicts=ruling,
            spans=item.completion.spans,
            num_tokens=len(item.completion.completion_token_ids),
            answer_reward=item.trace.answer_reward or 0.0,
        )
        for item, advantage, ruling in zip(rated, advantages, verdicts, strict=True)
    ]
    inside = [item for item, in_ in zip(credited, kept, strict=True) if in_]
    shaped_tokens = iter(SHAPINGS[algorithm.shaping](inside, algorithm, reward.process_weight))
    return [
        ScoredTrace(
            trace=item.trace,
            answer_reward=item.trace.answer_reward,
            process_reward=item.process,
            step_count_reward=item.step_count,
            reward=_total(item, reward),
            advantage=advantage,
            token_advantages=next(shaped_tokens) if in_ else [0.0] * len(item.completion.completion_token_ids),
            in_baseline=in_,
            verdicts_used=ruling,
        )
        for item, advantage, in_, ruling in zip(rated, advantages, kept, verdicts, strict=True)
    ]


def _total(item: _Rated, reward: RewardConfig) -> float | None:
    """Weighted sum of the rewards; None where one that its group has is missing."""
    if not item.is_complete:
        return None
    return sum(weight * part for weight, part in zip(_weights(reward), _components(item), strict=True))


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
