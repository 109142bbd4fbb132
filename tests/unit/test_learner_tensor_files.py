"""Tensors in files of bounded size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from learner import tensor_files
from learner.tensor_files import read_tensors, write_tensors

TENSORS = {name: torch.arange(size, dtype=torch.float32) for name, size in (("a", 4), ("b", 3), ("c", 9), ("d", 0))}


def test_what_is_written_is_read_back_from_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_files, "FILE_BYTES", 40)
    hashes = write_tensors(tmp_path, "weights", TENSORS.items())
    assert len(hashes) == 2, "28 bytes fit into the first file, 36 into the second"
    found = dict(read_tensors(tmp_path, hashes))
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)
