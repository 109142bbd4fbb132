"""What is checked before anything expensive starts: the machine has the memory, the places to write and the GPUs."""

from __future__ import annotations

import psutil

from mrpo.choices import Device, WeightTransfer
from mrpo.config import Config
from mrpo.errors import ResourceError

GIB = 2**30


def check_memory(config: Config) -> None:
    """Refuse a machine that would swap or kill the run.

    Raises:
        ResourceError: less memory is available than `cluster.min_free_memory_gib`.
    """
    available = psutil.virtual_memory().available / GIB
    needed = config.cluster.min_free_memory_gib
    if available < needed:
        raise ResourceError(
            f"{available:.1f} GiB of memory are available and cluster.min_free_memory_gib={needed:g} are needed; "
            "close other programs, or lower the setting if you know better"
        )


def check_local_gpus(config: Config) -> None:
    """`check_gpus` for a run on this machine alone; a cluster's are counted once Ray is connected.

    Raises:
        ResourceError: there are too few.
    """
    if config.cluster.device == Device.GPU and config.cluster.address is None:
        import torch

        check_gpus(config, torch.cuda.device_count())


def gpus_needed(config: Config) -> int:
    """GPUs that learner and engines take together; colocated ones share."""
    if config.cluster.device == Device.CPU:
        return 0
    engines = config.rollout.num_engines * config.rollout.tensor_parallel
    ranks = config.learner.num_ranks
    return max(engines, ranks) if config.cluster.weight_transfer == WeightTransfer.IPC else engines + ranks


def check_gpus(config: Config, num_gpus: int) -> None:
    """Refuse a cluster with too few GPUs.

    Args:
        config: says how many are needed.
        num_gpus: what Ray found in the whole cluster.

    Raises:
        ResourceError: there are fewer.
    """
    needed = gpus_needed(config)
    if num_gpus < needed:
        engines = f"{config.rollout.num_engines} engines × {config.rollout.tensor_parallel}"
        joined = "shared with" if config.cluster.weight_transfer == WeightTransfer.IPC else "+"
        raise ResourceError(
            f"experiment {config.experiment} needs {needed} GPUs ({engines} {joined} {config.learner.num_ranks} "
            f"learner ranks) and the cluster has {num_gpus}; set cluster.address to a cluster that has them, lower "
            "rollout.num_engines or learner.num_ranks, or run EXP=phantom, which needs none"
        )
