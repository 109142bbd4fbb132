"""Weights to GPU engines through vLLM's own transfer: NCCL broadcast, or CUDA IPC on a shared GPU.

vLLM is imported only here and only when used: importing it takes ten seconds.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import ray
import torch

from learner.distributed import free_port
from learner.weight_source import WeightSource
from learner.weight_sync import RayWeightSyncClient, SyncStats
from mrpo.errors import MRPOError


class NcclSender:
    """Rank 0 and every engine rank form one NCCL group; buckets are broadcast in it."""

    def __init__(
        self, client: RayWeightSyncClient, source: WeightSource, *, bucket_bytes: int, is_sender: bool
    ) -> None:
        self._client = client
        self._source = source
        self._bucket_bytes = bucket_bytes
        self._is_sender = is_sender
        self._group: Any = None

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
            self._group = NCCLWeightTransferEngine.trainer_init(info)
            joined.result()

    def send(self) -> SyncStats:
        """Broadcast all weights in packed buckets."""
        started = time.perf_counter()
        if not self._is_sender:
            for _ in self._source:
                pass
            return SyncStats(num_bytes=0, num_buckets=0, seconds=time.perf_counter() - started)
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerSendWeightsArgs, NCCLWeightTransferEngine

        metadata = self._source.metadata()
        info = {
            "names": [meta.name for meta in metadata],
            "dtype_names": [str(meta.dtype).removeprefix("torch.") for meta in metadata],
            "shapes": [list(meta.shape) for meta in metadata],
            "packed": True,
            "packed_buffer_size_bytes": self._bucket_bytes,
        }
        self._client.start_weight_update()
        with ThreadPoolExecutor(max_workers=1) as engines:
            # Engines take part in the broadcast while they answer this call.
            received = engines.submit(self._client.update_weights, info)
            arguments = NCCLTrainerSendWeightsArgs(
                group=self._group, packed=True, packed_buffer_size_bytes=self._bucket_bytes
            )
            NCCLWeightTransferEngine.trainer_send_weights(iter(self._source), arguments)
            torch.cuda.synchronize()
            received.result()
        self._client.finish_weight_update()
        num_bytes = sum(meta.num_bytes for meta in metadata)
        return SyncStats(
            num_bytes=num_bytes, num_buckets=-(-num_bytes // self._bucket_bytes), seconds=time.perf_counter() - started
        )

    def close(self) -> None:
        """Leave the group."""
        self._group = None


class IpcSender:
    """Engine and learner share GPUs: engines map the learner's buffers. Every rank sends what its GPU holds."""

    def __init__(
        self, client: RayWeightSyncClient, source: WeightSource, *, bucket_bytes: int, is_sender: bool
    ) -> None:
        self._client = client
        self._source = source
        self._bucket_bytes = bucket_bytes
        self._is_sender = is_sender
        self._num_buckets = 0
        self._failure: MRPOError | None = None

    def connect(self) -> None:
        """CUDA IPC needs no rendezvous; engines are told to get ready all the same."""
        if self._is_sender:
            self._client.init_weight_transfer_engine({})

    def send(self) -> SyncStats:
        """Hand over all weights in packed buckets.

        Raises:
            WeightSyncError: an engine refused a bucket.
        """
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerSendWeightsArgs, IPCWeightTransferEngine

        started = time.perf_counter()
        self._num_buckets, self._failure = 0, None
        if self._is_sender:
            self._client.start_weight_update()
        arguments = IPCTrainerSendWeightsArgs(
            send_mode=self._update, packed=True, packed_buffer_size_bytes=self._bucket_bytes
        )
        IPCWeightTransferEngine.trainer_send_weights(iter(self._source), arguments)
        if self._failure is not None:
            raise self._failure
        if self._is_sender:
            self._client.finish_weight_update()
        return SyncStats(
            num_bytes=sum(meta.num_bytes for meta in self._source.metadata()),
            num_buckets=self._num_buckets,
            seconds=time.perf_counter() - started,
        )

    def close(self) -> None:
        """Nothing is held between updates."""

    def _update(self, info: Any) -> None:
        """Called for every bucket in the middle of a collective, which has to go on when an engine fails."""
        if self._failure is not None:
            return
        self._num_buckets += 1
        try:
            self._client.update_weights({name: value for name, value in asdict(info).items() if value is not None})
        except MRPOError as error:
            self._failure = error
