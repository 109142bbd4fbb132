"""What tells one set of frozen weights from another: a checkpoint holds only what was trained on top of them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed as dist
from torch import nn

from learner.partitioned import gathered

if TYPE_CHECKING:
    from learner.rank import Rank


def frozen_hash(rank: Rank) -> str | None:
    """sha256 of names and values of all frozen weights; None where all are trained. The same on every rank.

    Values count as bfloat16, so that float32 may go on from bfloat16 and the reverse: the weights of another model
    differ by more somewhere. A collective when first called (16 GB take some ten seconds); frozen weights never change,
    and so it is kept.
    """
    if rank.frozen_hash is None:
        frozen = [(name, parameter) for name, parameter in rank.model.named_parameters() if not parameter.requires_grad]
        if not frozen:
            return None
        found = [_hash(frozen, hashing=rank.rank == 0)]
        if rank.world_size > 1:
            dist.broadcast_object_list(found, src=0)
        rank.frozen_hash = found[0]
    return rank.frozen_hash


def _hash(frozen: list[tuple[str, nn.Parameter]], *, hashing: bool) -> str:
    digest: Any = hashlib.sha256()
    for name, parameter in frozen:
        with gathered(parameter):
            if hashing:
                digest.update(name.encode())
                rounded = parameter.detach().to(torch.bfloat16).contiguous().cpu()
                digest.update(rounded.view(-1).view(torch.uint8).numpy())
    return str(digest.hexdigest())
