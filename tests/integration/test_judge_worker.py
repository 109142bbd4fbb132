"""What runs inside a judge actor, and the link that it is called by: lists of calls, news of them, lost actors."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from judge_server import ScriptedServer, closed_port, judge_request, marks, reply
from ray.exceptions import RayActorError

from judge.accounting import RequestUsage, Served
from judge.actor_link import ActorLink, ActorLost
from judge.availability import Event, Opened
from judge.pulse import Pulse
from judge.worker import GATHER_S, Ended, JudgeWorker, Order
from mrpo.choices import JudgeKind
from mrpo.config import BreakerConfig, JudgeConfig
from mrpo.errors import DataError
from mrpo.faults import FaultLog
from mrpo.types import Verdicts

pytestmark = pytest.mark.timeout(120)
GOOD = marks((1, 0), (0, 1))
KEY = "sk-not-a-real-key"


def worker_of(url: str, **changes: Any) -> JudgeWorker:
    return JudgeWorker(
        JudgeConfig(kind=JudgeKind.OPENAI_COMPATIBLE, url=url, model="m", **changes), concurrency=8, limiter=None
    )


def orders(image: str, *numbers: int) -> list[Order]:
    return [Order(number=number, request=judge_request(image), max_attempts=4, trial=None) for number in numbers]


async def ended(worker: JudgeWorker, session: int, number: int) -> list[Ended]:
    """The news of so many calls."""
    found: list[Ended] = []
    while len(found) < number:
        news = await asyncio.wait_for(worker.news(session), 20.0)
        assert news, "the session is over"
        found += [item for item in news if isinstance(item, Ended)]
    return found


class Method:
    """A method as an actor's handle offers it: the call is sent at once, and awaited or not."""

    def __init__(self, of: Handle, name: str) -> None:
        self._of, self._name = of, name

    def options(self, **_: Any) -> Method:
        return self

    def remote(self, *args: Any) -> asyncio.Future[Any]:
        return asyncio.ensure_future(self._of.call(self._name, args))


class Handle:
    """A worker in this process that can die and come up anew."""

    def __init__(self, make: Callable[[], JudgeWorker]) -> None:
        self._make = make
        self._worker: JudgeWorker | None = make()
        self._dies: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._life = 1
        self.num_calls: dict[str, int] = {}
        self.give_up_is_lost = False

    def __getattr__(self, name: str) -> Method:
        return Method(self, name)

    async def call(self, name: str, args: tuple[Any, ...]) -> Any:
        self.num_calls[name] = self.num_calls.get(name, 0) + 1
        if self._worker is None:
            raise RayActorError()
        if name == "give_up" and self.give_up_is_lost:
            return None
        if name == "ping":
            return "this node", self._life  # another process is another life
        call = asyncio.ensure_future(getattr(self._worker, name)(*args))
        await asyncio.wait({call, self._dies}, return_when=asyncio.FIRST_COMPLETED)
        if not call.done():
            call.cancel()
            raise RayActorError()
        return call.result()

    def die(self) -> None:
        self._worker = None
        self._dies.set_result(None)

    def come_up(self) -> None:
        self._dies = asyncio.get_running_loop().create_future()
        self._life += 1
        self._worker = self._make()


def link_of(handle: Any, events: list[Event] | None = None, open_now: Callable[[], list[int]] = list) -> ActorLink:
    heard: list[Event] = [] if events is None else events
    return ActorLink(
        handle,
        "judge-0",
        capacity=8,
        pulse=Pulse(handle, "judge-0", timeout_s=20.0, log_dir=None),
        stall_timeout_s=60.0,
        admits=lambda keys: None,
        faults=FaultLog(None),
        on_event=heard.append,
        on_up=lambda: None,
        open_now=open_now,
    )


def unasked(requests: Sequence[RequestUsage] | None) -> None:
    """Of calls that nobody gives up."""
    raise AssertionError(requests)


@pytest.mark.parametrize(
    ("value", "header"), [(KEY, f"Bearer {KEY}"), (f"{KEY}\n", f"Bearer {KEY}"), ("", None), (None, None)]
)
def test_the_key_is_read_from_the_named_variable_where_the_worker_runs(
    image: str, monkeypatch: pytest.MonkeyPatch, value: str | None, header: str | None
) -> None:
    monkeypatch.delenv("HOUSE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("HOUSE_KEY", value)

    async def scenario(url: str) -> Served | None:
        worker = worker_of(url, api_key_env="HOUSE_KEY")
        assert await worker.has_keys() == [header is not None]
        await worker.begin(1, [])
        await worker.take(1, orders(image, 1))
        return (await ended(worker, 1, 1))[0].served

    with ScriptedServer(lambda *_: reply(GOOD)) as server:
        served = asyncio.run(scenario(server.url))
    assert served is not None
    assert isinstance(served.judgement.outcome, Verdicts)
    assert server.requests[0].headers.get("authorization") == header


def test_calls_that_end_together_come_back_together_and_the_last_one_at_once(image: str) -> None:
    async def scenario(url: str) -> tuple[list[list[int]], float]:
        worker = worker_of(url)
        await worker.begin(1, [])
        await worker.take(1, orders(image, *range(8)))
        lists: list[list[int]] = []
        while sum(map(len, lists)) < 8:
            lists.append([item.number for item in await worker.news(1) if isinstance(item, Ended)])
        await worker.take(1, orders(image, 9))
        began_s = time.monotonic()
        await ended(worker, 1, 1)
        return lists, time.monotonic() - began_s

    with ScriptedServer(lambda *_: reply(GOOD)) as server:
        lists, alone_s = asyncio.run(scenario(server.url))
    assert sorted(itertools.chain(*lists)) == list(range(8))
    assert len(lists) <= 4
    assert alone_s < 10 * GATHER_S


def test_faults_of_a_call_reach_its_caller_whatever_they_are(image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(url: str) -> list[Exception | None]:
        worker = worker_of(url)
        await worker.begin(1, [])
        gone = Order(number=1, request=judge_request("/gone.png"), max_attempts=1, trial=None)
        await worker.take(1, [gone])
        (missing,) = await ended(worker, 1, 1)

        async def serve(*_: Any, **__: Any) -> Served:
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr(worker._client, "serve", serve)
        await worker.take(1, orders(image, 2))
        (bug,) = await ended(worker, 1, 1)
        return [missing.error, bug.error]

    with ScriptedServer(lambda *_: reply(GOOD)) as server:
        missing, bug = asyncio.run(scenario(server.url))
    assert isinstance(missing, DataError)
    assert str(bug) == "judge actor: ZeroDivisionError: a bug"


def test_a_new_session_drops_the_calls_and_listeners_of_the_one_before(image: str) -> None:
    async def scenario(url: str) -> None:
        worker = worker_of(url)
        await worker.begin(1, [])
        await worker.take(1, orders(image, 1, 2))
        listener = asyncio.create_task(worker.news(1))
        while len(server.requests) < 2:
            await asyncio.sleep(0.01)
        await worker.begin(2, [])
        assert await asyncio.wait_for(listener, 5.0) == []
        await worker.take(1, orders(image, 3))  # sent before the sender knew
        await worker.take(2, orders(image, 4))
        assert [item.number for item in await ended(worker, 2, 1)] == [4]

    with ScriptedServer(lambda number, _: reply(GOOD, delay_s=3.0 if number < 2 else 0.0)) as server:
        asyncio.run(scenario(server.url))
    assert len(server.requests) == 3


def test_a_call_given_up_frees_its_slot_and_tells_what_it_had_sent(image: str) -> None:
    async def scenario(url: str) -> None:
        worker = JudgeWorker(
            JudgeConfig(kind=JudgeKind.OPENAI_COMPATIBLE, url=url, model="m"), concurrency=1, limiter=None
        )
        await worker.begin(1, [])
        await worker.take(1, orders(image, 1, 2, 3))
        while not server.requests:
            await asyncio.sleep(0.01)
        await worker.give_up([1, 3, 77])
        given_up, unsent, ruled = sorted(await ended(worker, 1, 3), key=lambda item: item.number != 1)
        assert (given_up.number, len(given_up.given_up or ()), given_up.served) == (1, 1, None)
        assert {item.number: item.given_up for item in (unsent, ruled)} == {2: None, 3: ()}

    with ScriptedServer(lambda number, _: reply(GOOD, delay_s=8.0 if number == 0 else 0.0)) as server:
        asyncio.run(scenario(server.url))


def test_events_and_endings_share_the_news_and_neither_is_lost(image: str) -> None:
    """Forty calls fail one after the other while a circuit opens again and again."""

    async def scenario(url: str) -> tuple[list[Ended], int]:
        config = {"breaker": BreakerConfig(num_failures=2), "backoff_s": 0.001, "backoff_max_s": 0.001}
        worker = worker_of(url, **config)
        await worker.begin(1, [])
        found: list[Ended] = []
        num_opened = 0
        for number in range(40):
            await worker.take(1, orders(image, number))
            while len(found) <= number:
                for item in await asyncio.wait_for(worker.news(1), 20.0):
                    if isinstance(item, Ended):
                        found.append(item)
                    else:
                        assert isinstance(item, Opened)
                        num_opened += 1
                        await worker.set_open(0, False)
        return found, num_opened

    found, num_opened = asyncio.run(scenario(f"http://127.0.0.1:{closed_port()}/v1"))
    assert [item.number for item in found] == list(range(40))
    assert num_opened >= 20


@pytest.mark.asyncio
async def test_calls_of_a_moment_share_a_message(image: str) -> None:
    with ScriptedServer(lambda *_: reply(GOOD)) as server:
        handle = Handle(lambda: worker_of(server.url))
        link = link_of(handle)
        await link.start([True])
        served = await asyncio.gather(
            *(link.rule(judge_request(image, key=str(n)), 4, None, unasked) for n in range(100))
        )
        assert [item.judgement.key for item in served] == [str(number) for number in range(100)]
        assert handle.num_calls["take"] == 2  # at most 64 a message
        assert handle.num_calls["news"] < 60
        assert link.num_calls == 0
        link.close()


@pytest.mark.asyncio
async def test_calls_of_a_lost_actor_end_as_lost_and_it_serves_again(image: str) -> None:
    with ScriptedServer(lambda number, _: reply(GOOD, delay_s=20.0 if number < 5 else 0.0)) as server:
        handle = Handle(lambda: worker_of(server.url))
        link = link_of(handle)
        await link.start([True])
        calls = [asyncio.create_task(link.rule(judge_request(image), 4, None, unasked)) for _ in range(5)]
        while len(server.requests) < 5:
            await asyncio.sleep(0.01)
        handle.die()
        results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 5.0)
        assert {type(result) for result in results} == {ActorLost}
        assert not link.is_up
        handle.come_up()
        while not link.is_up:
            await asyncio.sleep(0.05)
        assert isinstance((await link.rule(judge_request(image), 4, None, unasked)).judgement.outcome, Verdicts)
        link.close()


@pytest.mark.asyncio
async def test_calls_sent_to_an_actor_that_died_and_came_up_unseen_are_lost_not_forgotten(image: str) -> None:
    with ScriptedServer(lambda *_: reply(GOOD)) as server:
        handle = Handle(lambda: worker_of(server.url))
        link = link_of(handle)
        await link.start([True])
        handle.die()
        handle.come_up()  # before the link has heard that it died
        call = asyncio.create_task(link.rule(judge_request(image), 4, None, unasked))
        with pytest.raises(ActorLost):
            await asyncio.wait_for(call, 5.0)
        while not link.is_up:
            await asyncio.sleep(0.05)
        assert isinstance((await link.rule(judge_request(image), 4, None, unasked)).judgement.outcome, Verdicts)
        link.close()


@pytest.mark.asyncio
async def test_an_actor_that_comes_up_again_learns_which_circuits_are_open(image: str) -> None:
    open_now: list[int] = []
    with ScriptedServer(lambda *_: reply(GOOD)) as server:
        handle = Handle(lambda: worker_of(server.url))
        link = link_of(handle, open_now=lambda: open_now)
        await link.start([True])
        open_now.append(0)
        handle.die()
        handle.come_up()
        while handle.num_calls["begin"] < 2 or not link.is_up:
            await asyncio.sleep(0.05)
        served = await link.rule(judge_request(image), 4, None, unasked)
        link.close()
    assert served.out
    assert server.requests == []


@pytest.mark.asyncio
async def test_a_call_given_up_at_once_does_not_hold_its_slot(image: str) -> None:
    """The message that gives it up must not overtake the one that it travels in."""
    told: list[Sequence[RequestUsage] | None] = []
    with ScriptedServer(lambda _, received: reply(GOOD, delay_s=20.0 if b"Slow." in received.body else 0.0)) as server:
        handle = Handle(
            lambda: JudgeWorker(
                JudgeConfig(kind=JudgeKind.OPENAI_COMPATIBLE, url=server.url, model="m"), concurrency=1, limiter=None
            )
        )
        link = link_of(handle)
        await link.start([True])
        call = asyncio.create_task(link.rule(judge_request(image, ["Slow.", "A CT."]), 4, None, told.append))
        await asyncio.sleep(0)  # it is in the queue
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        served = await asyncio.wait_for(link.rule(judge_request(image), 4, None, unasked), 5.0)
        assert isinstance(served, Served)
        assert told == [()]
        link.close()


@pytest.mark.asyncio
async def test_what_a_given_up_call_had_sent_is_told_once_whether_its_actor_lives_or_not(image: str) -> None:
    told: list[Sequence[RequestUsage] | None] = []
    with ScriptedServer(lambda *_: reply(GOOD, delay_s=20.0)) as server:
        handle = Handle(lambda: worker_of(server.url))
        link = link_of(handle)
        await link.start([True])
        for _ in range(2):
            call = asyncio.create_task(link.rule(judge_request(image), 4, None, told.append))
            number = len(server.requests)
            while len(server.requests) == number:
                await asyncio.sleep(0.01)
            if told:
                handle.give_up_is_lost = True
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            if handle.give_up_is_lost:
                handle.die()
            while len(told) == number:
                await asyncio.sleep(0.01)
        link.close()
    assert [None if requests is None else len(requests) for requests in told] == [1, None]
