"""Requests and tokens per minute over all judge actors.

One `RateLimiter` serves the whole cluster, as a named Ray actor that exists only when a limit is set. A call reserves
its place in time and waits on its own side, so the limiter never blocks and costs one message per HTTP request.
Requests are evenly spaced, without a burst, and a little further apart than the limit says, because they may leave a
little late: no window of a minute holds more than the limit, however a server counts it. What tokens cost is known
after the reply; until then an estimate stands for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Protocol

from mrpo.config import JudgeConfig
from mrpo.errors import ConfigError

MINUTE_S = 61.0  # over which a minute's worth is spread; the second is for requests that leave late
LATE_S = 0.25  # a request that would leave later than this after its time books another
MAX_BOOKINGS = 3  # of one request: where a process never wakes in time, it is the machine that limits


class Limiter(Protocol):
    """What a client asks before each HTTP request."""

    async def reserve(self, num_tokens: int) -> float:
        """Book one request of about `num_tokens`; returns the seconds to wait before sending it."""
        ...

    async def settle(self, num_tokens: int) -> None:
        """Book what a request cost beyond (or, negative, below) its reservation."""
        ...


class Lane:
    """Evenly spaced bookings of one quantity."""

    def __init__(self, per_minute: int) -> None:
        self._seconds_each = MINUTE_S / per_minute
        self._free_at = float("-inf")

    def book(self, amount: int, now: float) -> float:
        """Seconds from `now` until the booking begins."""
        start = max(now, self._free_at)
        self._free_at = start + amount * self._seconds_each
        return start - now

    def adjust(self, amount: int) -> None:
        """Move the end of the last booking: the amount turned out larger, or (negative) smaller."""
        self._free_at += amount * self._seconds_each


class RateLimiter:
    """Both limits; None is no limit. Used as it stands in one process, or inside a Ray actor."""

    def __init__(
        self,
        *,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._requests = None if requests_per_minute is None else Lane(requests_per_minute)
        self._tokens = None if tokens_per_minute is None else Lane(tokens_per_minute)
        self._clock = clock

    async def reserve(self, num_tokens: int) -> float:
        """See `Limiter`."""
        now = self._clock()
        for_request = self._requests.book(1, now) if self._requests else 0.0
        for_tokens = self._tokens.book(num_tokens, now) if self._tokens else 0.0
        return max(for_request, for_tokens)

    async def settle(self, num_tokens: int) -> None:
        """See `Limiter`."""
        if self._tokens:
            self._tokens.adjust(num_tokens)


class RemoteLimiter:
    """A `Limiter` that lives in a named Ray actor. It travels by name: a handle would tie actors' restarts to it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._found: Any = None

    async def reserve(self, num_tokens: int) -> float:
        """See `Limiter`."""
        wait_s: float = await self._actor().reserve.remote(num_tokens)
        return wait_s

    async def settle(self, num_tokens: int) -> None:
        """See `Limiter`. Does not wait for the actor."""
        self._actor().settle.remote(num_tokens)

    def _actor(self) -> Any:
        if self._found is None:
            import ray

            self._found = ray.get_actor(self._name)
        return self._found


async def wait_for_rate(limiter: Limiter, num_tokens: int) -> None:
    """Book a request and wait until its time has come."""
    clock = asyncio.get_running_loop().time
    for _ in range(MAX_BOOKINGS):
        asked_s = clock()
        wait_s = await limiter.reserve(num_tokens)
        await asyncio.sleep(wait_s)
        if clock() - asked_s - wait_s <= LATE_S:
            return


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
