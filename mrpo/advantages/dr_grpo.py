"""Dr. GRPO: rewards centred within the group."""

from __future__ import annotations

from torch import Tensor

from mrpo.advantages.groups import Mask, Values, centre, grouped, like


def dr_grpo_advantages(rewards: Values, group_size: int, valid: Mask | None = None) -> Tensor:
    """r − mean of its group, without the division by the deviation; arXiv 2503.20783.

    Arguments, result and errors are those of `grpo_advantages`.
    """
    by_group, counted = grouped(rewards, group_size, valid)
    return like(rewards, centre(by_group, counted)[0].flatten())
