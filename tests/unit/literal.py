"""The formulas of algorithm §3 to §5 and of the step credits a second time: loops over single numbers, to compare with.

Written from the definitions and from nothing in `mrpo`. Slow, and as close to the formulas as Python gets.

Letters: N completions, G group size, R reward components, T completion tokens, K steps, B completions of a loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Spans = Sequence[tuple[int, int]]


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def unbiased_std(values: Sequence[float]) -> float:
    centre = mean(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))


def normalised(values: Sequence[float], eps: float) -> list[float]:
    if all(value == values[0] for value in values):
        return [0.0] * len(values)
    centre, scale = mean(values), unbiased_std(values) + eps
    return [(value - centre) / scale for value in values]


def counting_groups(num_completions: int, group_size: int, valid: Sequence[bool]) -> list[list[int]]:
    """Of each group the completions that count; groups with fewer than two of them have none."""
    groups = []
    for first in range(0, num_completions, group_size):
        members = [index for index in range(first, first + group_size) if valid[index]]
        if len(members) >= 2:
            groups.append(members)
    return groups


def grpo(rewards: Sequence[float], group_size: int, eps: float, valid: Sequence[bool]) -> list[float]:
    """§3: (r − mean_g) / (std_g + eps)."""
    result = [0.0] * len(rewards)
    for members in counting_groups(len(rewards), group_size, valid):
        for index, value in zip(members, normalised([rewards[i] for i in members], eps), strict=True):
            result[index] = value
    return result


def gdpo(
    components: Sequence[Sequence[float]], weights: Sequence[float], group_size: int, eps: float, valid: Sequence[bool]
) -> list[float]:
    """§3: each reward normalised within its group, their weighted sum normalised over the batch."""
    result = [0.0] * len(components)
    groups = counting_groups(len(components), group_size, valid)
    for members in groups:
        for r, weight in enumerate(weights):
            column = normalised([components[i][r] for i in members], eps)
            for index, value in zip(members, column, strict=True):
                result[index] += weight * value
    counting = [index for members in groups for index in members]
    if counting:
        for index, value in zip(counting, normalised([result[i] for i in counting], eps), strict=True):
            result[index] = value
    return result


def dr_grpo(rewards: Sequence[float], group_size: int, valid: Sequence[bool]) -> list[float]:
    """§3: r − mean_g."""
    result = [0.0] * len(rewards)
    for members in counting_groups(len(rewards), group_size, valid):
        for index in members:
            result[index] = rewards[index] - mean([rewards[i] for i in members])
    return result


def rloo(rewards: Sequence[float], group_size: int, valid: Sequence[bool]) -> list[float]:
    """§3: r − the mean of the others of its group."""
    result = [0.0] * len(rewards)
    for members in counting_groups(len(rewards), group_size, valid):
        for index in members:
            result[index] = rewards[index] - mean([rewards[i] for i in members if i != index])
    return result


def penalty(k: int, num_steps: int, base: float, schedule: str) -> float:
    """§4: what |A| is multiplied by at an invalid step k = 1…K."""
    if num_steps == 1:
        return 1.0
    if schedule == "exponential":
        return base ** (1 - (k - 1) / (num_steps - 1))
    if schedule == "linear":
        return 1 + (base - 1) * (num_steps - k) / (num_steps - 1)
    if schedule == "reversed":
        return base ** ((k - 1) / (num_steps - 1))
    raise ValueError(schedule)


def shaped(
    advantage: float,
    verdicts: Sequence[bool] | None,
    spans: Spans,
    num_tokens: int,
    answer_reward: float,
    threshold: float,
    base: float,
    schedule: str,
) -> list[float]:
    """§4: the advantage of every token of one completion."""
    result = []
    for token in range(num_tokens):
        value = advantage
        if not answer_reward > threshold and verdicts is not None and schedule != "none":
            for k, (first, stop) in enumerate(spans, start=1):
                if first <= token < stop:
                    if verdicts[k - 1]:
                        value = abs(advantage)
                    else:
                        value = -penalty(k, len(spans), base, schedule) * abs(advantage)
        result.append(value if value != 0 else 0.0)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One completion of a group, as step credit sees it."""

    advantage: float
    verdicts: Sequence[bool] | None
    spans: Spans
    num_tokens: int


def min_form_returns(rewards: Sequence[float], temperature: float) -> list[float]:
    """PURE: min_{j ≥ k} r_j, or Σ_{j ≥ k} r*_j with r*_j = softmax(−r/temperature)_j · r_j over all steps."""
    if temperature == 0:
        return [min(rewards[k:]) for k in range(len(rewards))]
    largest = max((-reward / temperature for reward in rewards), default=0.0)
    powers = [math.exp(-reward / temperature - largest) for reward in rewards]
    transformed = [power / math.fsum(powers) * reward for power, reward in zip(powers, rewards, strict=True)]
    return [math.fsum(transformed[k:]) for k in range(len(rewards))]


def min_form_credit(group: Sequence[Judged], process_weight: float, temperature: float) -> list[list[float]]:
    """PURE with a baseline of the mean return of the other completions' tokens: A + w · (G_t − b)."""
    token_returns: list[list[float] | None] = []  # of the tokens that a step ends at or after
    for item in group:
        if item.verdicts is None:
            token_returns.append(None)
            continue
        returns = min_form_returns([1.0 if verdict else -1.0 for verdict in item.verdicts], temperature)
        values = []
        for token in range(item.num_tokens):
            ahead = [k for k, (_, stop) in enumerate(item.spans) if stop - 1 >= token]
            if ahead:
                values.append(returns[ahead[0]])
        token_returns.append(values)
    result = []
    for i, item in enumerate(group):
        row = [item.advantage] * item.num_tokens
        own = token_returns[i]
        others = [value for j, values in enumerate(token_returns) if j != i for value in values or ()]
        if own is not None and others:
            baseline = mean(others)
            for token, value in enumerate(own):
                row[token] += process_weight * (value - baseline)
        result.append(row)
    return result


def process_supervision(group: Sequence[Judged], process_weight: float, eps: float) -> list[list[float]]:
    """DeepSeekMath §4.1.3: A + w · the sum of the normalised rewards of the steps that end at or after the token."""
    rewards = [float(verdict) for item in group if item.verdicts is not None for verdict in item.verdicts]
    constant = len(rewards) < 2 or all(reward == rewards[0] for reward in rewards)
    centre, scale = (0.0, 1.0) if constant else (mean(rewards), unbiased_std(rewards) + eps)
    result = []
    for item in group:
        row = []
        for token in range(item.num_tokens):
            value = item.advantage
            if item.verdicts is not None and not constant:
                for (_, stop), verdict in zip(item.spans, item.verdicts, strict=True):
                    if stop - 1 >= token:
                        value += process_weight * (float(verdict) - centre) / scale
            row.append(value)
        result.append(row)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSettings:
    """What the policy loss is, in words of its own."""

    ratio: str
    epsilon_low: float
    epsilon_high: float
    beta: float
    estimator: str
    aggregation: str
    constant_length: int
    importance: str
    cap: float
    floor: float


Matrix = Sequence[Sequence[float]]


def denominator(mask: Sequence[Sequence[bool]], settings: LossSettings) -> float:
    """§5: what the sum over a global batch is divided by; 1 where nothing counts."""
    completions = sum(any(row) for row in mask)
    if settings.aggregation == "sequence_mean":
        return max(completions, 1)
    if settings.aggregation == "token_mean":
        return max(sum(sum(row) for row in mask), 1)
    return max(completions, 1) * settings.constant_length if completions else 1


def off_policy_weight(old: float, rollout: float, settings: LossSettings) -> float:
    weight = math.exp(old - rollout)
    if settings.importance == "none":
        return 1.0
    if settings.importance == "truncate":
        return min(weight, settings.cap)
    return weight if settings.floor <= weight <= settings.cap else 0.0


def divergence(logp: float, ref: float, estimator: str) -> tuple[float, float]:
    """Schulman's estimate of KL(policy ‖ reference), and its derivative by logp."""
    if estimator == "k1":
        return logp - ref, 1.0
    if estimator == "k2":
        return (logp - ref) ** 2 / 2, logp - ref
    return math.exp(ref - logp) - (ref - logp) - 1, 1 - math.exp(ref - logp)


def policy_loss(
    logp: Matrix,
    old: Matrix,
    advantages: Matrix,
    mask: Sequence[Sequence[bool]],
    ref: Matrix | None,
    rollout: Matrix | None,
    total: float,
    settings: LossSettings,
) -> tuple[float, list[list[float]]]:
    """§5: the loss, and its derivative by every entry of logp; `total` is the global denominator."""
    loss = 0.0
    gradient = [[0.0] * len(row) for row in logp]
    for i, row in enumerate(mask):
        tokens = [t for t, counts in enumerate(row) if counts]
        if not tokens:
            continue
        share = 1 / total
        if settings.aggregation == "sequence_mean":
            share /= len(tokens)
        geometric = math.exp(math.fsum(logp[i][t] - old[i][t] for t in tokens) / len(tokens))
        for t in tokens:
            ratio = math.exp(logp[i][t] - old[i][t]) if settings.ratio == "token" else geometric
            advantage = advantages[i][t]
            weight = 1.0 if rollout is None else off_policy_weight(old[i][t], rollout[i][t], settings)
            clipped = min(max(ratio, 1 - settings.epsilon_low), 1 + settings.epsilon_high)
            loss += share * -weight * min(ratio * advantage, clipped * advantage)
            if ratio * advantage <= clipped * advantage:  # the clip does not decide
                slope = share * -weight * ratio * advantage
                if settings.ratio == "sequence":  # every log-prob of the completion moves the ratio by 1/|y|
                    for u in tokens:
                        gradient[i][u] += slope / len(tokens)
                else:
                    gradient[i][t] += slope
            if settings.beta > 0 and ref is not None:
                value, derivative = divergence(logp[i][t], ref[i][t], settings.estimator)
                loss += share * settings.beta * value
                gradient[i][t] += share * settings.beta * derivative
    return loss, gradient
