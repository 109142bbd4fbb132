"""Tasks that stand and fall together."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from mrpo.tasks import first_failure_ends_all, in_thread


def test_the_first_failure_is_raised_as_it_is_and_ends_the_others() -> None:
    ended: list[str] = []

    async def waits() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("other")

    async def fails() -> None:
        await asyncio.sleep(0)
        raise ConnectionError("engine died")

    async def body() -> None:
        async with first_failure_ends_all() as group:
            group.create_task(waits())
            group.create_task(fails())

    with pytest.raises(ConnectionError, match="engine died") as caught:
        asyncio.run(body())
    assert ended == ["other"]
    assert caught.value.__suppress_context__, "no traceback of the group around it"


def test_results_are_there_afterwards() -> None:
    async def two() -> int:
        return 2

    async def body() -> int:
        async with first_failure_ends_all() as group:
            task = group.create_task(two())
        return task.result()

    assert asyncio.run(body()) == 2


def test_work_in_a_thread_is_told_of_a_cancel_and_has_ended_when_its_caller_leaves() -> None:
    ended: list[bool] = []

    def work(given_up: threading.Event) -> None:
        assert given_up.wait(60)
        time.sleep(0.2)  # what it was at
        ended.append(True)

    async def caller() -> None:
        try:
            await in_thread(work)
        finally:
            assert ended

    async def body() -> None:
        task = asyncio.create_task(caller())
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(body())


def test_work_in_a_thread_gives_what_it_returns_and_raises() -> None:
    assert asyncio.run(in_thread(lambda given_up: given_up.is_set())) is False
    with pytest.raises(ZeroDivisionError):
        asyncio.run(in_thread(lambda _: 1 / 0))
