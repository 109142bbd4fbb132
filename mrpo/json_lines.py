"""Files that grow by a line of JSON at a time: what a kill or a full disk cuts short is a last line without its end."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Lines:
    """Of one file, without their ends."""

    whole: list[bytes]
    torn: bytes  # a last line that was cut short, or is being written; empty where there is none


def read_lines(path: Path) -> Lines:
    """The lines of a file; none where there is no file."""
    if not path.exists():
        return Lines(whole=[], torn=b"")
    *whole, torn = path.read_bytes().split(b"\n")
    return Lines(whole=whole, torn=torn)


def append(path: Path, lines: str, *, sync: bool = False) -> None:
    """Put whole lines at the end of a file; what an earlier append left of a line is cut off before.

    Args:
        path: made where it is missing. Written by one process.
        lines: each with its end.
        sync: return when they are on disk.

    Raises:
        OSError: a part of them may be in the file, as its torn last line.
    """
    drop_torn_line(path)
    with path.open("a", encoding="utf-8") as file:
        file.write(lines)
        if sync:
            file.flush()
            os.fsync(file.fileno())


def drop_torn_line(path: Path) -> bool:
    """Cut off a last line that has no end, so that the next one begins anew; for the owner of the file alone.

    Returns:
        Whether there was one.
    """
    if not path.exists() or _ends_whole(path):
        return False
    os.truncate(path, path.stat().st_size - len(read_lines(path).torn))
    return True


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"
