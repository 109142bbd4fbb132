"""Memory as a sum of named parts: what tables show and limits are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

GIB = 2**30
MIB = 2**20


class Part(StrEnum):
    """What memory is taken by."""

    WEIGHTS = "weights"
    GRADIENTS = "gradients"
    OPTIMIZER = "optimizer"  # float32 master weights and both moments of AdamW
    REFERENCE = "reference"
    ACTIVATIONS = "activations"
    LOGITS = "logits"
    BUFFERS = "buffers"  # of ZeRO's communication and step, and of the transfer of weights
    ENGINE = "engine"  # weights, cache and activations of an engine that shares the GPU
    KV_CACHE = "KV cache"
    CONTEXT = "context"  # CUDA, its libraries and kernels; of a process on a host: Python and its packages
    CACHES = "caches"  # images kept ready
    CHECKPOINT = "checkpoint"  # its copy in main memory, on its way to the disk


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes by part, at the moment when the sum is largest."""

    phase: str
    parts: Mapping[Part, int]

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(self.parts.values())

    def plus(self, phase: str, **more: int) -> Memory:
        """The same with bytes added to parts, named as members of `Part` in small letters."""
        parts = dict(self.parts)
        for name, size in more.items():
            part = Part[name.upper()]
            parts[part] = parts.get(part, 0) + size
        return Memory(phase=phase, parts=parts)


def largest(*moments: Memory) -> Memory:
    """The moment with the largest sum."""
    return max(moments, key=lambda moment: moment.total)
