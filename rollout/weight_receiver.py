"""The engine's end of weight transfer through shared memory of one host, for engines on CPU.

One bucket is one file in /dev/shm. Its sender describes it in the `update_info` that vLLM hands to `receive_weights`
and may delete the file once that call has returned.
"""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from mrpo.errors import WeightSyncError
from mrpo.host import host_id


@dataclass
class ShmInitInfo(WeightTransferInitInfo):
    """Sent once, before the first update."""

    host: str  # `mrpo.host.host_id` of the sender


@dataclass
class ShmUpdateInfo(WeightTransferUpdateInfo):
    """One bucket of whole tensors under the names of a saved checkpoint."""

    path: str  # file in /dev/shm
    names: list[str]
    dtypes: list[str]  # names in torch, e.g. "float32"
    shapes: list[list[int]]
    offsets: list[int]  # bytes from the start of the file
    num_bytes: int
    checksum: int  # zlib.crc32 of the first num_bytes bytes


class ShmWeightTransferEngine(WeightTransferEngine[ShmInitInfo, ShmUpdateInfo]):
    """Loads buckets inside vLLM's layerwise reload: CPU layers are prepacked and their original parameters freed."""

    init_info_cls = ShmInitInfo
    update_info_cls = ShmUpdateInfo

    _expected: set[str]
    _loaded: set[str]

    def init_transfer_engine(self, init_info: ShmInitInfo) -> None:
        """Refuse a sender on another machine.

        Raises:
            WeightSyncError: the hosts differ.
        """
        here = host_id()
        if init_info.host != here:
            raise WeightSyncError(
                f"weight transfer 'shm' needs learner and engine on one host; the learner is on {init_info.host!r}, "
                f"the engine on {here!r}; place both on one host, or use nccl on GPUs"
            )

    def start_weight_update(self) -> None:
        """Bring the model's layers back to the shape the checkpoint loader writes into."""
        self._expected = {name for name, _ in self.model.named_parameters()}
        self._loaded = set()
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load one bucket. The base class synchronises an accelerator after it, which a CPU does not have."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: ShmUpdateInfo) -> None:
        """Check one bucket and hand its tensors to the model's loader.

        Raises:
            WeightSyncError: the bucket is missing, short or damaged; the message names it.
        """
        model: Any = self.model
        self._loaded |= model.load_weights(_tensors(update_info, _read_bucket(update_info)))

    def finish_weight_update(self) -> None:
        """Put the layers back into the form they compute in.

        Raises:
            WeightSyncError: parameters were not sent; vLLM by itself keeps the old ones with a warning.
        """
        missing = sorted(self._expected - self._loaded)
        if missing:
            raise WeightSyncError(
                f"weight update left out {len(missing)} of {len(self._expected)} parameters of the engine, e.g. "
                f"{', '.join(missing[:3])}; send every tensor of the checkpoint in each update"
            )
        with torch.no_grad():
            finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Nothing is held between updates."""

    @staticmethod
    def trainer_send_weights(iterator: Iterator[Any], trainer_args: dict[str, Any] | Any) -> None:
        """The learner has its own sender, which needs no vLLM in its process."""
        raise WeightSyncError("weights are sent by learner.shm_sender, not through vLLM")


def _read_bucket(bucket: ShmUpdateInfo) -> bytearray:
    """The bucket's bytes, copied: layers keep their tensors until the update ends, the sender reuses the file."""
    path = Path(bucket.path)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            data = bytearray(view[: bucket.num_bytes])
    except (OSError, ValueError) as error:
        raise WeightSyncError(
            f"cannot read weight bucket {bucket.path!r}: {error}; 'shm' needs learner and engine on one host"
        ) from error
    checksum = zlib.crc32(data)
    if len(data) != bucket.num_bytes or checksum != bucket.checksum:
        raise WeightSyncError(
            f"weight bucket {bucket.path!r} arrived damaged: {len(data)} bytes with checksum {checksum}, "
            f"expected {bucket.num_bytes} with {bucket.checksum}"
        )
    return data


def _tensors(bucket: ShmUpdateInfo, data: bytearray) -> Iterator[tuple[str, torch.Tensor]]:
    for name, dtype_name, shape, offset in zip(bucket.names, bucket.dtypes, bucket.shapes, bucket.offsets, strict=True):
        dtype: torch.dtype = getattr(torch, dtype_name)
        numel = torch.Size(shape).numel()
        if offset % dtype.itemsize or offset + numel * dtype.itemsize > bucket.num_bytes:
            raise WeightSyncError(
                f"weight bucket {bucket.path!r}: tensor {name!r} at byte {offset} is misaligned or "
                "reaches beyond the end"
            )
        yield name, torch.frombuffer(data, dtype=dtype, count=numel, offset=offset).view(shape)
