"""Rulings on disk behind a real pool on Ray: what is asked once is not paid for twice, failures are asked again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from judge_server import Answer, ScriptedServer, all_ones, answer_request, judge_request, marks, reply

from judge.cache import open_cache
from judge.pool import RayJudgePool
from mrpo.choices import JudgeKind
from mrpo.config import JudgeCacheConfig, JudgeConfig, PriceConfig
from mrpo.judge_spending import SPENDING_FILE, SpendingLedger, read_spending
from mrpo.types import AnswerJudgement, FailureReason, JudgeFailure, Judgement, Verdicts

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(120)]

T = TypeVar("T")
GOOD = marks((1, 0), (0, 1))


def config_of(url: str, **changes: Any) -> JudgeConfig:
    quick: dict[str, Any] = {"backoff_s": 0.01, "backoff_max_s": 0.05, "deadline_s": 10.0, "concurrency": 8}
    return JudgeConfig(kind=JudgeKind.OPENAI_COMPATIBLE, url=url, model="judge-model", **{**quick, **changes})


def with_pool(
    config: JudgeConfig, folder: Path, scenario: Callable[[RayJudgePool], Awaitable[T]]
) -> tuple[T, dict[str, float]]:
    """One job: a pool with the cache and the ledger of this folder; and its metrics."""

    async def run() -> tuple[T, dict[str, float]]:
        cache = open_cache(config, folder)
        pool = RayJudgePool(config, rulings=cache, ledger=SpendingLedger(folder / SPENDING_FILE))
        try:
            await pool.start()
            result = await scenario(pool)
            assert pool.tally.open == 0
            return result, pool.take_metrics()
        finally:
            pool.close()
            if cache is not None:
                cache.close()

    return asyncio.run(run())


async def both_kinds(pool: RayJudgePool, image: str, key: str) -> tuple[Judgement, AnswerJudgement]:
    return await asyncio.gather(
        pool.judge(judge_request(image, key=key)), pool.judge_answer(answer_request(image, key=key))
    )


def test_what_one_job_asked_another_one_knows(tmp_path: Path, image: str) -> None:
    """The second job has another server's address, another noise, other limits: these decide about no ruling."""
    with (
        ScriptedServer(lambda _, received: all_ones(received)) as server,
        ScriptedServer(lambda *_: reply(GOOD)) as two,
    ):
        (asked, rated), metrics = with_pool(
            config_of(server.url), tmp_path, lambda pool: both_kinds(pool, image, "t#0@3")
        )
        other = config_of(two.url, noise=0.5, concurrency=3, max_attempts=2)
        (known, known_answer), later = with_pool(other, tmp_path, lambda pool: both_kinds(pool, image, "e#7"))
    assert (len(server.requests), len(two.requests)) == (2, 0)
    assert (metrics["judge/cache_hits"], metrics["judge/cache_misses"], metrics["judge/tokens"]) == (0, 2, 2 * 740)
    assert (later["judge/cache_hits"], later["judge/cache_misses"], later["judge/tokens"]) == (2, 0, 0)
    assert known.outcome == asked.outcome == Verdicts(alignment=[True, True], contribution=[True, True])
    assert known_answer.outcome is rated.outcome is True
    assert [item.attempts for item in (asked, rated, known, known_answer)] == [1, 1, 0, 0]
    assert (known.key, known_answer.key) == ("e#7", "e#7")
    assert {item.model for item in (asked, rated, known, known_answer)} == {"judge-model"}
    assert asked.rubric == known.rubric
    assert asked.rubric is not None
    assert rated.rubric == known_answer.rubric
    assert rated.rubric is not None
    assert read_spending(tmp_path / SPENDING_FILE)["judge-model"].requests == 2


BAD_REPLIES = {
    "no JSON": reply("I think both are fine."),
    "one step short": reply(marks((1, 1))),
    "refused": Answer(status=400, body=b'{"error": {"message": "no"}}'),
    "down": Answer(status=500),
}


@pytest.mark.parametrize("bad", BAD_REPLIES)
def test_a_failure_is_never_kept(tmp_path: Path, image: str, bad: str) -> None:
    async def twice(pool: RayJudgePool) -> list[Judgement]:
        first = await pool.judge(judge_request(image))
        return [first, await pool.judge(judge_request(image)), await pool.judge(judge_request(image))]

    with ScriptedServer(lambda number, _: BAD_REPLIES[bad] if number == 0 else reply(GOOD)) as server:
        (failed, ruled, known), metrics = with_pool(config_of(server.url, max_attempts=1), tmp_path, twice)
    assert isinstance(failed.outcome, JudgeFailure)
    assert failed.rubric == ruled.rubric is not None
    assert known.outcome == ruled.outcome == Verdicts(alignment=[True, False], contribution=[False, True])
    assert (metrics["judge/cache_hits"], metrics["judge/cache_misses"]) == (1, 2)
    assert sum(request.method == "POST" for request in server.requests) == 2  # beside: whether it is there at all


def test_a_damaged_ruling_is_asked_for_again_and_counted(tmp_path: Path, image: str) -> None:
    with ScriptedServer(lambda *_: reply(GOOD)) as server:
        config = config_of(server.url)
        with_pool(config, tmp_path, lambda pool: pool.judge(judge_request(image)))
        (file,) = [path for path in (tmp_path / "judge").rglob("*") if path.is_file()]
        file.write_bytes(file.read_bytes()[:-9])
        again, metrics = with_pool(config, tmp_path, lambda pool: pool.judge(judge_request(image)))
        _, mended = with_pool(config, tmp_path, lambda pool: pool.judge(judge_request(image)))
    assert isinstance(again.outcome, Verdicts)
    assert again.attempts == 1
    assert metrics["judge/cache_corrupt"] == 1
    assert "judge/cache_corrupt" not in mended
    assert mended["judge/cache_hits"] == 1
    assert len(server.requests) == 2


def test_without_a_cache_every_call_is_made(tmp_path: Path, image: str) -> None:
    with ScriptedServer(lambda *_: reply(GOOD)) as server:
        config = config_of(server.url, cache=JudgeCacheConfig(enabled=False))
        for _ in range(2):
            _, metrics = with_pool(config, tmp_path, lambda pool: pool.judge(judge_request(image)))
    assert len(server.requests) == 2
    assert not any(name.startswith("judge/cache") for name in metrics)
    assert not (tmp_path / "judge").exists()


def test_a_budget_of_money_holds_over_two_jobs_and_known_rulings_are_free(tmp_path: Path, image: str) -> None:
    """A reply names 700 + 40 tokens: 0.001 each at these prices; the first job's ten leave one of 0.0115."""

    async def many(pool: RayJudgePool) -> list[Judgement]:
        return [await pool.judge(judge_request(image, [f"Step {n}.", "B."], key=str(n))) for n in range(12)]

    async def ten(pool: RayJudgePool) -> list[Judgement]:
        return [await pool.judge(judge_request(image, [f"Step {n}.", "B."], key=str(n))) for n in range(10)]

    prices = {"judge-model": PriceConfig(prompt=1.0, completion=7.5)}
    with ScriptedServer(lambda *_: reply(GOOD)) as server:
        config = config_of(server.url, send_image=False, max_cost=0.0115, prices=prices)
        first, _ = with_pool(config, tmp_path, ten)
        second, metrics = with_pool(config, tmp_path, many)
    assert all(isinstance(judgement.outcome, Verdicts) for judgement in first)
    assert len(server.requests) == 11
    assert [judgement.attempts for judgement in second] == [0] * 10 + [1, 0]
    refused = second[11].outcome
    assert isinstance(refused, JudgeFailure)
    assert refused.reason == FailureReason.BUDGET
    assert "judge.max_cost=0.0115: 0.011 spent" in refused.detail
    assert metrics["judge/cost"] == pytest.approx(0.001)
    assert metrics["judge/budget_left_share"] == pytest.approx(1 - 0.011 / 0.0115)
