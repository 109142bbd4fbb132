"""Signs of life of an actor: one that is gone or stuck is noticed though it owes nobody an answer."""

from __future__ import annotations

import asyncio
from typing import Any

import ray
from ray.exceptions import RayError

PINGS = 4  # within the time for which an actor may be silent
SILENCES = 2  # in a row that count: the first may be this process's own, whose event loop was held up
RETRY_PAUSE_S = 0.5  # between looks at an actor that Ray is starting again


async def lost(actor: Any, *, timeout_s: float) -> str:
    """Wait until an actor dies or is stuck; a stuck one is killed, and Ray starts it again if it may.

    Args:
        actor: has a method `ping` that returns `judge.process.process_name()` at once.
        timeout_s: for which it may be silent.

    Returns:
        How it was lost.
    """
    silences, known = 0, ""
    while silences < SILENCES:
        try:
            async with asyncio.timeout(timeout_s / SILENCES):
                process = await ping(actor)
            if process != (known := known or process):
                return "it died and was started again"
            silences = 0
            await asyncio.sleep(timeout_s / PINGS)
        except TimeoutError:
            silences += 1
        except RayError as error:
            return type(error).__name__
    ray.kill(actor, no_restart=False)
    return f"it gave no sign of life for {timeout_s:g} s and was killed"


async def back(actor: Any, *, timeout_s: float) -> None:
    """Wait until an actor that was lost answers again; one that is stuck is killed once more."""
    while True:
        try:
            async with asyncio.timeout(timeout_s):
                await ping(actor)
            return
        except TimeoutError:
            ray.kill(actor, no_restart=False)
        except RayError:
            await asyncio.sleep(RETRY_PAUSE_S)


async def ping(actor: Any) -> str:
    """Ask for a sign of life, once; the actor's process.

    Raises:
        RayError: the actor is not there.
    """
    process: str = await actor.ping.options(max_task_retries=0).remote()
    return process
