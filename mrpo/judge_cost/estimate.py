"""Calls, tokens, money and minutes of a run's judge, before it has run. Pure but for the sample it is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mrpo.choices import AnswerKind, JudgeKind
from mrpo.config import Config, JudgeConfig
from mrpo.judge_cost.sample import Sample
from mrpo.judge_cost.tokens import CallTokens, tokens_of
from mrpo.judge_endpoints import endpoints_of
from mrpo.judge_prices import cost_of
from mrpo.judge_spending import Spending
from mrpo.scoring import rewards_use_verdicts
from mrpo.steps import split_steps
from mrpo.types import AnswerRequest, Example, JudgeRequest

RETRY_SHARE = 0.02  # of requests, made once more; assumed
LATENCY_S = 3.0  # of one request; assumed
CHARS_PER_TOKEN_OF_POLICY = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A part of a run, and how often the judge is asked in it."""

    name: str
    num_questions: float
    group_size: int  # completions of one question
    times: int  # how often it comes: the steps of training, or evaluations
    step_calls: float  # in all
    answer_calls: float

    @property
    def calls(self) -> float:
        """Of both sorts."""
        return self.step_calls + self.answer_calls


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Tokens of a run, all calls together."""

    prompt: float
    cacheable: float  # of them, those that repeat the beginning of an earlier call
    image: float  # of the prompt's
    completion: float

    @property
    def tokens(self) -> float:
        """Prompt and completion."""
        return self.prompt + self.completion


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a run's judge will take."""

    phases: list[Phase]
    step_call: CallTokens | None  # the mean; None: none is made
    answer_call: CallTokens | None
    expected: Size  # completions as long as gold rationales
    most: Size  # every completion as long as it may be
    sample: Sample

    @property
    def calls(self) -> float:
        """Of all phases."""
        return sum(phase.calls for phase in self.phases)

    @property
    def requests(self) -> float:
        """Calls, and those that are made again."""
        return self.calls * (1 + RETRY_SHARE)


def estimate(config: Config, sample: Sample) -> Estimate:
    """Take the run apart into calls, and add up what they take."""
    phases = phases_of(config, sample)
    step_call = answer_call = None
    if any(phase.step_calls for phase in phases):
        step_call = _mean(config.judge, sample, lambda row: _steps_request(row, _gold_steps(row)))
    if any(phase.answer_calls for phase in phases):
        answer_call = _mean(config.judge, sample, _answer_request)
    longest = None
    if step_call is not None:
        longest = _mean(config.judge, sample, lambda row: _steps_request(row, _longest_steps(config)))
    return Estimate(
        phases=phases,
        step_call=step_call,
        answer_call=answer_call,
        expected=_size(phases, step_call, answer_call),
        most=_size(phases, longest, answer_call),
        sample=sample,
    )


def phases_of(config: Config, sample: Sample) -> list[Phase]:
    """Training and its evaluations. Completions without a step or an answer are not known, and counted as asked."""
    by_judge = config.reward.answer.kind == AnswerKind.JUDGE
    each, evaluation = config.rollout.prompts_per_step, config.eval
    every = evaluation.every_steps
    periodic = config.num_steps // every - (config.num_steps % every == 0 and evaluation.after) if every else 0
    part = min(sample.num_test, evaluation.num_periodic or sample.num_test)
    rows = [
        ("evaluation before", sample.num_test, 1, int(evaluation.before)),
        ("training", each, config.rollout.group_size, config.num_steps),
        ("evaluations during training", part, 1, periodic),
        ("evaluation after", sample.num_test, 1, int(evaluation.after)),
    ]
    phases = []
    for name, questions, group_size, times in rows:
        completions = questions * group_size * times
        is_training = name == "training"
        share = sample.rationale_share if is_training else sample.test_rationale_share
        asks = is_training or evaluation.judge
        if completions:
            phases.append(
                Phase(
                    name=name,
                    num_questions=questions,
                    group_size=group_size,
                    times=times,
                    # A canary is about as long as a completion's call.
                    step_calls=completions * share * (1 + config.judge.canary_share) if asks else 0.0,
                    answer_calls=completions if by_judge else 0.0,
                )
            )
    return phases


def only_measures(config: Config) -> bool:
    """Whether rulings on steps decide about no advantage: they could be left out."""
    return not rewards_use_verdicts(config.algorithm, config.reward)


def money(size: Size, judge: JudgeConfig, *, cached: bool) -> float | None:
    """What it costs, endpoints taken by their weights; None where a model has no price.

    Args:
        cached: whether what may be cached is paid as cached.
    """
    weights = _weights(judge)
    if any(model not in judge.prices for model in weights):
        return None
    spending = Spending(
        prompt_tokens=round(size.prompt),
        cached_prompt_tokens=round(size.cacheable) if cached else 0,
        completion_tokens=round(size.completion),
    )
    total = sum(weights.values())
    return sum(weight / total * cost_of(spending, judge.prices[model]) for model, weight in weights.items())


def minutes(found: Estimate, judge: JudgeConfig) -> dict[str, float]:
    """The least time that each limit allows, by setting."""
    rounds = sum(math.ceil(phase.calls / phase.times / judge.concurrency) * phase.times for phase in found.phases)
    times = {f"judge.concurrency={judge.concurrency} at {LATENCY_S:g} s a request": rounds * LATENCY_S / 60}
    if judge.requests_per_minute is not None:
        times[f"judge.requests_per_minute={judge.requests_per_minute}"] = found.requests / judge.requests_per_minute
    if judge.tokens_per_minute is not None:
        times[f"judge.tokens_per_minute={judge.tokens_per_minute}"] = found.expected.tokens / judge.tokens_per_minute
    return times


def budget_ends(found: Estimate, config: Config) -> list[tuple[str, float, int | None]]:
    """For each budget that is set: its setting, the share of it that the run needs, and the step in which it ends."""
    judge = config.judge
    cost = money(found.expected, judge, cached=False)
    needs = (
        ("max_requests", judge.max_requests, found.requests),
        ("max_tokens", judge.max_tokens, found.expected.tokens),
        ("max_cost", judge.max_cost, cost),
    )
    ends: list[tuple[str, float, int | None]] = []
    for name, limit, need in needs:
        if limit is not None and need:
            share = need / limit
            ends.append((f"judge.{name}={limit:.12g}", share, None if share <= 1 else _end(found, 1 / share)))
    return ends


def _end(found: Estimate, share: float) -> int:
    """The step in which so much of all calls is made; 0: before training."""
    left = share * found.calls
    for phase in found.phases:
        if phase.name == "training":
            return min(phase.times, math.floor(left / (phase.calls / phase.times)) + 1) if phase.calls else phase.times
        left -= phase.calls
        if left < 0:
            return 0
    return 0


def _weights(judge: JudgeConfig) -> dict[str, float]:
    """Share of the calls by model."""
    if judge.kind in (JudgeKind.ORACLE, JudgeKind.LEXICAL, JudgeKind.VLLM):
        return {str(judge.kind): 1.0}
    weights: dict[str, float] = {}
    for endpoint in endpoints_of(judge):
        weights[endpoint.model] = weights.get(endpoint.model, 0.0) + endpoint.weight
    return weights


def _size(phases: Sequence[Phase], step_call: CallTokens | None, answer_call: CallTokens | None) -> Size:
    prompt = cacheable = image = completion = 0.0
    for phase in phases:
        for call, number in ((step_call, phase.step_calls), (answer_call, phase.answer_calls)):
            if call is not None:
                repeats = number * (1 - 1 / phase.group_size)  # of a question that was asked about before
                prompt += number * call.prompt
                cacheable += number * call.rubric + repeats * call.question
                image += number * call.image
                completion += number * call.reply
    return Size(prompt=prompt, cacheable=cacheable, image=image, completion=completion)


def _mean(
    judge: JudgeConfig, sample: Sample, request_of: Callable[[Example], JudgeRequest | AnswerRequest]
) -> CallTokens:
    rows = [row for row in sample.rows if row.rationale is not None] or sample.rows
    calls = [tokens_of(request_of(row), judge, image_size=sample.image_size) for row in rows]
    names = ("rubric", "question", "own", "image", "reply")
    return CallTokens(**{name: sum(getattr(call, name) for call in calls) / len(calls) for name in names})


def _steps_request(row: Example, steps: list[str]) -> JudgeRequest:
    return JudgeRequest(
        key=row.id,
        image=row.image,
        question=row.question,
        answer=row.answer,
        rationale=row.rationale or "",
        steps=steps,
    )


def _answer_request(row: Example) -> AnswerRequest:
    return AnswerRequest(key=row.id, image=row.image, question=row.question, answer=row.answer, generated=row.answer)


def _gold_steps(row: Example) -> list[str]:
    """A completion as long as the gold rationale."""
    rationale = row.rationale or ""
    return [step.text for step in split_steps(f"<think>{rationale}</think>")] or [rationale]


def _longest_steps(config: Config) -> list[str]:
    """A completion of as many tokens as may be, in as many steps as are not punished."""
    num_steps = config.reward.max_steps
    each = max(1, config.rollout.max_new_tokens // num_steps) * CHARS_PER_TOKEN_OF_POLICY
    return ["x" * each] * num_steps
