"""Weights to GPU engines through vLLM's own transfer: NCCL broadcast, or CUDA IPC on a shared GPU.

vLLM is imported only here and only when used: importing it takes ten seconds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import ray
import torch
from torch import Tensor

from learner.distributed import free_port
from learner.weight_source import WeightMeta, WeightSource
from learner.weight_sync import RayWeightSyncClient, SyncStats
from mrpo.errors import MRPOError, ReceiverLostError

log = logging.getLogger(__name__)


class _GpuSender:
    """What both ways hold."""

    def __init__(
        self, client: RayWeightSyncClient, source: WeightSource, *, bucket_bytes: int, is_sender: bool
    ) -> None:
        self._client = client
        self._source = source
        self._bucket_bytes = bucket_bytes
        self._is_sender = is_sender


class NcclSender(_GpuSender):
    """Rank 0 and every engine rank form one NCCL group; buckets are broadcast in it."""

    _group: Any = None

    def connect(self) -> None:
        """Open the group; engines join it while this rank waits in the same rendezvous."""
        if not self._is_sender:
            return
        from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

        info = {
            "master_address": ray.util.get_node_ip_address(),
            "master_port": free_port(),
            "world_size": 1 + self._client.num_ranks,
        }
        with ThreadPoolExecutor(max_workers=1) as engines:
            joined = engines.submit(self._client.init_weight_transfer_engine, {**info, "rank_offset": 1})
            try:
                self._group = NCCLWeightTransferEngine.trainer_init(info)
            except RuntimeError as error:  # of torch's store or NCCL, after their own timeouts
                raise ReceiverLostError(f"the engines did not join the NCCL group of the weights: {error}") from error
            joined.result()

    def send(self) -> SyncStats:
        """Broadcast all weights in packed buckets.

        Raises:
            WeightSyncError: an engine refused to begin or to end the update.
        """
        started = time.perf_counter()
        metadata = self._source.metadata()
        weights = iter(self._source)
        try:
            if self._is_sender:
                self._broadcast(metadata, weights)
        finally:
            # The other ranks gather all weights, whatever happens here; a rank that stopped would fall out of step.
            for _ in weights:
                pass
        num_bytes = sum(meta.num_bytes for meta in metadata) if self._is_sender else 0
        return SyncStats(
            num_bytes=num_bytes, num_buckets=-(-num_bytes // self._bucket_bytes), seconds=time.perf_counter() - started
        )

    def close(self) -> None:
        """Leave the group. Also from another thread, in the middle of a broadcast, which then ends."""
        group, self._group = self._group, None
        if group is not None:
            group.destroy()  # without it, the communicator keeps its buffers on the GPU

    def _broadcast(self, metadata: Sequence[WeightMeta], weights: Iterator[tuple[str, Tensor]]) -> None:
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerSendWeightsArgs, NCCLWeightTransferEngine

        info = {
            "names": [meta.name for meta in metadata],
            "dtype_names": [str(meta.dtype).removeprefix("torch.") for meta in metadata],
            "shapes": [list(meta.shape) for meta in metadata],
            "packed": True,
            "packed_buffer_size_bytes": self._bucket_bytes,
        }
        self._client.start_weight_update()
        group = self._group  # an engine that fails at once takes it away from here
        with ThreadPoolExecutor(max_workers=1) as engines:
            # Engines take part in the broadcast while they answer this call.
            received = engines.submit(self._client.update_weights, info)
            received.add_done_callback(self._end_if_failed)
            arguments = NCCLTrainerSendWeightsArgs(
                group=group, packed=True, packed_buffer_size_bytes=self._bucket_bytes
            )
            try:
                NCCLWeightTransferEngine.trainer_send_weights(weights, arguments)
                torch.cuda.synchronize()
            except RuntimeError as error:  # of NCCL, whose group was taken from under it
                received.result()
                raise ReceiverLostError(f"the broadcast of the weights failed: {error}") from error
            received.result()
        self._client.finish_weight_update()

    def _end_if_failed(self, received: Future[None]) -> None:
        """Say why at once, and end the group: without an engine the broadcast would never end."""
        error = received.exception()
        if error is not None:
            log.error("the weight update fails: %s", error)
            self.close()


class IpcSender(_GpuSender):
    """Engine and learner share GPUs: engines map the learner's buffers. Every rank fills one on its own GPU.

    vLLM collects the handles of all ranks by GPU and hands them to every engine, whose ranks pick their GPU's.
    """

    _num_buckets = 0
    _failure: MRPOError | None = None

    def connect(self) -> None:
        """CUDA IPC needs no rendezvous; engines are told to get ready all the same."""
        if self._is_sender:
            self._client.init_weight_transfer_engine({})

    def send(self) -> SyncStats:
        """Hand over all weights in packed buckets.

        Raises:
            WeightSyncError: an engine refused the update or a bucket of it.
        """
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerSendWeightsArgs, IPCWeightTransferEngine

        started = time.perf_counter()
        metadata = self._source.metadata()
        self._num_buckets, self._failure = 0, None
        if self._is_sender:
            self._ask_engines(self._client.start_weight_update)
        arguments = IPCTrainerSendWeightsArgs(
            send_mode=self._update, packed=True, packed_buffer_size_bytes=ipc_buffer_bytes(metadata, self._bucket_bytes)
        )
        IPCWeightTransferEngine.trainer_send_weights(iter(self._source), arguments)
        if self._failure is not None:
            raise self._failure
        if self._is_sender:
            self._client.finish_weight_update()
        return SyncStats(
            num_bytes=sum(meta.num_bytes for meta in metadata),
            num_buckets=self._num_buckets,
            seconds=time.perf_counter() - started,
        )

    def close(self) -> None:
        """Nothing is held between updates."""

    def _update(self, info: Any) -> None:
        """Called for every bucket."""
        self._num_buckets += 1
        bucket = {name: value for name, value in asdict(info).items() if value is not None}
        self._ask_engines(lambda: self._client.update_weights(bucket))

    def _ask_engines(self, call: Callable[[], None]) -> None:
        """In the middle of a collective, which has to go on when an engine fails: the failure is kept for its end."""
        if self._failure is not None:
            return
        try:
            call()
        except MRPOError as error:
            self._failure = error


def ipc_buffer_bytes(metadata: Sequence[WeightMeta], bucket_bytes: int) -> int:
    """Size of the one buffer that is shared: vLLM refuses a tensor that is larger, as an embedding is than a bucket."""
    return max(bucket_bytes, *(meta.num_bytes for meta in metadata))
