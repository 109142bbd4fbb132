"""Buckets of weights that arrive damaged, and the plugin that makes the receiver known to vLLM."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from mrpo.errors import WeightSyncError
from rollout.plugin import SHM_BACKEND, register
from rollout.weight_receiver import ShmWeightTransferEngine

VALUES = torch.arange(6, dtype=torch.float32)


class Model(nn.Module):
    """Notes what its loader is given."""

    def __init__(self) -> None:
        super().__init__()
        self.received: dict[str, torch.Tensor] = {}

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        self.received.update(weights)
        return set(self.received)


@pytest.fixture
def receiver() -> ShmWeightTransferEngine:
    vllm_config: Any = SimpleNamespace(parallel_config=None, model_config=None)
    engine = ShmWeightTransferEngine(SimpleNamespace(backend="shm"), vllm_config, torch.device("cpu"), Model())  # type: ignore[arg-type]
    engine.start_weight_update()
    return engine


def bucket(folder: Path, **changes: Any) -> dict[str, Any]:
    """Two tensors, a gap between them and slack after them."""
    data = VALUES[:4].numpy().tobytes() + bytes(16) + VALUES[4:].to(torch.bfloat16).view(torch.uint8).numpy().tobytes()
    path = folder / "bucket"
    path.write_bytes(data + b"slack")
    return {
        "path": str(path),
        "names": ["a", "b"],
        "dtypes": ["float32", "bfloat16"],
        "shapes": [[2, 2], [2]],
        "offsets": [0, 32],
        "num_bytes": len(data),
        "checksum": zlib.crc32(data),
        **changes,
    }


def test_tensors_arrive_with_shape_and_dtype(receiver: ShmWeightTransferEngine, tmp_path: Path) -> None:
    update = bucket(tmp_path)
    receiver.update_weights(update)
    Path(update["path"]).unlink()  # the sender may take the file back once the call has returned
    received = receiver.model.received
    assert torch.equal(received["a"], VALUES[:4].view(2, 2))  # type: ignore[index]
    assert torch.equal(received["b"], VALUES[4:].to(torch.bfloat16))  # type: ignore[index]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checksum": 1}, "arrived damaged"),
        ({"num_bytes": 10_000}, "arrived damaged"),
        ({"path": "/dev/shm/mrpo-no-such-bucket"}, "'/dev/shm/mrpo-no-such-bucket': .* on one host"),
        ({"offsets": [0, 34]}, "tensor 'b' at byte 34 is misaligned or reaches beyond"),
        ({"offsets": [2, 32]}, "tensor 'a' at byte 2 is misaligned"),
    ],
)
def test_a_bucket_that_cannot_be_trusted_is_refused(
    receiver: ShmWeightTransferEngine, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(WeightSyncError, match=message):
        receiver.update_weights(bucket(tmp_path, **changes))


def test_an_update_of_another_backend_is_refused(receiver: ShmWeightTransferEngine, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ShmWeightTransferEngine"):
        receiver.update_weights({**bucket(tmp_path), "ipc_handles": []})


def test_vllm_finds_the_backend_by_its_entry_point() -> None:
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    register()  # a second time, as vLLM does
    config: Any = SimpleNamespace(backend=SHM_BACKEND)
    vllm_config: Any = SimpleNamespace(parallel_config=None, model_config=None)
    made = WeightTransferEngineFactory.create_engine(config, vllm_config, torch.device("cpu"), nn.Module())
    assert isinstance(made, ShmWeightTransferEngine)
