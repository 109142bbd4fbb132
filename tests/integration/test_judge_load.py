"""Calls under load and random faults: none lost, none counted twice, no limit exceeded as the server sees it."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import pytest
from judge_server import judge_request
from PIL import Image

from judge.client import JudgeClient
from judge.limiter import LATE_S, RateLimiter
from judge.rate import CATCH_UP_S, MINUTE_S, UNKNOWN_AT_ONCE
from mrpo.config import JudgeConfig
from mrpo.types import JudgeFailure, Verdicts
from tests.integration.judge_load_run import Load, run_load
from tests.integration.judge_load_server import Faults, LoadServer

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(300)]
NUMBER = 600
WINDOW_S = 5.0  # long enough for a limiter that is a fifth too fast to exceed `most_in_window`
TRAVEL_S = 0.1  # from a client to the server on a busy machine


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "scan.png"
    Image.new("L", (84, 84), 90).save(path)
    return str(path)


def assert_accounts_agree(load: Load, number: int, *, gives_up: bool = False) -> None:
    """`gives_up`: requests may be given up on their way, at the end of a short deadline or for a hedge's other half."""
    assert [judgement.key for judgement in load.judgements] == [str(index) for index in range(number)]
    for judgement in load.judgements:
        assert isinstance(judgement.outcome, JudgeFailure) or len(judgement.outcome.alignment) == 2
    ruled = sum(isinstance(judgement.outcome, Verdicts) for judgement in load.judgements)
    assert (load.tally.begun, load.tally.ruled, load.tally.failed.total()) == (number, ruled, number - ruled)
    assert (load.tally.open, load.tally.broken, load.tally.known) == (0, 0, 0)
    made = sum(judgement.attempts for judgement in load.judgements)
    assert made == load.requests_spent == load.told.total()
    # A request is counted before it leaves; how many are given up before they arrive depends on how busy all is.
    assert made >= len(load.seen.arrived_s) if gives_up else made == len(load.seen.arrived_s)


def most_in_window(per_minute: int) -> int:
    """Requests that may arrive within `WINDOW_S`, where the first booking came late, left late and travelled slowly."""
    return int((WINDOW_S + CATCH_UP_S + LATE_S + TRAVEL_S) * per_minute / MINUTE_S) + 1


def test_every_call_ends_once_and_concurrency_holds(image: str) -> None:
    config = JudgeConfig(num_actors=4, concurrency=64, deadline_s=2.0, backoff_s=0.1)
    load = run_load(image, NUMBER, Faults(), config)
    assert_accounts_agree(load, NUMBER, gives_up=True)
    assert load.seen.max_in_flight <= 64
    reasons = {str(reason) for reason in load.tally.failed}
    assert reasons <= {"timeout", "bad_json", "transport", "rate_limited"}
    assert {"timeout", "bad_json"} <= reasons
    assert 0.85 * NUMBER <= load.tally.ruled <= 0.95 * NUMBER  # a hang or garbage ends a call: about 10 %


def test_all_slots_of_all_actors_are_used(image: str) -> None:
    """320 calls of a second at 64 a time take 5 s at least: a machine that does much besides needs less than 10.

    A pool that makes one call at a time would take minutes, one that keeps to a single actor 20 s.
    """
    faults = Faults(rate_limited=0.0, errors=0.0, hangs=0.0, garbage=0.0, latency_s=1.0)
    load = run_load(image, 320, faults, JudgeConfig(num_actors=4, concurrency=64))
    assert_accounts_agree(load, 320)
    assert load.tally.ruled == 320
    assert load.seen.max_in_flight <= 64
    assert load.utilisation >= 0.5


def test_rates_hold_with_retries_and_hedges(image: str) -> None:
    config = JudgeConfig(
        num_actors=4, concurrency=16, deadline_s=4.0, backoff_s=0.1, requests_per_minute=3000, hedge_percentile=80.0
    )
    load = run_load(image, 300, Faults(latency_s=0.05), config)
    assert_accounts_agree(load, 300, gives_up=True)
    assert load.seen.max_in_flight <= 16
    assert load.seen.arrived_s[-1] - load.seen.arrived_s[0] > WINDOW_S
    assert load.seen.most_within(WINDOW_S) <= most_in_window(3000)
    assert load.tally.ruled >= 0.9 * 300  # a hang is rescued by the second request


def test_random_429s_with_retry_after_stop_their_own_call_only(image: str) -> None:
    faults = Faults(rate_limited=0.1, errors=0.0, hangs=0.0, garbage=0.0, retry_after="1", latency_s=0.05)
    load = run_load(image, 400, faults, JudgeConfig(num_actors=2, concurrency=16, backoff_s=0.1, max_attempts=8))
    assert_accounts_agree(load, 400)
    assert load.tally.ruled == 400
    assert load.wall_s < 15.0  # 450 requests at 320 a second, and a second or two for those turned away


def test_tokens_hold_whatever_was_estimated(image: str) -> None:
    """A request costs 740 tokens and is estimated at twice that: 888,000 a minute are 20 requests a second."""
    faults = Faults(rate_limited=0.0, errors=0.0, hangs=0.0, garbage=0.0, latency_s=0.05)
    config = JudgeConfig(num_actors=4, concurrency=16, deadline_s=10.0, tokens_per_minute=888_000)
    load = run_load(image, 200, faults, config)
    assert_accounts_agree(load, 200)
    assert load.tally.ruled == 200
    # The first ones, estimated at twice their cost, may give back as much as they take.
    assert load.seen.most_within(WINDOW_S) <= most_in_window(1200) + UNKNOWN_AT_ONCE
    assert load.wall_s < 20.0  # 10 s and the first ones, which go alone


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "requests_per_minute", "tokens_per_minute"), [(620, 600, 500 * 740), (500, 500, None)]
)
def test_no_minute_holds_more_than_the_limits_as_the_server_counts(
    image: str, number: int, requests_per_minute: int, tokens_per_minute: int | None
) -> None:
    """500 requests, or the tokens of so many, with faults, second requests and retries, for more than a minute."""
    config = JudgeConfig(
        num_actors=4,
        concurrency=32,
        deadline_s=4.0,
        backoff_s=0.1,
        hedge_percentile=90.0,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
    )
    load = run_load(image, number, Faults(latency_s=0.1), config)
    assert_accounts_agree(load, number, gives_up=True)
    assert load.seen.arrived_s[-1] - load.seen.arrived_s[0] > 65.0
    assert 440 <= load.seen.most_within(60.0) <= 500


def test_nothing_is_kept_of_calls_that_ended(image: str) -> None:
    """Objects alive after 2,000 calls as after the 1,000th, faults, second requests and cancelled calls included."""

    async def rounds(url: str) -> list[int]:
        config = JudgeConfig(url=url, model="m", deadline_s=0.5, backoff_s=0.01, hedge_percentile=90.0)
        limiter = RateLimiter(requests_per_minute=10**7, tokens_per_minute=10**9)
        client = JudgeClient(config, concurrency=16, limiter=limiter)
        counts = []
        for _ in range(3):
            calls = [asyncio.create_task(client.serve(judge_request(image), max_attempts=4)) for _ in range(700)]
            await asyncio.sleep(0.2)
            for call in calls[::7]:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            del call, calls
            await asyncio.sleep(0.1)
            gc.collect()
            counts.append(len(gc.get_objects()))
        await client.close()
        return counts

    with LoadServer(Faults(latency_s=0.005, hangs=0.005)) as server:
        _, before, after = asyncio.run(rounds(server.url))
    # The turns of the last minute, one or two objects each, are to be kept; a call has dozens.
    assert after - before < 3 * 700
