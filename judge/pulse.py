"""Signs of life of an actor: one that is gone or stuck is noticed though it owes nobody an answer."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from mrpo.ray_nodes import record_stacks
from mrpo.stacks import ActorProcess

logger = logging.getLogger(__name__)

PINGS = 4  # within the time for which an actor may be silent
SILENCES = 2  # in a row that count: the first may be this process's own, whose event loop was held up
RETRY_PAUSE_S = 0.5  # between looks at an actor that Ray is starting again
STACKS_TIMEOUT_S = 15.0  # for what a stuck actor is doing; it is killed all the same


class Pulse:
    """Of one actor that has a method `ping`, which returns `judge.process.process_place()` at once."""

    def __init__(self, actor: Any, name: str, *, timeout_s: float, log_dir: Path | None) -> None:
        """Nothing is asked yet.

        Args:
            actor: Ray starts it again when it ends.
            name: its name in Ray.
            timeout_s: for which it may be silent.
            log_dir: existing folder for the stacks of an actor that is stuck; None: they are only quoted.
        """
        self._actor = actor
        self._name = name
        self._timeout_s = timeout_s
        self._log_dir = log_dir
        self._place: tuple[str, int] | None = None

    async def lost(self) -> str:
        """Wait until the actor dies or is stuck; a stuck one is killed. Returns how it was lost."""
        silences, known = 0, None
        while silences < SILENCES:
            try:
                async with asyncio.timeout(self._timeout_s / SILENCES):
                    place = await self._ping()
                if place != (known or place):
                    return "it died and was started again"
                known = self._place = place
                silences = 0
                await asyncio.sleep(self._timeout_s / PINGS)
            except TimeoutError:
                silences += 1
            except RayError as error:
                return type(error).__name__
        return await self.kill(f"gave no sign of life for {self._timeout_s:g} s")

    async def kill(self, why: str) -> str:
        """End a stuck actor, which Ray then starts again; returns how it was lost, with what it was doing."""
        doing = await self._doing()
        ray.kill(self._actor, no_restart=False)
        return f"it {why} and was killed{doing}"

    async def back(self) -> None:
        """Wait until an actor that was lost answers again; one that is stuck is killed once more."""
        while True:
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._ping()
                return
            except TimeoutError:
                ray.kill(self._actor, no_restart=False)
            except RayError:
                await asyncio.sleep(RETRY_PAUSE_S)

    async def _ping(self) -> tuple[str, int]:
        place: tuple[str, int] = await self._actor.ping.options(max_task_retries=0).remote()
        return place

    async def _doing(self) -> str:
        if self._place is None:
            return ""
        process = ActorProcess(name=self._name, node_id=self._place[0], pid=self._place[1])
        try:
            async with asyncio.timeout(STACKS_TIMEOUT_S):
                found = await record_stacks([process], log_dir=self._log_dir, stage="judge")
        except TimeoutError:
            logger.warning("no stack of %s within %.0f s", self._name, STACKS_TIMEOUT_S)
            return ""
        return f" ({found[self._name].summary})"
