"""The judge pool on real Ray, against real servers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from judge_server import Answer, Received, ScriptedServer, all_ones, judge_request, marks, reply

from judge.pool import RayJudgePool
from judge.rate import CATCH_UP_S
from mrpo.choices import JudgeKind
from mrpo.config import JudgeConfig
from mrpo.errors import ConfigError, DataError
from mrpo.types import FailureReason, JudgeFailure, Judgement, Verdicts
from tests.integration.judge_pools import with_pool

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(120)]

GOOD = marks((1, 0), (0, 1))


def config_of(url: str, **changes: Any) -> JudgeConfig:
    quick: dict[str, Any] = {"backoff_s": 0.01, "backoff_max_s": 0.05, "deadline_s": 10.0, "concurrency": 8}
    return JudgeConfig(kind=JudgeKind.OPENAI_COMPATIBLE, url=url, model="judge-model", **{**quick, **changes})


def judge_many(image: str, number: int) -> Callable[[RayJudgePool], Awaitable[list[Judgement]]]:
    async def scenario(pool: RayJudgePool) -> list[Judgement]:
        return await asyncio.gather(*(pool.judge(judge_request(image, key=str(index))) for index in range(number)))

    return scenario


def reasons(judgements: list[Judgement]) -> list[FailureReason | None]:
    return [j.outcome.reason if isinstance(j.outcome, JudgeFailure) else None for j in judgements]


def worker_processes() -> list[psutil.Process]:
    """Judge actors of this test's own Ray."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended since it was listed
            if any("ray::JudgeWorker" in part for part in process.cmdline()):
                found.append(process)
    return found


def test_rulings_come_back_under_their_own_keys(image: str) -> None:
    def script(_: int, received: Any) -> Answer:
        return all_ones(received)

    async def scenario(pool: RayJudgePool) -> list[Judgement]:
        calls = [pool.judge(judge_request(image, ["A CT."] * size, key=str(size))) for size in range(1, 9)]
        return await asyncio.gather(*calls)

    with ScriptedServer(script) as server:
        judgements = with_pool(config_of(server.url), scenario)
    for size, judgement in enumerate(judgements, 1):
        assert judgement.key == str(size)
        assert judgement.outcome == Verdicts(alignment=[True] * size, contribution=[True] * size)


def test_concurrency_is_bounded_over_all_actors_and_fully_used(image: str) -> None:
    with ScriptedServer(lambda *_: reply(GOOD, delay_s=0.1)) as server:
        config = config_of(server.url, num_actors=2, concurrency=5)
        judgements = with_pool(config, judge_many(image, 20))
    assert reasons(judgements) == [None] * 20
    assert server.max_in_flight == 5


def test_the_rate_limit_is_one_for_all_actors(image: str) -> None:
    begun_s = 0.0

    async def scenario(pool: RayJudgePool) -> list[Judgement]:
        nonlocal begun_s
        begun_s = time.monotonic()  # the first arrival may be seen late, and the gap to the last would be too short
        return await judge_many(image, 12)(pool)

    with ScriptedServer(lambda *_: reply(GOOD)) as server:
        judgements = with_pool(config_of(server.url, num_actors=2, requests_per_minute=300), scenario)
    assert reasons(judgements) == [None] * 12
    assert server.requests[-1].at_s - begun_s >= 11 * 0.2 - CATCH_UP_S  # a limit for each actor: 5 * 0.2


@pytest.mark.parametrize("fault_every", [None, 4])
def test_the_budget_of_requests_is_kept_exactly(image: str, fault_every: int | None) -> None:
    def script(number: int, _: Any) -> Answer:
        return Answer(status=500) if fault_every is not None and number % fault_every == 0 else reply(GOOD)

    async def scenario(pool: RayJudgePool) -> tuple[list[Judgement], int]:
        return await judge_many(image, 30)(pool), pool.spent.requests

    with ScriptedServer(script) as server:
        judgements, spent = with_pool(config_of(server.url, num_actors=2, max_requests=12), scenario)
    assert len(server.requests) == spent == sum(judgement.attempts for judgement in judgements) == 12
    # Three faults at most, which are no call's last attempt: what ends a call is a ruling or the budget.
    num_ruled = 12 if fault_every is None else 9
    assert Counter(reasons(judgements)) == {None: num_ruled, FailureReason.BUDGET: 30 - num_ruled}


def test_a_call_with_little_of_the_budget_gets_more_when_others_give_it_back(image: str) -> None:
    """Of five requests one call holds four, so that the other one's fault is not made final by a lease of one."""
    seen: Counter[str] = Counter()

    def script(_: int, received: Received) -> Answer:
        which = "late" if b"LATE" in received.body else "slow"
        seen[which] += 1
        if which == "slow":
            return replace(reply(marks((1, 0))), delay_s=0.5)
        return Answer(status=500) if seen[which] == 1 else reply(marks((1, 0)))

    async def scenario(pool: RayJudgePool) -> list[Judgement]:
        slow = asyncio.create_task(pool.judge(judge_request(image, ["SLOW."], key="slow")))
        await asyncio.sleep(0.1)
        return [await pool.judge(judge_request(image, ["LATE."], key="late")), await slow]

    with ScriptedServer(script) as server:
        judgements = with_pool(config_of(server.url, max_requests=5), scenario)
    assert reasons(judgements) == [None, None]
    assert [judgement.attempts for judgement in judgements] == [2, 1]


def test_a_fault_that_the_budget_lets_nobody_retry_is_the_budgets_failure(image: str) -> None:
    def script(_: int, received: Received) -> Answer:
        return Answer(status=500 if received.method == "POST" else 200)  # it is there, so that it is no outage

    with ScriptedServer(script) as server:
        (short,) = with_pool(config_of(server.url, max_requests=1), judge_many(image, 1))
        (long,) = with_pool(config_of(server.url, max_requests=9), judge_many(image, 1))
    assert reasons([short, long]) == [FailureReason.BUDGET, FailureReason.TRANSPORT]
    assert [short.attempts, long.attempts] == [1, 4]


def test_a_lost_actors_call_is_made_again(image: str) -> None:
    async def scenario(pool: RayJudgePool) -> tuple[Judgement, list[Judgement], int]:
        first = asyncio.create_task(pool.judge(judge_request(image)))
        while not server.requests:
            await asyncio.sleep(0.02)
        (worker,) = worker_processes()
        worker.kill()
        return await first, await judge_many(image, 6)(pool), pool.spent.requests

    with ScriptedServer(lambda number, _: reply(GOOD, delay_s=5.0 if number == 0 else 0.0)) as server:
        config = config_of(server.url, deadline_s=30.0)
        lost, later, spent = with_pool(config, scenario)
    assert reasons([lost, *later]) == [None] * 7
    assert lost.attempts == config.max_attempts + 1  # those the lost actor may have made count in full
    assert spent == lost.attempts + 6


def test_a_call_that_loses_three_actors_is_a_failure(image: str) -> None:
    async def scenario(pool: RayJudgePool) -> tuple[Judgement, list[Judgement]]:
        first = asyncio.create_task(pool.judge(judge_request(image)))
        for number in (1, 2, 3):
            while len(server.requests) < number:
                await asyncio.sleep(0.02)
            (worker,) = worker_processes()
            worker.kill()
        return await first, await judge_many(image, 3)(pool)

    with ScriptedServer(lambda number, _: reply(GOOD, delay_s=5.0 if number < 3 else 0.0)) as server:
        lost, later = with_pool(config_of(server.url, deadline_s=30.0), scenario)
    assert isinstance(lost.outcome, JudgeFailure)
    assert lost.outcome.reason == FailureReason.TRANSPORT
    assert "actor" in lost.outcome.detail
    assert reasons(later) == [None] * 3


def test_while_one_actor_is_down_the_other_takes_all_calls(image: str) -> None:
    async def scenario(pool: RayJudgePool) -> tuple[list[Judgement], list[Judgement]]:
        first = asyncio.gather(*(pool.judge(judge_request(image)) for _ in range(2)))
        while len(server.requests) < 2:
            await asyncio.sleep(0.02)
        one, _ = worker_processes()
        one.kill()
        ended = await first
        return ended, await judge_many(image, 20)(pool)

    with ScriptedServer(lambda number, _: reply(GOOD, delay_s=1.0 if number < 2 else 0.0)) as server:
        first, later = with_pool(config_of(server.url, num_actors=2), scenario)
    assert reasons([*first, *later]) == [None] * 22


def test_a_pool_starts_where_every_core_is_taken(image: str) -> None:
    class Holder:
        def ready(self) -> bool:
            return True

    holder_class: Any = ray.remote(Holder)
    holders = [holder_class.options(num_cpus=1).remote() for _ in range(2)]
    ray.get([holder.ready.remote() for holder in holders])
    try:
        with ScriptedServer(lambda *_: reply(GOOD)) as server:
            config = config_of(server.url, num_actors=2, requests_per_minute=60_000)
            assert reasons(with_pool(config, judge_many(image, 4))) == [None] * 4
    finally:
        for holder in holders:
            ray.kill(holder)


def test_a_missing_image_reaches_the_caller_as_a_data_error() -> None:
    async def scenario(pool: RayJudgePool) -> None:
        with pytest.raises(DataError, match=r"^judge image /gone\.png: No such file") as caught:
            await pool.judge(judge_request("/gone.png"))
        assert type(caught.value) is DataError

    with ScriptedServer(lambda *_: reply(GOOD)) as server:
        with_pool(config_of(server.url), scenario)


def test_a_cancelled_call_frees_its_slot_on_the_actor(image: str) -> None:
    async def scenario(pool: RayJudgePool) -> Judgement:
        slow = asyncio.create_task(pool.judge(judge_request(image)))
        while not server.requests:
            await asyncio.sleep(0.02)
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        began_s = time.monotonic()
        next_ = await pool.judge(judge_request(image))
        assert time.monotonic() - began_s < 4.0
        return next_

    with ScriptedServer(lambda number, _: reply(GOOD, delay_s=8.0 if number == 0 else 0.0)) as server:
        judgement = with_pool(config_of(server.url, concurrency=1), scenario)
    assert isinstance(judgement.outcome, Verdicts)


def test_a_call_that_is_given_up_counts_what_it_had_sent(image: str) -> None:
    """One request was on its way, of four allowed; four of the budget are left."""

    async def scenario(pool: RayJudgePool) -> tuple[int, list[Judgement]]:
        slow = asyncio.create_task(pool.judge(judge_request(image)))
        while not server.requests:
            await asyncio.sleep(0.02)
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)
        ends_at = time.monotonic() + 10
        while pool.spent.requests == 0 and time.monotonic() < ends_at:
            await asyncio.sleep(0.02)
        return pool.spent.requests, await judge_many(image, 6)(pool)

    with ScriptedServer(lambda number, _: reply(GOOD, delay_s=8.0 if number == 0 else 0.0)) as server:
        config = config_of(server.url, max_attempts=4, max_requests=5)
        spent, later = with_pool(config, scenario)
    assert spent == 1
    assert sorted(reasons(later), key=str) == [None] * 4 + [FailureReason.BUDGET] * 2
    assert len(server.requests) == 5


def test_calls_given_up_when_the_pool_closes_count_in_full(image: str) -> None:
    """Nobody can say any more what they sent."""
    pools: list[RayJudgePool] = []

    async def scenario(pool: RayJudgePool) -> None:
        pools.append(pool)
        slow = asyncio.create_task(pool.judge(judge_request(image)))
        while not server.requests:
            await asyncio.sleep(0.02)
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)

    with ScriptedServer(lambda *_: reply(GOOD, delay_s=8.0)) as server:
        with_pool(config_of(server.url, max_attempts=3), scenario)
    assert pools[0].spent.requests == 3


def test_a_key_set_here_but_not_on_the_nodes_is_refused(image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Ray's workers inherit the environment Ray was started in, not this one.
    monkeypatch.setenv("LATE_KEY", "sk-late")

    async def scenario(pool: RayJudgePool) -> None:
        raise AssertionError("the pool must not start")

    with (
        ScriptedServer(lambda *_: reply(GOOD)) as server,
        pytest.raises(ConfigError, match="LATE_KEY is set here but not for 1 of 1 judge actors") as caught,
    ):
        with_pool(config_of(server.url, api_key_env="LATE_KEY"), scenario)
    assert "sk-late" not in str(caught.value)


@pytest.mark.parametrize(("text", "fault"), [(None, "cannot be read"), ("", "is empty")])
def test_a_key_file_that_an_actor_cannot_use_is_named_with_its_node(
    image: str, tmp_path: Path, text: str | None, fault: str
) -> None:
    path = tmp_path / "key"
    if text is not None:
        path.write_text(text)
    config = config_of("http://127.0.0.1:1/v1", api_key_file=str(path))
    with pytest.raises(ConfigError, match=rf"^the key file {path} {fault}.*\(judge actor on ") as caught:
        with_pool(config, judge_many(image, 1))
    assert type(caught.value) is ConfigError
    assert "Traceback" not in str(caught.value)


def test_a_completion_that_no_reply_can_hold_ends_at_once_in_an_outage_and_under_a_spent_budget(image: str) -> None:
    """It needs no endpoint and takes nothing of the budget."""

    async def scenario(pool: RayJudgePool) -> tuple[Judgement, bool, int]:
        pool._circuits.opened(0, "gone", for_s=4.0)
        long = await asyncio.wait_for(pool.judge(judge_request(image, ["A CT."] * 500)), 2.0)
        ruled = await asyncio.wait_for(pool.judge(judge_request(image)), 20.0)
        return long, isinstance(ruled.outcome, Verdicts), pool.spent.requests

    with ScriptedServer(lambda *_: reply(GOOD)) as server:
        long, is_ruled, spent = with_pool(config_of(server.url, max_requests=1), scenario)
    assert reasons([long]) == [FailureReason.WRONG_COUNT]
    assert (long.attempts, is_ruled, spent, len(server.requests)) == (0, True, 1, 1)


@pytest.mark.parametrize("changes", [{"url": None}, {"model": None}])
def test_a_pool_needs_an_endpoint(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"judge\.url and judge\.model"):
        RayJudgePool(
            JudgeConfig(kind=JudgeKind.OPENAI_COMPATIBLE, **{"url": "http://localhost/v1", "model": "m", **changes})
        )


def test_close_ends_every_actor(image: str) -> None:
    with ScriptedServer(lambda *_: reply(GOOD)) as server:
        with_pool(config_of(server.url, num_actors=2, requests_per_minute=6000), judge_many(image, 1))
    ends_at = time.monotonic() + 10
    while worker_processes() and time.monotonic() < ends_at:
        time.sleep(0.1)
    assert worker_processes() == []
