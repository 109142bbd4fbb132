"""Tasks that stand and fall together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


@asynccontextmanager
async def first_failure_ends_all() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group whose first failure ends the other tasks and is raised as it is: it tells the user what to do."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
