"""RLOO: rewards against the rest of the group."""

from __future__ import annotations

from torch import Tensor

from mrpo.advantages.groups import Mask, Values, centre, grouped, like


def rloo_advantages(rewards: Values, group_size: int, valid: Mask | None = None) -> Tensor:
    """r − mean of the *other* valid rewards of its group; arXiv 2402.14740.

    Arguments, result and errors are those of `grpo_advantages`.
    """
    by_group, counted = grouped(rewards, group_size, valid)
    num = counted.sum(dim=1, keepdim=True)
    centred = centre(by_group, counted)[0]
    return like(rewards, (centred * num / (num - 1).clamp(min=1)).flatten())
