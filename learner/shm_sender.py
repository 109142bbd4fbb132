"""Weights through shared memory of one host, for CPU engines."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import mmap
import os
import time
import uuid
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from learner.weight_source import WeightMeta, WeightSource
from learner.weight_sync import SyncStats, WeightSyncClient
from mrpo.errors import ResourceError
from mrpo.host import SHM_FOLDER, WEIGHTS_PREFIX, host_id

log = logging.getLogger(__name__)

ALIGNMENT = 64  # bytes, of a tensor in its bucket
NUM_BUFFERS = 2  # the next bucket is filled in one while engines read the other


@dataclass(slots=True, kw_only=True)
class Bucket:
    """What an engine is told of one filled buffer; read by the engine's weight receiver."""

    path: str
    names: list[str] = field(default_factory=list)  # checkpoint names
    dtypes: list[str] = field(default_factory=list)  # as torch names them, e.g. "float32"
    shapes: list[list[int]] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)  # bytes from the start of the file
    num_bytes: int = 0  # used, padding between tensors included
    checksum: int = 0  # zlib.crc32 of the first `num_bytes` bytes


class ShmBuffer:
    """One file in /dev/shm, mapped into this process."""

    def __init__(self, size: int) -> None:
        """Raises `ResourceError` where the shared memory is too small."""
        self.path = SHM_FOLDER / f"{WEIGHTS_PREFIX}{os.getpid()}-{uuid.uuid4().hex}"
        descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            # Held for as long as the file is mapped; it ends with this process, however that ends.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Without it a full /dev/shm would kill the process at the first write.
            os.posix_fallocate(descriptor, 0, size)
            self._map = mmap.mmap(descriptor, size)
        except OSError as error:
            self.path.unlink()
            raise ResourceError(
                f"{SHM_FOLDER} has no room for a weight bucket of {size / 1024**2:.0f} MiB ({error}); enlarge it "
                "(docker: --shm-size) or lower learner.bucket_mib"
            ) from error
        finally:
            os.close(descriptor)
        self._bytes: Tensor | None = torch.frombuffer(self._map, dtype=torch.uint8)

    def write(self, offset: int, tensor: Tensor) -> None:
        """Copy a tensor's bytes to `offset`."""
        assert self._bytes is not None
        source = tensor.detach().contiguous().view(-1).view(torch.uint8)
        self._bytes[offset : offset + source.numel()].copy_(source)

    def checksum(self, num_bytes: int) -> int:
        """crc32 of the first bytes."""
        with memoryview(self._map) as view, view[:num_bytes] as used:
            return zlib.crc32(used)

    def close(self) -> None:
        """Remove the file; engines that still have it open keep their mapping."""
        self._bytes = None
        self.path.unlink(missing_ok=True)


def remove_leftovers() -> None:
    """Remove buffers whose process was killed in the middle of an update; a living one holds its buffers' locks."""
    for path in SHM_FOLDER.glob(f"{WEIGHTS_PREFIX}*"):
        with contextlib.suppress(OSError):  # in use (locked), another user's, or gone already
            descriptor = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(descriptor)
            log.warning("removed %s, which a killed process had left", path)


class ShmSender:
    """Fills one buffer while engines read the other."""

    def __init__(self, client: WeightSyncClient, source: WeightSource, *, bucket_bytes: int, is_sender: bool) -> None:
        self._client = client
        self._source = source
        self._bucket_bytes = bucket_bytes
        self._is_sender = is_sender
        self._buffers: list[ShmBuffer] = []

    def connect(self) -> None:
        """Tell the engines which host the buffers will be on; they refuse another."""
        if self._is_sender:
            remove_leftovers()
            self._client.init_weight_transfer_engine({"host": host_id()})

    def send(self) -> SyncStats:
        """Send all weights.

        Raises:
            WeightSyncError: an engine refused a bucket; a later call starts afresh.
            ResourceError: the shared memory is too small.
        """
        started = time.perf_counter()
        buckets: list[list[WeightMeta]] = []
        weights = iter(self._source)
        try:
            if self._is_sender:
                buckets = self._plan()
                self._client.start_weight_update()
                self._send_buckets(buckets, weights)
                self._client.finish_weight_update()
        finally:
            # The other ranks gather all weights, whatever happens here; a rank that stopped would fall out of step.
            for _ in weights:
                pass
            # Between updates nothing is left behind, not even by a process that is killed.
            self.close()
        return SyncStats(
            num_bytes=sum(meta.num_bytes for bucket in buckets for meta in bucket),
            num_buckets=len(buckets),
            seconds=time.perf_counter() - started,
        )

    def close(self) -> None:
        """Remove the buffers; called after every update."""
        for buffer in self._buffers:
            buffer.close()
        self._buffers.clear()

    def _plan(self) -> list[list[WeightMeta]]:
        """Tensors of each bucket, in the source's order; buffers are made to fit the largest."""
        buckets: list[list[WeightMeta]] = []
        used = 0
        for meta in self._source.metadata():
            size = _aligned(meta.num_bytes)
            if not buckets or used + size > self._bucket_bytes:
                buckets.append([])
                used = 0
            buckets[-1].append(meta)
            used += size
        largest = max(sum(_aligned(meta.num_bytes) for meta in bucket) for bucket in buckets)
        for _ in range(min(NUM_BUFFERS, len(buckets))):
            self._buffers.append(ShmBuffer(largest))
        return buckets

    def _send_buckets(self, buckets: list[list[WeightMeta]], weights: Iterator[tuple[str, Tensor]]) -> None:
        sent: list[Future[None]] = []
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="weight-send") as sender:
            for number, bucket in enumerate(buckets):
                if number >= len(self._buffers):
                    sent[number - len(self._buffers)].result()  # engines are done with this buffer
                buffer = self._buffers[number % len(self._buffers)]
                info = Bucket(path=str(buffer.path))
                for meta in bucket:
                    name, tensor = next(weights)
                    assert name == meta.name
                    buffer.write(info.num_bytes, tensor)
                    info.names.append(name)
                    info.dtypes.append(str(meta.dtype).removeprefix("torch."))
                    info.shapes.append(list(meta.shape))
                    info.offsets.append(info.num_bytes)
                    info.num_bytes += _aligned(meta.num_bytes)
                info.checksum = buffer.checksum(info.num_bytes)
                sent.append(sender.submit(self._client.update_weights, asdict(info)))
            for future in sent:
                future.result()


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT
