"""`python -m mrpo.reaper <pid> <spared pids>`: a process that ends what a killed command leaves behind.

A command that is killed with SIGKILL can end nothing itself. Ray's own processes notice within seconds, some of them
only after a minute, and nobody removes buffers from shared memory. This process holds one end of a pipe; the kernel
closes the other with the command. It then ends every process that the command had started, directly or not.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from collections.abc import Iterable, Sequence

import psutil

from mrpo.host import SHM_FOLDER, WEIGHTS_PREFIX
from mrpo.processes import descendants_of, kill_and_wait

POLL_S = 2.0  # between two looks at what the command has started
GRACE_S = 3.0  # in which processes may end by themselves


class Reaper:
    """The process beside a command, as the command holds it."""

    def __init__(self, spare: Iterable[int] = ()) -> None:
        """Start it.

        Args:
            spare: pids of children of this process that belong to others (an experiment tracker's, say).
        """
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mrpo.reaper", str(os.getpid()), *map(str, spare)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is not meant for it
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def close(self) -> None:
        """The command has ended everything itself."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()


def main(arguments: Sequence[str]) -> None:
    """Wait for the end of the command, then end what is left of it."""
    command, *spare = map(int, arguments)
    known: dict[int, psutil.Process] = {}
    while not select.select([sys.stdin], [], [], POLL_S)[0]:
        _learn(command, known, {*spare, os.getpid()})
    for process in descendants_of(known.values()):
        known.setdefault(process.pid, process)
    kill_and_wait(list(known.values()), GRACE_S, grace_s=GRACE_S)
    for pid in known:
        for path in SHM_FOLDER.glob(f"{WEIGHTS_PREFIX}{pid}-*"):
            path.unlink(missing_ok=True)


def _learn(command: int, known: dict[int, psutil.Process], others: set[int]) -> None:
    """Remember what the command has started; a process whose parent has ended is still known."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(command).children(recursive=True):
            if process.pid not in others:
                known[process.pid] = process
    for pid in [pid for pid, process in known.items() if not process.is_running()]:
        # The dead stay known by their pid alone where they may have left a buffer.
        if not any(SHM_FOLDER.glob(f"{WEIGHTS_PREFIX}{pid}-*")):
            del known[pid]


if __name__ == "__main__":
    main(sys.argv[1:])
