"""The Ray actors of a judge pool: who is up, who has least to do, and what they hear of each other."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from judge.accounting import Served
from judge.availability import Event, Held
from judge.limiter import RateLimiter, RemoteLimiter, split_concurrency
from judge.worker import JudgeWorker
from mrpo.config import JudgeConfig
from mrpo.errors import MRPOError
from mrpo.types import AnswerRequest, JudgeRequest

logger = logging.getLogger(__name__)

ACTOR_CPUS = 0  # judge actors wait on the network, and must find a place where engines and learner hold every core
REVIVE_PAUSE_S = 0.5  # between looks at an actor that Ray is restarting


class ActorLost(Exception):
    """The actor that had a call died or cannot be reached; what it sent is not known."""


class NoActor(Exception):
    """No actor came up in time."""


class JudgeActors:
    """The actors of one pool. Ray must be running; use it from one event loop."""

    def __init__(
        self, config: JudgeConfig, *, on_event: Callable[[Event], None], open_now: Callable[[], list[int]]
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
        self._open_now = open_now
        shares = split_concurrency(config)
        name = f"judge-{secrets.token_hex(3)}"  # several pools may share a cluster
        self._limiter = None
        if config.requests_per_minute is not None or config.tokens_per_minute is not None:
            self._limiter = _spawn(
                RateLimiter,
                f"{name}-limiter",
                retries=-1,  # a booking made twice costs a little time; a lost one would fail a call
                requests_per_minute=config.requests_per_minute,
                tokens_per_minute=config.tokens_per_minute,
            )
        limiter = RemoteLimiter(f"{name}-limiter") if self._limiter is not None else None
        self._actors = [
            _spawn(JudgeWorker, f"{name}-{index}", config, retries=0, concurrency=share, limiter=limiter)
            for index, share in enumerate(shares)
        ]
        self._in_flight = [0] * len(self._actors)
        self._up = set(range(len(self._actors)))
        self._some_up = asyncio.Event()
        self._some_up.set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> list[list[bool]]:
        """Wait until every actor is up; per actor, whether it has the key of each endpoint.

        Raises:
            ConfigError: an actor cannot read a key.
        """
        try:
            keys = await asyncio.gather(*(actor.has_keys.remote() for actor in self._actors))
        except RayTaskError as error:
            raise _own(error) from None
        for index in range(len(self._actors)):
            self._begin(self._listen(index))
        return list(keys)

    async def rule(self, request: JudgeRequest | AnswerRequest, max_attempts: int, trial: int | None) -> Served:
        """Hand a call to the actor with the fewest in flight.

        Raises:
            DataError: the image cannot be read.
            ActorLost: it died meanwhile.
            NoActor: none is up.
        """
        index = await self._least_busy()
        self._in_flight[index] += 1
        call = self._actors[index].rule.remote(request, max_attempts, trial)
        try:
            served: Served = await call
            return served
        except asyncio.CancelledError:
            ray.cancel(call)
            raise
        except RayActorError as error:
            self._set_aside(index)
            detail = f"judge actor {index} was lost: {type(error).__name__}"
            logger.warning("%s, while it judged %s", detail, request.key)
            raise ActorLost(detail) from None
        except RayTaskError as error:
            raise _own(error) from None
        finally:
            self._in_flight[index] -= 1

    def set_open(self, endpoint: int, is_open: bool) -> None:
        """Open or close an endpoint's circuit in every actor."""
        for index in self._up:
            self._actors[index].set_open.remote(endpoint, is_open)

    def hold(self, endpoint: int, seconds: float) -> None:
        """Have no actor ask an endpoint for so long."""
        for index in self._up:
            self._actors[index].hold.remote(endpoint, seconds)

    def close(self) -> None:
        """End the actors. Calls in flight end as lost."""
        for task in self._tasks:
            task.cancel()
        for actor in self._actors:
            ray.kill(actor)
        if self._limiter is not None:
            ray.kill(self._limiter)

    async def _least_busy(self) -> int:
        try:
            async with asyncio.timeout(self._config.deadline_s):
                await self._some_up.wait()
        except TimeoutError:
            raise NoActor(f"no judge actor came up within judge.deadline_s={self._config.deadline_s:g}") from None
        return min(self._up, key=lambda index: self._in_flight[index])

    def _set_aside(self, index: int) -> None:
        """Give a lost actor no calls until it answers again: it would fail them at once and so attract them all."""
        if index not in self._up:
            return
        self._up.discard(index)
        if not self._up:
            self._some_up.clear()
        self._begin(self._revive(index))

    async def _revive(self, index: int) -> None:
        actor = self._actors[index]
        while True:
            try:
                await actor.has_keys.remote()
                for endpoint in self._open_now():
                    await actor.set_open.remote(endpoint, True)
            except RayActorError:
                await asyncio.sleep(REVIVE_PAUSE_S)
            else:
                break
        self._up.add(index)
        self._some_up.set()
        self._begin(self._listen(index))

    async def _listen(self, index: int) -> None:
        """Take what an actor learns of endpoints, and let the others know of pauses."""
        while True:
            try:
                events: list[Event] = await self._actors[index].events.remote()
            except RayActorError:
                self._set_aside(index)
                return
            for event in events:
                if isinstance(event, Held):
                    self.hold(event.endpoint, event.seconds)
                self._on_event(event)

    def _begin(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


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
        max_concurrency=100_000,  # the client's own bound decides; calls beyond it wait inside the actor
    )
    return actor_class.remote(*args, **kwargs)
