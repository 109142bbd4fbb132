"""Supervised steps on the learner's own engine: training on gold rationales, and the warm start of a toy policy."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import distributed as dist

from learner.inputs import Sample
from learner.lora import seed_dropout
from learner.rank import Rank
from learner.schedule import WARM_START_WARMUP_SHARE, sft_lr
from learner.step import all_reduce, apply_update, grad_norm, own_parts
from mrpo.errors import DataError
from mrpo.prompt_tokens import Placeholders, prompt_ids
from mrpo.sft.tokens import target_ids
from mrpo.types import LearnStats, ScoreSample, SftSample

log = logging.getLogger(__name__)

LOG_EVERY_STEPS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class SftStats:
    """What a warm start came to."""

    losses: list[float]  # mean negative log-prob of the target tokens, nats, one number a step
    seconds: float


class Supervision:
    """Supervised steps of one rank; every rank makes the same calls and takes its share of each batch."""

    def __init__(self, rank: Rank) -> None:
        self.rank = rank
        self._placeholders = Placeholders(rank.processor, rank.family, max_pixels=rank.spec.max_pixels)

    def step(self, examples: Sequence[SftSample], *, num_steps: int, lr: float, warmup_share: float) -> LearnStats:
        """One AdamW step on the mean negative log-prob of the target tokens of `examples`.

        Which step it is, and so its learning rate and what dropout draws, follows from the steps done, which a
        checkpoint holds: a resumed training goes on to the bit.

        Args:
            num_steps: of the whole training.
            lr: peak learning rate.
            warmup_share: see `learner.schedule.sft_lr`.

        Raises:
            DataError: an unreadable image, or a target with a vision token.
            NonFiniteError: a NaN or Inf in the loss or gradient.
        """
        started = time.perf_counter()
        rank = self.rank
        seed_dropout(rank)
        rate = sft_lr(rank.num_steps, num_steps=num_steps, peak=lr, warmup_share=warmup_share)
        samples = self.tokenize(examples)
        loss, num_micro_batches = self._update(samples, rate)
        rank.num_steps += 1
        return LearnStats(
            loss=loss,
            kl=0.0,
            clip_share=0.0,
            entropy=0.0,
            grad_norm=grad_norm(rank),
            lr=rate,
            num_tokens=_num_targets(samples),
            num_micro_batches=num_micro_batches,
            seconds=time.perf_counter() - started,
        )

    @torch.no_grad()
    def loss(self, examples: Sequence[SftSample]) -> tuple[float, int]:
        """Sum of the negative log-probs of the target tokens in nats, without dropout, and how many tokens they are.

        Raises:
            DataError: an unreadable image, or a target with a vision token.
        """
        rank, samples = self.rank, self.tokenize(examples)
        total = 0.0
        rank.engine.eval()
        try:
            for part in own_parts(rank, samples):
                logprobs, _ = rank.engine(rank.inputs.build(part or samples[:1]).to(rank.device))
                total -= float(logprobs.double().sum()) if part else 0.0
        finally:
            rank.engine.train()
        return _summed(rank, total), _num_targets(samples)

    def warm_start(
        self, examples: Sequence[SftSample], *, num_steps: int, batch_size: int, lr: float, seed: int
    ) -> SftStats:
        """Cross-entropy steps on the targets; then fresh moments, and the reference takes the new weights.

        The learning rate warms up and then decays linearly to 0.

        Args:
            examples: drawn without replacement until all were used, then again in another order.
            num_steps: optimizer steps.
            batch_size: examples of a step, over all ranks.
            lr: peak learning rate.
            seed: of the order.

        Raises:
            DataError: no examples, an unreadable image, or a target with a vision token.
            NonFiniteError: a NaN or Inf in the loss or gradient.
        """
        if not examples:
            raise DataError("the warm start got no examples; expected at least one")
        started, rank = time.perf_counter(), self.rank
        order = _draw(len(examples), num_steps * batch_size, seed)
        losses: list[float] = []
        for step in range(num_steps):
            drawn = [examples[index] for index in order[step * batch_size : (step + 1) * batch_size]]
            rate = sft_lr(step, num_steps=num_steps, peak=lr, warmup_share=WARM_START_WARMUP_SHARE)
            losses.append(self._update(self.tokenize(drawn), rate)[0])
            if (step + 1) % LOG_EVERY_STEPS == 0 or step + 1 == num_steps:
                log.info("warm start: step %d of %d, loss %.3f", step + 1, num_steps, losses[-1])
        rank.optimizer.reset()
        if rank.reference is not None:
            rank.reference.copy_from(rank.model)
        return SftStats(losses=losses, seconds=time.perf_counter() - started)

    def tokenize(self, examples: Sequence[SftSample]) -> list[ScoreSample]:
        """Examples as token ids: the prompt as the engine would write it, the target and the end-of-turn token.

        Raises:
            DataError: an unreadable image, or a target with a vision token.
        """
        rank = self.rank
        targets = target_ids(rank.processor, rank.family, [example.target for example in examples])
        samples = [
            ScoreSample(
                key=f"example {example.image!r} {example.question!r}",
                image=example.image,
                prompt_token_ids=self._prompt(example),
                completion_token_ids=target,
            )
            for example, target in zip(examples, targets, strict=True)
        ]
        faulty = [sample.key for sample in samples if rank.inputs.has_vision_token(sample)]
        if faulty:
            raise DataError(f"targets may not hold a vision token, but {faulty[0]} does; remove it from the text")
        return samples

    def _prompt(self, example: SftSample) -> list[int]:
        rank = self.rank
        image_ids = None if example.image is None else self._placeholders.ids(example.image)
        return prompt_ids(rank.processor, rank.family, example.question, image_ids, terse=rank.spec.terse)

    def _update(self, samples: Sequence[Sample], lr: float) -> tuple[float, int]:
        """One step; the mean loss of all ranks' tokens, and this rank's number of micro-batches."""
        rank, num_tokens = self.rank, _num_targets(samples)
        loss_sum = 0.0
        failure = ""
        parts = own_parts(rank, samples)
        for part in parts:
            batch = rank.inputs.build(part or samples[:1]).to(rank.device)
            logprobs, _ = rank.engine(batch)
            loss = -logprobs.sum() / num_tokens * (1.0 if part else 0.0)
            rank.engine.backward(loss * rank.world_size)
            loss_sum += float(loss.detach())
            if not math.isfinite(loss_sum):
                failure = failure or f"supervised training: the loss of a batch with {samples[0].key} is {loss_sum}"
        apply_update(rank, lr, failure)
        return _summed(rank, loss_sum), len(parts)


def _draw(num_examples: int, num_draws: int, seed: int) -> list[int]:
    """Whole shuffled passes over the examples, as many as it takes."""
    generator = np.random.default_rng(seed)
    passes = [generator.permutation(num_examples) for _ in range(-(-num_draws // num_examples))]
    return [int(index) for index in np.concatenate(passes)[:num_draws]]


def _num_targets(samples: Sequence[Sample]) -> int:
    return sum(len(sample.completion_token_ids) for sample in samples)


def _summed(rank: Rank, value: float) -> float:
    return float(all_reduce(rank, torch.tensor(value, dtype=torch.float64), dist.ReduceOp.SUM))
