"""What Ctrl-C and a scheduler's SIGTERM do to a run."""

from __future__ import annotations

import asyncio
import signal

from mrpo.console import Console


class StopSignals:
    """The first signal ends a run in order, a second one at once; before and after training, the first does."""

    def __init__(self, console: Console, promise: str) -> None:
        """Nothing is caught before `catch`.

        Args:
            console: told of a stop in order.
            promise: what such a stop still does, in words.
        """
        self.stop = asyncio.Event()  # for the loop that trains
        self.training = False
        self._console = console
        self._promise = promise

    def catch(self) -> None:
        """Catch them for the task that calls this; again once Ray has started, which takes SIGTERM for itself."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def on_signal() -> None:
            if self.training and not self.stop.is_set():
                self._console.note(f"stopping: {self._promise} …")
            else:
                task.cancel()
            self.stop.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, on_signal)


def cancel_on_signals() -> None:
    """A signal cancels the task that calls this, for commands that keep on disk what they have."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
