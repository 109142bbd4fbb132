"""How long the queues of a run are while a step is under way: shown every few seconds, the step's largest on record."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

from mrpo.telemetry.table import Live, Reading
from mrpo.types import EngineDepth, JudgeDepths

PERIOD_S = 2.0  # between two looks
ENGINES = "rollout/engines"
NO_ENGINE = "none"  # has the requests that wait for one
LENGTHS = ("rollout/waiting", "rollout/running", "judge/waiting", "judge/in_flight")


def queue_readings(engines: Sequence[EngineDepth], num_waiting: int, judge: JudgeDepths | None) -> list[Reading]:
    """The queues of engines and judge.

    Args:
        engines: all, whatever their state.
        num_waiting: requests that none of them has.
        judge: None: there is none.
    """
    states = Counter(engine.state for engine in engines)
    found = [Reading(ENGINES, float(number), (("state", state),)) for state, number in states.items()]
    found.append(Reading("rollout/waiting", float(num_waiting), (("engine", NO_ENGINE),)))
    for engine in engines:
        label = (("engine", engine.name),)
        found.append(Reading("rollout/waiting", float(engine.waiting), label))
        found.append(Reading("rollout/running", float(engine.running), label))
    if judge is not None:
        found.append(Reading("judge/waiting", float(judge.waiting)))
        found.append(Reading("judge/in_flight", float(judge.in_flight)))
    return found


class QueueWatch:
    """Looks at queues from time to time."""

    def __init__(self, look: Callable[[], Sequence[Reading]], live: Live, *, refresh: Callable[[], None]) -> None:
        """Watch nothing yet.

        Args:
            look: the lengths of all queues now; cheap.
            live: shows them.
            refresh: shows everything else again.
        """
        self._look = look
        self._live = live
        self._refresh = refresh
        self._largest: dict[str, float] = {}
        self._states: set[tuple[tuple[str, str], ...]] = set()  # in which an engine was

    def sample(self) -> None:
        """Look once."""
        readings = self._look()
        for name in LENGTHS:
            lengths = [reading.value for reading in readings if reading.name == name]
            if lengths:
                self._largest[name] = max(sum(lengths), self._largest.get(name, 0.0))
        states = {reading.labels for reading in readings if reading.name == ENGINES}
        left = [Reading(ENGINES, 0.0, state) for state in self._states - states]  # or it would be held for a while
        self._states |= states
        self._live.show("queues", [*readings, *left])
        self._refresh()

    def take_metrics(self) -> dict[str, float]:
        """The largest lengths since this was asked last; a step shorter than a look has none."""
        largest, self._largest = self._largest, {}
        return {f"{name}_max": value for name, value in largest.items()}

    @asynccontextmanager
    async def running(self, period_s: float = PERIOD_S) -> AsyncIterator[None]:
        """Look every `period_s` seconds while the context is open."""

        async def watch() -> None:
            while True:
                self.sample()
                await asyncio.sleep(period_s)

        task = asyncio.create_task(watch())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
