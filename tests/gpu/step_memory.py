"""`python -m tests.gpu.step_memory <folder> <family> <zero stage>`: a learner's step on the GPU, and what was planned.

A process of its own, because nothing else may have taken memory before. Prints bytes as JSON in its last line: the
plan's and the allocator's, at rest and at the peak of a step. CUDA's own context is in neither.
"""

from __future__ import annotations

import gc
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import distributed as dist

from learner import zero_config
from learner.distributed import free_port, join_group
from learner.rank import build_rank
from learner.step import train_step
from mrpo.choices import Device
from mrpo.config import LossConfig
from mrpo.plan.memory import Part
from tests.integration.learner_world import spec
from tests.integration.plan_world import BUCKET_ELEMENTS, MAX_PIXELS, build_model, plan_step, samples_of


def main(folder: Path, family: str, zero_stage: int) -> dict[str, int]:
    """The plan beside the measurement."""
    zero_config.BUCKET_ELEMENTS = BUCKET_ELEMENTS
    zero_config.PERSISTENT_ELEMENTS = 0  # these models' tensors are mostly small, and would stay whole
    build_model(family, folder / family)
    samples = samples_of(folder / family, num=8)
    settings = spec(
        folder,
        family,
        loss=LossConfig(beta=0.0),
        zero_stage=zero_stage,
        tokens_per_micro_batch=1024,
        logprob_chunk_tokens=256,
    )
    settings = replace(settings, device=Device.GPU, max_pixels=MAX_PIXELS)
    plan = plan_step(settings, samples)
    device = join_group(rank=0, world_size=1, address="127.0.0.1", port=free_port(), device=Device.GPU)
    rank = build_rank(settings, rank=0, world_size=1, device=device)
    train_step(rank, samples, progress=0.0)
    gc.collect()
    # The plan counts cuBLAS' workspaces, which lie in the allocator's memory and stay, with CUDA's context.
    with_workspaces = torch.cuda.memory_allocated()
    torch._C._cuda_clearCublasWorkspaces()
    at_rest = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    stats = train_step(rank, samples, progress=0.5)
    found = {
        "told": int(stats.extra["gpu_memory_bytes"]),
        "measured": torch.cuda.max_memory_allocated(),
        "planned_at_rest": plan.resting.total - plan.resting.parts[Part.CONTEXT],
        "at_rest": at_rest,
        "planned_peak": plan.learning.total - plan.learning.parts[Part.CONTEXT],
        "peak": torch.cuda.max_memory_allocated() - (with_workspaces - at_rest),
    }
    dist.destroy_process_group()
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))) + "\n")
