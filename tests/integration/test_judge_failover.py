"""Several endpoints: shares, failover, circuits that open and close for the whole pool, second requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from judge_server import Answer, Received, ScriptedServer, closed_port, judge_request, marks, reply

from judge.accounting import RequestUsage
from judge.client import JudgeClient
from judge.pool import RayJudgePool
from mrpo.choices import JudgeKind, OutagePolicy
from mrpo.config import BreakerConfig, EndpointConfig, JudgeConfig
from mrpo.types import FailureReason, JudgeFailure, Judgement, Verdicts
from tests.integration.judge_pools import with_pool

pytestmark = pytest.mark.timeout(120)
GOOD = marks((1, 0), (0, 1))


def config_of(*urls: str, weights: tuple[float, ...] = (), **changes: Any) -> JudgeConfig:
    shares = weights or (1.0,) * len(urls)
    endpoints = tuple(
        EndpointConfig(url=url, model=f"m{index}", weight=weight)
        for index, (url, weight) in enumerate(zip(urls, shares, strict=True))
    )
    quick: dict[str, Any] = {"backoff_s": 0.01, "backoff_max_s": 0.05, "deadline_s": 10.0, "concurrency": 8}
    quick["breaker"] = BreakerConfig(num_failures=3, cool_down_s=0.8)
    return JudgeConfig(kind=JudgeKind.OPENAI_COMPATIBLE, endpoints=endpoints, **{**quick, **changes})


def judge_in_process(config: JudgeConfig, image: str, number: int, concurrency: int = 8) -> list[Judgement]:
    async def scenario() -> list[Judgement]:
        client = JudgeClient(config, concurrency=concurrency)
        calls = (client.judge(judge_request(image, key=str(index)), max_attempts=4) for index in range(number))
        judgements = await asyncio.gather(*calls)
        await client.close()
        return judgements

    return asyncio.run(scenario())


def judge_many(pool: RayJudgePool, image: str, number: int) -> Awaitable[list[Judgement]]:
    return asyncio.gather(*(pool.judge(judge_request(image, key=str(index))) for index in range(number)))


def are_ruled(judgements: list[Judgement]) -> bool:
    return all(isinstance(judgement.outcome, Verdicts) for judgement in judgements)


def test_calls_are_shared_by_weight_under_each_endpoints_model(image: str) -> None:
    with ScriptedServer(lambda *_: reply(GOOD)) as one, ScriptedServer(lambda *_: reply(GOOD)) as two:
        assert are_ruled(judge_in_process(config_of(one.url, two.url, weights=(1.0, 3.0)), image, 200))
    assert len(one.requests) + len(two.requests) == 200
    assert 25 <= len(one.requests) <= 80  # 50 expected, standard deviation 6
    assert b'"model": "m0"' in one.requests[0].body
    assert b'"model": "m1"' in two.requests[0].body


@pytest.mark.parametrize("fault", [Answer(status=500), Answer(status=429, headers={"Retry-After": "30"})], ids=str)
def test_a_call_that_fails_at_one_endpoint_goes_to_the_other_at_once(image: str, fault: Answer) -> None:
    began_s = time.monotonic()
    with ScriptedServer(lambda *_: fault) as bad, ScriptedServer(lambda *_: reply(GOOD)) as good:
        judgements = judge_in_process(config_of(bad.url, good.url, backoff_s=3.0, backoff_max_s=3.0), image, 12)
    assert are_ruled(judgements)
    assert bad.requests
    assert {judgement.attempts for judgement in judgements} == {1, 2}
    assert time.monotonic() - began_s < 2.5  # no pause of 1.5 to 3 s, nor of 30


def test_a_pause_asked_for_is_kept_although_another_endpoint_fails_meanwhile(image: str) -> None:
    """The first asks to be left alone for two seconds; the second fails twice and is all there is to ask."""

    def second(number: int, _: Received) -> Answer:
        return Answer(status=500) if number < 2 else reply(GOOD)

    def first(number: int, _: Received) -> Answer:
        return Answer(status=429, headers={"Retry-After": "2"}) if number == 0 else reply(GOOD)

    with ScriptedServer(first) as one, ScriptedServer(second) as two:
        (judgement,) = judge_in_process(config_of(one.url, two.url, weights=(1e9, 1e-9)), image, 1)
    assert are_ruled([judgement])
    assert (len(one.requests), len(two.requests)) == (1, 3)


def test_where_all_ask_for_a_pause_the_shortest_is_waited_for(image: str) -> None:
    def asking(pause: str) -> Callable[[int, Received], Answer]:
        return lambda number, _: Answer(status=429, headers={"Retry-After": pause}) if number == 0 else reply(GOOD)

    with ScriptedServer(asking("1")) as one, ScriptedServer(asking("8")) as two:
        (judgement,) = judge_in_process(config_of(one.url, two.url, weights=(1e9, 1e-9)), image, 1)
    assert are_ruled([judgement])
    assert (len(one.requests), len(two.requests)) == (2, 1)
    assert 1.0 <= one.requests[1].at_s - one.requests[0].at_s < 5.0


@pytest.mark.usefixtures("ray_session")
def test_a_dead_endpoint_is_left_out_by_every_actor_and_tried_one_call_at_a_time(image: str) -> None:
    def script(_: int, __: Received) -> Answer:
        return reply(GOOD) if time.monotonic() >= back_at else Answer(status=503, delay_s=0.05)

    async def scenario(pool: RayJudgePool) -> tuple[int, int, int]:
        assert are_ruled(await judge_many(pool, image, 40))
        while_open = len(bad.requests)
        for _ in range(10):  # 1 s, in which trials are due after 0.1, 0.3, 0.7 s
            assert are_ruled(await judge_many(pool, image, 10))
            await asyncio.sleep(0.1)
        tried = len(bad.requests) - while_open
        nonlocal back_at
        back_at = time.monotonic()
        await asyncio.sleep(0.9)
        before = len(bad.requests)
        for _ in range(3):
            assert are_ruled(await judge_many(pool, image, 20))
        return while_open, tried, len(bad.requests) - before

    back_at = float("inf")
    with ScriptedServer(script) as bad, ScriptedServer(lambda *_: reply(GOOD, delay_s=0.01)) as good:
        while_open, tried, after = with_pool(config_of(bad.url, good.url, num_actors=2), scenario)
    assert 3 <= while_open <= 20  # three in a row for an actor, and what was in flight
    assert 1 <= tried <= 8  # out of about 50 that it would get by weight
    assert after >= 12  # half of 60, but for the first that tries


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("num_actors", [1, 2])
def test_calls_wait_out_an_outage_and_none_is_lost(image: str, num_actors: int) -> None:
    def script(_: int, __: Received) -> Answer:
        is_down = down_at <= time.monotonic() < up_at
        return Answer(drop=True) if is_down else reply(GOOD, delay_s=0.02)

    async def scenario(pool: RayJudgePool) -> tuple[list[Judgement], dict[str, float], dict[str, float]]:
        return await judge_many(pool, image, 120), pool.take_metrics(), pool.take_metrics()

    down_at = time.monotonic() + 3600.0
    up_at = down_at
    lines: list[str] = []
    told: list[RequestUsage] = []
    with ScriptedServer(script) as server:

        async def timed(pool: RayJudgePool) -> tuple[list[Judgement], dict[str, float], dict[str, float]]:
            nonlocal down_at, up_at
            down_at = time.monotonic() + 0.1
            up_at = down_at + 2.5
            return await scenario(pool)

        config = config_of(server.url, num_actors=num_actors, deadline_s=1.0)
        judgements, metrics, later = with_pool(config, timed, on_outage=lines.append, on_request=told.append)
    assert are_ruled(judgements)
    assert [judgement.key for judgement in judgements] == [str(index) for index in range(120)]
    assert sum(judgement.attempts for judgement in judgements) == len(told) == len(server.requests)
    assert [line.split()[:2] for line in lines] == [["judge", "down:"], ["judge", "up"]]
    assert 1.5 <= metrics["judge/outage_s"] <= 4.5
    assert "judge/outage_s" not in later
    during = [request for request in server.requests if down_at + 1.0 < request.at_s < up_at]
    assert len(during) <= 6  # one trial at a time: after 0.1, 0.3, 0.7, 1.5, 2.3 s; on a busy machine it opens late


@pytest.mark.usefixtures("ray_session")
def test_by_policy_calls_fail_at_once_instead(image: str) -> None:
    async def scenario(pool: RayJudgePool) -> tuple[list[Judgement], float, list[Judgement]]:
        first = await judge_many(pool, image, 10)
        began_s = time.monotonic()
        return first, time.monotonic() - began_s, await judge_many(pool, image, 200)

    url = f"http://127.0.0.1:{closed_port()}/v1"
    config = config_of(url, on_outage=OutagePolicy.FAIL, breaker=BreakerConfig(num_failures=3, cool_down_s=30.0))
    first, took_s, later = with_pool(config, scenario)
    assert took_s < 2.0
    for judgement in (*first, *later):
        assert isinstance(judgement.outcome, JudgeFailure)
        assert judgement.outcome.reason == FailureReason.TRANSPORT
    assert sum(judgement.attempts for judgement in later) <= 2


@pytest.mark.usefixtures("ray_session")
def test_the_wait_has_an_end(image: str) -> None:
    async def scenario(pool: RayJudgePool) -> tuple[list[Judgement], list[Judgement]]:
        return await judge_many(pool, image, 20), await judge_many(pool, image, 20)

    began_s = time.monotonic()
    config = config_of(f"http://127.0.0.1:{closed_port()}/v1", max_outage_s=1.5)
    first, later = with_pool(config, scenario)
    assert time.monotonic() - began_s < 30.0
    for judgement in (*first, *later):
        assert isinstance(judgement.outcome, JudgeFailure)
        assert judgement.outcome.reason == FailureReason.TRANSPORT
    assert any("judge.max_outage_s=1.5" in str(judgement.outcome) for judgement in first)


@pytest.mark.usefixtures("ray_session")
def test_an_endpoint_that_turns_all_away_is_left_alone_by_all_actors(image: str) -> None:
    """429 with Retry-After for a second: a few see it, then nobody asks until it is over."""

    def script(_: int, __: Received) -> Answer:
        busy = time.monotonic() < free_at
        return Answer(status=429, headers={"Retry-After": "1"}) if busy else reply(GOOD)

    async def scenario(pool: RayJudgePool) -> list[Judgement]:
        nonlocal free_at
        free_at = time.monotonic() + 0.9
        return await judge_many(pool, image, 200)

    free_at = 0.0
    with ScriptedServer(script) as server:
        judgements = with_pool(config_of(server.url, num_actors=4, max_attempts=8), scenario)
        turned_away = len(server.requests) - 200
    assert are_ruled(judgements)
    assert turned_away <= 40  # 200 and more if each call had to find out for itself


def test_a_late_reply_is_asked_for_again_elsewhere_and_the_first_counts(image: str) -> None:
    def script(_: int, __: Received) -> Answer:
        nonlocal is_slow
        was_slow, is_slow = is_slow, False
        return reply(GOOD, delay_s=5.0 if was_slow else 0.02)

    async def scenario(config: JudgeConfig) -> tuple[list[Judgement], Judgement, float]:
        client = JudgeClient(config, concurrency=4)
        warm = [await client.judge(judge_request(image), max_attempts=4) for _ in range(30)]
        nonlocal is_slow
        is_slow = True
        began_s = time.monotonic()
        late = await client.judge(judge_request(image), max_attempts=4)
        took_s = time.monotonic() - began_s
        await client.close()
        return warm, late, took_s

    is_slow = False
    with ScriptedServer(script) as server:
        config = config_of(server.url, hedge_percentile=90.0)
        warm, late, took_s = asyncio.run(scenario(config))
        made = sum(judgement.attempts for judgement in (*warm, late))
    assert len(server.requests) <= made <= len(server.requests) + 3  # one may be given up before it has left
    assert are_ruled([*warm, late])
    assert late.attempts == 2
    assert took_s < 2.0
    assert server.max_in_flight == 2


def test_a_second_request_needs_a_slot_of_its_own(image: str) -> None:
    with ScriptedServer(lambda number, _: reply(GOOD, delay_s=0.5 if number >= 25 else 0.02)) as server:
        config = config_of(server.url, hedge_percentile=50.0)
        judgements = judge_in_process(config, image, 30, concurrency=1)
    assert are_ruled(judgements)
    assert server.max_in_flight == 1
    assert {judgement.attempts for judgement in judgements} == {1}


def test_two_fast_failures_in_a_hedge_are_one_failure_of_the_call(image: str) -> None:
    """The first request is late and then fails, the second fails too: only then is it tried again."""

    def script(_: int, __: Received) -> Answer:
        nonlocal num_bad
        num_bad -= 1
        return Answer(status=500, delay_s=0.3) if num_bad >= 0 else reply(GOOD, delay_s=0.02)

    async def scenario(config: JudgeConfig) -> Judgement:
        client = JudgeClient(config, concurrency=4)
        for _ in range(30):
            await client.judge(judge_request(image), max_attempts=4)
        nonlocal num_bad
        num_bad = 2
        last = await client.judge(judge_request(image), max_attempts=4)
        await client.close()
        return last

    num_bad = 0
    with ScriptedServer(script) as server:
        last = asyncio.run(scenario(config_of(server.url, hedge_percentile=95.0)))
    assert isinstance(last.outcome, Verdicts)
    assert last.attempts >= 3


@pytest.mark.usefixtures("ray_session")
def test_an_endpoint_that_hangs_is_left_out_although_second_requests_rescue_its_calls(image: str) -> None:
    async def scenario(pool: RayJudgePool) -> tuple[list[Judgement], list[int]]:
        await judge_many(pool, image, 80)
        nonlocal hangs
        hangs = True
        judgements = await judge_many(pool, image, 120)
        return judgements, pool._circuits.open

    hangs = False
    with (
        ScriptedServer(lambda *_: reply(GOOD, delay_s=30.0 if hangs else 0.02)) as bad,
        ScriptedServer(lambda *_: reply(GOOD, delay_s=0.02)) as good,
    ):
        config = config_of(bad.url, good.url, hedge_percentile=90.0, breaker=BreakerConfig(cool_down_s=60.0))
        judgements, open_now = with_pool(config, scenario)
        asked = len(bad.requests)
    assert are_ruled(judgements)
    assert open_now == [0]
    assert asked < 80 + 40  # half of 120 would be asked of it


@pytest.mark.usefixtures("ray_session")
def test_429_without_end_or_pause_is_an_outage_and_no_failure_of_calls(image: str) -> None:
    def script(_: int, __: Received) -> Answer:
        return Answer(status=429) if time.monotonic() < free_at else reply(GOOD)

    async def scenario(pool: RayJudgePool) -> list[Judgement]:
        nonlocal free_at
        free_at = time.monotonic() + 2.5
        return await judge_many(pool, image, 100)

    free_at, lines = 0.0, []
    with ScriptedServer(script) as server:
        config = config_of(server.url, concurrency=32, backoff_s=0.3, backoff_max_s=0.3)
        judgements = with_pool(config, scenario, on_outage=lines.append)
    assert are_ruled(judgements)
    assert "HTTP 429, 20 times in a row" in lines[0]
