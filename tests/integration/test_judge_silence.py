"""Endpoints that reply to nobody, and calls that nobody replies to: which of them fail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from judge_server import Answer, Received, ScriptedServer, judge_request, marks, reply

from judge.pool import RayJudgePool
from mrpo.choices import JudgeKind
from mrpo.config import BreakerConfig, EndpointConfig, JudgeConfig
from mrpo.types import FailureReason, JudgeFailure, Judgement, Verdicts

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(120)]
GOOD = marks((1, 0), (0, 1))
HANG = Answer(delay_s=30.0)  # longer than any deadline here


def judge_through(url: str, scenario: Callable[[RayJudgePool], Awaitable[list[Judgement]]], **changes: Any) -> Any:
    quick: dict[str, Any] = {"backoff_s": 0.01, "backoff_max_s": 0.05, "deadline_s": 1.5, "concurrency": 16}
    if "endpoints" not in changes:
        quick |= {"url": url, "model": "m"}
    config = JudgeConfig(
        kind=JudgeKind.OPENAI_COMPATIBLE, **{**quick, "breaker": BreakerConfig(cool_down_s=1.0), **changes}
    )

    async def run() -> list[Judgement]:
        pool = RayJudgePool(config)
        try:
            await pool.start()
            return await scenario(pool)
        finally:
            pool.close()

    return asyncio.run(run())


def are_ruled(judgements: list[Judgement]) -> bool:
    return all(isinstance(judgement.outcome, Verdicts) for judgement in judgements)


class Outage:
    """A script: GET and POST fare alike while it lasts."""

    def __init__(self, fault: Answer, *, models_answer: bool = False) -> None:
        self._fault, self._models_answer, self.ends_at = fault, models_answer, 0.0

    def __call__(self, _: int, received: Received) -> Answer:
        is_spared = received.method == "GET" and self._models_answer
        return self._fault if time.monotonic() < self.ends_at and not is_spared else reply(GOOD)


@pytest.mark.parametrize(("num_actors", "apart_s"), [(1, 0.1), (4, 0.0)])
def test_no_call_is_lost_to_an_endpoint_that_hangs_and_recovers(image: str, num_actors: int, apart_s: float) -> None:
    """Sixteen calls, also where they time out one by one, four to an actor: fewer than open a circuit there."""
    script = Outage(HANG)

    async def scenario(pool: RayJudgePool) -> list[Judgement]:
        script.ends_at = time.monotonic() + 5.0
        calls = []
        for number in range(16):
            calls.append(asyncio.create_task(pool.judge(judge_request(image, key=str(number)))))
            await asyncio.sleep(apart_s)
        return await asyncio.gather(*calls)

    with ScriptedServer(script) as server:
        assert are_ruled(judge_through(server.url, scenario, num_actors=num_actors))


@pytest.mark.parametrize("fault", [HANG, Answer(drop=True), Answer(status=502)], ids=["hang", "drop", "gateway"])
def test_a_lone_call_waits_for_an_endpoint_that_is_down(image: str, fault: Answer) -> None:
    """Its attempts are fewer than the failures that open a circuit."""
    script = Outage(fault)

    async def scenario(pool: RayJudgePool) -> list[Judgement]:
        script.ends_at = time.monotonic() + 4.0
        return [await pool.judge(judge_request(image))]

    with ScriptedServer(script) as server:
        assert are_ruled(judge_through(server.url, scenario))


def test_calls_sent_together_wait_where_only_the_judge_behind_a_gateway_hangs(image: str) -> None:
    script = Outage(HANG, models_answer=True)

    async def scenario(pool: RayJudgePool) -> list[Judgement]:
        script.ends_at = time.monotonic() + 4.0
        return await asyncio.gather(*(pool.judge(judge_request(image, key=str(number))) for number in range(16)))

    with ScriptedServer(script) as server:
        assert are_ruled(judge_through(server.url, scenario, deadline_s=2.5))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(HANG, FailureReason.TIMEOUT), (Answer(status=500), FailureReason.TRANSPORT)],
    ids=["slow", "broken"],
)
def test_a_request_that_an_endpoint_cannot_answer_fails_alone(image: str, fault: Answer, reason: FailureReason) -> None:
    """The endpoint says that it lives: no outage is made of it."""
    script = Outage(fault, models_answer=True)

    async def scenario(pool: RayJudgePool) -> list[Judgement]:
        script.ends_at = time.monotonic() + 60.0
        judgement = await asyncio.wait_for(pool.judge(judge_request(image)), 15.0)
        assert pool._circuits.open == []
        return [judgement]

    with ScriptedServer(script) as server:
        (judgement,) = judge_through(server.url, scenario)
        num_sent = len([request for request in server.requests if request.method == "POST"])
    assert isinstance(judgement.outcome, JudgeFailure)
    assert judgement.outcome.reason == reason
    assert judgement.attempts == num_sent == (1 if reason == FailureReason.TIMEOUT else 4)


def test_a_call_that_a_hanging_endpoint_held_goes_to_the_other(image: str) -> None:
    script = Outage(HANG)

    async def scenario(pool: RayJudgePool) -> list[Judgement]:
        script.ends_at = time.monotonic() + 60.0
        return await asyncio.gather(*(pool.judge(judge_request(image, key=str(number))) for number in range(12)))

    with ScriptedServer(script) as bad, ScriptedServer(lambda *_: reply(GOOD)) as good:
        endpoints = (EndpointConfig(url=bad.url, model="m"), EndpointConfig(url=good.url, model="m"))
        assert are_ruled(judge_through("", scenario, endpoints=endpoints, num_actors=4))
        assert bad.requests
