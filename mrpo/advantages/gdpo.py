"""GDPO: every reward normalised by itself, then their sum over the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from mrpo.advantages.groups import Mask, Matrix, Values, centre, doubles, grouped, like, over
from mrpo.advantages.grpo import grpo_advantages
from mrpo.errors import UserError


def gdpo_advantages(
    components: Matrix, weights: Values, group_size: int, eps: float = 1e-4, valid: Mask | None = None
) -> Tensor:
    """Each reward normalised within its group, weighted and summed, then normalised over the batch; arXiv 2601.05242.

    Args:
        components: [N, R] rewards of the **global** batch: all ranks, all groups.
        weights: [R].
        group_size: completions of one prompt.
        eps: added to both standard deviations.
        valid: [N] completions that count, as in `grpo_advantages`.

    Returns:
        [N]; a reward without variance in a group contributes 0 there.

    Raises:
        UserError: shapes do not agree.
        NonFiniteError: a reward that counts is NaN or Inf.
    """
    matrix, weight = doubles(components), doubles(weights)
    if matrix.ndim != 2 or weight.shape != matrix.shape[1:]:
        raise UserError(
            f"GDPO needs components [N, R] and weights [R], got {tuple(matrix.shape)} and {tuple(weight.shape)}"
        )
    total = torch.zeros(matrix.shape[0], dtype=torch.float64)
    for component, share in zip(matrix.unbind(dim=1), weight, strict=True):
        total += share * grpo_advantages(component, group_size, eps, valid)
    _, counted = grouped(total, group_size, valid)
    centred, std = centre(total.unsqueeze(0), counted.reshape(1, -1))  # the batch as one group
    # Each group sums to 0, so the batch's mean is 0 but for rounding, which must not reach a group without variance.
    centred = torch.where(total == 0, 0.0, centred)
    return like(components, over(centred, std + eps).flatten())
