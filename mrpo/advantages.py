"""From rewards to one advantage per completion, and from verdicts to one per token (algorithm §3, §4).

Letters: G group size, N completions in the global batch (groups in a row, N a multiple of G), R reward components,
T completion tokens, K steps. Computed in float64; results have the input's floating type, float64 for anything else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mrpo.config import AdvantageKind, Schedule
from mrpo.errors import ConfigError, NonFiniteError, UserError

Values = Tensor | Sequence[float]
Matrix = Tensor | Sequence[Sequence[float]]
Mask = Tensor | Sequence[bool]

AdvantageFunction = Callable[[Matrix, Values, int, float, Mask | None], Tensor]


def grpo_advantages(rewards: Values, group_size: int, eps: float = 1e-4, valid: Mask | None = None) -> Tensor:
    """(r − mean of its group) / (unbiased std of its group + eps); arXiv 2402.03300.

    Args:
        rewards: [N] total reward of each completion.
        group_size: completions of one prompt.
        eps: added to the standard deviation.
        valid: [N] completions that count; the others are in no mean or deviation and get 0. None: all.

    Returns:
        [N]; exactly 0 where all valid rewards of a group are equal, or fewer than two are valid.

    Raises:
        UserError: N is no multiple of `group_size`, or `valid` has another length.
        NonFiniteError: a reward that counts is NaN or Inf.
    """
    grouped, counted = _grouped(rewards, group_size, valid)
    centred, std = _centre(grouped, counted)
    return _like(rewards, _over(centred, std + eps).flatten())


def dr_grpo_advantages(rewards: Values, group_size: int, valid: Mask | None = None) -> Tensor:
    """r − mean of its group, without the division by the deviation; arXiv 2503.20783.

    Arguments, result and errors are those of `grpo_advantages`.
    """
    grouped, counted = _grouped(rewards, group_size, valid)
    return _like(rewards, _centre(grouped, counted)[0].flatten())


def rloo_advantages(rewards: Values, group_size: int, valid: Mask | None = None) -> Tensor:
    """r − mean of the *other* valid rewards of its group; arXiv 2402.14740.

    Arguments, result and errors are those of `grpo_advantages`.
    """
    grouped, counted = _grouped(rewards, group_size, valid)
    num = counted.sum(dim=1, keepdim=True)
    centred = _centre(grouped, counted)[0]
    return _like(rewards, (centred * num / (num - 1).clamp(min=1)).flatten())


def gdpo_advantages(
    components: Matrix, weights: Values, group_size: int, eps: float = 1e-4, valid: Mask | None = None
) -> Tensor:
    """Each reward normalised within its group, weighted and summed, then normalised over the batch; arXiv 2601.05242.

    Args:
        components: [N, R] rewards of the **global** batch: all ranks, all groups.
        weights: [R].
        group_size: completions of one prompt.
        eps: added to both standard deviations.
        valid: [N] completions that count, as in `grpo_advantages`.

    Returns:
        [N]; a reward without variance in a group contributes 0 there.

    Raises:
        UserError: shapes do not agree.
        NonFiniteError: a reward that counts is NaN or Inf.
    """
    matrix = torch.as_tensor(components)
    weight = torch.as_tensor(weights, dtype=torch.float64)
    if matrix.ndim != 2 or weight.shape != matrix.shape[1:]:
        raise UserError(
            f"GDPO needs components [N, R] and weights [R], got {tuple(matrix.shape)} and {tuple(weight.shape)}"
        )
    total = torch.zeros(matrix.shape[0], dtype=torch.float64)
    for component, share in zip(matrix.unbind(dim=1), weight, strict=True):
        total += share * grpo_advantages(component.double(), group_size, eps, valid)
    _, counted = _grouped(total, group_size, valid)
    centred, std = _centre(total.unsqueeze(0), counted.reshape(1, -1))  # the batch as one group
    return _like(components, _over(centred, std + eps).flatten())


def _of_sum(function: Callable[[Tensor, int, float, Mask | None], Tensor]) -> AdvantageFunction:
    """Let a function of total rewards take components and weights."""

    def advantages(components: Matrix, weights: Values, group_size: int, eps: float, valid: Mask | None) -> Tensor:
        total = torch.as_tensor(components, dtype=torch.float64) @ torch.as_tensor(weights, dtype=torch.float64)
        return function(total, group_size, eps, valid)

    return advantages


# (components [N, R], weights [R], group_size, eps, valid) → advantages [N], by the name used in the configuration.
ADVANTAGES: dict[str, AdvantageFunction] = {
    AdvantageKind.GRPO: _of_sum(grpo_advantages),
    AdvantageKind.GDPO: gdpo_advantages,
    AdvantageKind.DR_GRPO: _of_sum(lambda rewards, size, eps, valid: dr_grpo_advantages(rewards, size, valid)),
    AdvantageKind.RLOO: _of_sum(lambda rewards, size, eps, valid: rloo_advantages(rewards, size, valid)),
}


def advantage_function(name: str) -> AdvantageFunction:
    """The entry of `ADVANTAGES` with that name.

    Raises:
        ConfigError: there is none; the message lists the known ones.
    """
    if name not in ADVANTAGES:
        raise ConfigError(f"algorithm.advantage={name!r} is unknown; known: {', '.join(ADVANTAGES)}")
    return ADVANTAGES[name]


_WEIGHT_OF_SHARE: dict[str, Callable[[float, float], float]] = {
    # share (k − 1)/(K − 1) of the way from the first to the last step → weight
    Schedule.EXPONENTIAL: lambda share, base: math.pow(base, 1.0 - share),
    Schedule.LINEAR: lambda share, base: 1.0 + (base - 1.0) * (1.0 - share),
    Schedule.REVERSED: lambda share, base: math.pow(base, share),
}


def step_weights(num_steps: int, base: float, schedule: str) -> list[float]:
    """Penalty weights [K] of invalid steps, first step first; a single step weighs 1.

    Raises:
        ConfigError: a schedule without weights ("none") or an unknown one, or a base that is not positive.
    """
    if schedule not in _WEIGHT_OF_SHARE:
        raise ConfigError(f"algorithm.schedule={schedule!r} has no weights; known: {', '.join(_WEIGHT_OF_SHARE)}")
    if not (base > 0 and math.isfinite(base)):
        raise ConfigError(f"algorithm.base={base} must be a positive number")
    if num_steps <= 1:
        return [1.0] * num_steps
    weight = _WEIGHT_OF_SHARE[schedule]
    return [weight(k / (num_steps - 1), base) for k in range(num_steps)]


def shape_step_advantages(
    advantage: float,
    verdicts: Sequence[bool] | None,
    spans: Sequence[tuple[int, int]],
    num_tokens: int,
    answer_reward: float,
    *,
    threshold: float = 0.6,
    base: float = math.e,
    schedule: str = "exponential",
) -> list[float]:
    """One advantage per token: a wrong answer's valid steps gain |A|, its invalid ones lose, the earlier the more.

    Args:
        advantage: A, the completion's group advantage.
        verdicts: [K] whether each step is valid; None: not judged.
        spans: [K] half-open token ranges of the steps.
        num_tokens: T.
        answer_reward: above `threshold` the answer counts as right and every token keeps A.
        threshold: see above; equality is wrong.
        base: weight of the first step relative to the last.
        schedule: "exponential", "linear", "reversed", or "none", which keeps A everywhere.

    Returns:
        [T]; tokens in no step keep A, and zero is never negative.

    Raises:
        UserError: as many verdicts as spans are needed, and spans inside the completion.
        ConfigError: an unknown schedule or a base that is not positive.
    """
    if verdicts is not None and len(verdicts) != len(spans):
        raise UserError(f"got {len(verdicts)} verdicts for {len(spans)} steps; a completion needs one for each step")
    kept = advantage + 0.0  # turns -0.0 into 0.0
    token_advantages = [kept] * num_tokens
    weights = [] if schedule == Schedule.NONE else step_weights(len(spans), base, schedule)
    if verdicts is None or not weights or answer_reward > threshold:
        return token_advantages
    size = abs(advantage)
    for (first, stop), is_valid, weight in zip(spans, verdicts, weights, strict=True):
        if not 0 <= first <= stop <= num_tokens:
            raise UserError(f"step span ({first}, {stop}) is not inside a completion of {num_tokens} tokens")
        value = size if is_valid else -weight * size + 0.0
        token_advantages[first:stop] = [value] * (stop - first)
    return token_advantages


def _grouped(rewards: Values, group_size: int, valid: Mask | None) -> tuple[Tensor, Tensor]:
    """Rewards [N/G, G] float64, and which of them count [N/G, G]: valid, in a group with at least two valid ones."""
    flat = torch.as_tensor(rewards).detach().to(device="cpu", dtype=torch.float64)
    if flat.ndim != 1 or group_size < 1 or flat.numel() % group_size:
        raise UserError(f"rewards of shape {tuple(flat.shape)} do not make whole groups of group_size={group_size}")
    mask = torch.ones_like(flat, dtype=torch.bool) if valid is None else torch.as_tensor(valid).bool().cpu()
    if mask.shape != flat.shape:
        raise UserError(f"valid has shape {tuple(mask.shape)}, expected {tuple(flat.shape)}: one entry a completion")
    bad = (mask & ~flat.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise NonFiniteError(f"reward of completion {bad[0]} of the batch is {flat[bad[0]].item()}")
    grouped, counted = flat.reshape(-1, group_size), mask.reshape(-1, group_size)
    return grouped, counted & (counted.sum(dim=1, keepdim=True) >= 2)


def _centre(grouped: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Deviations from the row mean [rows, G] and unbiased standard deviations [rows, 1], over what counts."""
    num = counted.sum(dim=1, keepdim=True)
    values = torch.where(counted, grouped, 0.0)
    mean = values.sum(dim=1, keepdim=True) / num.clamp(min=1)
    centred = torch.where(counted, values - mean, 0.0)
    # The mean of equal numbers may be off by a rounding, which the division by a tiny deviation would blow up.
    low = torch.where(counted, grouped, math.inf).amin(dim=1, keepdim=True)
    high = torch.where(counted, grouped, -math.inf).amax(dim=1, keepdim=True)
    centred = torch.where(high > low, centred, 0.0)
    std = (centred.square().sum(dim=1, keepdim=True) / (num - 1).clamp(min=1)).sqrt()
    return centred, std


def _over(centred: Tensor, scale: Tensor) -> Tensor:
    """The quotient, and 0 for no deviation even where eps = 0 makes the scale 0 as well."""
    return torch.where(centred == 0, 0.0, centred / scale)


def _like(source: object, result: Tensor) -> Tensor:
    """The result in the source tensor's floating type and on its device."""
    if isinstance(source, Tensor):
        return result.to(device=source.device, dtype=source.dtype if source.is_floating_point() else result.dtype)
    return result
