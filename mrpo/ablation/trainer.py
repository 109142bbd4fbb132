"""Training runs as processes of their own, one after the other, ended in order when the user asks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol

from mrpo.command_line import INTERRUPTED, PREEMPTED

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class VariantStatus(StrEnum):
    """How a variant of a study stands."""

    PENDING = "pending"  # not started
    RUNNING = "running"  # or its study was killed without a chance to say so
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one attempt to train a variant ended. Trainer → driver."""

    status: VariantStatus
    error: str | None  # one line; None unless it failed
    wall_s: float


class Trainer(Protocol):
    """Who trains a variant."""

    def train(self, overrides: Sequence[str], log: Path) -> Outcome:
        """Train to the end, the console's text going to `log`, behind what is there already."""
        ...


class ProcessTrainer:
    """`python -m mrpo.train` in a process group of its own; use as a context manager.

    A terminal's Ctrl-C reaches this process alone, which passes it on once each time: the first ends the training in
    order, with a checkpoint, a second one at once (see `mrpo.train`).
    """

    def __init__(self, command: Sequence[str] = (sys.executable, "-m", "mrpo.train")) -> None:
        self._command = tuple(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._is_stopped = False
        self._handlers: dict[signal.Signals, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> ProcessTrainer:
        self._handlers = {number: signal.signal(number, self._stop) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def train(self, overrides: Sequence[str], log: Path) -> Outcome:
        """Wait for one training; after a signal every further one is interrupted before it starts."""
        started = time.monotonic()
        with log.open("ab") as file:
            begin = file.tell()
            code = INTERRUPTED if self._is_stopped else self._wait([*self._command, *overrides], file)
        wall_s = time.monotonic() - started
        if self._is_stopped or code in (INTERRUPTED, PREEMPTED, -signal.SIGINT):
            # A training that came to its end as the signal arrived is found finished by its run folder.
            return Outcome(status=VariantStatus.INTERRUPTED, error=None, wall_s=wall_s)
        if code == 0:
            return Outcome(status=VariantStatus.FINISHED, error=None, wall_s=wall_s)
        return Outcome(status=VariantStatus.FAILED, error=_error_line(log, begin, code), wall_s=wall_s)

    def _wait(self, command: Sequence[str], log: Any) -> int:
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            if self._is_stopped:  # the signal came while the process was being made
                self._interrupt(self._process)
            return self._process.wait()
        finally:
            self._process = None

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._is_stopped = True
        if self._process is not None:
            self._interrupt(self._process)

    @staticmethod
    def _interrupt(process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)  # the whole group, as a terminal does


def _error_line(log: Path, begin: int, code: int) -> str:
    """What an attempt said about its end: the line with the error, or the last one."""
    with log.open("rb") as file:
        file.seek(begin)
        lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    said = errors[-1].removeprefix("error: ") if errors else lines[-1] if lines else "nothing was said"
    if code < 0:
        return f"ended by {signal.Signals(-code).name}: {said}"
    return said if errors else f"exit code {code}: {said}"
