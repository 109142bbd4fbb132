"""One writer a run folder: an advisory lock on `run.lock`, released by the kernel when its holder dies."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
from pathlib import Path
from typing import Literal, TextIO

from mrpo.errors import ResourceError

log = logging.getLogger(__name__)

UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # answers of file systems without locks

LOCK_FILE = "run.lock"


class RunLock:
    """A held lock."""

    def __init__(self, file: TextIO) -> None:
        """Use `take`."""
        self._file = file

    @classmethod
    def take(cls, folder: Path) -> RunLock:
        """Lock a run folder for this process; on a file system without locks, warn and go on.

        Raises:
            ResourceError: another process holds it, or it cannot be opened.
        """
        file = _opened(folder, "a+")
        if not _is_taken(file, folder):
            file.close()
            raise ResourceError(f"{folder} is being written by {cls.holder(folder)}; wait for it or end it first")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        return cls(file)

    @staticmethod
    def is_held(folder: Path) -> bool:
        """Whether some process holds the lock now; what the last holder wrote about itself stays.

        Raises:
            ResourceError: it cannot be opened.
        """
        if not (folder / LOCK_FILE).exists():
            return False
        with _opened(folder, "r+") as file:
            return not _is_taken(file, folder)

    @staticmethod
    def holder(folder: Path) -> str:
        """Who took the lock last: process and host."""
        with _opened(folder, "r") as file:
            return file.read().strip() or "another process"

    def release(self) -> None:
        """Give the lock up; may be called twice."""
        self._file.close()


def _opened(folder: Path, mode: Literal["a+", "r+", "r"]) -> TextIO:
    path = folder / LOCK_FILE
    try:
        return path.open(mode, encoding="utf-8")
    except OSError as error:
        raise ResourceError(
            f"{path} cannot be opened: {error.strerror}; use a run of your own, or be given the right to write in that "
            "folder and to all of its files"
        ) from None


def _is_taken(file: TextIO, folder: Path) -> bool:
    """Whether the lock is this process's now; also where the file system has none."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            return False
        log.warning("%s: the file system knows no locks; do not resume one run twice at a time", folder)
    return True
