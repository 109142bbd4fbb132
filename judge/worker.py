"""What runs inside a judge actor: a plain class, made an actor by the pool.

Calls come and go in lists. A remote call wakes threads on both sides, which costs more CPU time than the HTTP request
that it is for, so one message brings all calls of a moment and one takes back all that ended meanwhile.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from judge.accounting import RequestUsage, Served
from judge.availability import Event
from judge.client import JudgeClient
from judge.limiter import Limiter
from judge.process import process_place
from mrpo.config import JudgeConfig
from mrpo.errors import ConfigError, MRPOError
from mrpo.types import AnswerRequest, JudgeRequest

GATHER_S = 0.1  # for which an ended call waits for others to end, but for the last one; it holds no slot meanwhile


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One call to make. Made by the pool's process, read by the worker."""

    number: int  # unique while the pool lives
    request: JudgeRequest | AnswerRequest
    max_attempts: int
    trial: int | None  # an endpoint whose circuit is open, to be asked first of all


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """What became of an order. Made by the worker, read by the pool's process."""

    number: int
    served: Served | None = None
    error: Exception | None = None  # instead: the image cannot be read, or a fault of ours
    given_up: tuple[RequestUsage, ...] | None = None  # instead: it was cancelled after these requests


class JudgeWorker:
    """One client in one process. Keys are read where this process runs and never leave it."""

    def __init__(self, config: JudgeConfig, *, concurrency: int, limiter: Limiter | None) -> None:
        self._make_client = partial(JudgeClient, config, concurrency=concurrency, limiter=limiter)
        self._calls: dict[int, asyncio.Task[Ended]] = {}
        self._news: list[Ended | Event] = []
        self._some = asyncio.Event()
        self._session = 0
        self._listening: asyncio.Task[None] | None = None

    @cached_property
    def _client(self) -> JudgeClient:
        """Made on first use: an actor that cannot be made dies, and an error in it reaches nobody as it was raised."""
        return self._make_client()

    async def ping(self) -> tuple[str, int]:
        """Answering at all says that this process lives; which one it is."""
        return process_place()

    async def has_keys(self) -> list[bool]:
        """Whether this process has the key of each endpoint. Answering at all says that the worker is up.

        Raises:
            ConfigError: a key cannot be read.
        """
        try:
            return self._client.has_keys
        except ConfigError as error:
            raise ConfigError(f"{error} (judge actor on {socket.gethostname()})") from None

    async def begin(self, session: int, open_endpoints: Sequence[int]) -> None:
        """Serve anew: what an earlier session left is dropped, and who listens to that one gets nothing any more.

        Args:
            session: larger than any before.
            open_endpoints: whose circuits are open; all others are closed.
        """
        self._session = session
        dropped, self._calls = self._calls, {}
        for call in dropped.values():
            call.cancel()
        self._news.clear()
        self._some.set()
        self._client.set_all_open(open_endpoints)
        if self._listening is None:
            self._listening = asyncio.get_running_loop().create_task(self._listen())

    async def take(self, session: int, orders: Sequence[Order]) -> None:
        """Begin these calls; `news` tells what became of them."""
        if session != self._session:
            return  # the pool lost sight of this actor after it sent them, and has told the callers so
        loop = asyncio.get_running_loop()
        for order in orders:
            made: list[RequestUsage] = []
            call = loop.create_task(self._serve(order, made))
            self._calls[order.number] = call
            call.add_done_callback(partial(self._conclude, order.number, made))

    async def news(self, session: int) -> list[Ended | Event]:
        """What ended or happened since this was asked last; waits until something has. Empty: the session is over."""
        while session == self._session:
            if self._news:
                if self._calls:
                    await asyncio.sleep(GATHER_S)
                if session == self._session:
                    news, self._news = self._news, []
                    return news
            self._some.clear()
            await self._some.wait()
        return []

    async def give_up(self, numbers: Sequence[int]) -> None:
        """Cancel these calls, where they are still under way; `news` tells what they had sent."""
        for number in numbers:
            call = self._calls.get(number)
            if call is not None:
                call.cancel()

    async def set_open(self, endpoint: int, is_open: bool) -> None:
        """See `JudgeClient.set_open`."""
        self._client.set_open(endpoint, is_open)

    async def set_url(self, endpoint: int, url: str) -> None:
        """See `JudgeClient.set_url`."""
        self._client.set_url(endpoint, url)

    async def hold(self, endpoint: int, seconds: float) -> None:
        """See `JudgeClient.hold`."""
        self._client.hold(endpoint, seconds)

    async def _listen(self) -> None:
        while True:
            events = await self._client.events()
            self._news.extend(events)  # which may be another list than before the wait
            self._some.set()

    async def _serve(self, order: Order, made: list[RequestUsage]) -> Ended:
        """Make a call; `made` has its requests at any time."""
        fault: Exception
        try:
            served = await self._client.serve(
                order.request, max_attempts=order.max_attempts, trial=order.trial, made=made
            )
            return Ended(number=order.number, served=served)
        except MRPOError as error:
            fault = error
        except Exception as error:  # noqa: BLE001 - the edge of this process: the caller must hear of it, or waits for ever
            fault = RuntimeError(f"judge actor: {type(error).__name__}: {error}")
        return Ended(number=order.number, error=fault)

    def _conclude(self, number: int, made: list[RequestUsage], call: asyncio.Task[Ended]) -> None:
        if self._calls.get(number) is call:  # else it belongs to an earlier session
            del self._calls[number]
            self._news.append(Ended(number=number, given_up=tuple(made)) if call.cancelled() else call.result())
            self._some.set()
