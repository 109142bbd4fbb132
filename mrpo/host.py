"""Which machine a process runs on, precisely enough to know what shares its memory, and which URLs stay on it."""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.parse import urlsplit

SHM_FOLDER = Path("/dev/shm")
WEIGHTS_PREFIX = "mrpo-weights-"  # of buffers there, followed by the pid of the rank that made them
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def host_id() -> str:
    """Host name and boot id: containers and cloned machines may share one of them, never both."""
    return f"{socket.gethostname()}:{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"


def is_this_machine(url: str) -> bool:
    """Whether the URL's host is this machine, where neither a key nor a proxy is expected and no data leaves it."""
    try:
        return urlsplit(url).hostname in LOOPBACK
    except ValueError:  # no URL at all: whoever calls it will say so
        return False
