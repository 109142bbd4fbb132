"""A folder of small files named by content, for any number of writers on any number of machines.

A file is written under a name of its own in its final folder and renamed into place: readers see it whole or not at
all, on a local disk and over NFS, without locks. Two writers of one name write the same content, so it does not matter
who comes last. Nothing is flushed to disk: what a power failure damages is found by its checksum and made again.

The folder is kept to its size part by part: names are spread evenly over 256 parts, and a write trims its own part now
and then, so that the work per write does not grow with the folder. Every writer may trim; a file that another one has
removed meanwhile is gone, which is what was wanted.
"""

from __future__ import annotations

import os
import random
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

NUM_PARTS = 256  # by the first two hexadecimal digits
BLOCK_BYTES = 4096  # that a small file takes on most file systems
MIB = 2**20
KEPT_SHARE = 0.9  # of a part, after it was trimmed
LISTED_PER_WRITE = 16  # files looked at for trimming, on average over the writes
TOUCH_AFTER_S = 3600.0  # a use is put down when the last one is longer ago: reading is then almost always only reading
STALE_AFTER_S = 3600.0  # a temporary file so old belongs to nobody
TEMPORARY_SUFFIX = ".tmp"


@dataclass(frozen=True, slots=True)
class _Listed:
    path: str
    used_s: float
    num_bytes: int


class RulingFolder:
    """Reads and writes; blocking, thread-safe, safe to use in many processes at once."""

    def __init__(self, path: Path, *, max_mib: float) -> None:
        """Nothing is made or read yet.

        Args:
            path: the folder; made by the first write.
            max_mib: what the files may take on disk, at least one block a part (1 MiB).
        """
        self.path = path
        self._part_bytes = max(BLOCK_BYTES, int(max_mib * MIB) // NUM_PARTS)
        self._trim_chance = min(1.0, LISTED_PER_WRITE / (self._part_bytes / BLOCK_BYTES))
        self._rng = random.Random()

    def read(self, key: str) -> bytes | None:
        """The content of a file, and a use of it; None where there is none.

        Raises:
            OSError: it is there and cannot be read.
        """
        path = self.file_of(key)
        try:
            with open(path, "rb") as file:
                data = file.read()
                used_s = os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return None
        if abs(time.time() - used_s) > TOUCH_AFTER_S:
            with suppress(OSError):  # a cache that may only be read serves as well
                os.utime(path)
        return data

    def write(self, key: str, data: bytes) -> None:
        """Put a file in place, over an old one if there is one.

        Raises:
            OSError: no space, no permission.
        """
        path = self.file_of(key)
        temporary = path.with_name(f".{key[:8]}.{os.getpid()}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
        try:
            file = open(temporary, "xb")  # noqa: SIM115 - closed below, and opened twice where the part is new
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(temporary, "xb")  # noqa: SIM115
        try:
            with file:
                file.write(data)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        if self._rng.random() < self._trim_chance:
            self.trim(path.parent)

    def file_of(self, key: str) -> Path:
        """Where a file lies."""
        return self.path / key[:2] / key

    def trim(self, part: Path) -> None:
        """Bring one part to its share of the size: what was not used for longest goes first."""
        files = list(_list(part, time.time()))
        total = sum(file.num_bytes for file in files)
        if total <= self._part_bytes:
            return
        goal = max(BLOCK_BYTES, self._part_bytes * KEPT_SHARE)
        for file in sorted(files, key=lambda file: file.used_s):
            if total <= goal:
                return
            with suppress(OSError):
                os.unlink(file.path)
            total -= file.num_bytes


def _list(part: Path, now: float) -> list[_Listed]:
    """The files of a part; what killed writers left is removed."""
    found: list[_Listed] = []
    with suppress(FileNotFoundError), os.scandir(part) as entries:
        for entry in entries:
            try:
                facts = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if not entry.name.startswith("."):
                found.append(_Listed(entry.path, facts.st_mtime, max(facts.st_size, facts.st_blocks * 512)))
            elif entry.name.endswith(TEMPORARY_SUFFIX) and now - facts.st_mtime > STALE_AFTER_S:
                with suppress(OSError):
                    os.unlink(entry.path)
    return found
