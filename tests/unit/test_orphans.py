"""Processes that end with their parent."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import psutil
import pytest

CHILD = """
import time
from mrpo.orphans import die_with_parent
die_with_parent()
print("ready", flush=True)
time.sleep(600)
"""
PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.parametrize("state", ["running", "stopped"])
def test_a_child_ends_when_its_parent_is_killed(state: str) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    if state == "stopped":
        child.send_signal(signal.SIGSTOP)
    time.sleep(0.2)
    assert child.is_running()
    parent.kill()
    parent.wait()
    assert not psutil.wait_procs([child], timeout=20)[1]
