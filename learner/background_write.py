"""Rank 0's newest snapshot and its way to the disk, beside a rank that trains on."""

from __future__ import annotations

import threading
from pathlib import Path

from learner.agreement import together
from learner.checkpoint import snapshot, write
from learner.rank import Rank
from learner.snapshot import Contents
from mrpo.errors import ResourceError


class BackgroundWrite:
    """One copy in main memory at a time: a new one is taken when the writer of the one before has let go of it."""

    def __init__(self) -> None:
        """Nothing is copied yet."""
        self._contents: Contents | None = None
        self._writer = threading.Lock()  # held by the thread that writes

    def take(self, rank: Rank, *, wait_s: float) -> None:
        """See `learner.checkpoint.snapshot`; every rank calls it.

        Args:
            rank: whose state it is.
            wait_s: seconds for which a write that was given up, and has not ended, is waited for.

        Raises:
            ResourceError: it has not ended; on every rank, and nothing was copied.
        """

        def wait_for_writer() -> None:
            if not self._writer.acquire(timeout=wait_s):
                raise ResourceError(
                    f"no checkpoint is taken: the one before is still being written {wait_s:.0f} s after that was "
                    "given up, and its copy fills the memory; mend the disk, or raise watchdog.save_s"
                )
            self._writer.release()

        together(rank.world_size, wait_for_writer)
        self._contents = None  # where the folder of the one before could not even be made
        self._contents = snapshot(rank)

    def write(self, folder: Path) -> None:
        """See `learner.checkpoint.write`; on rank 0, in a thread of its own beside whatever else the rank does."""
        with self._writer:
            contents, self._contents = self._contents, None
            assert contents is not None, "each snapshot is written once"
            write(contents, folder)
