"""Which endpoints may be asked, as one judge actor sees it: circuits, and pauses that an endpoint asked for.

A circuit that opens here is reported to the pool, which opens it for every actor and closes it after a call that tried
it succeeded. Without a pool to do so no circuit opens.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

LIMITED_IN_A_ROW = 4  # replies of 429 that stand for the endpoint and not for one request: now all wait
NO_PAUSES: Mapping[int, float] = {}
TURNED_AWAY_IN_A_ROW = 20  # after which it is as good as down: calls need not spend their attempts on it


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An endpoint failed too often in a row, or asked for a pause longer than a call may take."""

    endpoint: int
    reason: str
    for_s: float | None = None  # the pause asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """An endpoint turns all away and asks for a pause."""

    endpoint: int
    seconds: float


Event = Opened | Held


@dataclass(slots=True)
class State:
    """One endpoint."""

    weight: float
    is_open: bool = False
    held_until: float = float("-inf")
    failures: int = 0  # in a row
    limited: int = 0  # replies of 429 in a row


@dataclass(slots=True, kw_only=True)
class Availability:
    """The endpoints of one actor."""

    weights: Sequence[float]
    num_failures: int  # in a row that open a circuit
    rng: random.Random = field(default_factory=random.Random)
    clock: Callable[[], float] = time.monotonic
    is_watched: bool = False  # someone takes the events and closes circuits again
    _states: list[State] = field(init=False)
    _events: list[Event] = field(init=False, default_factory=list)
    _some: asyncio.Event = field(init=False, default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._states = [State(weight) for weight in self.weights]

    @property
    def closed(self) -> list[int]:
        """The endpoints whose circuits are closed."""
        return [index for index, state in enumerate(self._states) if not state.is_open]

    def choose(self, *, avoid: int | None = None, not_before: Mapping[int, float] = NO_PAUSES) -> int | None:
        """An endpoint by weight; None: none may be asked now.

        Args:
            avoid: chosen only where there is no other.
            not_before: on `clock`, the pauses that endpoints asked one call for.
        """
        now = self.clock()
        usable = [
            index for index in range(len(self._states)) if self.may_ask(index) and not_before.get(index, now) <= now
        ]
        if len(usable) > 1:
            usable = [index for index in usable if index != avoid]
            return self.rng.choices(usable, [self._states[index].weight for index in usable])[0]
        return usable[0] if usable else None

    def may_ask(self, index: int) -> bool:
        """Whether its circuit is closed and no pause asked for."""
        state = self._states[index]
        return not state.is_open and state.held_until <= self.clock()

    def hold_s(self, not_before: Mapping[int, float] = NO_PAUSES) -> float | None:
        """Seconds until the first endpoint may be asked again, by a call that was asked for these pauses.

        None: no pause ends it, every circuit is open.
        """
        until = [max(self._states[index].held_until, not_before.get(index, float("-inf"))) for index in self.closed]
        return max(0.0, min(until) - self.clock()) if until else None

    def answered(self, index: int) -> None:
        """It replied, well or badly, but as one that works."""
        state = self._states[index]
        state.failures = state.limited = 0

    def failed(self, index: int, reason: str) -> None:
        """No connection, 5xx, or no reply in time."""
        state = self._states[index]
        state.failures += 1
        if state.failures >= self.num_failures:
            self._open(index, f"{state.failures} failures in a row, the last: {reason}")

    def limited(self, index: int, asked_s: float | None, *, longest_s: float) -> None:
        """It replied 429; a pause above `longest_s` is no call's to wait for."""
        state = self._states[index]
        state.failures = 0
        state.limited += 1
        if asked_s is not None and (asked_s > longest_s or state.is_open):
            self._open(index, f"HTTP 429, to come back in {asked_s:g} s", for_s=asked_s)
        elif state.limited >= TURNED_AWAY_IN_A_ROW:
            self._open(index, f"HTTP 429, {state.limited} times in a row", for_s=asked_s)
        elif asked_s and state.limited >= LIMITED_IN_A_ROW and state.held_until <= self.clock():
            self.hold(index, asked_s)
            self._report(Held(endpoint=index, seconds=asked_s))

    def hold(self, index: int, seconds: float) -> None:
        """Ask it nothing for so long."""
        self._states[index].held_until = self.clock() + seconds

    def set_open(self, index: int, is_open: bool) -> None:
        """Open or close a circuit as the pool says."""
        state = self._states[index]
        state.is_open = is_open
        state.failures = state.limited = 0

    async def events(self) -> list[Event]:
        """What happened since the last call; waits until something has."""
        self.is_watched = True
        await self._some.wait()
        self._some.clear()
        events, self._events = self._events, []
        return events

    def _open(self, index: int, reason: str, for_s: float | None = None) -> None:
        """An open circuit is reported again where its endpoint asked for a pause."""
        if self.is_watched and (not self._states[index].is_open or for_s is not None):
            self._states[index].is_open = True
            self._report(Opened(endpoint=index, reason=reason, for_s=for_s))

    def _report(self, event: Event) -> None:
        if self.is_watched:
            self._events.append(event)
            self._some.set()
