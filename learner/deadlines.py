"""Deadlines of calls that move a checkpoint: a fixed part, and one that grows with its bytes."""

from __future__ import annotations

from learner.ranks import Deadline
from mrpo.config.watchdog import WatchdogConfig

MIB = 1024**2
MIN_COPY_MIB_S = 256  # gathering and copying to main memory; a link of PCIe 3 moves ten times as much and more


def snapshot_deadline(watchdog: WatchdogConfig, num_bytes: int) -> Deadline:
    """Of the copy to main memory, for which training waits."""
    seconds = watchdog.save_s + num_bytes / MIB / MIN_COPY_MIB_S
    return Deadline(f"(watchdog.save_s + {_mib(num_bytes)} / {MIN_COPY_MIB_S} MiB/s)", seconds)


def write_deadline(watchdog: WatchdogConfig, num_bytes: int) -> Deadline:
    """Of putting it on disk, behind training or while it waits."""
    return _from_disk("watchdog.save_s", watchdog.save_s, watchdog, num_bytes)


def load_deadline(watchdog: WatchdogConfig, num_bytes: int, *, num_nodes: int) -> Deadline:
    """Of reading it on every node, from a disk that they share."""
    return _from_disk("watchdog.load_s", watchdog.load_s, watchdog, num_bytes * num_nodes)


def _from_disk(setting: str, seconds: float, watchdog: WatchdogConfig, num_bytes: int) -> Deadline:
    formula = f"({setting} + {_mib(num_bytes)} / watchdog.min_disk_mib_s)"
    return Deadline(formula, seconds + num_bytes / MIB / watchdog.min_disk_mib_s)


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / MIB:,.0f} MiB"
