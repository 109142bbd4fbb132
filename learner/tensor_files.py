"""Many tensors in a few safetensors files of bounded size, so that a rank never holds a whole large model twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mrpo.atomic import fsync
from mrpo.manifest import file_hash

FILE_BYTES = 4 * 1024**3  # tensors of one file; a larger tensor gets its own


def write_tensors(folder: Path, stem: str, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    """Write `stem`-00001.safetensors and so on into `folder`; returns file name → sha256.

    Tensors are taken one after another, so that a generator may gather each when it is asked for.
    """
    hashes: dict[str, str] = {}
    held: dict[str, Tensor] = {}
    held_bytes = 0

    def flush() -> None:
        nonlocal held, held_bytes
        path = folder / f"{stem}-{len(hashes) + 1:05d}.safetensors"
        save_file(held, path)
        fsync(path)
        hashes[path.name] = file_hash(path)
        held, held_bytes = {}, 0

    for name, tensor in tensors:
        if held and held_bytes + tensor.nbytes > FILE_BYTES:
            flush()
        held[name] = tensor.detach().cpu().contiguous()
        held_bytes += tensor.nbytes
    if held:
        flush()
    return hashes


def read_tensors(folder: Path, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of the named files, one in memory at a time."""
    for file_name in sorted(names):
        with safe_open(folder / file_name, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                yield name, file.get_tensor(name)
