"""The Ray actors of a judge pool: who is up, who has least to do, and what they hear of each other."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayTaskError

from judge.accounting import Served
from judge.actor_link import ActorLink, OnGivenUp
from judge.availability import Event, Held
from judge.limiter import RateLimiter, RemoteLimiter, split_concurrency
from judge.worker import JudgeWorker
from mrpo.config import JudgeConfig
from mrpo.errors import MRPOError
from mrpo.types import AnswerRequest, JudgeRequest

ACTOR_CPUS = 0  # judge actors wait on the network, and must find a place where engines and learner hold every core


class NoActor(Exception):
    """No actor came up in time."""


class JudgeActors:
    """The actors of one pool. Ray must be running; use it from one event loop."""

    def __init__(
        self, config: JudgeConfig, *, on_event: Callable[[Event], None], open_now: Callable[[], Sequence[int]]
    ) -> None:
        """Create the actors; they come up while other parts start.

        Args:
            config: of the pool.
            on_event: told what an actor learned of an endpoint.
            open_now: the endpoints whose circuits are open, for an actor that comes up again.

        Raises:
            ConfigError: there are more actors than calls in flight.
        """
        self._config = config
        self._on_event = on_event
        self._some_up = asyncio.Event()
        self._is_closed = False
        shares = split_concurrency(config)
        name = f"judge-{secrets.token_hex(3)}"  # several pools may share a cluster
        self._limiter: Any = None
        limiter: RemoteLimiter | None = None
        if config.requests_per_minute is not None or config.tokens_per_minute is not None:
            limiter_name = f"{name}-limiter"
            limiter = RemoteLimiter(limiter_name, counts_tokens=config.tokens_per_minute is not None)
            self._limiter = _spawn(
                RateLimiter,
                limiter_name,
                retries=-1,  # a booking made twice costs a little time; a lost one would fail a call
                requests_per_minute=config.requests_per_minute,
                tokens_per_minute=config.tokens_per_minute,
            )
        self._links = [
            ActorLink(
                _spawn(JudgeWorker, f"{name}-{index}", config, retries=0, concurrency=share, limiter=limiter),
                f"judge actor {index}",
                on_event=self._hear,
                on_up=self._some_up.set,
                open_now=open_now,
            )
            for index, share in enumerate(shares)
        ]

    async def start(self) -> list[list[bool]]:
        """Wait until every actor is up; per actor, whether it has the key of each endpoint.

        Raises:
            ConfigError: an actor cannot read a key.
        """
        try:
            keys = await asyncio.gather(*(link.actor.has_keys.remote() for link in self._links))
        except RayTaskError as error:
            raise _own(error) from None
        await asyncio.gather(*(link.start() for link in self._links))
        return list(keys)

    async def rule(
        self,
        request: JudgeRequest | AnswerRequest,
        max_attempts: int,
        trial: int | None,
        on_given_up: OnGivenUp,
    ) -> Served:
        """Hand a call to the actor that has the fewest; see `ActorLink.rule`.

        Raises:
            DataError: the image cannot be read.
            ActorLost: it died meanwhile.
            NoActor: none is up.
        """
        try:
            link = await self._least_busy()
        except asyncio.CancelledError:
            on_given_up(())
            raise
        return await link.rule(request, max_attempts, trial, on_given_up)

    def set_open(self, endpoint: int, is_open: bool) -> None:
        """Open or close an endpoint's circuit in every actor."""
        for link in self._up():
            link.actor.set_open.remote(endpoint, is_open)

    def hold(self, endpoint: int, seconds: float) -> None:
        """Have no actor ask an endpoint for so long."""
        for link in self._up():
            link.actor.hold.remote(endpoint, seconds)

    def close(self) -> None:
        """End the actors. Calls in flight end as lost."""
        self._is_closed = True
        self._some_up.set()
        for link in self._links:
            link.close()
            ray.kill(link.actor)
        if self._limiter is not None:
            ray.kill(self._limiter)

    def _up(self) -> list[ActorLink]:
        return [link for link in self._links if link.is_up]

    async def _least_busy(self) -> ActorLink:
        try:
            async with asyncio.timeout(self._config.deadline_s):
                while not (up := self._up()):
                    if self._is_closed:
                        raise NoActor("the judge pool was closed")
                    self._some_up.clear()
                    await self._some_up.wait()
        except TimeoutError:
            raise NoActor(f"no judge actor came up within judge.deadline_s={self._config.deadline_s:g}") from None
        return min(up, key=lambda link: link.num_calls)

    def _hear(self, event: Event) -> None:
        if isinstance(event, Held):
            self.hold(event.endpoint, event.seconds)
        self._on_event(event)


def _own(error: RayTaskError) -> BaseException:
    """Ray's wrapper carries a remote traceback; an error made for users reaches them as it was raised."""
    return error.cause if isinstance(error.cause, MRPOError) else error


def _spawn(cls: type, name: str, *args: Any, retries: int, **kwargs: Any) -> Any:
    """The one place where plain classes become actors. `retries`: of a call whose actor died, -1 for ever."""
    actor_class: Any = ray.remote(cls).options(
        name=name,
        num_cpus=ACTOR_CPUS,
        max_restarts=-1,
        max_task_retries=retries,
        max_concurrency=100_000,  # requests for news and turns wait inside the actors
    )
    return actor_class.remote(*args, **kwargs)
