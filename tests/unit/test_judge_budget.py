"""The hard budgets of a run: leases of requests, tokens and money."""

from __future__ import annotations

import asyncio
import math
import random

import pytest

from judge.budget import NO_LIMITS, UNLIMITED, Amounts, Budget


def requests_only(limit: float, *, spent: float = 0) -> Budget:
    return Budget(Amounts(requests=limit, tokens=UNLIMITED, cost=UNLIMITED), spent=Amounts(requests=spent))


@pytest.mark.asyncio
async def test_without_a_limit_all_is_only_counted() -> None:
    budget = Budget(NO_LIMITS)
    granted, name = await budget.lease(4, Amounts(requests=1, tokens=10_000, cost=9))
    assert granted == 4
    budget.settle(name, Amounts(requests=2, tokens=700, cost=0.25))
    assert budget.spent == Amounts(requests=2, tokens=700, cost=0.25)
    assert budget.shares_left() == NO_LIMITS


@pytest.mark.asyncio
async def test_the_last_requests_are_leased_in_part_and_then_no_more() -> None:
    budget = requests_only(5)
    for expected in (4, 1):
        granted, name = await budget.lease(4)
        assert granted == expected
        budget.settle(name, Amounts(requests=granted))
    assert (await budget.lease(4))[0] == 0
    assert budget.spent.requests == 5


@pytest.mark.asyncio
async def test_a_call_waits_for_what_another_may_give_back() -> None:
    budget = requests_only(4)
    _, name = await budget.lease(4)
    waiting = asyncio.create_task(budget.lease(4))
    await asyncio.sleep(0)
    assert not waiting.done()
    budget.settle(name, Amounts(requests=1))
    assert (await waiting)[0] == 3


@pytest.mark.asyncio
async def test_a_call_that_is_given_up_while_it_waits_holds_nothing() -> None:
    budget = requests_only(4)
    _, name = await budget.lease(4)
    waiting = asyncio.create_task(budget.lease(4))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    budget.settle(name, Amounts())
    assert (await budget.lease(4))[0] == 4


@pytest.mark.asyncio
async def test_a_resumed_run_goes_on_where_it_stopped() -> None:
    assert (await requests_only(5, spent=4).lease(4))[0] == 1


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("limits", "granted"),
    [
        (Amounts(requests=100, tokens=2500, cost=UNLIMITED), 2),  # of 1000 tokens each
        (Amounts(requests=100, tokens=UNLIMITED, cost=0.31), 3),  # of 0.1 each
        (Amounts(requests=1, tokens=2500, cost=0.31), 1),
        (Amounts(requests=100, tokens=999, cost=UNLIMITED), 0),
    ],
    ids=str,
)
async def test_the_scarcest_decides(limits: Amounts, granted: int) -> None:
    assert (await Budget(limits).lease(4, Amounts(requests=1, tokens=1000, cost=0.1)))[0] == granted


@pytest.mark.asyncio
async def test_what_is_spent_beyond_an_estimate_counts() -> None:
    budget = Budget(Amounts(requests=UNLIMITED, tokens=1000, cost=UNLIMITED))
    granted, name = await budget.lease(1, Amounts(requests=1, tokens=600))
    assert granted == 1
    budget.settle(name, Amounts(requests=1, tokens=1200))
    assert (await budget.lease(1, Amounts(requests=1, tokens=1)))[0] == 0
    assert (await budget.lease(1, Amounts(requests=1)))[0] == 0, "a free request of a spent budget"
    assert budget.shares_left().tokens == 0.0


@pytest.mark.asyncio
async def test_many_calls_at_once_spend_exactly_the_budget() -> None:
    rng = random.Random(0)
    budget, made, turned_away = requests_only(100), 0, 0

    async def call() -> None:
        nonlocal made, turned_away
        granted, name = await budget.lease(4)
        await asyncio.sleep(rng.random() / 1000)
        if granted == 0:
            turned_away += 1
            return
        used = rng.randint(1, granted)
        made += used
        budget.settle(name, Amounts(requests=used))

    await asyncio.gather(*(call() for _ in range(150)))
    assert made == budget.spent.requests == 100
    assert turned_away > 0


@pytest.mark.asyncio
async def test_many_calls_at_once_never_take_more_money_than_there_is() -> None:
    rng = random.Random(1)
    budget = Budget(Amounts(requests=UNLIMITED, tokens=UNLIMITED, cost=1.0))

    async def call() -> None:
        granted, name = await budget.lease(4, Amounts(requests=1, cost=0.03))
        await asyncio.sleep(rng.random() / 1000)
        if granted:
            budget.settle(name, Amounts(requests=1, cost=rng.uniform(0.0, 0.03)))

    await asyncio.gather(*(call() for _ in range(200)))
    assert 0.97 < budget.spent.cost <= 1.0
    assert math.isclose(budget.shares_left().cost, 1.0 - budget.spent.cost)
