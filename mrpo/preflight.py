"""What is checked before anything expensive starts: the machine has the memory, the places to write and the GPUs."""

from __future__ import annotations

import psutil

from mrpo.choices import Device
from mrpo.config import Config
from mrpo.errors import ResourceError
from mrpo.placement import placement_of, sum_of_gpus, to_begin

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


def check_local_gpus(config: Config, *, learner: bool = True, engines: bool = True, judge: bool | None = None) -> None:
    """`check_gpus` for a run on this machine alone; a cluster's are counted once Ray is connected.

    Raises:
        ResourceError: there are too few.
    """
    if config.cluster.device == Device.GPU and config.cluster.address is None:
        import torch

        check_gpus(config, torch.cuda.device_count(), learner=learner, engines=engines, judge=judge)


def check_gpus(
    config: Config, num_gpus: int, *, learner: bool = True, engines: bool = True, judge: bool | None = None
) -> None:
    """Refuse a cluster with too few GPUs.

    Args:
        config: says how many are needed.
        num_gpus: what Ray found in the whole cluster.
        learner: False where the command starts none (an evaluation).
        engines: False where it starts none (supervised training).
        judge: whether it asks one; None: where there are engines.

    Raises:
        ResourceError: there are fewer.
    """
    layout = placement_of(to_begin(config), learner=learner, engines=engines, judge=judge)
    if num_gpus < layout.num_gpus:
        parts = sum_of_gpus(config, layout)
        raise ResourceError(
            f"experiment {config.experiment} needs {layout.num_gpus} GPUs ({parts}) and the cluster has {num_gpus}; "
            "choose a cluster=… that is there, set cluster.address to a larger one, lower rollout.num_engines or "
            "learner.num_ranks, or run EXP=phantom, which needs none"
        )


def unused_gpus(config: Config) -> str | None:
    """A line where this machine has GPUs that the run leaves idle; None where there are none or a cluster is named."""
    if config.cluster.device != Device.GPU or config.cluster.address is not None:
        return None
    import torch

    there, needed = torch.cuda.device_count(), placement_of(config).num_gpus
    return f"{there} GPUs here, {needed} used: look at conf/cluster/ for others" if there > needed else None
