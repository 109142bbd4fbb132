"""Which questions a step asks, and the seed of every request: pure functions of run seed and step.

Nothing here has state, so that a resumed run asks what the interrupted one would have asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from mrpo.config import Config, RolloutConfig
from mrpo.types import Example, RolloutRequest


def prompts_of_step(
    examples: Sequence[Example], step: int, *, prompts_per_step: int, seed: int, shuffle: bool
) -> dict[str, Example]:
    """The questions of one optimizer step, by prompt id, in canonical order.

    Epochs follow each other without a gap: every question comes up once in an epoch, shuffled anew for each. The prompt
    id carries the epoch, because a step across an epoch's end may ask one question twice.

    Args:
        examples: the training questions.
        step: counts from 0.
        prompts_per_step: how many.
        seed: of the run.
        shuffle: False keeps the file's order.
    """
    prompts: dict[str, Example] = {}
    orders: dict[int, Sequence[int]] = {}
    for position in range(step * prompts_per_step, (step + 1) * prompts_per_step):
        epoch, index = divmod(position, len(examples))
        if epoch not in orders:
            rng = np.random.default_rng([seed, epoch])
            orders[epoch] = rng.permutation(len(examples)).tolist() if shuffle else range(len(examples))
        example = examples[orders[epoch][index]]
        prompts[f"{example.id}@{epoch}"] = example
    return prompts


def epochs_note(config: Config, num_examples: int) -> str:
    """How often a run comes round the training questions, in words."""
    each = config.rollout.prompts_per_step
    epochs = config.num_steps * each / num_examples
    return f"{config.num_steps} steps of {each} of {num_examples} questions: {epochs:.2f} epochs"


def request_seed(run_seed: int, step: int, prompt_id: str, sample_index: int) -> int:
    """A 63-bit seed that depends on nothing but its arguments."""
    key = f"{run_seed}/{step}/{prompt_id}/{sample_index}"
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1


def requests_of_step(
    prompts: dict[str, Example], step: int, *, rollout: RolloutConfig, seed: int
) -> list[RolloutRequest]:
    """`group_size` sampled requests for every prompt, group by group."""
    return [
        RolloutRequest(
            prompt_id=prompt_id,
            sample_index=index,
            question=example.question,
            image=example.image,
            seed=request_seed(seed, step, prompt_id, index),
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            max_new_tokens=rollout.max_new_tokens,
        )
        for prompt_id, example in prompts.items()
        for index in range(rollout.group_size)
    ]


def greedy_requests(prompts: dict[str, Example], *, max_new_tokens: int) -> list[RolloutRequest]:
    """One greedy request for every prompt; its seed has no effect."""
    return [
        RolloutRequest(
            prompt_id=prompt_id,
            sample_index=0,
            question=example.question,
            image=example.image,
            seed=0,
            temperature=0.0,
            top_p=1.0,
            max_new_tokens=max_new_tokens,
        )
        for prompt_id, example in prompts.items()
    ]
