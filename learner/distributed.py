"""One rank's place in the group: environment, process group and DeepSpeed's quiet start."""

from __future__ import annotations

import logging
import os
import socket
from datetime import timedelta
from typing import TYPE_CHECKING

from mrpo.choices import Device
from mrpo.config import LearnerConfig

if TYPE_CHECKING:
    import torch

COLLECTIVE_TIMEOUT_S = 3600  # ranks wait that long for rank 0, which writes checkpoints


def free_port() -> int:
    """A TCP port nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def threads_of_rank(learner: LearnerConfig, *, ranks_on_node: int) -> int:
    """Torch threads of a rank: as configured, or the cores of the machine it is on shared among the ranks there.

    Ray gives an actor that claims one CPU one thread; but while the learner works, the engines wait for it. Beside GPUs
    these threads step the optimizer under offload.
    """
    return learner.num_threads or max(1, (os.cpu_count() or 1) // ranks_on_node)


def environment(device: Device) -> dict[str, str]:
    """Variables a rank's process needs before it imports torch or DeepSpeed."""
    variables = {"TOKENIZERS_PARALLELISM": "false"}
    if device == Device.CPU:
        variables["DS_ACCELERATOR"] = "cpu"
    return variables


def join_group(*, rank: int, world_size: int, address: str, port: int, device: Device) -> torch.device:
    """Enter the process group and return the device of this rank; blocks until all ranks are there."""
    import deepspeed
    import deepspeed.ops
    import torch
    from deepspeed.ops.op_builder.all_ops import ALL_OPS
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    on_cpu = device == Device.CPU
    if on_cpu:
        # Gloo does all that is needed; DeepSpeed would compile its shared-memory op first, which takes a C++ compiler
        # and half a minute on a fresh machine.
        vars(deepspeed.ops)["__compatible_ops__"] = dict.fromkeys(ALL_OPS, False)
    os.environ |= {
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": "0",  # Ray shows a rank its own device only
    }
    deepspeed.init_distributed(
        dist_backend="gloo" if on_cpu else "nccl",
        auto_mpi_discovery=False,
        timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S),
        rank=rank,
        world_size=world_size,
    )
    if on_cpu:
        return torch.device("cpu")
    torch.cuda.set_device(0)
    return torch.device("cuda", 0)
