"""An engine that only receives weights."""

from __future__ import annotations

import mmap
import os
import time
import zlib
from typing import Any

import torch

from mrpo.errors import WeightSyncError
from mrpo.host import host_id


def receiver_class() -> type[Any]:
    """Made in a function, so that Ray sends its code along: workers cannot import a module of the tests."""

    class Receiver:
        """Has vLLM's four methods and keeps what they are given."""

        def __init__(self, fail: bool = False, hang: bool = False, die: bool = False) -> None:
            self.calls: list[str] = []
            self.weights: dict[str, torch.Tensor] = {}
            self.paths: list[str] = []
            self.fail = fail
            self.hang = hang
            self.die = die

        def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
            assert init_info == {"host": host_id()}
            self.calls.append("init")

        def start_weight_update(self) -> None:
            self.calls.append("start")

        def update_weights(self, update_info: dict[str, Any]) -> None:
            if self.fail:
                raise WeightSyncError("engine on fire")
            if self.hang:
                time.sleep(3600)
            if self.die:
                os._exit(1)
            with open(update_info["path"], "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                data = bytearray(view[: update_info["num_bytes"]])
            assert zlib.crc32(data) == update_info["checksum"]
            fields = ("names", "dtypes", "shapes", "offsets")
            for name, dtype_name, shape, offset in zip(*(update_info[field] for field in fields), strict=True):
                dtype = getattr(torch, dtype_name)
                flat = torch.frombuffer(data, dtype=dtype, count=torch.Size(shape).numel(), offset=offset)
                self.weights[name] = flat.view(shape).clone()
            self.paths.append(update_info["path"])
            self.calls.append("update")

        def finish_weight_update(self) -> None:
            self.calls.append("finish")

        def report(self) -> tuple[list[str], dict[str, torch.Tensor], list[str]]:
            return self.calls, self.weights, self.paths

    return Receiver
