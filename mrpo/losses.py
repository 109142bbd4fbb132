"""The policy loss: clipped surrogate and KL penalty per token, and how tokens become one number (algorithm §5).

Letters: B completions of a micro-batch, T completion tokens, padding included. GRPO (arXiv 2402.03300), DAPO
(arXiv 2503.14476) and Dr. GRPO (arXiv 2503.20783) are settings of one function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mrpo.choices import Aggregation, KLEstimator
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
    rollout_logprobs: Tensor | None = None  # [B, T] of the sampler; None: no off-policy correction
    denominator: float | None = None  # of the global batch, see `global_denominator`; None: this is the global batch
    keys: Sequence[str] | None = None  # [B] names of the completions, for errors


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutputs:
    """The loss, and detached scalars that may be summed (`_max`: maximised) over micro-batches and ranks."""

    loss: Tensor  # with gradient; sums over micro-batches and ranks to the loss of the global batch
    num_tokens: Tensor  # that count
    kl_sum: Tensor  # configured estimator against the reference, nats; 0 without a reference
    clip_sum: Tensor  # tokens at which the clip is active
    importance_clip_sum: Tensor  # tokens whose off-policy weight was capped
    ratio_sum: Tensor
    ratio_max: Tensor


_KL: dict[KLEstimator, Callable[[Tensor], Tensor]] = {
    # of delta = logp − ref; http://joschu.net/blog/kl-approx.html
    KLEstimator.K1: lambda delta: delta,
    KLEstimator.K2: lambda delta: 0.5 * delta.square(),
    KLEstimator.K3: lambda delta: torch.exp(-delta) + delta - 1.0,
}


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
    """−min(ρA, clip(ρ)A), weighted off-policy, plus β·KL, aggregated over the global batch.

    Splitting a batch into micro-batches or over ranks changes nothing beyond rounding, as long as each part gets the
    global denominator. Masked tokens contribute exactly nothing, whatever they hold.

    Raises:
        UserError: shapes differ, a denominator is not positive, or beta > 0 comes without `ref_logprobs`.
        NonFiniteError: a token that counts has a NaN or Inf, or a ratio overflows; names the completion.
    """
    _check(inputs, config)
    mask = inputs.loss_mask.bool()
    logprobs = torch.where(mask, inputs.logprobs, 0.0)
    advantages = torch.where(mask, inputs.advantages.detach(), 0.0)
    old_logprobs = _constant(inputs.old_logprobs, mask)

    ratio = torch.exp(logprobs - old_logprobs)
    clipped = ratio.clamp(1.0 - config.epsilon_low, 1.0 + config.epsilon_high)
    surrogate = torch.minimum(ratio * advantages, clipped * advantages)
    clip_active = ((ratio > 1.0 + config.epsilon_high) & (advantages > 0)) | (
        (ratio < 1.0 - config.epsilon_low) & (advantages < 0)
    )
    importance_clipped = torch.zeros_like(mask)
    if inputs.rollout_logprobs is not None:
        weight = torch.exp(old_logprobs - _constant(inputs.rollout_logprobs, mask))
        importance_clipped = mask & (weight > config.importance_cap)
        surrogate = surrogate * weight.clamp(max=config.importance_cap)

    kl = torch.zeros_like(logprobs)
    token_loss = -surrogate
    if config.beta > 0 and inputs.ref_logprobs is not None:
        kl = _KL[config.kl_estimator](logprobs - _constant(inputs.ref_logprobs, mask))
        token_loss = token_loss + config.beta * kl
    _require_finite({"ratio": ratio, "token loss": token_loss}, mask, inputs.keys)
    token_loss = torch.where(mask, token_loss, 0.0)

    counted_ratio = torch.where(mask, ratio.detach(), 0.0)
    return LossOutputs(
        loss=_aggregate(token_loss, mask, inputs.denominator, config),
        num_tokens=mask.sum(),
        kl_sum=torch.where(mask, kl.detach(), 0.0).sum(),
        clip_sum=(mask & clip_active).sum(),
        importance_clip_sum=importance_clipped.sum(),
        ratio_sum=counted_ratio.sum(),
        ratio_max=counted_ratio.max() if counted_ratio.numel() else counted_ratio.sum(),
    )


def _aggregate(token_loss: Tensor, mask: Tensor, denominator: float | None, config: LossConfig) -> Tensor:
    if denominator is None:
        denominator = global_denominator(mask, config)
    if config.aggregation == Aggregation.SEQUENCE_MEAN:
        return (token_loss.sum(dim=1) / mask.sum(dim=1).clamp(min=1)).sum() / denominator
    return token_loss.sum() / denominator


def _constant(values: Tensor, mask: Tensor) -> Tensor:
    """The values without gradient, and 0 where masked: NaN times zero would still be NaN."""
    return torch.where(mask, values.detach(), 0.0)


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
        "rollout_logprobs": inputs.rollout_logprobs,
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
