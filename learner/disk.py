"""Room for a checkpoint: asked for before anything is written, and said what lacks when it runs out on the way."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError

from learner.optimizer import MOMENTS
from learner.partitioned import full_shape
from learner.reference import Reference
from mrpo.errors import ResourceError

if TYPE_CHECKING:
    from learner.rank import Rank

FLOAT32 = 4
MIB = 1024**2


def checkpoint_bytes(rank: Rank) -> int:
    """Bytes of a checkpoint's tensors; tokenizer, configuration and the files' headers come on top, a few MB."""
    trained = [parameter for parameter in rank.model.parameters() if parameter.requires_grad]
    kept = [(parameter, FLOAT32 * (1 + len(MOMENTS))) for parameter in trained]
    if isinstance(rank.reference, Reference):
        kept += [(parameter, parameter.dtype.itemsize) for parameter in rank.reference.model.parameters()]
    if rank.adapters is not None:
        kept += [(parameter, parameter.dtype.itemsize) for _, parameter in rank.adapters.weights()]
    state = sum(torch.Size(full_shape(parameter)).numel() * size for parameter, size in kept)
    return state + sum(meta.num_bytes for meta in rank.source.metadata())


def require_room(folder: Path, needed: int) -> None:
    """Refuse to begin what cannot end.

    Raises:
        ResourceError: the disk of `folder` has less than `needed` bytes free.
    """
    with disk_errors(folder, needed):
        if shutil.disk_usage(folder).free < needed:
            raise OSError("too little space")


@contextmanager
def disk_errors(folder: Path, needed: int) -> Iterator[None]:
    """Errors of writing, with what was needed and what there is. safetensors has an error of its own for a full disk.

    Raises:
        ResourceError: something could not be written.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, FileNotFoundError) and not folder.exists():
            raise ResourceError(
                f"no checkpoint can be written to {folder}: that folder is not there on {socket.gethostname()}, where "
                "learner rank 0 is; runs_dir must lie on a file system that all nodes have under the same path: move "
                "the run folder to one, then resume=<it>"
            ) from error
        raise ResourceError(
            f"no checkpoint can be written to {folder} ({error}): it takes {needed / MIB:,.0f} MiB, {_free(folder)}; "
            "make room (checkpoint.keep_last keeps fewer), or move the run folder to another disk, then resume=<it>"
        ) from error


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / MIB:,.0f} MiB are free"
    except OSError:
        return "what is free is not known"
