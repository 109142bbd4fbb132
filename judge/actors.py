"""The Ray actors of a judge pool: who is up, who has least to do, and what they hear of each other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray

from judge.accounting import Served
from judge.actor_link import ActorLink, Admits, OnGivenUp
from judge.availability import Event, Held
from judge.limiter import RateLimiter, RemoteLimiter, split_concurrency
from judge.named_actor import named_actor
from judge.pulse import Pulse
from judge.worker import JudgeWorker
from mrpo.choices import OutagePolicy
from mrpo.config import JudgeConfig
from mrpo.errors import MRPOError, ResourceError
from mrpo.faults import FaultKind, FaultLog
from mrpo.types import AnswerRequest, JudgeRequest

logger = logging.getLogger(__name__)

ACTOR_CPUS = 0  # judge actors wait on the network, and must find a place where engines and learner hold every core
JOIN_GRACE_S = 3.0  # after the first actor is up, for the others: what is wrong with one is then told at the start


class NoActor(Exception):
    """No actor came up in time."""


class JudgeActors:
    """The actors of one pool. Ray must be running; use it from one event loop."""

    def __init__(
        self,
        config: JudgeConfig,
        *,
        on_event: Callable[[Event], None],
        open_now: Callable[[], Sequence[int]],
        admits: Admits,
        faults: FaultLog,
        stall_timeout_s: float,
        log_dir: Path | None,
    ) -> None:
        """Create the actors; they come up while other parts start.

        Args:
            config: of the pool.
            on_event: told what an actor learned of an endpoint.
            open_now: the endpoints whose circuits are open, for an actor that comes up again.
            admits: says why an actor that joins after the start may not serve; see `ActorLink`.
            faults: told of actors that are lost and come back.
            stall_timeout_s: for which none of an actor's calls may end, though it has some.
            log_dir: existing folder for the stacks of an actor that is stuck; None: they are only quoted.

        Raises:
            ConfigError: there are more actors than calls in flight.
        """
        self._config = config
        self._on_event = on_event
        self._admits = admits
        self._faults = faults
        self._some_up = asyncio.Event()
        self._moved: dict[int, str] = {}  # base URLs of endpoints that are not where `config` says
        self._is_started = False
        self._is_closed = False
        self._num_waiting = 0  # calls, for any actor to come up
        self._tasks: list[asyncio.Task[Any]] = []
        shares = split_concurrency(config)
        self._limiter: Any = None
        self._limiter_name = ""
        self._log_dir = log_dir
        limiter: RemoteLimiter | None = None
        if config.requests_per_minute is not None or config.tokens_per_minute is not None:
            self._limiter, self._limiter_name = named_actor(
                RateLimiter,
                "judge-limiter",
                options=_options(retries=-1),  # a booking made twice costs a little time; a lost one would fail a call
                requests_per_minute=config.requests_per_minute,
                tokens_per_minute=config.tokens_per_minute,
            )
            limiter = RemoteLimiter(self._limiter_name, counts_tokens=config.tokens_per_minute is not None)
        self._links: list[ActorLink] = []
        for index, share in enumerate(shares):
            actor, name = named_actor(
                JudgeWorker,
                f"judge-{index}",
                config,
                options=_options(retries=0, resources=config.resources),
                concurrency=share,
                limiter=limiter,
            )
            link = ActorLink(
                actor,
                name,
                capacity=share,
                pulse=Pulse(actor, name, timeout_s=config.actor_timeout_s, log_dir=log_dir),
                stall_timeout_s=stall_timeout_s,
                admits=lambda keys: self._admits(keys) if self._is_started else None,
                faults=faults,
                on_event=self._hear,
                on_up=partial(self._welcome, index),
                open_now=open_now,
            )
            self._links.append(link)

    async def start(self) -> list[list[bool]]:
        """Wait until an actor is up; others join when the cluster has room for them.

        Returns:
            Of those that are up by now, whether each has the key of each endpoint.

        Raises:
            ConfigError: an actor cannot read a key.
            ResourceError: none came up in time.
        """
        joining = {asyncio.create_task(link.join()): link for link in self._links}
        self._tasks += joining
        await asyncio.wait(joining, timeout=self._config.start_timeout_s, return_when=asyncio.FIRST_COMPLETED)
        done, missing = await asyncio.wait(joining, timeout=JOIN_GRACE_S)
        found = [task.result() for task in done]
        if not found:
            wanted = f"judge.resources={dict(self._config.resources)}" if self._config.resources else "a judge actor"
            raise ResourceError(
                f"no judge actor came up within judge.start_timeout_s={self._config.start_timeout_s:g}: the cluster "
                f"has no room for {wanted} (free: {ray.available_resources()}); add a node, or raise it"
            )
        for task in missing:
            logger.warning("%s is not up yet; the run begins without it", joining[task].name)
            task.add_done_callback(self._joined)
        if self._limiter is not None:
            self._tasks.append(asyncio.create_task(self._watch_limiter()))
        self._is_started = True
        return found

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

    @property
    def num_in_flight(self) -> int:
        """Calls that have a slot in an actor, as far as this process knows."""
        return sum(min(link.num_calls, link.capacity) for link in self._up())

    def status(self) -> str | None:
        """In a line, that calls wait for an actor; None where they need not."""
        if not self._num_waiting:
            return None
        return f"judge: no actor is up{self._refusals()}, {self._num_waiting} calls wait for one"

    def set_open(self, endpoint: int, is_open: bool) -> None:
        """Open or close an endpoint's circuit in every actor."""
        for link in self._up():
            link.actor.set_open.remote(endpoint, is_open)

    def set_url(self, endpoint: int, url: str) -> None:
        """Have all actors ask an endpoint at another base URL, also those that come up later."""
        self._moved[endpoint] = url
        for link in self._up():
            link.actor.set_url.remote(endpoint, url)

    def hold(self, endpoint: int, seconds: float) -> None:
        """Have no actor ask an endpoint for so long."""
        for link in self._up():
            link.actor.hold.remote(endpoint, seconds)

    def close(self) -> None:
        """End the actors. Calls in flight end as lost."""
        self._is_closed = True
        self._some_up.set()
        for task in self._tasks:
            task.cancel()
        for link in self._links:
            link.close()
            ray.kill(link.actor)
        if self._limiter is not None:
            ray.kill(self._limiter)

    def _welcome(self, index: int) -> None:
        """An actor serves again: it knows nothing of what happened since it was described."""
        for endpoint, url in self._moved.items():
            self._links[index].actor.set_url.remote(endpoint, url)
        self._some_up.set()

    def _up(self) -> list[ActorLink]:
        return [link for link in self._links if link.is_up]

    def _refusals(self) -> str:
        """Why actors that are there may not serve, in brackets; nothing where that is not what keeps them."""
        found = "; ".join(f"{link.name}: {link.refusal}" for link in self._links if link.refusal is not None)
        return f" ({found})" if found else ""

    async def _least_busy(self) -> ActorLink:
        config = self._config
        waits = config.on_outage == OutagePolicy.WAIT
        limit_s, setting = (config.max_outage_s, "max_outage_s") if waits else (config.deadline_s, "deadline_s")
        self._num_waiting += 1
        try:
            async with asyncio.timeout(limit_s):
                while not (up := self._up()):
                    if self._is_closed:
                        raise NoActor("the judge pool was closed")
                    self._some_up.clear()
                    await self._some_up.wait()
        except TimeoutError:
            raise NoActor(f"no judge actor came up within judge.{setting}={limit_s:g}{self._refusals()}") from None
        finally:
            self._num_waiting -= 1
        return min(up, key=lambda link: link.num_calls)

    async def _watch_limiter(self) -> None:
        """Say when the limiter is lost, and see to it that one that is stuck is not waited for."""
        name, timeout_s = self._limiter_name, self._config.actor_timeout_s
        pulse = Pulse(self._limiter, name, timeout_s=timeout_s, log_dir=self._log_dir)
        while True:
            how = await pulse.lost()
            with self._faults.during(FaultKind.JUDGE_ACTOR_LOST, name, how):
                await pulse.back()

    def _joined(self, task: asyncio.Task[list[bool]]) -> None:
        fault = None if task.cancelled() else task.exception()
        if isinstance(fault, MRPOError):
            logger.warning("a judge actor that came late is left out: %s", fault)
        elif fault is not None:
            logger.error("a judge actor that came late is left out: %s", fault, exc_info=fault)

    def _hear(self, event: Event) -> None:
        if isinstance(event, Held):
            self.hold(event.endpoint, event.seconds)
        self._on_event(event)


def _options(retries: int, resources: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Ray's, of every actor here. `retries`: of a call whose actor died, -1 for ever."""
    return {
        "num_cpus": ACTOR_CPUS,
        "resources": dict(resources or {}),
        "max_restarts": -1,
        "max_task_retries": retries,
        "max_concurrency": 100_000,  # requests for news and turns wait inside the actors
    }
