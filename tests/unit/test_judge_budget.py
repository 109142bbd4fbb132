"""The hard budget of HTTP requests."""

from __future__ import annotations

import asyncio
import random

import pytest

from judge.budget import RequestBudget


@pytest.mark.asyncio
async def test_without_a_limit_requests_are_only_counted() -> None:
    budget = RequestBudget(None)
    assert await budget.lease(4) == 4
    await budget.settle(4, 2)
    assert budget.spent == 2


@pytest.mark.asyncio
async def test_the_last_requests_are_leased_in_part_and_then_no_more() -> None:
    budget = RequestBudget(5)
    assert await budget.lease(4) == 4
    await budget.settle(4, 4)
    assert await budget.lease(4) == 1
    await budget.settle(1, 1)
    assert await budget.lease(4) == 0
    assert budget.spent == 5


@pytest.mark.asyncio
async def test_a_call_waits_for_what_another_may_give_back() -> None:
    budget = RequestBudget(4)
    assert await budget.lease(4) == 4
    waiting = asyncio.create_task(budget.lease(4))
    await asyncio.sleep(0)
    assert not waiting.done()
    await budget.settle(4, 1)
    assert await waiting == 3


@pytest.mark.asyncio
async def test_a_resumed_run_goes_on_where_it_stopped() -> None:
    budget = RequestBudget(5, spent=4)
    assert await budget.lease(4) == 1


@pytest.mark.asyncio
async def test_many_calls_at_once_spend_exactly_the_budget() -> None:
    rng = random.Random(0)
    budget, made, turned_away = RequestBudget(100), 0, 0

    async def call() -> None:
        nonlocal made, turned_away
        granted = await budget.lease(4)
        turned_away += granted == 0
        await asyncio.sleep(rng.random() / 1000)
        used = rng.randint(1, granted) if granted else 0
        made += used
        await budget.settle(granted, used)

    await asyncio.gather(*(call() for _ in range(150)))
    assert made == budget.spent == 100
    assert turned_away > 0
