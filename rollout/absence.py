"""While no engine of a pool serves: what is waited for is said now and then, and not for ever."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from mrpo.errors import EngineError
from rollout.engine_slot import EngineSlot, SlotState

logger = logging.getLogger(__name__)

SAY_S = 30.0  # between two lines about what is waited for; longer pauses between two looks are not waiting


class Absence:
    """Of all engines of one pool."""

    def __init__(self, limit_s: float) -> None:
        """Args: that may be waited while no engine is up or starting (`watchdog.no_engine_s`)."""
        self._limit_s = limit_s
        self._waited_s = 0.0
        self._looked_s = time.monotonic()
        self._said_s = 0.0

    def end(self) -> None:
        """One serves."""
        self._waited_s = 0.0

    def look(self, slots: Sequence[EngineSlot]) -> None:
        """Call while somebody waits for an engine, or uses one.

        Raises:
            EngineError: none was up or starting for too long. Starting has a deadline of its own.
        """
        now = time.monotonic()
        since_s, self._looked_s = now - self._looked_s, now
        if any(slot.state == SlotState.UP for slot in slots):
            self.end()
            return
        if not any(slot.is_there or slot.state == SlotState.STARTING for slot in slots):
            self._waited_s += min(since_s, SAY_S)
        if self._waited_s > self._limit_s:
            raise EngineError(
                f"no rollout engine was up or starting for watchdog.no_engine_s={self._limit_s:g} s: "
                f"{states_of(slots)}; add a node that has room for one, then go on with resume=auto"
            )
        if now - self._said_s >= SAY_S:
            if self._said_s:
                logger.warning("no rollout engine is up; waiting: %s", states_of(slots))
            self._said_s = now


def states_of(slots: Sequence[EngineSlot]) -> str:
    """What each engine waits for, in a line."""
    found = []
    for slot in slots:
        why = "Ray has no room for its actor" if slot.state == SlotState.PENDING else ""
        if slot.state == SlotState.LOST:
            why = slot.causes[-1] if slot.causes else "it may not start now"
        found.append(f"{slot.name} is {slot.state.value}{f' ({why})' if why else ''}")
    return ", ".join(found)
