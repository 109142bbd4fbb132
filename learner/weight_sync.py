"""Sending weights to the engines: shared memory on CPU, vLLM's NCCL or CUDA-IPC transfer on GPUs.

The order is the same for all: start → buckets → finish. Only rank 0 sends; the other ranks iterate the weights along
with it, because gathering is a collective.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from learner.weight_source import WeightSource
from mrpo.choices import WeightTransfer
from mrpo.errors import WeightSyncError


class WeightSyncClient(Protocol):
    """The engines' side of an update, as vLLM defines it; calls return when every engine is done."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: dict[str, Any]) -> None: ...

    def finish_weight_update(self) -> None: ...


class RayWeightSyncClient:
    """Calls the method of the same name on every engine actor and waits for all of them."""

    def __init__(self, handles: Sequence[Any], *, ranks_per_engine: int = 1) -> None:
        self._handles = list(handles)
        self._ranks_per_engine = ranks_per_engine

    @property
    def num_ranks(self) -> int:
        """Engine processes that receive weights."""
        return len(self._handles) * self._ranks_per_engine

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Engines are independent of each other, so each is told where its ranks begin in the transfer group."""
        infos = [dict(init_info) for _ in self._handles]
        if "rank_offset" in init_info:
            for number, info in enumerate(infos):
                info["rank_offset"] = init_info["rank_offset"] + number * self._ranks_per_engine
        calls = zip(self._handles, infos, strict=True)
        self._wait([handle.init_weight_transfer_engine.remote(info) for handle, info in calls])

    def start_weight_update(self) -> None:
        """Engines get ready for buckets."""
        self._wait([handle.start_weight_update.remote() for handle in self._handles])

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """One bucket."""
        self._wait([handle.update_weights.remote(update_info) for handle in self._handles])

    def finish_weight_update(self) -> None:
        """Engines run on the new weights from here."""
        self._wait([handle.finish_weight_update.remote() for handle in self._handles])

    def load_adapter(self, files: dict[str, bytes]) -> None:
        """Engines run on this adapter from here."""
        import ray

        shared = ray.put(files)
        self._wait([handle.load_adapter.remote(shared) for handle in self._handles])

    def _wait(self, references: list[Any]) -> None:
        import ray

        try:
            ray.get(references)
        except ray.exceptions.RayError as error:
            raise WeightSyncError(f"an engine failed during the weight update: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncStats:
    """What one update came to. Learner → controller."""

    num_bytes: int
    num_buckets: int
    seconds: float


class WeightSender(Protocol):
    """One way to send; every rank holds one and calls it in lockstep."""

    def connect(self) -> None:
        """Meet the engines; once."""
        ...

    def send(self) -> SyncStats:
        """Send all weights: start → buckets → finish."""
        ...

    def close(self) -> None:
        """Give back what the transfer holds."""
        ...


def make_sender(
    kind: WeightTransfer, client: RayWeightSyncClient, source: WeightSource, *, bucket_mib: float, is_sender: bool
) -> WeightSender:
    """The sender of a configured transfer."""
    bucket_bytes = int(bucket_mib * 1024**2)
    if kind == WeightTransfer.SHM:
        from learner.shm_sender import ShmSender

        return ShmSender(client, source, bucket_bytes=bucket_bytes, is_sender=is_sender)
    from learner.gpu_senders import IpcSender, NcclSender

    sender = NcclSender if kind == WeightTransfer.NCCL else IpcSender
    return sender(client, source, bucket_bytes=bucket_bytes, is_sender=is_sender)
