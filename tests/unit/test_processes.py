"""Ending processes with all that descends from them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from mrpo.processes import descendants_of, kill_and_wait

PARENT = (
    "import subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "print(child.pid, flush=True)\n"
    "time.sleep(600)\n"
)


@pytest.fixture
def family() -> Iterator[tuple[psutil.Process, psutil.Process]]:
    """A process and its child."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    yield psutil.Process(parent.pid), child
    parent.kill()
    parent.wait()
    parent.stdout.close()
    if child.is_running():
        child.kill()


def test_a_family_ends_though_it_is_stopped(family: tuple[psutil.Process, psutil.Process]) -> None:
    parent, child = family
    os.kill(child.pid, signal.SIGSTOP)
    found = descendants_of([parent, parent])
    assert [process.pid for process in found] == [child.pid]
    assert kill_and_wait([parent, *found], 30.0) == []
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert kill_and_wait([parent, child], 30.0) == [], "those that have ended are no fault"
    assert descendants_of([child]) == []


def test_what_is_still_there_is_named(family: tuple[psutil.Process, psutil.Process]) -> None:
    parent, _ = family
    parent.kill = lambda: None  # type: ignore[method-assign]  # it hangs in the kernel, say
    assert kill_and_wait([parent], 0.1) == [parent.pid]
