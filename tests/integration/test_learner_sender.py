"""Weights into shared memory and out again, without Ray."""

from __future__ import annotations

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from weight_receiver_fake import receiver_class

from learner.shm_sender import ShmSender
from learner.step import train_step
from learner.weight_source import WeightMeta, WeightSource
from mrpo.errors import ResourceError, WeightSyncError
from tests.integration.learner_world import FAMILIES, build_world, completions, make, spec


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("learner")
    build_world(folder)
    return folder


@pytest.fixture(autouse=True)
def no_leftovers() -> Iterator[None]:
    yield
    assert not list(Path("/dev/shm").glob(f"mrpo-weights-{os.getpid()}-*"))


class Counted(WeightSource):
    """A source of equal tensors that tells how many it has given."""

    def __init__(self, count: int) -> None:
        self.tensors = {f"w{number}": torch.full((256,), float(number)) for number in range(count)}
        self.given = threading.Semaphore(0)

    def metadata(self) -> list[WeightMeta]:
        return [WeightMeta(name=name, dtype=t.dtype, shape=tuple(t.shape)) for name, t in self.tensors.items()]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for item in self.tensors.items():
            self.given.release()
            yield item


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bucket_bytes", [1, 300_000, 10**9])
def test_current_weights_arrive_whatever_the_bucket_size(world: Path, family: str, bucket_bytes: int) -> None:
    """Also with buckets smaller than a tensor; names are those of the checkpoint the model was loaded from."""
    rank = make(spec(world, family))
    receiver: Any = receiver_class()()
    sender = ShmSender(receiver, rank.source, bucket_bytes=bucket_bytes, is_sender=True)
    sender.connect()
    sender.send()
    start = load_file(world / family / "model.safetensors")
    assert receiver.weights.keys() == start.keys()
    assert all(torch.equal(receiver.weights[name], start[name]) for name in start)
    train_step(rank, completions(world, family), progress=0.0)
    stats = sender.send()
    assert all(torch.equal(receiver.weights[name], tensor) for name, tensor in rank.source)
    assert not any(torch.equal(receiver.weights[name], start[name]) for name in start)
    assert stats.num_bytes == sum(tensor.nbytes for tensor in start.values())
    assert stats.num_buckets == (1 if bucket_bytes == 10**9 else receiver.calls.count("update") // 2)


def test_two_buffers_alternate() -> None:
    receiver: Any = receiver_class()()
    stats = ShmSender(receiver, Counted(7), bucket_bytes=2048, is_sender=True).send()
    assert stats.num_buckets == 4
    assert receiver.paths[0] == receiver.paths[2] != receiver.paths[1] == receiver.paths[3]
    assert receiver.calls == ["start", *["update"] * 4, "finish"]


def test_the_next_bucket_is_gathered_while_engines_read_the_last() -> None:
    source = Counted(2)

    class Slow(receiver_class()):  # type: ignore[misc]
        def update_weights(self, update_info: dict[str, Any]) -> None:
            if not self.weights:
                assert source.given.acquire(timeout=10.0) and source.given.acquire(timeout=10.0)
            super().update_weights(update_info)

    receiver = Slow()
    ShmSender(receiver, source, bucket_bytes=1024, is_sender=True).send()
    assert list(receiver.weights) == ["w0", "w1"]


def test_a_buffer_is_not_filled_again_before_engines_are_done_with_it() -> None:
    receiver: Any = receiver_class()()
    source = Counted(40)
    ShmSender(receiver, source, bucket_bytes=1024, is_sender=True).send()
    assert all(torch.equal(receiver.weights[name], tensor) for name, tensor in source.tensors.items())


def test_a_failed_update_can_be_repeated() -> None:
    receiver: Any = receiver_class()(fail=True)
    source = Counted(5)
    sender = ShmSender(receiver, source, bucket_bytes=1024, is_sender=True)
    with pytest.raises(WeightSyncError, match="on fire"):
        sender.send()
    assert all(source.given.acquire(blocking=False) for _ in range(5)), "the other ranks gather all weights too"
    receiver.fail = False
    sender.send()
    assert len(receiver.weights) == 5


def test_ranks_that_do_not_send_run_along() -> None:
    receiver: Any = receiver_class()()
    source = Counted(3)
    sender = ShmSender(receiver, source, bucket_bytes=1024, is_sender=False)
    sender.connect()
    assert sender.send().num_buckets == 0
    assert receiver.calls == []
    assert all(source.given.acquire(blocking=False) for _ in range(3)), "gathering is a collective"


def test_too_little_shared_memory_is_said() -> None:
    class Huge(Counted):
        def metadata(self) -> list[WeightMeta]:
            return [WeightMeta(name="w0", dtype=torch.float32, shape=(2**44,))]

    with pytest.raises(ResourceError, match=r"/dev/shm has no room .*learner\.bucket_mib"):
        ShmSender(receiver_class()(), Huge(1), bucket_bytes=1024, is_sender=True).send()


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_holds_is_not() -> None:
    code = (
        "import sys; from learner.shm_sender import ShmBuffer; buffer = ShmBuffer(4096); "
        "print(buffer.path, flush=True); sys.stdin.read()"
    )
    owners = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    paths = [Path(owner.stdout.readline().strip()) for owner in owners if owner.stdout is not None]
    try:
        owners[0].kill()
        owners[0].wait()
        assert paths[0].exists()
        ShmSender(receiver_class()(), Counted(1), bucket_bytes=1024, is_sender=True).connect()
        assert [path.exists() for path in paths] == [False, True]
    finally:
        for owner, path in zip(owners, paths, strict=True):
            owner.kill()
            owner.communicate()
            path.unlink(missing_ok=True)
