"""Writes safetensors files from pieces of others, a few megabytes at a time.

The safetensors library writes a file from tensors that are all in memory, which is gigabytes a file; the format is a
header and bytes, and a conversion that only renames, cuts and joins rows needs no tensor at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from mrpo.convert.plan import NewTensor
from mrpo.errors import DataError
from mrpo.weight_files import INDEX_FILE, ITEM_BYTES, LENGTH_BYTES, SINGLE_FILE, StoredTensor

FILE_BYTES = 4 * 1024**3  # weights of one file, as readers like it
CHUNK_BYTES = 8 * 1024**2
ALIGNMENT = 8  # of the first tensor's bytes


def write_weights(
    folder: Path,
    tensors: Sequence[NewTensor],
    *,
    file_bytes: int = FILE_BYTES,
    progress: Callable[[int], None] = lambda num_bytes: None,
) -> None:
    """Write all tensors, and an index where they take more than one file.

    Args:
        folder: existing.
        tensors: in order.
        file_bytes: a file ends before the tensor that would exceed it.
        progress: told the number of bytes as they are written.

    Raises:
        DataError: the source ends before its header says.
        OSError: no space, no permission.
    """
    files = _files(tensors, file_bytes)
    for file_name, members in files.items():
        _write_file(folder / file_name, members, progress)
    if len(files) > 1:
        index = {
            "metadata": {"total_size": sum(tensor.num_bytes for tensor in tensors)},
            "weight_map": {tensor.name: file_name for file_name, members in files.items() for tensor in members},
        }
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _files(tensors: Sequence[NewTensor], file_bytes: int) -> dict[str, list[NewTensor]]:
    """File name → its tensors. Wide numbers come first: then every tensor begins at a multiple of its item size."""
    parts: list[list[NewTensor]] = [[]]
    used = 0
    for tensor in sorted(tensors, key=lambda item: -ITEM_BYTES[item.dtype]):
        if parts[-1] and used + tensor.num_bytes > file_bytes:
            parts.append([])
            used = 0
        parts[-1].append(tensor)
        used += tensor.num_bytes
    if len(parts) == 1:
        return {SINGLE_FILE: parts[0]}
    return {f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors": part for i, part in enumerate(parts)}


def _write_file(file: Path, tensors: Sequence[NewTensor], progress: Callable[[int], None]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for tensor in tensors:
        end = begin + tensor.num_bytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % ALIGNMENT)
    with file.open("wb") as target:
        target.write(len(encoded).to_bytes(LENGTH_BYTES, "little"))
        target.write(encoded)
        for tensor in tensors:
            for piece in tensor.pieces:
                _copy(piece, target, progress)


def _copy(piece: StoredTensor, target: BinaryIO, progress: Callable[[int], None]) -> None:
    with piece.file.open("rb") as source:
        source.seek(piece.start)
        left = piece.num_bytes
        while left:
            data = source.read(min(CHUNK_BYTES, left))
            if not data:
                raise DataError(f"{piece.file} ends inside tensor {piece.name}; fetch the checkpoint again")
            target.write(data)
            left -= len(data)
            progress(len(data))
