"""Tasks that stand and fall together, and work that is given up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

T = TypeVar("T")


@asynccontextmanager
async def first_failure_ends_all() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group whose first failure ends the other tasks and is raised as it is: it tells the user what to do."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def unless_set(event: asyncio.Event, work: Coroutine[Any, Any, T], reason: Exception) -> T:
    """Wait for `work`, but cancel it and raise `reason` as soon as `event` is set."""
    if event.is_set():
        work.close()
        raise reason
    task, stopped = asyncio.create_task(work), asyncio.create_task(event.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise reason
        return task.result()
    finally:
        for pending in (task, stopped):
            pending.cancel()
        await asyncio.gather(task, stopped, return_exceptions=True)


async def in_thread(function: Callable[[threading.Event], T]) -> T:
    """Call `function` in a thread, with an event that is set when its caller is cancelled.

    The caller leaves only after `function` has, so that what this writes is written before whatever comes then.
    """
    given_up = threading.Event()
    work = asyncio.create_task(asyncio.to_thread(function, given_up))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        given_up.set()
        await asyncio.gather(work, return_exceptions=True)
        raise
