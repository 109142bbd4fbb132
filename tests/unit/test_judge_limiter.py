"""The rate limiter: its arithmetic on given times, its queue in real time, and the division of concurrency."""

from __future__ import annotations

import asyncio
import itertools
import random
import time

import pytest

from judge.limiter import LATE_S, MAX_TURNS, Gate, RateLimiter, Turn, split_concurrency
from judge.rate import CATCH_UP_S, MINUTE_S, UNKNOWN_AT_ONCE, Entry, Lane, TokenLane
from mrpo.config import JudgeConfig
from mrpo.errors import ConfigError

LONGER = MINUTE_S / 60.0  # by how much bookings are further apart than the limit says


def most_within_a_minute(sent: list[tuple[float, int]]) -> int:
    """The largest sum of amounts in any window of 60 s; times in order."""
    most = first = total = 0
    for at_s, amount in sent:
        total += amount
        while at_s - sent[first][0] >= 60.0:
            total -= sent[first][1]
            first += 1
        most = max(most, total)
    return most


def test_requests_are_evenly_spaced() -> None:
    lane, now, starts = Lane(120), 1000.0, []
    for _ in range(4):
        now += lane.wait_s(now)
        starts.append(now)
        lane.book(1, now)
    gaps = [after - before for before, after in itertools.pairwise(starts)]
    # The first comes from idle time, of which a quarter of a second is saved.
    assert gaps == pytest.approx([0.5 * LONGER - CATCH_UP_S, 0.5 * LONGER, 0.5 * LONGER])


def test_idle_time_is_not_saved_up_for_a_burst() -> None:
    lane = Lane(600)
    lane.book(1, 0.0)
    now, starts = 3600.0, []
    for _ in range(60):
        now += lane.wait_s(now)
        starts.append(now)
        lane.book(1, now)
    assert sum(at < 3600.01 for at in starts) == 3  # a quarter of a second's worth
    assert starts[-1] - 3600.0 == pytest.approx(59 * 0.1 * LONGER - CATCH_UP_S)


def test_who_wakes_late_does_not_delay_those_after() -> None:
    lane, now = Lane(3000), 0.0
    for _ in range(1000):
        now += lane.wait_s(now) + 0.015  # each by three quarters of the spacing
        lane.book(1, now)
    assert now == pytest.approx(1000 * 0.02 * LONGER, rel=0.03)


@pytest.mark.parametrize("late_s", [0.0, 0.1, CATCH_UP_S + LATE_S])
def test_no_minute_holds_more_requests_than_the_limit(late_s: float) -> None:
    lane, now, rng, sent = Lane(600), 0.0, random.Random(0), []
    for _ in range(3000):
        now += lane.wait_s(now)
        lane.book(1, now)
        sent.append((now + rng.uniform(0.0, late_s), 1))
        if rng.random() < 0.01:
            now += rng.uniform(0.0, 3.0)  # idle
    assert most_within_a_minute(sorted(sent)) <= 600


@pytest.mark.parametrize("factor", [0.4, 1.0, 5.0])
@pytest.mark.parametrize("latency_s", [0.3, 8.0])
def test_no_minute_holds_more_tokens_than_the_limit_whatever_was_estimated(factor: float, latency_s: float) -> None:
    """Requests of 1,700 estimated tokens that cost `factor` times that, give or take a third."""
    lane, now, rng = TokenLane(120_000), 0.0, random.Random(1)
    under_way: list[tuple[float, Entry, int]] = []
    sent: list[tuple[float, int]] = []
    while now < 600.0:
        wait_s = lane.wait_s(1700, now)
        ends_s = under_way[0][0] if under_way else float("inf")
        if ends_s <= now + wait_s:
            now, entry, cost = under_way.pop(0)
            lane.settle(entry, cost)
            continue
        now += wait_s
        if wait_s > 0.0:
            continue
        cost = round(1700 * factor * rng.uniform(0.67, 1.33))
        under_way.append((now + latency_s, lane.book(1700, now), cost))
        sent.append((now, cost))
    assert most_within_a_minute(sent) <= 120_000
    assert sum(cost for at_s, cost in sent if at_s >= 60.0) >= 0.85 * 9 * 120_000  # a request is 7 % of it


def test_until_a_reply_has_shown_the_cost_few_requests_are_under_way() -> None:
    lane = TokenLane(1_000_000)
    entries = [lane.book(10, float(second)) for second in range(UNKNOWN_AT_ONCE)]
    assert lane.wait_s(10, 5.0) == pytest.approx(MINUTE_S - 5.0)  # until the first of them is forgotten
    lane.settle(entries[0], None)  # it failed: nothing is known, but there is room for another
    assert lane.wait_s(10, 5.0) == 0.0
    lane.book(10, 5.0)
    lane.settle(entries[1], 20)
    for _ in range(50):
        lane.book(10, 6.0)
    assert lane.wait_s(10, 7.0) == 0.0


def test_one_request_above_the_limit_goes_when_it_is_alone() -> None:
    lane = TokenLane(100)
    lane.settle(lane.book(500, 0.0), 500)
    assert 4 * MINUTE_S < lane.wait_s(500, 1.0) <= 5 * MINUTE_S
    assert lane.wait_s(500, 5 * MINUTE_S) == 0.0


def test_a_request_that_was_not_made_costs_nothing() -> None:
    lane = TokenLane(6000)
    lane.settle(lane.book(50, 0.0), 50)
    lane.settle(lane.book(6000, 10.0), 0)
    assert lane.wait_s(50, 10.0) == 0.0


def test_nothing_is_kept_of_requests_long_ago() -> None:
    lane = TokenLane(60_000)
    for second in range(0, 20_000, 2):
        assert lane.wait_s(100, float(second)) == 0.0
        entry = lane.book(100, float(second))
        if second % 3:
            lane.settle(entry, 90)
    assert len(lane._entries) <= MINUTE_S / 2 + 1
    assert lane._under_way <= len(lane._entries)
    assert lane._sum == sum(entry.tokens for entry in lane._entries)


@pytest.mark.asyncio
async def test_turns_come_in_the_order_of_asking_and_as_fast_as_the_limit_allows() -> None:
    limiter = RateLimiter(requests_per_minute=6000, tokens_per_minute=None)  # 100 a second
    order: list[int] = []

    async def ask(number: int) -> None:
        await limiter.reserve(1)
        order.append(number)

    began_s = time.monotonic()
    await asyncio.gather(*(ask(number) for number in range(100)))
    took_s = time.monotonic() - began_s
    assert order == list(range(100))
    assert 0.7 <= took_s <= 2.5  # 99 gaps of 10 ms, less the quarter of a second


@pytest.mark.asyncio
async def test_what_a_reply_shows_reaches_those_that_wait() -> None:
    """Four of 1,000 tokens are under way, which is all for a minute; they turn out to have cost ten each."""
    limiter = RateLimiter(requests_per_minute=None, tokens_per_minute=4000)
    limiter._tokens._spacing = Lane(10**9)  # type: ignore[union-attr]
    turns = [await limiter.reserve(1000) for _ in range(4)]
    waiting = asyncio.create_task(limiter.reserve(1000))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    for turn in turns:
        await limiter.settle(turn, 10)
    await asyncio.wait_for(waiting, 5.0)


@pytest.mark.asyncio
async def test_a_request_that_wakes_late_takes_another_turn() -> None:
    class Late:
        """Its turns reach the client too late, `num_late` of them."""

        counts_tokens = True

        def __init__(self, num_late: int) -> None:
            self.num_turns, self.num_late, self.unused = 0, num_late, 0

        async def reserve(self, num_tokens: int) -> Turn:
            self.num_turns += 1
            late_s = LATE_S + 0.05 if 1 < self.num_turns <= 1 + self.num_late else 0.0
            return Turn(number=self.num_turns, at_s=time.monotonic() + 1000.0 - late_s)  # another machine's clock

        async def settle(self, turn: Turn, num_tokens: int | None) -> None:
            assert num_tokens == 0
            self.unused += 1

    for num_late, num_turns in ((0, 1), (1, 2), (100, MAX_TURNS)):
        limiter = Late(num_late)
        gate = Gate(limiter)
        await gate.enter(10)
        assert limiter.num_turns == 1
        await gate.enter(10)
        assert limiter.num_turns - 1 == num_turns
        assert limiter.unused == num_turns - 1


@pytest.mark.asyncio
async def test_without_limits_nothing_waits() -> None:
    limiter = RateLimiter(requests_per_minute=None, tokens_per_minute=None)
    began_s = time.monotonic()
    for _ in range(3):
        await limiter.reserve(10**9)
    assert time.monotonic() - began_s < 1.0


@pytest.mark.parametrize(
    ("concurrency", "num_actors", "shares"), [(64, 1, [64]), (64, 3, [22, 21, 21]), (3, 3, [1, 1, 1])]
)
def test_concurrency_is_divided_without_remainder(concurrency: int, num_actors: int, shares: list[int]) -> None:
    assert split_concurrency(JudgeConfig(concurrency=concurrency, num_actors=num_actors)) == shares


def test_more_actors_than_calls_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"judge\.concurrency=2 .* judge\.num_actors=3"):
        split_concurrency(JudgeConfig(concurrency=2, num_actors=3))
