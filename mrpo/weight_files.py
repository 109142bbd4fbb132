"""The weights of a checkpoint folder as its safetensors headers describe them; no tensor is ever read.

A safetensors file is 8 bytes of header length (little endian), a JSON header of name → dtype, shape and byte range, and
the tensors' bytes one after another.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrpo.errors import DataError

CONFIG_FILE = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pth", "*.pt")
LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # what the safetensors library accepts
LFS_POINTER = b"version https://git-lfs"  # what git writes in place of a large file it did not fetch
ITEM_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "BF16": 2, "F16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
FETCH = "fetch the checkpoint again"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """Where the bytes of one tensor lie."""

    name: str
    dtype: str  # as safetensors spells it: BF16, F32, …
    shape: tuple[int, ...]
    file: Path
    start: int  # of its first byte in the file
    num_bytes: int


def read_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint, by name.

    Raises:
        DataError: no safetensors weights, a missing, truncated or corrupt file, or one that git-lfs did not fetch.
    """
    index = _index(folder)
    if index is None:
        return read_header(folder / SINGLE_FILE)
    headers: dict[str, dict[str, StoredTensor]] = {}
    for file_name in sorted(set(index.values())):
        file = folder / file_name
        if not file.is_file():
            raise DataError(f"{file} is missing, which {INDEX_FILE} names; {FETCH}")
        headers[file_name] = read_header(file)
    for name, file_name in index.items():
        if name not in headers[file_name]:
            raise DataError(f"{folder / file_name} holds no tensor {name!r}, which {INDEX_FILE} places there; {FETCH}")
    return {name: headers[file_name][name] for name, file_name in index.items()}


def ties_embeddings(folder: Path) -> bool:
    """Whether the input embeddings are the output layer too: as config.json says, or as the weights where it is silent.

    It was silent where an earlier library's default said it: OpenGVLab/InternVL3-8B-hf has an output layer of its own,
    which vLLM drops under the default of today.

    Raises:
        DataError: damaged or missing files.
    """
    config = read_json(folder / CONFIG_FILE)
    for section in (config, config.get("text_config") or {}):
        if "tie_word_embeddings" in section:
            return bool(section["tie_word_embeddings"])
    return not any(name.endswith("lm_head.weight") for name in read_tensors(folder))


def _index(folder: Path) -> dict[str, str] | None:
    """Tensor name → file name; None where one file holds all."""
    file = folder / INDEX_FILE
    if not file.is_file():
        if (folder / SINGLE_FILE).is_file():
            return None
        pickle = next((found.name for pattern in PICKLES for found in sorted(folder.glob(pattern))), None)
        if pickle is not None:
            raise DataError(
                f"{folder} holds its weights as pickles ({pickle}), which can run code when read; "
                "use a checkpoint in safetensors"
            )
        raise DataError(f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}; {FETCH}")
    tree = read_json(file)
    weight_map = tree.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise DataError(f"{file} has no weight_map of tensor and file names; {FETCH}")
    for file_name in weight_map.values():
        if Path(file_name).name != file_name:
            raise DataError(f"{file} names {file_name!r}, which is no file beside it; {FETCH}")
    return weight_map


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of one file, by name; its size must be what the header says.

    Raises:
        DataError: truncated, corrupt, or a git-lfs pointer.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(len(LFS_POINTER))
        if start == LFS_POINTER:
            raise DataError(_pointer_message(file))
        length = int.from_bytes(start[:LENGTH_BYTES], "little")
        if size < LENGTH_BYTES or not 0 < length <= min(MAX_HEADER_BYTES, size - LENGTH_BYTES):
            raise DataError(f"{file} is no whole safetensors file ({size:,} bytes, a header of {length:,}); {FETCH}")
        stream.seek(LENGTH_BYTES)
        header = stream.read(length)
    try:
        tree = json.loads(header)
        assert isinstance(tree, dict)
        tensors = [
            _tensor(file, name, entry, data_start=LENGTH_BYTES + length)
            for name, entry in tree.items()
            if name != "__metadata__"
        ]
    except (ValueError, KeyError, TypeError, AssertionError, RecursionError) as error:
        raise DataError(f"{file} has a corrupt header ({error}); {FETCH}") from None
    end = LENGTH_BYTES + length
    for tensor in sorted(tensors, key=lambda item: (item.start, item.num_bytes)):
        if tensor.start != end:
            raise DataError(f"{file} is corrupt: tensor {tensor.name!r} does not begin where the last ends; {FETCH}")
        end += tensor.num_bytes
    if end != size:
        raise DataError(f"{file} is truncated or corrupt: {size:,} bytes, its header says {end:,}; {FETCH}")
    return {tensor.name: tensor for tensor in tensors}


def _tensor(file: Path, name: str, entry: dict[str, Any], *, data_start: int) -> StoredTensor:
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    num_bytes = math.prod(shape) * ITEM_BYTES[dtype]
    if end - begin != num_bytes or any(size < 0 for size in shape):
        raise ValueError(f"tensor {name!r}: {end - begin} bytes for shape {list(shape)} of {dtype}")
    return StoredTensor(
        name=name, dtype=dtype, shape=shape, file=file, start=data_start + int(begin), num_bytes=num_bytes
    )


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        DataError: missing, a git-lfs pointer, or no JSON object.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}); {FETCH}") from None
    if data.startswith(LFS_POINTER):
        raise DataError(_pointer_message(file))
    try:
        tree = json.loads(data)
    except ValueError as error:
        raise DataError(f"{file} is no JSON ({error}); {FETCH}") from None
    if not isinstance(tree, dict):
        raise DataError(f"{file} holds no JSON object; {FETCH}")
    return tree


def refuse_pointer(file: Path) -> None:
    """Nothing for a file that is there.

    Raises:
        DataError: git-lfs left a pointer in its place.
    """
    with file.open("rb") as stream:
        if stream.read(len(LFS_POINTER)) == LFS_POINTER:
            raise DataError(_pointer_message(file))


def _pointer_message(file: Path) -> str:
    return f"{file} is a git-lfs pointer instead of the file itself; run `git lfs pull` in {file.parent}"
