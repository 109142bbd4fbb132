"""The thread that owns an engine: it steps while there is work and runs what others ask for between two steps."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Steppable(Protocol):
    """What the thread needs of an engine."""

    @property
    def busy(self) -> bool: ...

    def step(self) -> None: ...


E = TypeVar("E", bound=Steppable)


class EngineThread:
    """Builds the engine and is the only one to touch it, so that the engine needs no locks."""

    def __init__(self, build: Callable[[], Any]) -> None:
        self._build = build
        self._inbox: queue.SimpleQueue[tuple[Callable[[Any], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._listeners: set[Callable[[BaseException], None]] = set()
        self._failure: BaseException | None = None
        self.engine: Any = None  # once it is built; others may read what it says is safe to read
        self.num_steps = 0  # of the engine; read by others, as a sign of its life
        self.started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def call(self, function: Callable[[Any], T]) -> Future[T]:
        """Run `function(engine)` between two steps; its result or exception comes in the future."""
        future: Future[T] = Future()
        self._inbox.put((function, future))
        return future

    @contextmanager
    def on_failure(self, listener: Callable[[BaseException], None]) -> Iterator[None]:
        """Within the context `listener` hears, on the engine's thread, of a step that failed."""
        self._listeners.add(listener)
        try:
            yield
        finally:
            self._listeners.discard(listener)

    def stop(self) -> None:
        """End the thread after the calls already made."""
        self._inbox.put(None)

    def _run(self) -> None:
        engine: Any = None
        try:
            engine = self.engine = self._build()
            self.started.set_result(None)
        except BaseException as error:  # noqa: BLE001 - the edge of a thread: whoever waits for the start gets it
            self._failure = error
            self.started.set_exception(error)
        while True:
            try:
                item = self._inbox.get(block=self._failure is not None or not engine.busy)
            except queue.Empty:
                self._step(engine)
                continue
            if item is None:
                return
            self._answer(engine, *item)

    def _answer(self, engine: Any, function: Callable[[Any], Any], future: Future[Any]) -> None:
        if self._failure is not None:
            future.set_exception(self._failure)
            return
        try:
            future.set_result(function(engine))
        except BaseException as error:  # noqa: BLE001 - the edge of a thread: the caller gets it
            future.set_exception(error)

    def _step(self, engine: Steppable) -> None:
        try:
            engine.step()
            self.num_steps += 1
        except BaseException as error:  # the edge of a thread: everyone who waits gets it
            logger.exception("the engine failed")
            # Its scheduler may be in any state, so that nothing it says from here could be trusted.
            self._failure = error
            for listener in list(self._listeners):
                listener(error)
