"""The policy loss: clipped surrogate and KL penalty per token, and how tokens become one number (algorithm §5).

Letters: B completions of a micro-batch, T completion tokens, padding included. sg[·] stops the gradient. GRPO
(arXiv 2402.03300), DAPO (arXiv 2503.14476), Dr. GRPO (arXiv 2503.20783), GSPO and GSPO-token (arXiv 2507.18071),
truncated importance sampling and IcePop (arXiv 2510.18855) are settings of one function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mrpo.choices import Aggregation, Importance, KLEstimator, Ratio
from mrpo.config import LossConfig
from mrpo.errors import NonFiniteError, UserError

__all__ = ["LossConfig", "LossInputs", "LossOutputs", "global_denominator", "policy_loss"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """One micro-batch. Made by the learner; everything but `logprobs` is a constant of the loss."""

    logprobs: Tensor  # [B, T] nats, with gradient
    old_logprobs: Tensor  # [B, T] of the policy the ratio is measured from; on-policy: logprobs, detached
    advantages: Tensor  # [B, T]
    loss_mask: Tensor  # [B, T] bool or 0/1: tokens that count
    ref_logprobs: Tensor | None = None  # [B, T] of the reference model; needed where beta > 0
    rollout_logprobs: Tensor | None = None  # [B, T] of the sampler; None, or importance=none: no correction
    denominator: float | None = None  # of the global batch, see `global_denominator`; None: this is the global batch
    keys: Sequence[str] | None = None  # [B] names of the completions, for errors


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutputs:
    """The loss, and detached scalars that may be summed (`_max`: maximised) over micro-batches and ranks."""

    loss: Tensor  # with gradient; sums over micro-batches and ranks to the loss of the global batch
    num_tokens: Tensor  # that count
    kl_sum: Tensor  # configured estimator against the reference, nats; 0 without a reference
    clip_sum: Tensor  # tokens at which the clip is active
    importance_sum: Tensor  # of the weights applied; num_tokens without a correction
    importance_clip_sum: Tensor  # tokens whose weight was capped or masked
    importance_diff_sum: Tensor  # of |old − rollout|, nats: what the weights correct; 0 without a correction
    importance_diff_max: Tensor
    ratio_sum: Tensor
    ratio_max: Tensor


def global_denominator(loss_mask: Tensor, config: LossConfig) -> float:
    """What the summed token losses of a batch are divided by, at least 1.

    Args:
        loss_mask: [B, T] of the **global** batch: all ranks and micro-batches. Denominators of parts without empty
            rows may be added up instead.
        config: sequence_mean counts completions with a token that counts, token_mean tokens that count, constant
            `constant_length` tokens for each such completion.
    """
    mask = loss_mask.bool()
    num_completions = int(mask.any(dim=1).sum())
    if config.aggregation == Aggregation.SEQUENCE_MEAN:
        count = num_completions
    elif config.aggregation == Aggregation.TOKEN_MEAN:
        count = int(mask.sum())
    else:
        count = num_completions * config.constant_length
    return float(max(count, 1))


def policy_loss(inputs: LossInputs, config: LossConfig) -> LossOutputs:
    """−w·min(ρA, clip(ρ, 1−ε_low, 1+ε_high)A) + β·KL per token, aggregated over the global batch.

    ρ is `config.ratio`'s, w the off-policy weight of `config.importance`. A token that the weight masks keeps its KL
    term and its place in the denominator, as in IcePop's objective.

    Splitting a batch into micro-batches or over ranks changes nothing beyond rounding, as long as each part gets the
    global denominator. Masked tokens contribute exactly nothing, whatever they hold.

    Raises:
        UserError: shapes differ, a denominator is not positive, or beta > 0 comes without `ref_logprobs`.
        NonFiniteError: a token that counts has a NaN or Inf, or a ratio overflows; names the completion.
    """
    _check(inputs, config)
    mask = inputs.loss_mask.bool()
    logprobs = torch.where(mask, inputs.logprobs, 0.0)
    old_logprobs = _constant(inputs.old_logprobs, mask)
    ratio = _RATIOS[config.ratio](logprobs, old_logprobs, mask)
    surrogate, clip_active = _clipped_surrogate(ratio, _constant(inputs.advantages, mask), config)
    weight, weight_clipped, log_weight = _importance(old_logprobs, inputs.rollout_logprobs, mask, config)
    token_loss = -weight * surrogate
    kl = torch.zeros_like(logprobs)
    if config.beta > 0 and inputs.ref_logprobs is not None:
        kl = _KL[config.kl_estimator](logprobs - _constant(inputs.ref_logprobs, mask))
        token_loss = token_loss + config.beta * kl
    _require_finite({"ratio": ratio, "token loss": token_loss}, mask, inputs.keys)
    return LossOutputs(
        loss=_aggregate(torch.where(mask, token_loss, 0.0), mask, inputs.denominator, config),
        num_tokens=mask.sum(),
        kl_sum=_constant(kl, mask).sum(),
        clip_sum=(mask & clip_active).sum(),
        importance_sum=_constant(weight, mask).sum(),
        importance_clip_sum=(mask & weight_clipped).sum(),
        importance_diff_sum=log_weight.abs().sum(),
        importance_diff_max=_largest(log_weight.abs()),
        ratio_sum=_constant(ratio, mask).sum(),
        ratio_max=_largest(_constant(ratio, mask)),
    )


def _token_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """ρ_t = π(y_t)/π_old(y_t): PPO's, and GRPO's (arXiv 2402.03300, §4.1.1)."""
    return torch.exp(logprobs - old_logprobs)


def _sequence_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """s = (π(y)/π_old(y))^(1/|y|) for every token: GSPO (arXiv 2507.18071, §4.1).

    It is exp of the mean log-ratio over the tokens that count, with the gradient of all of them. All tokens are clipped
    or none; each with its own advantage, which the paper has one of.
    """
    counted = mask.sum(dim=1, keepdim=True).clamp(min=1)
    log_ratio = (logprobs - old_logprobs).sum(dim=1, keepdim=True) / counted  # masked tokens hold 0 in both
    return torch.exp(log_ratio).expand_as(logprobs)


def _sequence_token_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """s_t = sg[s]·π(y_t)/sg[π(y_t)]: GSPO-token (arXiv 2507.18071, §4.3).

    GSPO's value, with the gradient of the token's own log-prob, so that each token is credited its own advantage. With
    one advantage a completion, value and gradient of the loss are GSPO's.
    """
    own = torch.exp(logprobs - logprobs.detach())  # 1, with a gradient
    return _sequence_ratio(logprobs, old_logprobs, mask).detach() * own


_RATIOS: dict[Ratio, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    # of log-probs, old log-probs (0 where masked) and mask, all [B, T]
    Ratio.TOKEN: _token_ratio,
    Ratio.SEQUENCE: _sequence_ratio,
    Ratio.SEQUENCE_TOKEN: _sequence_token_ratio,
}


def _clipped_surrogate(ratio: Tensor, advantages: Tensor, config: LossConfig) -> tuple[Tensor, Tensor]:
    """min(ρA, clip(ρ)A) [B, T], and where the clip decides; the bounds are DAPO's (arXiv 2503.14476, §3.1)."""
    low, high = 1.0 - config.epsilon_low, 1.0 + config.epsilon_high
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)
    return surrogate, ((ratio > high) & (advantages > 0)) | ((ratio < low) & (advantages < 0))


def _importance(
    old_logprobs: Tensor, rollout_logprobs: Tensor | None, mask: Tensor, config: LossConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Off-policy weights [B, T], where they were capped or masked, and log(π_old/π_rollout) in nats."""
    if rollout_logprobs is None or config.importance == Importance.NONE:
        return torch.ones_like(old_logprobs), torch.zeros_like(mask), torch.zeros_like(old_logprobs)
    log_weight = old_logprobs - _constant(rollout_logprobs, mask)
    weight, clipped = _WEIGHTS[config.importance](torch.exp(log_weight), config)
    return weight, clipped, log_weight


def _truncated(weight: Tensor, config: LossConfig) -> tuple[Tensor, Tensor]:
    """min(π_old/π_rollout, cap): TIS (Yao et al. 2025, https://fengyao.notion.site/off-policy-rl)."""
    return weight.clamp(max=config.importance_cap), weight > config.importance_cap


def _masked(weight: Tensor, config: LossConfig) -> tuple[Tensor, Tensor]:
    """π_old/π_rollout where that is in [floor, cap], else 0: IcePop's M (Ring-1T, arXiv 2510.18855)."""
    outside = (weight < config.importance_floor) | (weight > config.importance_cap)
    return torch.where(outside, 0.0, weight), outside


_WEIGHTS: dict[Importance, Callable[[Tensor, LossConfig], tuple[Tensor, Tensor]]] = {
    # of π_old/π_rollout, to the weight applied and where that is another
    Importance.TRUNCATE: _truncated,
    Importance.MASK: _masked,
}

_KL: dict[KLEstimator, Callable[[Tensor], Tensor]] = {
    # of delta = logp − ref; http://joschu.net/blog/kl-approx.html
    KLEstimator.K1: lambda delta: delta,
    KLEstimator.K2: lambda delta: 0.5 * delta.square(),
    KLEstimator.K3: lambda delta: torch.exp(-delta) + delta - 1.0,
}


def _aggregate(token_loss: Tensor, mask: Tensor, denominator: float | None, config: LossConfig) -> Tensor:
    if denominator is None:
        denominator = global_denominator(mask, config)
    if config.aggregation == Aggregation.SEQUENCE_MEAN:
        return (token_loss.sum(dim=1) / mask.sum(dim=1).clamp(min=1)).sum() / denominator
    return token_loss.sum() / denominator


def _constant(values: Tensor, mask: Tensor) -> Tensor:
    """The values without gradient, and 0 where masked: NaN times zero would still be NaN."""
    return torch.where(mask, values.detach(), 0.0)


def _largest(values: Tensor) -> Tensor:
    return values.max() if values.numel() else values.sum()


def _check(inputs: LossInputs, config: LossConfig) -> None:
    if config.beta > 0 and inputs.ref_logprobs is None:
        raise UserError(
            f"algorithm.loss.beta={config.beta} needs ref_logprobs, got None; set beta=0 to train without a reference"
        )
    if inputs.denominator is not None and not inputs.denominator > 0:
        raise UserError(f"the loss needs a positive denominator, got {inputs.denominator}")
    shape = inputs.logprobs.shape
    named = {
        "logprobs": inputs.logprobs,
        "old_logprobs": inputs.old_logprobs,
        "advantages": inputs.advantages,
        "loss_mask": inputs.loss_mask,
        "ref_logprobs": inputs.ref_logprobs if config.beta > 0 else None,
        "rollout_logprobs": inputs.rollout_logprobs if config.importance != Importance.NONE else None,
    }
    present = {name: values for name, values in named.items() if values is not None}
    for name, values in present.items():
        if values.ndim != 2 or values.shape != shape:
            raise UserError(f"{name} has shape {tuple(values.shape)}, expected [B, T] = {tuple(shape)} like logprobs")
    mask = present.pop("loss_mask").bool()
    _require_finite(present, mask, inputs.keys)


def _require_finite(named: dict[str, Tensor], mask: Tensor, keys: Sequence[str] | None) -> None:
    """Raise for the first NaN or Inf at a token that counts; one synchronisation with the device if there is none."""
    bad = {name: mask & ~values.detach().isfinite() for name, values in named.items()}
    if not bool(torch.stack([found.any() for found in bad.values()]).any()):
        return
    name, found = next((name, found) for name, found in bad.items() if bool(found.any()))
    row, token = found.nonzero()[0].tolist()
    completion = f"row {row}" if keys is None else f"row {row} ({keys[row]})"
    raise NonFiniteError(f"{name} of {completion} is {named[name][row, token].item()} at token {token}")
