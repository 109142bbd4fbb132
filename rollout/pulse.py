"""Whether an engine of which nothing comes still works: long completions take many steps, a stuck engine makes none."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError

ASKS = 4  # within the time for which an engine may be silent


class Pulse:
    """Signs of life of one actor: what it gives, and, when it gives nothing, steps of its engine.

    The count of steps is answered by the actor's event loop, which a stuck engine does not stop: only a count that
    changed is a sign. Questions are Ray's references: nothing here belongs to an event loop.
    """

    def __init__(self, ask: Callable[[], Any]) -> None:
        """Args: asks the actor for its count, and returns a reference to the answer."""
        self._ask = ask
        self._question: Any = None
        self._looked_s = self._asked_s = self._signed_s = time.monotonic()
        self._count: int | None = None

    def sign(self) -> None:
        """Something came of it, or it was given something to do."""
        self._signed_s = time.monotonic()

    def is_silent(self, timeout_s: float) -> bool:
        """Whether there was no sign of life for so long; asks for one in good time. To be called again and again.

        Args:
            timeout_s: one step of the engine may take three quarters of it.
        """
        now = time.monotonic()
        was_away_s, self._looked_s = now - self._looked_s, now
        if was_away_s > timeout_s / ASKS:  # this process stood still: signs may have come and not been read
            self._signed_s = now
        if self._question is not None:
            if ray.wait([self._question], timeout=0, fetch_local=False)[0]:
                self._hear(now)
        elif now - max(self._signed_s, self._asked_s) > timeout_s / ASKS:
            self._question, self._asked_s = self._ask(), now
        return now - self._signed_s > timeout_s

    def _hear(self, now: float) -> None:
        question, self._question = self._question, None
        try:
            count = ray.get(question)
        except RayError:  # its end is noticed by those who wait for its answers
            return
        if count != self._count:
            self._count, self._signed_s = count, now
