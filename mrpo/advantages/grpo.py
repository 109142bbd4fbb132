"""GRPO: rewards normalised within the group."""

from __future__ import annotations

from torch import Tensor

from mrpo.advantages.groups import Mask, Values, centre, grouped, like, over


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
    by_group, counted = grouped(rewards, group_size, valid)
    centred, std = centre(by_group, counted)
    return like(rewards, over(centred, std + eps).flatten())
