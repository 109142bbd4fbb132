"""Supervised steps on the learner's own engine: the warm start of a policy."""

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
from learner.rank import Rank
from learner.schedule import sft_lr
from learner.step import all_reduce, apply_update, plan_own
from mrpo.errors import DataError
from mrpo.images import read_image
from mrpo.prompts import chat_messages
from mrpo.types import ScoreSample, SftSample

log = logging.getLogger(__name__)

Prompts = dict[tuple[str, int], list[int]]  # (question, number of image tokens) → prompt token ids

LOG_EVERY_STEPS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class SftStats:
    """What a warm start came to."""

    losses: list[float]  # mean negative log-prob of the target tokens, nats, one number a step
    seconds: float


def sft(
    rank: Rank, examples: Sequence[SftSample], *, num_steps: int, batch_size: int, lr: float, seed: int
) -> SftStats:
    """Cross-entropy steps on the targets; then fresh moments, and the reference takes the new weights.

    Every rank passes the same arguments and takes its share of each batch. The learning rate warms up and then decays
    linearly to 0.

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
    started = time.perf_counter()
    prompts: Prompts = {}
    order = _draw(len(examples), num_steps * batch_size, seed)
    losses: list[float] = []
    for step in range(num_steps):
        drawn = [examples[index] for index in order[step * batch_size : (step + 1) * batch_size]]
        losses.append(_step(rank, tokenize(rank, drawn, prompts), sft_lr(step, num_steps=num_steps, peak=lr)))
        if (step + 1) % LOG_EVERY_STEPS == 0 or step + 1 == num_steps:
            log.info("warm start: step %d of %d, loss %.3f", step + 1, num_steps, losses[-1])
    rank.optimizer.reset()
    if rank.reference is not None:
        rank.reference.copy_from(rank.model)
    return SftStats(losses=losses, seconds=time.perf_counter() - started)


def tokenize(rank: Rank, examples: Sequence[SftSample], prompts: Prompts) -> list[ScoreSample]:
    """Examples as token ids: the prompt as the engine would write it, the target and the end-of-turn token.

    Args:
        prompts: token ids of the prompts met so far; added to.

    Raises:
        DataError: an unreadable image, or a target with a vision token.
    """
    tokenizer = rank.processor.tokenizer
    end_of_turn = tokenizer.convert_tokens_to_ids(rank.family.end_of_turn)
    num_tokens = {path: pixels.num_tokens for path, pixels in rank.images.get([e.image for e in examples]).items()}
    targets = tokenizer([example.target for example in examples], add_special_tokens=False)["input_ids"]
    samples: list[ScoreSample] = []
    for example, target in zip(examples, targets, strict=True):
        prompt = (example.question, num_tokens[example.image])
        if prompt not in prompts:
            prompts[prompt] = _prompt_token_ids(rank, example)
        samples.append(
            ScoreSample(
                key=f"example {example.image!r} {example.question!r}",
                image=example.image,
                prompt_token_ids=prompts[prompt],
                completion_token_ids=[*target, end_of_turn],
            )
        )
    named = [sample.key for sample in samples if rank.inputs.has_vision_token(sample)]
    if named:
        raise DataError(f"targets may not hold a vision token, but {named[0]} does; remove it from the text")
    return samples


def _prompt_token_ids(rank: Rank, example: SftSample) -> list[int]:
    """Through the whole processor, which expands the image placeholder."""
    messages = chat_messages(example.question, rank.family, terse=rank.spec.terse)
    text = rank.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    image = read_image(example.image, max_pixels=rank.spec.max_pixels)
    return list(rank.processor(text=[text], images=[[image]])["input_ids"][0])


def _draw(num_examples: int, num_draws: int, seed: int) -> list[int]:
    """Whole shuffled passes over the examples, as many as it takes."""
    generator = np.random.default_rng(seed)
    passes = [generator.permutation(num_examples) for _ in range(-(-num_draws // num_examples))]
    return [int(index) for index in np.concatenate(passes)[:num_draws]]


def _step(rank: Rank, samples: Sequence[Sample], lr: float) -> float:
    num_tokens = sum(len(sample.completion_token_ids) for sample in samples)
    loss_sum = 0.0
    failure = ""
    for indices in plan_own(rank, samples):
        part = [samples[index] for index in indices]
        batch = rank.inputs.build(part or samples[:1]).to(rank.device)
        logprobs, _ = rank.engine(batch)
        loss = -logprobs.sum() / num_tokens * (1.0 if part else 0.0)
        rank.engine.backward(loss * rank.world_size)
        loss_sum += float(loss.detach())
        if not math.isfinite(loss_sum):
            failure = failure or f"warm start: the loss of a batch with {samples[0].key} is {loss_sum}"
    apply_update(rank, lr, failure)
    return float(all_reduce(rank, torch.tensor(loss_sum, dtype=torch.float64), dist.ReduceOp.SUM))
