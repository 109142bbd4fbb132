"""Processes of this machine that are to end: with all that descends from them, and waited for."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress

import psutil

POLL_S = 0.02
EXIT_GRACE_S = 2.0  # for an actor told to exit by Ray, which takes one that is killed first for a fault, and says so


def descendants_of(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """What they have started, directly or not, and is still there; they themselves are not in it."""
    found: dict[int, psutil.Process] = {}
    for process in list(processes):
        with suppress(psutil.NoSuchProcess):
            found.update((child.pid, child) for child in process.children(recursive=True))
    return list(found.values())


def kill_and_wait(processes: Sequence[psutil.Process], timeout_s: float, *, grace_s: float = 0.0) -> list[int]:
    """SIGKILL, which reaches a stopped process too, and wait until the kernel has let go of them.

    Args:
        processes: a number that was given anew meanwhile is nobody's.
        timeout_s: that their end may take: the memory of a GPU is free only then. 0: nobody waits.
        grace_s: in which they may end by themselves, having been told to.

    Returns:
        Those that are still there.
    """
    if grace_s and not _wait(processes, grace_s):
        return []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return _wait(processes, timeout_s)


def _wait(processes: Sequence[psutil.Process], timeout_s: float) -> list[int]:
    """Pids of those that are still there when the time is over."""
    ends_at = time.monotonic() + timeout_s
    while (left := [process.pid for process in processes if _is_there(process)]) and time.monotonic() < ends_at:
        time.sleep(POLL_S)
    return left


def _is_there(process: psutil.Process) -> bool:
    """A zombie holds nothing any more but its number."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
