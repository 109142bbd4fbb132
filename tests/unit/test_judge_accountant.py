"""What calls may spend and what they spent: prices, the ledger, warnings and refusals."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from judge.accountant import Accountant
from judge.accounting import RequestUsage
from mrpo.choices import JudgeKind
from mrpo.compose import compose_config
from mrpo.config import EndpointConfig, JudgeConfig, PriceConfig
from mrpo.errors import ConfigError, DataError
from mrpo.judge_prices import cost_of, require_prices, total_cost, unpriced
from mrpo.judge_spending import SPENDING_FILE, UNKNOWN_MODEL, Spending, SpendingLedger, read_spending
from mrpo.types import JudgeRequest
from tests.unit.full_disk import full_disk

PRICE = PriceConfig(prompt=2.0, completion=8.0, cached_prompt=0.5)


def request() -> JudgeRequest:
    return JudgeRequest(
        key="p#0", image="scan.png", question="Which side?", answer="left", rationale="A CT.", steps=["A CT.", "Left."]
    )


def config_of(**changes: Any) -> JudgeConfig:
    return JudgeConfig(**{"url": "http://here/v1", "model": "m", "send_image": False, **changes})


def usage(prompt: int | None = 700, completion: int | None = 40, *, cached: int = 0, model: str = "m") -> RequestUsage:
    return RequestUsage(
        endpoint=0, model=model, prompt_tokens=prompt, cached_prompt_tokens=cached, completion_tokens=completion
    )


def test_money_by_the_million_and_cached_tokens_at_their_own_price() -> None:
    spending = Spending(requests=3, prompt_tokens=1_000_000, cached_prompt_tokens=400_000, completion_tokens=250_000)
    assert cost_of(spending, PRICE) == pytest.approx(0.6 * 2.0 + 0.4 * 0.5 + 0.25 * 8.0)
    assert cost_of(spending, PriceConfig(prompt=2.0, completion=8.0)) == pytest.approx(2.0 + 2.0)
    free = PriceConfig(prompt=2.0, completion=0.0, cached_prompt=0.0)
    assert cost_of(spending, free) == pytest.approx(1.2)


def test_of_several_models_those_with_a_price_are_summed_and_the_others_named() -> None:
    spent = {"m": Spending(prompt_tokens=500_000), "n": Spending(completion_tokens=1), "o": Spending(requests=1)}
    assert total_cost(spent, {"m": PRICE}) == pytest.approx(1.0)
    assert unpriced(spent, {"m": PRICE}) == ["n"]
    assert total_cost(spent, {}) is None
    assert total_cost({}, {}) == 0.0


def test_the_ledger_is_read_back_and_grows(tmp_path: Path) -> None:
    path = tmp_path / SPENDING_FILE
    first = SpendingLedger(path)
    assert first.total == Spending()
    first.add({"m": Spending(requests=2, prompt_tokens=700, cached_prompt_tokens=512, completion_tokens=40)})
    first.add({"m": Spending(requests=1), UNKNOWN_MODEL: Spending(requests=4)})
    second = SpendingLedger(path)
    assert (
        second.spent
        == first.spent
        == {
            "m": Spending(requests=3, prompt_tokens=700, cached_prompt_tokens=512, completion_tokens=40),
            UNKNOWN_MODEL: Spending(requests=4),
        }
    )
    second.add({"m": Spending(completion_tokens=5)})
    assert SpendingLedger(path).total.tokens == 745


def test_a_line_that_a_kill_cut_is_dropped_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / SPENDING_FILE
    SpendingLedger(path).add({"m": Spending(requests=1)})
    path.write_bytes(path.read_bytes() + b'{"model": "m", "requ')
    with caplog.at_level(logging.WARNING):
        ledger = SpendingLedger(path)
    assert "cut short" in caplog.text
    ledger.add({"m": Spending(requests=1)})
    assert read_spending(path) == {"m": Spending(requests=2)}


def test_a_call_that_a_full_disk_cuts_short_is_missing_and_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / SPENDING_FILE
    ledger = SpendingLedger(path)
    ledger.add({"m": Spending(requests=1)})
    with full_disk(path, room=10), pytest.raises(OSError):
        ledger.add({"m": Spending(requests=100)})
    ledger.add({"m": Spending(requests=1)})
    assert ledger.total.requests == 102
    assert SpendingLedger(path).total.requests == 2


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        "[]",
        "rubbish",
        '{"model": 3}',
        '{"model": "m", "requests": -1}',
        '{"model": "m", "requests": 1.5}',
        '{"model": "m", "requests": true}',
        '{"model": "m", "wrong": 1}',
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / SPENDING_FILE
    path.write_text('{"model": "m", "requests": 1}\n' + line + '\n{"model": "m", "requests": 1}\n')
    with pytest.raises(DataError, match=r"judge_spending\.jsonl line 2 is damaged"):
        SpendingLedger(path)


@pytest.mark.asyncio
async def test_what_replies_name_is_spent_and_on_record(tmp_path: Path) -> None:
    config = config_of(prices={"m": PRICE})
    accountant = Accountant(config, SpendingLedger(tmp_path / SPENDING_FILE))
    lease = await accountant.lease(request(), 4)
    assert lease.requests == 4
    accountant.settle(lease, [usage(None, None), usage(1000, 50, cached=600)])
    expected = Spending(requests=2, prompt_tokens=1000, cached_prompt_tokens=600, completion_tokens=50)
    assert accountant.spent == read_spending(tmp_path / SPENDING_FILE)["m"] == expected
    metrics = accountant.take_metrics()
    assert metrics["judge/tokens"] == 1050
    assert metrics["judge/cost"] == pytest.approx((400 * 2.0 + 600 * 0.5 + 50 * 8.0) / 1e6)
    assert accountant.take_metrics() == {"judge/tokens": 0.0, "judge/cost": 0.0}


@pytest.mark.asyncio
async def test_a_reply_that_names_no_usage_is_estimated_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    accountant = Accountant(config_of(), SpendingLedger(None))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            lease = await accountant.lease(request(), 1)
            accountant.settle(lease, [replace(usage(None, None), replied=True)])
    assert accountant.spent.estimated_requests == 2
    assert accountant.spent.prompt_tokens == 2 * lease.prompt_tokens > 0
    assert accountant.spent.completion_tokens == 2 * 40  # 20 a step
    assert len(caplog.records) == 1
    lease = await accountant.lease(request(), 1)
    accountant.settle(lease, [usage(None, None)])  # no reply: a timeout, say
    assert accountant.spent.estimated_requests == 2
    assert accountant.spent.requests == 3
    lease = await accountant.lease(request(), 3)
    timed_out, unnamed = usage(None, None), replace(usage(None, None), replied=True)
    accountant.settle(lease, [timed_out, unnamed, unnamed])  # the one that was faster, and the one it overtook
    assert accountant.spent.estimated_requests == 4


@pytest.mark.asyncio
async def test_requests_of_a_lost_actor_count_for_a_model_that_is_not_known() -> None:
    accountant = Accountant(config_of(max_requests=6), SpendingLedger(None))
    lease = await accountant.lease(request(), 4)
    accountant.settle(lease, (), lost=4)
    assert (await accountant.lease(request(), 4)).requests == 2
    assert accountant.spent == Spending(requests=4)


@pytest.mark.asyncio
async def test_a_budget_of_tokens_ends_and_says_so() -> None:
    accountant = Accountant(config_of(max_tokens=5000), SpendingLedger(None))
    num_calls = 0
    while (lease := await accountant.lease(request(), 1)).requests:
        accountant.settle(lease, [usage(1500, 40)])
        num_calls += 1
    assert num_calls == 3  # the fourth may take 1540 more, of 380 that are left
    assert "judge.max_tokens=5000: 4,620 spent, and a request may take 1,540" in lease.refusal


@pytest.mark.asyncio
async def test_a_budget_of_money_goes_over_a_restart(tmp_path: Path) -> None:
    path, config = tmp_path / SPENDING_FILE, config_of(max_cost=0.01, prices={"m": PRICE})
    for _ in range(2):
        accountant = Accountant(config, SpendingLedger(path))
        lease = await accountant.lease(request(), 1)
        accountant.settle(lease, [usage(2000, 100)])  # 0.0048
    metrics = accountant.take_metrics()
    assert metrics["judge/budget_left_share"] == pytest.approx(0.04)
    assert (metrics["judge/tokens"], metrics["judge/cost"]) == (2100, pytest.approx(0.0048)), "of this part alone"
    lease = await Accountant(config, SpendingLedger(path)).lease(request(), 1)
    assert lease.requests == 0
    assert "judge.max_cost=0.01: 0.0096 spent" in lease.refusal
    larger = config_of(max_cost=1.0, prices={"m": PRICE})
    assert (await Accountant(larger, SpendingLedger(path)).lease(request(), 4)).requests == 4


@pytest.mark.asyncio
async def test_a_warning_comes_once_for_each_budget() -> None:
    told: list[str] = []
    config = config_of(max_requests=10, max_tokens=10_000, warn_share=0.5)
    accountant = Accountant(config, SpendingLedger(None), on_warning=told.append)
    for _ in range(8):
        lease = await accountant.lease(request(), 1)
        accountant.settle(lease, [usage(700, 40)])
    assert [line.split(";")[0] for line in told] == [
        "judge budget: 5 of judge.max_requests=10 is spent",
        "judge budget: 5,180 of judge.max_tokens=10000 is spent",
    ]


@pytest.mark.asyncio
async def test_a_model_without_a_price_is_named_where_others_have_one() -> None:
    told: list[str] = []
    accountant = Accountant(config_of(prices={"other": PRICE}), SpendingLedger(None), on_warning=told.append)
    for _ in range(2):
        lease = await accountant.lease(request(), 1)
        accountant.settle(lease, [usage()])
    assert told == ["judge.prices has no m: judge/cost leaves their tokens out"]
    assert "judge/cost" not in accountant.take_metrics()


@pytest.mark.parametrize(
    "endpoint",
    [{}, {"url": None, "model": None, "endpoints": (EndpointConfig(url="http://a/v1", model="n"),)}],
    ids=["model", "endpoints"],
)
def test_a_budget_of_money_needs_a_price_of_each_model(endpoint: dict[str, Any]) -> None:
    config = config_of(max_cost=1.0, prices={"other": PRICE}, **endpoint)
    with pytest.raises(ConfigError, match=r"judge\.max_cost=1 needs a price .* in judge\.prices"):
        Accountant(config, SpendingLedger(None))


ENDPOINT = ["judge=openai_compatible", "judge.url=http://here/v1", "judge.model=lab/judge-4.1"]


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (ENDPOINT, r"judge\.max_cost=5 needs a price of lab/judge-4\.1 in judge\.prices; set e\.g\. 'judge\.prices="),
        ([*ENDPOINT, "judge.prices={other:{prompt:1,completion:2}}"], r"prices are set for: other"),
        (["judge=oracle"], "needs a price of oracle"),
    ],
    ids=["none", "another", "local"],
)
def test_a_budget_of_money_without_a_price_is_refused_before_anything_starts(overrides: list[str], match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        compose_config([*overrides, "judge.max_cost=5"])
    (setting,) = re.findall(r"'(judge\.prices=\S+)'", str(caught.value))
    config = compose_config([*overrides, "judge.max_cost=5", setting])
    assert list(config.judge.prices.values())[-1] == PriceConfig(prompt=0.4, completion=1.6, cached_prompt=0.1)


def test_your_own_gpus_have_no_price_per_token() -> None:
    with pytest.raises(ConfigError, match=r"judge\.max_tokens or judge\.max_requests"):
        require_prices(JudgeConfig(kind=JudgeKind.VLLM, max_cost=5.0))


def test_a_negative_price_and_half_a_price_are_refused() -> None:
    for price in ("{m:{prompt:-1,completion:2}}", "{m:{prompt:1}}"):
        with pytest.raises(ConfigError, match=r"judge\.prices"):
            compose_config([*ENDPOINT, f"judge.prices={price}"])


@pytest.mark.asyncio
async def test_a_ledger_that_cannot_be_written_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    accountant = Accountant(config_of(max_requests=3), SpendingLedger(tmp_path / "gone" / SPENDING_FILE))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            lease = await accountant.lease(request(), 1)
            accountant.settle(lease, [usage()])
    assert sum("on record" in record.message for record in caplog.records) == 1
    assert (await accountant.lease(request(), 1)).requests == 0
