"""One optimizer step of reinforcement learning, and the scoring of given completions."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from learner.agreement import together
from learner.inputs import MicroBatch, Sample
from learner.rank import Rank
from learner.schedule import scheduled_lr
from mrpo.batching import plan_micro_batches
from mrpo.errors import DataError, NonFiniteError
from mrpo.losses import LossInputs, LossOutputs, global_denominator, policy_loss
from mrpo.types import LearnStats, ScoreSample, TrainSample

log = logging.getLogger(__name__)

NUM_NAMES = 8  # completions named in an error or warning
SUMMED = ("loss", "num_tokens", "kl_sum", "clip_sum", "ratio_sum")  # of `LossOutputs`; the entropy comes after


def train_step(rank: Rank, samples: Sequence[TrainSample], *, progress: float) -> LearnStats:
    """One AdamW step over the samples of all ranks; every rank passes the same list and takes its share.

    The loss is divided by the global number of completions or tokens, so that neither micro-batches nor ranks change
    it. Completions with a vision token are left out and counted in `extra["dropped_vision_token"]`.

    Raises:
        NonFiniteError: a NaN or Inf in inputs, log-probs, loss or gradient; weights and moments are untouched.
        DataError: an image that cannot be read or does not fit its prompt.
    """
    started = time.perf_counter()
    _require_finite(samples)
    kept = [sample for sample in samples if not rank.inputs.has_vision_token(sample)]
    dropped = [sample.key for sample in samples if rank.inputs.has_vision_token(sample)]
    if dropped:
        log.warning("left out %d completions that contain a vision token: %s", len(dropped), _names(dropped))
    learning_rate = scheduled_lr(rank.spec.learner, num_steps=rank.num_steps, progress=progress)
    extra = {"dropped_vision_token": float(len(dropped)), "skipped_update": float(not kept)}
    if not kept:
        log.warning("no completion left to learn from; weights stay as they are")
        return LearnStats(
            loss=0.0, kl=0.0, clip_share=0.0, entropy=0.0, grad_norm=0.0, lr=learning_rate, num_tokens=0,
            num_micro_batches=0, seconds=time.perf_counter() - started, extra=extra,
        )  # fmt: skip
    lengths = torch.tensor([len(sample.completion_token_ids) for sample in kept])
    denominator = global_denominator(torch.arange(int(lengths.max())) < lengths[:, None], rank.spec.loss)
    sums = torch.zeros(len(SUMMED) + 1, dtype=torch.float64)
    ratio_max = torch.zeros(1)
    failure = ""
    num_micro_batches = 0
    parts = [[kept[index] for index in indices] for indices in plan_own(rank, kept)]
    together(rank.world_size, lambda: rank.inputs.check([sample for part in parts for sample in part]))
    for part in parts:
        num_micro_batches += 1
        batch = rank.inputs.build(part or kept[:1]).to(rank.device)
        ref_logprobs = rank.reference.logprobs(batch) if rank.reference else None
        logprobs, entropy = rank.engine(batch)
        if not part:
            # The rank has fewer samples than its peers: it runs along, so that collectives match, and adds nothing.
            rank.engine.backward(logprobs.sum() * 0.0)
            continue
        try:
            outputs = _loss(rank, part, batch, logprobs, ref_logprobs, denominator)
        except NonFiniteError as error:
            # The other ranks wait in the backward pass; a NaN makes all of them refuse the update together.
            failure = failure or str(error)
            rank.engine.backward(logprobs.sum() * math.nan)
            continue
        # DeepSpeed averages gradients over ranks; the denominator is already global.
        rank.engine.backward(outputs.loss * rank.world_size)
        sums += _sums(outputs, entropy).double().cpu()
        ratio_max = torch.maximum(ratio_max, outputs.ratio_max.cpu())
    apply_update(rank, learning_rate, failure)
    rank.num_steps += 1
    loss, num_tokens, kl, clipped, ratio, entropy_sum = all_reduce(rank, sums, dist.ReduceOp.SUM).tolist()
    num_tokens = max(num_tokens, 1.0)
    extra |= {"ratio_mean": ratio / num_tokens, "ratio_max": float(all_reduce(rank, ratio_max, dist.ReduceOp.MAX))}
    return LearnStats(
        loss=loss,
        kl=kl / num_tokens,
        clip_share=clipped / num_tokens,
        entropy=entropy_sum / num_tokens,
        grad_norm=grad_norm(rank),
        lr=learning_rate,
        num_tokens=int(lengths.sum()),
        num_micro_batches=num_micro_batches,
        seconds=time.perf_counter() - started,
        extra=extra,
    )


@torch.no_grad()
def score(rank: Rank, samples: Sequence[ScoreSample]) -> dict[int, list[float]]:
    """Log-probs of the given completion tokens under the current weights, for this rank's share: index → [T] nats.

    Raises:
        DataError: a completion contains a vision token, or an image does not fit its prompt.
    """
    named = [sample.key for sample in samples if rank.inputs.has_vision_token(sample)]
    if named:
        raise DataError(f"completions with a vision token cannot be scored: {_names(named)}; ban it in the sampler")
    scores: dict[int, list[float]] = {}
    plan = plan_own(rank, samples)
    together(rank.world_size, lambda: rank.inputs.check([samples[index] for indices in plan for index in indices]))
    for indices in plan:
        part = [samples[index] for index in indices]
        batch = rank.inputs.build(part or samples[:1]).to(rank.device)
        logprobs, _ = rank.engine(batch)
        for index, row in zip(indices, logprobs.cpu(), strict=False):
            scores[index] = row[: len(samples[index].completion_token_ids)].tolist()
    return scores


def apply_update(rank: Rank, learning_rate: float, failure: str) -> None:
    """Step the optimizer with the gradients of all ranks.

    Args:
        failure: what this rank found non-finite; it must have put a NaN into its gradient then.

    Raises:
        NonFiniteError: on every rank, with what each of them found; nothing was updated.
    """
    for group in rank.engine.optimizer.param_groups:
        group["lr"] = learning_rate
    rank.engine.step()
    if rank.engine.was_step_applied():
        return
    found: list[Any] = [failure] * rank.world_size
    if rank.world_size > 1:
        dist.all_gather_object(found, failure)
    named = "; ".join(dict.fromkeys(text for text in found if text))
    raise NonFiniteError(f"step {rank.num_steps + 1} was not applied: {named or 'the gradient is not finite'}")


def grad_norm(rank: Rank) -> float:
    """Global gradient norm of the last step, before clipping."""
    return float(rank.engine.get_global_grad_norm())


def _loss(
    rank: Rank,
    part: Sequence[TrainSample],
    batch: MicroBatch,
    logprobs: Tensor,
    ref_logprobs: Tensor | None,
    denominator: float,
) -> LossOutputs:
    inputs = LossInputs(
        logprobs=logprobs,
        old_logprobs=logprobs.detach(),  # one inner iteration: the policy that is updated is the one measured from
        advantages=batch.per_token([sample.advantages for sample in part]),
        loss_mask=batch.completion_mask,
        ref_logprobs=ref_logprobs,
        denominator=denominator,
        keys=[sample.key for sample in part],
    )
    return policy_loss(inputs, rank.spec.loss)


def _sums(outputs: LossOutputs, entropy: Tensor) -> Tensor:
    return torch.stack([*(getattr(outputs, name).detach().float() for name in SUMMED), entropy.sum()])


def all_reduce(rank: Rank, values: Tensor, how: Any) -> Tensor:
    """`values` reduced over the ranks, on the CPU."""
    if rank.world_size == 1:
        return values
    moved = values.to(rank.device)
    dist.all_reduce(moved, op=how)
    return moved.cpu()


def plan_own(rank: Rank, samples: Sequence[Sample]) -> list[list[int]]:
    """Sample indices of this rank's micro-batches; all ranks have equally many."""
    return plan_micro_batches(
        [len(sample.prompt_token_ids) + len(sample.completion_token_ids) for sample in samples],
        num_ranks=rank.world_size,
        tokens_per_micro_batch=rank.spec.learner.tokens_per_micro_batch,
    )[rank.rank]


def _require_finite(samples: Sequence[TrainSample]) -> None:
    for sample in samples:
        if len(sample.advantages) != len(sample.completion_token_ids):
            raise DataError(
                f"completion {sample.key} has {len(sample.advantages)} advantages for "
                f"{len(sample.completion_token_ids)} tokens; expected one each"
            )
    named = [sample.key for sample in samples if not all(map(math.isfinite, sample.advantages))]
    if named:
        raise NonFiniteError(f"advantages of {_names(named)} are not finite")


def _names(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - NUM_NAMES} more" if len(keys) > NUM_NAMES else ""
    return ", ".join(keys[:NUM_NAMES]) + more
