"""The thread that owns an engine, with an engine that counts."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from rollout.engine_thread import EngineThread

TIMEOUT_S = 10.0


class CountingEngine:
    """Needs as many steps as it was given work; notes the threads that touch it."""

    def __init__(self) -> None:
        self.work = 0
        self.threads = {threading.current_thread().name}
        self.fault: Exception | None = None
        self.emptied: Callable[[], None] = lambda: None

    @property
    def busy(self) -> bool:
        return self.work > 0

    def step(self) -> None:
        self.threads.add(threading.current_thread().name)
        if self.fault:
            raise self.fault
        self.work -= 1
        if not self.work:
            self.emptied()

    def add(self, work: int, emptied: Callable[[], None]) -> None:
        self.emptied = emptied
        self.work += work


def test_work_is_stepped_through_on_one_thread() -> None:
    thread = EngineThread(CountingEngine)
    emptied = threading.Event()
    thread.call(lambda engine: engine.add(3, emptied.set)).result(TIMEOUT_S)
    assert emptied.wait(TIMEOUT_S)
    assert thread.num_steps >= 2, "the last one is counted when it has ended"
    assert thread.call(lambda engine: (engine.work, engine.threads)).result(TIMEOUT_S) == (0, {"engine"})
    assert thread.num_steps == 3
    thread.stop()


def test_a_call_that_fails_harms_nobody_else() -> None:
    thread = EngineThread(CountingEngine)
    with pytest.raises(ZeroDivisionError):
        thread.call(lambda engine: 1 // engine.work).result(TIMEOUT_S)
    assert thread.call(lambda engine: engine.work).result(TIMEOUT_S) == 0
    thread.stop()


def test_a_step_that_fails_reaches_listeners_and_later_callers() -> None:
    thread = EngineThread(CountingEngine)
    heard: list[BaseException] = []
    told = threading.Event()

    def listen(error: BaseException) -> None:
        heard.append(error)
        told.set()

    def break_it(engine: CountingEngine) -> None:
        engine.fault = RuntimeError("broken")
        engine.work = 1

    with thread.on_failure(listen):
        thread.call(break_it).result(TIMEOUT_S)
        assert told.wait(TIMEOUT_S)
    assert str(heard[0]) == "broken"
    with pytest.raises(RuntimeError, match="broken"):
        thread.call(lambda engine: engine.work).result(TIMEOUT_S)
    thread.stop()


def test_an_engine_that_cannot_be_built_says_why_to_everyone() -> None:
    def build() -> CountingEngine:
        raise FileNotFoundError("no checkpoint")

    thread = EngineThread(build)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        thread.started.result(TIMEOUT_S)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        thread.call(lambda engine: engine.work).result(TIMEOUT_S)
