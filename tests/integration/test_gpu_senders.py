"""Senders for GPUs as far as they go without one: what is asked of engines, and what an engine's refusal leads to.

The transports themselves run in tests/gpu.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from learner.gpu_senders import IpcSender, NcclSender, ipc_buffer_bytes
from learner.weight_source import WeightMeta, WeightSource
from learner.weight_sync import RayWeightSyncClient
from mrpo.errors import WeightSyncError


class Three(WeightSource):
    """Three tensors, and how many of them were gathered."""

    def __init__(self) -> None:
        self.tensors = {f"w{number}": torch.full((256,), float(number)) for number in range(3)}
        self.num_gathered = 0

    def metadata(self) -> list[WeightMeta]:
        return [WeightMeta(name=name, dtype=t.dtype, shape=tuple(t.shape)) for name, t in self.tensors.items()]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for item in self.tensors.items():
            self.num_gathered += 1
            yield item


class Recorded(RayWeightSyncClient):
    """A client whose calls are answered by nobody."""

    def _ask(self, call: Callable[[int, Any], Any]) -> None:
        self.calls = [call(number, handle) for number, handle in enumerate(self._handles)]


class Method:
    """What an actor's handle has for a method."""

    def __init__(self) -> None:
        self.arguments: list[Any] = []

    def remote(self, argument: Any) -> None:
        self.arguments.append(argument)


class Handle:
    """An engine's handle."""

    def __init__(self) -> None:
        self.init_weight_transfer_engine = Method()


class Refusing(RayWeightSyncClient):
    """Engines that take part in no update."""

    def __init__(self) -> None:
        super().__init__([])

    def start_weight_update(self) -> None:
        raise WeightSyncError("engine on fire")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        raise AssertionError("no bucket may follow a refused start")


def test_every_engine_rank_has_its_own_number_in_the_nccl_group() -> None:
    """Rank 0 is the learner; vLLM adds a process's rank in its engine to the engine's offset."""
    handles = [Handle() for _ in range(3)]
    client = Recorded(handles, ranks_per_engine=2)
    client.init_weight_transfer_engine({"rank_offset": 1, "world_size": 1 + client.num_ranks})
    offsets = [handle.init_weight_transfer_engine.arguments[0]["rank_offset"] for handle in handles]
    assert (offsets, client.num_ranks) == ([1, 3, 5], 6)
    ranks = [offset + rank for offset in offsets for rank in range(2)]
    assert ranks == list(range(1, 7))


def test_a_refused_start_leaves_no_rank_waiting_for_the_gathers_of_this_one() -> None:
    source = Three()
    sender = NcclSender(Refusing(), source, bucket_bytes=1024, is_sender=True)
    with pytest.raises(WeightSyncError, match="on fire"):
        sender.send()
    assert source.num_gathered == 3


class Group:
    """An NCCL group in which a broadcast goes on until it is destroyed."""

    def __init__(self) -> None:
        self.destroyed = threading.Event()

    def destroy(self) -> None:
        self.destroyed.set()


def test_an_engine_that_fails_in_a_broadcast_is_named_and_the_broadcast_is_ended(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """NCCL's collective does not end without the engine: this rank would wait for it for ever."""
    from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

    class Failing(Refusing):
        def start_weight_update(self) -> None: ...

        def update_weights(self, update_info: dict[str, Any]) -> None:
            raise WeightSyncError("engine on fire")

    def broadcast(weights: object, arguments: Any) -> None:
        assert arguments.group.destroyed.wait(60.0), "the broadcast goes on"
        raise RuntimeError("NCCL error: remote process exited or there was a network error")

    monkeypatch.setattr(NCCLWeightTransferEngine, "trainer_send_weights", staticmethod(broadcast))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    source = Three()
    sender = NcclSender(Failing(), source, bucket_bytes=1024, is_sender=True)
    sender._group = Group()
    with pytest.raises(WeightSyncError, match="on fire"):
        sender.send()
    assert "engine on fire" in caplog.text
    assert source.num_gathered == 3, "the other ranks gather all weights"
    sender.close()


def test_ranks_that_do_not_send_run_along() -> None:
    source = Three()
    stats = NcclSender(Refusing(), source, bucket_bytes=1024, is_sender=False).send()
    assert (source.num_gathered, stats.num_bytes) == (3, 0)


def test_ipc_goes_on_with_the_collective_and_then_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The collective is vLLM's and needs a GPU; here it is the bare loop over weights."""
    from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine, IPCWeightTransferUpdateInfo

    def send_each(weights: Iterator[tuple[str, torch.Tensor]], arguments: Any) -> None:
        for name, tensor in weights:
            described: dict[str, Any] = {"names": [name], "dtype_names": ["float32"], "shapes": [list(tensor.shape)]}
            info = IPCWeightTransferUpdateInfo(**described, ipc_handles={}, tensor_sizes=[tensor.nbytes], packed=True)
            arguments.send_mode(info)

    monkeypatch.setattr(IPCWeightTransferEngine, "trainer_send_weights", staticmethod(send_each))
    source = Three()
    with pytest.raises(WeightSyncError, match="on fire"):
        IpcSender(Refusing(), source, bucket_bytes=1024, is_sender=True).send()
    assert source.num_gathered == 3


def test_the_shared_buffer_holds_the_largest_tensor() -> None:
    metadata = [WeightMeta(name="embedding", dtype=torch.bfloat16, shape=(1000, 10)), *Three().metadata()]
    assert ipc_buffer_bytes(metadata, 1024) == 20_000
    assert ipc_buffer_bytes(metadata, 10**6) == 10**6


def test_handles_of_gpu_memory_reach_an_engines_processes_only_as_the_environment_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The objects that `reduce_tensor` makes of a CUDA tensor, without their memory."""
    from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

    handle = (torch.Tensor, torch.Size([4]), (1,), 0, torch.UntypedStorage, torch.uint8, 0, b"h", 4, 0, False)
    sent = {"names": ["w"], "ipc_handles": {"GPU-1": handle}}
    monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "0")
    with pytest.raises(TypeError, match="not serializable"):
        MsgpackEncoder().encode(sent)
    monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
    got = MsgpackDecoder(dict).decode(MsgpackEncoder().encode(sent))["ipc_handles"]["GPU-1"]
    assert got == [list(part) if isinstance(part, tuple) else part for part in handle]
