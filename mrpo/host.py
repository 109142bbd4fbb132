"""Which machine a process runs on, precisely enough to know whether two processes share its memory."""

from __future__ import annotations

import socket
from pathlib import Path


def host_id() -> str:
    """Host name and boot id: containers and cloned machines may share one of them, never both."""
    return f"{socket.gethostname()}:{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
