"""The process this is, among all of a cluster."""

from __future__ import annotations

import os
import socket


def process_name() -> str:
    """What tells this process from others of the cluster."""
    return f"{socket.gethostname()}:{os.getpid()}"
