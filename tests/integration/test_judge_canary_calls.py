"""Canaries through a real pool: they reach the endpoint, are paid for, pass the rulings by, and find a bad judge."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from judge.accounting import KnownRuling, LookedUp
from judge.local_server import LocalServer
from judge.pool import RayJudgePool
from mrpo.config import JudgeConfig
from mrpo.judge_canaries import CanaryJudge
from mrpo.judge_spending import SpendingLedger
from mrpo.phantom.language import Belief, QuestionKind, write_answer, write_steps
from mrpo.types import AnswerRequest, JudgeRequest, Verdicts
from tests.integration.judge_server import Answer, Received, ScriptedServer, marks, reply

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(240)]
TRUTH = Belief(modality="CT", organ="liver", side="left", half="upper", num_lesions=2, marker=False)
NUM = 12


class Known:
    """Rulings from before on everything."""

    def __init__(self) -> None:
        self.kept: list[str] = []

    async def find(self, request: JudgeRequest | AnswerRequest) -> LookedUp:
        assert isinstance(request, JudgeRequest)
        ones = [True] * len(request.steps)
        return LookedUp(known=KnownRuling(ruling=Verdicts(alignment=ones, contribution=ones), model="from before"))

    async def keep(
        self, request: JudgeRequest | AnswerRequest, ruling: Verdicts | bool, *, model: str, key: str
    ) -> None:
        self.kept.append(request.key)

    def take_metrics(self) -> dict[str, float]:
        return {}


def asked() -> list[JudgeRequest]:
    return [
        JudgeRequest(
            key=f"p{number}#0",
            image="",
            question=QuestionKind.SIDE.value,
            answer=write_answer(QuestionKind.SIDE, TRUTH),
            rationale=" ".join(write_steps(TRUTH)),
            steps=[f"Step {number}."],
        )
        for number in range(NUM)
    ]


def watch(
    config: JudgeConfig, events: list[str], *, known: Known | None = None
) -> tuple[dict[str, float], SpendingLedger]:
    """What is measured once all requests and their canaries are through."""
    ledger = SpendingLedger(None)

    async def scenario() -> dict[str, float]:
        pool = RayJudgePool(config, ledger=ledger, rulings=known)
        await pool.start()
        judge = CanaryJudge(pool, config, seed=0, on_event=events.append)
        await asyncio.gather(*map(judge.judge, asked()))
        while judge.num_open:
            await asyncio.sleep(0.02)
        metrics = judge.take_metrics()
        await judge.close()
        pool.close()
        return metrics

    return asyncio.run(scenario()), ledger


def test_the_oracle_makes_no_error_and_every_canary_is_on_the_account() -> None:
    events: list[str] = []
    with LocalServer(JudgeConfig(send_image=False, canary_share=1.0)) as server:
        metrics, ledger = watch(server.endpoint(), events)
    assert metrics["judge/canary_steps"] == 6 * NUM
    assert metrics["judge/canary_error_rate"] == 0.0
    assert ledger.total.requests == 2 * NUM
    assert events == []


def test_a_judge_that_marks_everything_right_sets_off_the_alarm() -> None:
    def script(_: int, received: Received) -> Answer:
        data: dict[str, Any] = json.loads(json.loads(received.body)["messages"][1]["content"][0]["text"])
        return reply(marks(*[(1, 1)] * len(data["steps"])))

    events: list[str] = []
    with ScriptedServer(script) as server:
        config = JudgeConfig(url=server.url, model="m", send_image=False, canary_share=1.0)
        metrics, _ = watch(config, events)
    assert metrics["judge/canary_error_rate"] == pytest.approx(5 / 6)
    assert len(events) == 1
    assert "above judge.canary_alarm_share=0.2" in events[0]


def test_what_is_known_from_before_says_nothing_about_the_judge_of_today() -> None:
    known = Known()
    with LocalServer(JudgeConfig(send_image=False, canary_share=1.0)) as server:
        metrics, ledger = watch(server.endpoint(), [], known=known)
    assert metrics["judge/canary_error_rate"] == 0.0  # the rulings from before would be wrong
    assert ledger.total.requests == NUM  # the canaries alone
    assert known.kept == []
