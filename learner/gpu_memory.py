"""How much GPU memory a step of the learner takes."""

from __future__ import annotations

import torch
from torch import distributed as dist

from learner.rank import Rank


def begin_gpu_memory(rank: Rank) -> None:
    """A step begins: its peak is measured from here."""
    if rank.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(rank.device)


def gpu_memory(rank: Rank) -> dict[str, float]:
    """Peak of what PyTorch had allocated since the step began, in bytes, of the rank that had most; every rank asks.

    Without a GPU there is nothing to tell.
    """
    if rank.device.type != "cuda":
        return {}
    peak = torch.tensor([torch.cuda.max_memory_allocated(rank.device)], dtype=torch.float64, device=rank.device)
    if rank.world_size > 1:
        dist.all_reduce(peak, op=dist.ReduceOp.MAX)
    return {"gpu_memory_bytes": peak.item()}
