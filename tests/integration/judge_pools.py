"""A pool of judge actors for the length of a scenario."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from judge.pool import RayJudgePool
from mrpo.config import JudgeConfig

T = TypeVar("T")


def with_pool(config: JudgeConfig, scenario: Callable[[RayJudgePool], Awaitable[T]], **options: Any) -> T:
    """What a scenario returns; the pool is closed however it ends. Keywords are the pool's."""

    async def run() -> T:
        pool = RayJudgePool(config, **options)
        try:
            await pool.start()
            return await scenario(pool)
        finally:
            pool.close()

    return asyncio.run(run())
