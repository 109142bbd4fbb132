"""A training run in a process of its own whose judge goes away in the middle and comes back."""

from __future__ import annotations

import os
import pty
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mrpo.rows import read_rows
from mrpo.run_reading import read_metrics
from tests.locations import REPOSITORY

# What a wait may change: times, and what is counted of calls and faults.
DISTURBED = ("time/", "judge/", "faults/", "rollout/", "sync/", "memory/")
ROW_TIMES = ("_s", "_attempts")
PATIENCE_S = 420.0


class Run:
    """The command under way; what it shows is kept, as a terminal or a file gets it."""

    def __init__(self, command: Sequence[str], *, terminal: bool) -> None:
        self.shown = ""
        reader, writer = pty.openpty() if terminal else os.pipe()
        self.process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=writer)
        os.close(writer)
        self._reading = threading.Thread(target=self._read, args=(reader,), daemon=True)
        self._reading.start()

    def wait_for(self, is_so: Callable[[], bool], what: str) -> None:
        """Until something is so, while the run goes on."""
        ends_at = time.monotonic() + PATIENCE_S
        while time.monotonic() < ends_at:
            assert self.process.poll() is None, f"the run ended before {what}: {self.shown[-3000:]}"
            if is_so():
                return
            time.sleep(0.1)
        raise AssertionError(f"{what} did not come within {PATIENCE_S} s: {self.shown[-3000:]}")

    def finish(self) -> int:
        """The exit code."""
        code = self.process.wait(PATIENCE_S)
        self._reading.join(10.0)
        return code

    def _read(self, reader: int) -> None:
        with open(reader, "rb", buffering=0, closefd=True) as file:
            while True:
                try:
                    chunk = file.read(65536)
                except OSError:  # a terminal whose last writer is gone
                    return
                if not chunk:
                    return
                self.shown += chunk.decode(errors="replace")


@contextmanager
def running(command: Sequence[str], *, terminal: bool = False) -> Iterator[Run]:
    """A run that does not outlive the block."""
    run = Run(command, terminal=terminal)
    try:
        yield run
    finally:
        run.process.kill()
        run.process.wait()


def num_steps_of(runs: Path) -> int:
    """Steps on record of the one run there."""
    found = list(runs.glob("*/*/metrics.jsonl"))
    return len(found[0].read_text().splitlines()) if found else 0


def untouched(folder: Path) -> list[dict[str, float | None]]:
    """Metrics of every step but those that a wait may change."""
    rows = read_metrics(folder).rows
    return [{name: row[name] for name in row if not name.startswith(DISTURBED)} for row in rows]


def completions_of(folder: Path) -> list[dict[str, Any]]:
    """Everything on record of every completion of training but times and requests."""
    return [
        {name: value for name, value in asdict(row).items() if not name.endswith(ROW_TIMES)}
        for table in sorted((folder / "rollouts").glob("*.parquet"))
        for row in read_rows(table)
    ]
