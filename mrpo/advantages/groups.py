"""Groups of completions, and what all group advantages share: what counts, deviations from a mean, scaling.

Letters: N completions of the global batch (groups in a row), G group size. Computed in float64; results have the
input's floating type, float64 for anything else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mrpo.errors import NonFiniteError, UserError

Values = Tensor | Sequence[float]
Matrix = Tensor | Sequence[Sequence[float]]
Mask = Tensor | Sequence[bool]


def doubles(values: Values | Matrix) -> Tensor:
    """The values as float64 on the CPU; plain numbers are never read as float32 on the way."""
    if isinstance(values, Tensor):
        return values.detach().to(device="cpu", dtype=torch.float64)
    return torch.tensor(values, dtype=torch.float64)


def grouped(rewards: Values, group_size: int, valid: Mask | None) -> tuple[Tensor, Tensor]:
    """Rewards [N/G, G] float64, and which of them count [N/G, G]: valid, in a group with at least two valid ones."""
    flat = doubles(rewards)
    if flat.ndim != 1 or group_size < 1 or flat.numel() % group_size:
        raise UserError(f"rewards of shape {tuple(flat.shape)} do not make whole groups of group_size={group_size}")
    mask = torch.ones_like(flat, dtype=torch.bool) if valid is None else torch.as_tensor(valid).bool().cpu()
    if mask.shape != flat.shape:
        raise UserError(f"valid has shape {tuple(mask.shape)}, expected {tuple(flat.shape)}: one entry a completion")
    bad = (mask & ~flat.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise NonFiniteError(f"reward of completion {bad[0]} of the batch is {flat[bad[0]].item()}")
    counted = mask.reshape(-1, group_size)
    return flat.reshape(-1, group_size), counted & (counted.sum(dim=1, keepdim=True) >= 2)


def centre(rewards: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Deviations from the row mean [rows, G] and unbiased standard deviations [rows, 1], over what counts."""
    num = counted.sum(dim=1, keepdim=True)
    values = torch.where(counted, rewards, 0.0)
    mean = values.sum(dim=1, keepdim=True) / num.clamp(min=1)
    centred = torch.where(counted, values - mean, 0.0)
    # The mean of equal numbers may be off by a rounding, which the division by a tiny deviation would blow up.
    low = torch.where(counted, rewards, math.inf).amin(dim=1, keepdim=True)
    high = torch.where(counted, rewards, -math.inf).amax(dim=1, keepdim=True)
    centred = torch.where(high > low, centred, 0.0)
    std = (centred.square().sum(dim=1, keepdim=True) / (num - 1).clamp(min=1)).sqrt()
    return centred, std


def over(centred: Tensor, scale: Tensor) -> Tensor:
    """The quotient, and 0 for no deviation even where eps = 0 makes the scale 0 as well."""
    return torch.where(centred == 0, 0.0, centred / scale)


def like(source: object, result: Tensor) -> Tensor:
    """The result in the source tensor's floating type and on its device."""
    if isinstance(source, Tensor):
        return result.to(device=source.device, dtype=source.dtype if source.is_floating_point() else result.dtype)
    return result
