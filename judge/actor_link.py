"""One judge actor as the pool's process sees it: calls are handed over in lists, and what becomes of them comes back.

No call is lost with an actor: while it is linked, one request for news is always under way, and when that fails, or
belongs to an earlier life of the actor, every call that the actor had ends as `ActorLost`. The same goes for an actor
that gives no sign of life; it is killed, and Ray starts it again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from judge.accounting import RequestUsage, Served
from judge.availability import Event
from judge.pulse import Pulse
from judge.worker import Ended, Order
from mrpo.errors import MRPOError
from mrpo.faults import Fault, FaultKind, FaultLog
from mrpo.types import AnswerRequest, JudgeRequest

logger = logging.getLogger(__name__)

REVIVE_PAUSE_S = 0.5  # between looks at an actor that Ray is restarting
STALL_LOOKS = 20  # at an actor, within the time for which none of its calls need end
BEGIN_TIMEOUT_S = 60.0  # for an actor to come up again; then it is placed anew
MAX_PAUSE_S = 60.0  # between places for an actor that may not serve where Ray has put it
MAX_ORDERS = 64  # in one message; more would go through the object store


# Told of a call that was cancelled: the requests that it had made; None: they are not known.
OnGivenUp = Callable[[Sequence[RequestUsage] | None], None]


Admits = Callable[[Sequence[bool]], str | None]


class ActorLost(Exception):
    """The actor that had a call died or cannot be reached; what it sent is not known."""


class ActorLink:
    """Use it from one event loop."""

    def __init__(
        self,
        actor: Any,
        name: str,
        *,
        capacity: int,
        pulse: Pulse,
        stall_timeout_s: float,
        admits: Admits,
        faults: FaultLog,
        on_event: Callable[[Event], None],
        on_up: Callable[[], None],
        open_now: Callable[[], Sequence[int]],
    ) -> None:
        """Nothing is sent yet.

        Args:
            actor: a `JudgeWorker`.
            name: the actor's in Ray.
            capacity: calls that it can have in flight.
            pulse: of the actor.
            stall_timeout_s: for which none of its calls may end, though it has some.
            admits: given whether it has the key of each endpoint, says why it may not serve; None: it may.
            faults: told when it is lost and when it serves again.
            on_event: told what the actor learned of an endpoint.
            on_up: told when the actor serves again.
            open_now: the endpoints whose circuits are open.
        """
        self.actor = actor
        self.is_up = False
        self.name = name
        self.refusal: str | None = None  # why it may not serve where it is
        self.capacity = capacity
        self._pulse = pulse
        self._stall_timeout_s = stall_timeout_s
        self._heard_s = 0.0  # time.monotonic() when a call ended, or when it was given the first
        self._admits = admits
        self._faults = faults
        self._fault: Fault | None = None
        self._on_event = on_event
        self._on_up = on_up
        self._open_now = open_now
        self._session = 0
        self._number = 0
        self._queue: list[Order] = []
        self._calls: dict[int, asyncio.Future[Served]] = {}
        self._given_up: dict[int, OnGivenUp] = {}  # calls of which the actor has still to tell what they had sent
        self._tasks: set[asyncio.Task[None]] = set()
        self._watching: list[asyncio.Task[None]] = []  # of this session

    @property
    def num_calls(self) -> int:
        """Calls that the actor has."""
        return len(self._calls)

    async def join(self) -> list[bool]:
        """Serve calls from the moment when the cluster has room for the actor on a node where it may serve.

        Returns:
            Whether the actor has the key of each endpoint.

        Raises:
            MRPOError: it cannot read a key.
        """
        pause_s = REVIVE_PAUSE_S
        while True:
            try:
                keys: list[bool] = await self.actor.has_keys.remote()
                if await self.start(keys):
                    return keys
                pause_s = await self._move(pause_s)
            except RayTaskError as error:
                if isinstance(error.cause, MRPOError):
                    raise error.cause from None  # as it was raised, without Ray's remote traceback
                raise
            except RayError:
                await asyncio.sleep(REVIVE_PAUSE_S)  # its node went while it started

    async def start(self, keys: Sequence[bool]) -> bool:
        """Serve calls from now on; whether the actor may.

        Raises:
            RayError: the actor is not there.
        """
        refusal = self._admits(keys)
        if refusal is not None:
            self._refuse(refusal)
            return False
        self.refusal = None
        self._session += 1
        told = set(self._open_now())
        await self.actor.begin.remote(self._session, list(told))
        self.is_up = True
        now = set(self._open_now())
        for endpoint in told ^ now:  # changed meanwhile, when this actor was told nothing
            self.actor.set_open.remote(endpoint, endpoint in now)
        self._begin(self._listen(self._session))
        self._watching = [self._begin(self._watch(self._session)), self._begin(self._watch_calls(self._session))]
        if self._fault is not None:
            self._faults.end(self._fault)
            self._fault = None
        self._on_up()
        return True

    async def rule(
        self,
        request: JudgeRequest | AnswerRequest,
        max_attempts: int,
        trial: int | None,
        on_given_up: OnGivenUp,
    ) -> Served:
        """Have a call made.

        Args:
            request: what to rule on.
            max_attempts: HTTP requests at most.
            trial: an endpoint whose circuit is open, to be asked first of all.
            on_given_up: told once, where this is cancelled, what had been sent.

        Raises:
            DataError: the image cannot be read.
            ActorLost: the actor was lost meanwhile.
        """
        assert self.is_up
        loop = asyncio.get_running_loop()
        self._number += 1
        number, call = self._number, loop.create_future()
        if not self._calls:
            self._heard_s = time.monotonic()
        self._calls[number] = call
        self._queue.append(Order(number=number, request=request, max_attempts=max_attempts, trial=trial))
        if len(self._queue) == 1:
            loop.call_soon(self._send)  # with what else comes now
        try:
            served: Served = await call
            return served
        except asyncio.CancelledError:
            if call.done() and not call.cancelled():  # it ended in the same moment
                on_given_up(call.result().requests if call.exception() is None else None)
            else:
                self._give_up(number, on_given_up)
            raise
        finally:
            self._calls.pop(number, None)

    def close(self) -> None:
        """Stop listening; calls that the actor has end as lost."""
        self.is_up = False
        for task in self._tasks:
            task.cancel()
        self._lose_calls("the judge pool was closed")

    def _send(self) -> None:
        queue, self._queue = self._queue, []
        for first in range(0, len(queue), MAX_ORDERS):
            if self.is_up:
                # Sent here and not in the task, so that it goes before any message that gives one of them up.
                message = self.actor.take.remote(self._session, queue[first : first + MAX_ORDERS])
                self._begin(self._see_through(message))

    def _give_up(self, number: int, on_given_up: OnGivenUp) -> None:
        if any(order.number == number for order in self._queue):
            self._queue = [order for order in self._queue if order.number != number]
            on_given_up(())
        elif self.is_up:
            self._given_up[number] = on_given_up
            self.actor.give_up.remote([number])
        else:
            on_given_up(None)

    async def _see_through(self, message: Awaitable[None]) -> None:
        session = self._session
        try:
            await message
        except RayError as error:
            self._lost(session, type(error).__name__)

    async def _watch(self, session: int) -> None:
        self._lost(session, await self._pulse.lost())

    async def _watch_calls(self, session: int) -> None:
        """An actor may answer and yet have lost sight of its calls."""
        while session == self._session and self.is_up:
            await asyncio.sleep(self._stall_timeout_s / STALL_LOOKS)
            if self._calls and time.monotonic() - self._heard_s > self._stall_timeout_s:
                how = f"ended none of its calls for watchdog.judge_s={self._stall_timeout_s:g} s"
                self._lost(session, await self._pulse.kill(how))

    async def _listen(self, session: int) -> None:
        while session == self._session and self.is_up:
            try:
                news: list[Ended | Event] = await self.actor.news.remote(session)
            except RayError as error:
                self._lost(session, type(error).__name__)
                return
            if not news:
                self._lost(session, "it was restarted")
                return
            for item in news:
                if isinstance(item, Ended):
                    self._end(item)
                else:
                    self._on_event(item)

    def _end(self, ended: Ended) -> None:
        self._heard_s = time.monotonic()
        on_given_up = self._given_up.pop(ended.number, None)
        if on_given_up is not None:
            on_given_up(ended.served.requests if ended.served is not None else ended.given_up or ())
        call = self._calls.get(ended.number)
        if call is None or call.done():
            return  # given up meanwhile
        if ended.error is not None:
            call.set_exception(ended.error)
        else:
            assert ended.served is not None
            call.set_result(ended.served)

    def _lost(self, session: int, how: str) -> None:
        """Give the actor no calls until it answers again."""
        if session != self._session or not self.is_up:
            return
        self.is_up = False
        for task in self._watching:
            task.cancel()
        num_calls = sum(not call.done() for call in self._calls.values())
        self._lose_calls(f"judge actor {self.name} was lost: {how}")
        self._begin(self._revive())
        self._fault = self._faults.begin(FaultKind.JUDGE_ACTOR_LOST, self.name, f"{how}, with {num_calls} calls")

    def _lose_calls(self, detail: str) -> None:
        self._queue.clear()
        for call in self._calls.values():
            if not call.done():
                call.set_exception(ActorLost(detail))
        given_up, self._given_up = self._given_up, {}
        for on_given_up in given_up.values():
            on_given_up(None)

    async def _revive(self) -> None:
        pause_s = REVIVE_PAUSE_S
        while True:
            try:
                async with asyncio.timeout(BEGIN_TIMEOUT_S):
                    if await self.start(await self.actor.has_keys.remote()):
                        return
            except TimeoutError:
                ray.kill(self.actor, no_restart=False)  # it is stuck again, or waits for a node that has no room
                continue
            except RayError as error:
                if not isinstance(error, RayTaskError):
                    await asyncio.sleep(REVIVE_PAUSE_S)
                    continue
                self._refuse(str(error.cause))  # it is there, and cannot serve: its key cannot be read, say
            pause_s = await self._move(pause_s)

    def _refuse(self, refusal: str) -> None:
        """Remember why the actor may not serve; said when it is another reason than before."""
        if refusal != self.refusal:
            logger.warning("%s may not serve where it is, and is placed anew until it may: %s", self.name, refusal)
            if self._fault is not None:
                self._fault.detail += f"; then {refusal}"
                self._faults.update(self._fault)
        self.refusal = refusal

    async def _move(self, pause_s: float) -> float:
        """Have Ray place the actor anew, and wait; how long to wait the next time."""
        ray.kill(self.actor, no_restart=False)
        await asyncio.sleep(pause_s)
        return min(2 * pause_s, MAX_PAUSE_S)

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("%s: %s", self.name, error, exc_info=error)
            self._lost(self._session, "its link broke")  # nobody would listen any more
