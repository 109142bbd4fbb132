"""The machines and what goes where."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from mrpo.choices import Device, Placement, WeightTransfer
from mrpo.config.fields import STRICT, NonNegative, NonNegativeInt, Positive, PositiveInt


@dataclass(kw_only=True, frozen=True, config=STRICT)
class ClusterConfig:
    """The machines."""

    device: Device = Device.CPU
    address: str | None = None  # Ray address; null starts a local Ray
    num_cpus: PositiveInt | None = None  # for the local Ray; null: the machine's
    dashboard: bool = False
    metrics_port: PositiveInt | None = None  # of the local Ray's metrics endpoint; null: a free one
    num_nodes: PositiveInt = 1
    gpus_per_node: NonNegativeInt = 0
    gpu_memory_gib: Positive = 80.0  # of one GPU, for `make plan`
    node_memory_gib: Positive = 512.0  # of one node's main memory, for `make plan`
    placement: Placement = Placement.SPLIT
    weight_transfer: WeightTransfer = WeightTransfer.SHM
    min_free_memory_gib: NonNegative = 6.0  # on this machine, before anything starts
