"""Files that grow by a line of JSON at a time: what a kill cuts short is a last line without its end."""

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


def drop_torn_line(path: Path) -> bool:
    """Cut off a last line that has no end, so that the next one begins anew; for the owner of the file alone.

    Returns:
        Whether there was one.
    """
    torn = read_lines(path).torn
    if torn:
        os.truncate(path, path.stat().st_size - len(torn))
    return bool(torn)
