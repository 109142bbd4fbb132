"""What Ctrl-C and a scheduler's SIGTERM do to a run."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

from mrpo.command_line import INTERRUPTED, PREEMPTED
from mrpo.console import Console


class StopSignals:
    """The first signal ends a run in order; before and after training, and with a second Ctrl-C, it ends at once.

    SIGTERM is a scheduler that takes the machine back: SIGKILL follows when its grace period is over, so that a second
    SIGTERM says nothing new (`make` passes on the one that its children got too).
    """

    def __init__(self, console: Console, promise: str, *, grace_s: float) -> None:
        """Nothing is caught before `catch`.

        Args:
            console: told of a stop in order.
            promise: what such a stop still does, in words.
            grace_s: from SIGTERM until `on_late` is called, unless the process has ended.
        """
        self.stop = asyncio.Event()  # for the loop that trains
        self.training = False
        self.preempted = False  # by SIGTERM
        self.on_late: Callable[[], None] = lambda: None
        self._console = console
        self._promise = promise
        self._grace_s = grace_s

    @property
    def exit_code(self) -> int:
        """Of a run that a signal has ended."""
        return PREEMPTED if self.preempted else INTERRUPTED

    @property
    def who(self) -> str:
        """Who ended it, in words."""
        return "by a preemption (SIGTERM)" if self.preempted else "by the user"

    def catch(self) -> None:
        """Catch them for the task that calls this; again once Ray has started, which takes SIGTERM for itself."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def on_signal(number: signal.Signals) -> None:
            if number == signal.SIGTERM:
                if self.preempted:
                    return
                self.preempted = not self.stop.is_set()
            if self.training and not self.stop.is_set():
                self._console.note(f"stopping: {self._promise} …")
                if self.preempted:
                    loop.call_later(self._grace_s, self.on_late)
            else:
                task.cancel()
            self.stop.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, on_signal, number)

    def release(self) -> None:
        """From here on they end the process, whatever it waits for."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def cancel_on_signals() -> None:
    """A signal cancels the task that calls this, for commands that keep on disk what they have."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
