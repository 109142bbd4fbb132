"""Threads for work that may never end: the end of the process does not wait for them, as it does for an executor's."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")


class DaemonThreads:
    """`submit` and `close`, from one thread."""

    def __init__(self, num_threads: int, name: str) -> None:
        """Nothing runs yet.

        Args:
            num_threads: started with the first work.
            name: of the threads.
        """
        self._queue: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._threads = [Thread(target=self._run, name=f"{name}-{n}", daemon=True) for n in range(num_threads)]
        self._is_started = False

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Have work done; it may be cancelled until a thread takes it."""
        if not self._is_started:
            self._is_started = True
            for thread in self._threads:
                thread.start()
        future: Future[T] = Future()
        self._queue.put((future, work))
        return future

    def close(self, grace_s: float) -> None:
        """Let the threads do what was submitted, but wait no longer than `grace_s` for it."""
        ends_at = time.monotonic() + grace_s
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, ends_at - time.monotonic()))

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            future, work = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001 - whoever waits for the work is to hear of it
                future.set_exception(error)
            else:
                future.set_result(result)
