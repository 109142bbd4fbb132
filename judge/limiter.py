"""Requests and tokens per minute over all judge actors.

One `RateLimiter` serves the whole cluster, as a named Ray actor that exists only when a limit is set. Requests queue at
it and get their turn when it has come, so that what replies cost reaches those that still wait. It costs a message per
HTTP request, and another where tokens are counted.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from judge.process import process_place
from judge.rate import Entry, Lane, TokenLane
from mrpo.config import JudgeConfig
from mrpo.errors import ConfigError

LATE_S = 0.25  # a request that would leave so much later than usual after its turn takes another
MAX_TURNS = 3  # of one request: where a process never wakes in time, it is the machine that limits
FORGOTTEN_S = 600.0  # after which a turn is not expected to be settled any more
RECENT_TURNS = 256  # over which the usual time between a turn and its use is known


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Leave to send one request. Made by the limiter, used by a client."""

    number: int
    at_s: float  # on the limiter's clock


class Limiter(Protocol):
    """What a client asks before each HTTP request."""

    counts_tokens: bool  # else `settle` need not be called

    async def reserve(self, num_tokens: int) -> Turn:
        """Wait for the turn of a request of about `num_tokens`."""
        ...

    async def settle(self, turn: Turn, num_tokens: int | None) -> None:
        """The request of a turn ended and cost so much; None: not known, 0: it was not made."""
        ...


class RateLimiter:
    """Both limits; None is no limit. Used as it stands in one process, or inside a Ray actor."""

    def __init__(
        self,
        *,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counts_tokens = tokens_per_minute is not None
        self._requests = None if requests_per_minute is None else Lane(requests_per_minute)
        self._tokens = None if tokens_per_minute is None else TokenLane(tokens_per_minute)
        self._clock = clock
        self._queue = asyncio.Lock()  # first come, first served
        self._changed = asyncio.Event()
        self._number = 0
        self._open: dict[int, Entry] = {}  # turns that are not settled

    async def ping(self) -> tuple[str, int]:
        """Answering at all says that this process lives; which one it is."""
        return process_place()

    async def reserve(self, num_tokens: int) -> Turn:
        """See `Limiter`."""
        async with self._queue:
            while (wait_s := self._wait_s(num_tokens)) > 0:
                self._changed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._changed.wait()
            return self._book(num_tokens)

    async def settle(self, turn: Turn, num_tokens: int | None) -> None:
        """See `Limiter`."""
        entry = self._open.pop(turn.number, None)
        if self._tokens is not None and entry is not None:  # none: it is of a limiter's earlier life
            self._tokens.settle(entry, num_tokens)
            self._changed.set()

    def _wait_s(self, num_tokens: int) -> float:
        now = self._clock()
        for_request = self._requests.wait_s(now) if self._requests is not None else 0.0
        for_tokens = self._tokens.wait_s(num_tokens, now) if self._tokens is not None else 0.0
        return max(for_request, for_tokens)

    def _book(self, num_tokens: int) -> Turn:
        now = self._clock()
        self._number += 1
        if self._requests is not None:
            self._requests.book(1, now)
        if self._tokens is not None:
            self._open[self._number] = self._tokens.book(num_tokens, now)
            self._drop_forgotten(now)
        return Turn(number=self._number, at_s=now)

    def _drop_forgotten(self, now: float) -> None:
        """Turns of actors that died are never settled."""
        for number in list(self._open):
            if now - self._open[number].at_s < FORGOTTEN_S:
                return
            del self._open[number]


class RemoteLimiter:
    """A `Limiter` that lives in a named Ray actor. It travels by name: a handle would tie actors' restarts to it."""

    def __init__(self, name: str, *, counts_tokens: bool) -> None:
        self.counts_tokens = counts_tokens
        self._name = name
        self._found: Any = None

    async def reserve(self, num_tokens: int) -> Turn:
        """See `Limiter`."""
        turn: Turn = await self._actor().reserve.remote(num_tokens)
        return turn

    async def settle(self, turn: Turn, num_tokens: int | None) -> None:
        """See `Limiter`. Does not wait for the actor."""
        self._actor().settle.remote(turn, num_tokens)

    def _actor(self) -> Any:
        if self._found is None:
            import ray

            self._found = ray.get_actor(self._name)
        return self._found


class Gate:
    """Where the requests of one client wait for their turns, and see to it that they use them in time."""

    def __init__(self, limiter: Limiter, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limiter = limiter
        self._clock = clock
        # The clocks of two machines differ, and by how much is not known; the smallest difference seen is no lateness.
        self._delays: deque[float] = deque(maxlen=RECENT_TURNS)

    async def enter(self, num_tokens: int) -> Turn:
        """Wait for the turn of a request; one for which this process woke too late is passed on."""
        turn = await self._limiter.reserve(num_tokens)
        for _ in range(MAX_TURNS - 1):
            if not self._is_late(turn):
                break
            await self.leave(turn, 0)
            turn = await self._limiter.reserve(num_tokens)
        return turn

    async def leave(self, turn: Turn, num_tokens: int | None) -> None:
        """The request ended, see `Limiter.settle`."""
        if self._limiter.counts_tokens:
            await self._limiter.settle(turn, num_tokens)

    def _is_late(self, turn: Turn) -> bool:
        delay = self._clock() - turn.at_s
        self._delays.append(delay)
        return delay - min(self._delays) > LATE_S


def split_concurrency(config: JudgeConfig) -> list[int]:
    """Calls in flight per actor: `judge.concurrency` divided over `judge.num_actors` as evenly as whole numbers allow.

    Raises:
        ConfigError: there are more actors than calls.
    """
    if config.concurrency < config.num_actors:
        raise ConfigError(
            f"judge.concurrency={config.concurrency} is less than judge.num_actors={config.num_actors}, so some actors "
            f"could never call; set judge.num_actors={config.concurrency} or raise judge.concurrency"
        )
    share, extra = divmod(config.concurrency, config.num_actors)
    return [share + (index < extra) for index in range(config.num_actors)]
