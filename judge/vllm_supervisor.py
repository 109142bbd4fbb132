"""Runs a server and ends it, with all processes it has started, when the one that asked for it is gone.

`python -m judge.vllm_supervisor PARENT_PID COMMAND …`, as the leader of a session of its own. vLLM's own processes
outlive a front end that is killed, and would keep their GPUs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

POLL_S = 0.5
STOP_TIMEOUT_S = 10.0  # from SIGTERM to SIGKILL
GRACE_S = 2.0  # for what a server that has ended left behind


def supervise(parent_pid: int, command: Sequence[str]) -> int:
    """Run `command` until it ends, the parent ends, or SIGTERM or SIGINT comes; returns its exit code."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    while server.poll() is None and os.getppid() == parent_pid and not stop.is_set():
        stop.wait(POLL_S)
    code = server.poll()
    _end_session(server)
    return server.returncode if code is None else code


def _end_session(server: subprocess.Popen[bytes]) -> None:
    """Let the server end its own processes, then end whatever is left of this session but this process."""
    server.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(STOP_TIMEOUT_S)
    ends_at = time.monotonic() + GRACE_S
    while time.monotonic() < ends_at and _others():
        time.sleep(POLL_S / 5)
    for pid in _others():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    server.wait()


def _others() -> list[int]:
    """Living processes of this session, without this one."""
    import psutil

    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and process.pid != os.getpid() and os.getsid(process.pid) == os.getsid(0):
                found.append(process.pid)
    return found


if __name__ == "__main__":
    sys.exit(supervise(int(sys.argv[1]), sys.argv[2:]))
