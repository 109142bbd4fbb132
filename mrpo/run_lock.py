"""One writer a run folder: an advisory lock on `run.lock`, released by the kernel when its holder dies."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
from pathlib import Path
from typing import TextIO

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
            ResourceError: another process holds it.
        """
        file = (folder / LOCK_FILE).open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                file.seek(0)
                holder = file.read().strip()
                file.close()
                raise ResourceError(
                    f"{folder} is being written by {holder or 'another process'}; wait for it or end it first"
                ) from None
            log.warning("%s: the file system knows no locks; do not resume one run twice at a time", folder)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        return cls(file)

    @staticmethod
    def is_held(folder: Path) -> bool:
        """Whether some process holds the lock now."""
        try:
            lock = RunLock.take(folder)
        except ResourceError:
            return True
        lock.release()
        return False

    def release(self) -> None:
        """Give the lock up; may be called twice."""
        self._file.close()
