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
from learner.gpu_memory import begin_gpu_memory, gpu_memory
from learner.inputs import MicroBatch, Sample
from learner.lora import seed_dropout
from learner.rank import Rank
from learner.schedule import scheduled_lr
from mrpo.batching import plan_micro_batches
from mrpo.choices import Importance
from mrpo.errors import DataError, NonFiniteError
from mrpo.losses import LossInputs, LossOutputs, global_denominator, policy_loss
from mrpo.types import LearnStats, ScoreSample, TrainSample

log = logging.getLogger(__name__)

NUM_NAMES = 8  # completions named in an error or warning
# Of `LossOutputs`, over micro-batches and ranks.
SUMMED = (
    "loss", "num_tokens", "kl_sum", "clip_sum", "ratio_sum",
    "importance_sum", "importance_clip_sum", "importance_diff_sum",
)  # fmt: skip
LARGEST = ("ratio_max", "importance_diff_max")


def train_step(rank: Rank, samples: Sequence[TrainSample], *, progress: float) -> LearnStats:
    """One AdamW step over the samples of all ranks; every rank passes the same list and takes its share.

    The loss is divided by the global number of completions or tokens, so that neither micro-batches nor ranks change
    it. Completions with a vision token are left out and counted in `extra["dropped_vision_token"]`. Under an off-policy
    correction, `extra` tells of its weights (mean, share capped or masked) and of |learner − sampler| in nats (mean,
    largest).

    Raises:
        NonFiniteError: a NaN or Inf in inputs, log-probs, loss or gradient; weights and moments are untouched.
        DataError: an image that cannot be read or does not fit its prompt; not one number a token.
    """
    started = time.perf_counter()
    begin_gpu_memory(rank)
    corrected = rank.spec.loss.importance != Importance.NONE
    _require_finite("advantages", samples, [sample.advantages for sample in samples])
    if corrected:
        _require_finite("rollout_logprobs", samples, [sample.rollout_logprobs for sample in samples])
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
    largest = torch.zeros(len(LARGEST), dtype=torch.float64)
    failure = ""
    num_micro_batches = 0
    parts = own_parts(rank, kept)
    seed_dropout(rank)
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
        sums += torch.cat([_values(outputs, SUMMED), entropy.sum()[None]]).double().cpu()
        largest = torch.maximum(largest, _values(outputs, LARGEST).double().cpu())
    apply_update(rank, learning_rate, failure)
    rank.num_steps += 1
    loss, num_tokens, *totals = all_reduce(rank, sums, dist.ReduceOp.SUM).tolist()
    kl, clip_share, ratio, weight, weight_clip_share, diff, mean_entropy = [
        total / max(num_tokens, 1.0) for total in totals
    ]
    ratio_max, diff_max = all_reduce(rank, largest, dist.ReduceOp.MAX).tolist()
    extra |= {"ratio_mean": ratio, "ratio_max": ratio_max} | gpu_memory(rank)
    if corrected:
        extra |= {
            "importance_mean": weight,
            "importance_clip_share": weight_clip_share,
            "importance_diff": diff,
            "importance_diff_max": diff_max,
        }
    return LearnStats(
        loss=loss,
        kl=kl,
        clip_share=clip_share,
        entropy=mean_entropy,
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
    raise NonFiniteError(f"the update was not applied: {named or 'the gradient is not finite'}")


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
    corrected = rank.spec.loss.importance != Importance.NONE
    inputs = LossInputs(
        logprobs=logprobs,
        old_logprobs=logprobs.detach(),  # one inner iteration: the policy that is updated is the one measured from
        advantages=batch.per_token([sample.advantages for sample in part]),
        loss_mask=batch.completion_mask,
        ref_logprobs=ref_logprobs,
        rollout_logprobs=batch.per_token([sample.rollout_logprobs for sample in part]) if corrected else None,
        denominator=denominator,
        keys=[sample.key for sample in part],
    )
    return policy_loss(inputs, rank.spec.loss)


def _values(outputs: LossOutputs, names: Sequence[str]) -> Tensor:
    return torch.stack([getattr(outputs, name).detach().float() for name in names])


def all_reduce(rank: Rank, values: Tensor, how: Any) -> Tensor:
    """`values` reduced over the ranks, on the CPU."""
    if rank.world_size == 1:
        return values
    moved = values.to(rank.device)
    dist.all_reduce(moved, op=how)
    return moved.cpu()


def own_parts(rank: Rank, samples: Sequence[Sample]) -> list[list[Sample]]:
    """This rank's micro-batches, their images read; an empty one where its peers have one more.

    Raises:
        DataError: on every rank, an image that one of them cannot read.
    """
    parts = [[samples[index] for index in indices] for indices in plan_own(rank, samples)]
    together(rank.world_size, lambda: rank.inputs.check([sample for part in parts for sample in part]))
    return parts


def plan_own(rank: Rank, samples: Sequence[Sample]) -> list[list[int]]:
    """Sample indices of this rank's micro-batches; all ranks have equally many."""
    return plan_micro_batches(
        [len(sample.prompt_token_ids) + len(sample.completion_token_ids) for sample in samples],
        num_ranks=rank.world_size,
        tokens_per_micro_batch=rank.spec.learner.tokens_per_micro_batch,
    )[rank.rank]


def _require_finite(name: str, samples: Sequence[TrainSample], rows: Sequence[Sequence[float]]) -> None:
    for sample, row in zip(samples, rows, strict=True):
        if len(row) != len(sample.completion_token_ids):
            raise DataError(
                f"completion {sample.key} has {len(row)} {name} for {len(sample.completion_token_ids)} tokens; "
                "expected one each"
            )
    named = [sample.key for sample, row in zip(samples, rows, strict=True) if not all(map(math.isfinite, row))]
    if named:
        raise NonFiniteError(f"{name} of {_names(named)} are not finite")


def _names(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - NUM_NAMES} more" if len(keys) > NUM_NAMES else ""
    return ", ".join(keys[:NUM_NAMES]) + more
