"""The rate limiter, on a clock of its own, and the division of concurrency."""

from __future__ import annotations

import asyncio

import pytest

from judge.limiter import LATE_S, MAX_BOOKINGS, MINUTE_S, RateLimiter, split_concurrency, wait_for_rate
from mrpo.config import JudgeConfig
from mrpo.errors import ConfigError

LONGER = MINUTE_S / 60.0  # by how much bookings are further apart than the limit says


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def limiter_of(
    requests_per_minute: int | None = None, tokens_per_minute: int | None = None
) -> tuple[RateLimiter, Clock]:
    clock = Clock()
    limiter = RateLimiter(requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute, clock=clock)
    return limiter, clock


def waits(limiter: RateLimiter, amounts: list[int]) -> list[float]:
    async def book() -> list[float]:
        return [await limiter.reserve(amount) for amount in amounts]

    return asyncio.run(book())


def test_requests_are_evenly_spaced() -> None:
    limiter, _ = limiter_of(requests_per_minute=120)
    assert waits(limiter, [1] * 4) == pytest.approx([0.0, 0.5 * LONGER, 1.0 * LONGER, 1.5 * LONGER])


def test_time_that_passed_is_taken_off_the_wait() -> None:
    limiter, clock = limiter_of(requests_per_minute=120)
    waits(limiter, [1] * 4)
    clock.now_s += 1.75 * LONGER
    assert waits(limiter, [1]) == pytest.approx([0.25 * LONGER])


def test_idle_time_is_not_saved_up_for_a_burst() -> None:
    limiter, clock = limiter_of(requests_per_minute=60)
    waits(limiter, [1])
    clock.now_s += 3600
    assert waits(limiter, [1, 1]) == pytest.approx([0.0, 1.0 * LONGER])


def test_tokens_are_spaced_by_their_number() -> None:
    limiter, _ = limiter_of(tokens_per_minute=6000)  # 100 a second
    assert waits(limiter, [50, 200, 10]) == pytest.approx([0.0, 0.5 * LONGER, 2.5 * LONGER])


def test_the_tighter_limit_decides() -> None:
    limiter, _ = limiter_of(requests_per_minute=60, tokens_per_minute=6000)
    assert waits(limiter, [10, 500, 10]) == pytest.approx([0.0, 1.0 * LONGER, 5.1 * LONGER])


def test_real_costs_correct_the_estimate_both_ways() -> None:
    limiter, _ = limiter_of(tokens_per_minute=6000)
    waits(limiter, [100])
    asyncio.run(limiter.settle(200))
    assert waits(limiter, [100]) == pytest.approx([3.0 * LONGER])
    asyncio.run(limiter.settle(-50))
    assert waits(limiter, [100]) == pytest.approx([3.5 * LONGER])


def test_no_minute_holds_more_than_the_limit() -> None:
    limiter, clock = limiter_of(requests_per_minute=30)
    sent_at: list[float] = []
    for _ in range(200):
        sent_at += [clock.now_s + wait for wait in waits(limiter, [1])]
        clock.now_s += 0.7
    for start in sent_at:
        assert sum(start <= at < start + 60.0 - 1e-6 for at in sent_at) <= 30


def test_a_minute_with_late_requests_holds_no_more_than_the_limit() -> None:
    """Each leaves up to LATE_S after its time, the first latest: the worst that can be squeezed into a minute."""
    limiter, clock = limiter_of(requests_per_minute=600)
    due = [clock.now_s + wait for wait in waits(limiter, [1] * 1300)]
    sent_at = [max(at, clock.now_s + LATE_S) for at in due]
    first = 0
    for last, at in enumerate(sent_at):
        while at - sent_at[first] >= 60.0:
            first += 1
        assert last - first + 1 <= 600


@pytest.mark.asyncio
async def test_a_request_that_wakes_late_books_again() -> None:
    class Late:
        """Answers too late for the first two bookings."""

        def __init__(self, num_late: int) -> None:
            self.num_bookings, self.num_late = 0, num_late

        async def reserve(self, num_tokens: int) -> float:
            self.num_bookings += 1
            await asyncio.sleep(LATE_S + 0.05 if self.num_bookings <= self.num_late else 0.0)
            return 0.0

        async def settle(self, num_tokens: int) -> None:
            raise AssertionError

    once, ever = Late(1), Late(100)
    await wait_for_rate(once, 10)
    await wait_for_rate(ever, 10)
    assert (once.num_bookings, ever.num_bookings) == (2, MAX_BOOKINGS)


def test_without_limits_nothing_waits() -> None:
    limiter, _ = limiter_of()
    assert waits(limiter, [10**9] * 3) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("concurrency", "num_actors", "shares"), [(64, 1, [64]), (64, 3, [22, 21, 21]), (3, 3, [1, 1, 1])]
)
def test_concurrency_is_divided_without_remainder(concurrency: int, num_actors: int, shares: list[int]) -> None:
    assert split_concurrency(JudgeConfig(concurrency=concurrency, num_actors=num_actors)) == shares


def test_more_actors_than_calls_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"judge\.concurrency=2 .* judge\.num_actors=3"):
        split_concurrency(JudgeConfig(concurrency=2, num_actors=3))
