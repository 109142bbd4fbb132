"""Tasks that stand and fall together."""

from __future__ import annotations

import asyncio

import pytest

from mrpo.tasks import first_failure_ends_all


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
