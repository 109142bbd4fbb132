"""What a command leaves behind when it is killed, with real processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

COMMAND = """
import subprocess, sys, time
from mrpo.reaper import Reaper
sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
other = subprocess.Popen(sleeper, start_new_session=True)
reaper = Reaper([other.pid])
# A child that starts another and would stay for ever, as a daemon of Ray's does.
child = subprocess.Popen([sys.executable, "-c", "import subprocess, sys, time; "
    "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']).pid, flush=True); time.sleep(600)"],
    start_new_session=True, stdout=subprocess.PIPE, text=True)
print(other.pid, child.pid, child.stdout.readline().strip(), reaper.pid, flush=True)
if sys.argv[1] == "close":
    reaper.close()
time.sleep(600)
"""
WITHIN_S = 30.0


def start(mode: str) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    command = subprocess.Popen([sys.executable, "-c", COMMAND, mode], stdout=subprocess.PIPE, text=True)
    assert command.stdout is not None
    pids = [int(pid) for pid in command.stdout.readline().split()]
    return command, [psutil.Process(pid) for pid in pids]


def is_there(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_a_killed_command_leaves_nothing_but_what_belongs_to_others() -> None:
    command, (other, child, grandchild, reaper) = start("killed")
    buffer = Path(f"/dev/shm/mrpo-weights-{child.pid}-test")
    try:
        buffer.write_bytes(b"weights")
        time.sleep(2.5)  # the reaper has looked at least once
        command.send_signal(signal.SIGKILL)
        psutil.wait_procs([child, grandchild, reaper], timeout=WITHIN_S)
        assert not any(map(is_there, (child, grandchild, reaper)))
        assert is_there(other), "spared"
        assert not buffer.exists()
    finally:
        buffer.unlink(missing_ok=True)
        for process in (other, child, grandchild):
            if process.is_running():
                process.kill()
        command.wait()


def test_a_command_that_ends_in_order_needs_it_no_more() -> None:
    command, (other, child, grandchild, reaper) = start("close")
    try:
        psutil.wait_procs([reaper], timeout=WITHIN_S)
        assert not is_there(reaper)
        assert all(map(is_there, (child, grandchild)))
    finally:
        for process in (other, child, grandchild):
            process.kill()
        command.kill()
        command.wait()
