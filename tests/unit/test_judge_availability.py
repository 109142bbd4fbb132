"""Circuits, pauses and percentiles, by hand."""

from __future__ import annotations

import asyncio
import random

import pytest

from judge.availability import TURNED_AWAY_IN_A_ROW, Availability, Held, Opened
from judge.latencies import MIN_OBSERVED, Latencies


class Clock:
    """Stands still until it is moved."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def availability(weights: tuple[float, ...] = (1.0,), *, is_watched: bool = True) -> tuple[Availability, Clock]:
    clock = Clock()
    found = Availability(weights=weights, num_failures=3, rng=random.Random(0), clock=clock, is_watched=is_watched)
    return found, clock


def test_failures_in_a_row_open_a_circuit_and_any_answer_between_does_not() -> None:
    found, _ = availability()
    for _ in range(5):
        found.failed(0, "no")
        found.failed(0, "no")
        found.answered(0)
    assert found.choose() == 0
    for _ in range(3):
        found.failed(0, "gone")
    assert found.choose() is None
    assert found.hold_s() is None
    (event,) = asyncio.run(found.events())
    assert event == Opened(endpoint=0, reason="3 failures in a row, the last: gone")
    found.set_open(0, False)
    assert found.choose() == 0


def test_nothing_opens_where_nobody_would_close_it() -> None:
    found, _ = availability(is_watched=False)
    for _ in range(50):
        found.failed(0, "no")
    assert found.choose() == 0


def test_four_429s_in_a_row_hold_the_endpoint_for_what_they_ask() -> None:
    found, clock = availability()
    for _ in range(3):
        found.limited(0, 2.0, longest_s=60.0)
    assert found.choose() == 0
    found.limited(0, 2.0, longest_s=60.0)
    assert (found.choose(), found.hold_s()) == (None, 2.0)
    assert asyncio.run(found.events()) == [Held(endpoint=0, seconds=2.0)]
    clock.now_s += 2.0
    assert found.choose() == 0


def test_429s_between_answers_hold_nobody() -> None:
    found, _ = availability()
    for _ in range(20):
        found.limited(0, 2.0, longest_s=60.0)
        found.answered(0)
    assert found.choose() == 0


def test_a_pause_longer_than_a_call_opens_the_circuit_at_once() -> None:
    found, _ = availability()
    found.limited(0, 90.0, longest_s=60.0)
    assert found.choose() is None
    (event,) = asyncio.run(found.events())
    assert isinstance(event, Opened)
    assert event.for_s == 90.0


def test_an_endpoint_that_turns_all_away_without_saying_for_how_long_is_as_good_as_down() -> None:
    found, _ = availability()
    for _ in range(TURNED_AWAY_IN_A_ROW - 1):
        found.limited(0, None, longest_s=60.0)
    assert found.choose() == 0
    found.limited(0, None, longest_s=60.0)
    assert found.choose() is None
    (event,) = asyncio.run(found.events())
    assert event == Opened(endpoint=0, reason="HTTP 429, 20 times in a row")


def test_a_trial_that_is_turned_away_reports_the_pause_asked_for() -> None:
    found, _ = availability()
    found.set_open(0, True)
    found.limited(0, 7.0, longest_s=60.0)
    (event,) = asyncio.run(found.events())
    assert isinstance(event, Opened)
    assert event.for_s == 7.0


def test_another_endpoint_is_chosen_where_there_is_one() -> None:
    found, _ = availability((1.0, 9.0))
    assert {found.choose(avoid=1) for _ in range(20)} == {0}
    found.set_open(0, True)
    assert {found.choose(avoid=1) for _ in range(20)} == {1}
    found.set_open(0, False)
    share = sum(found.choose() == 0 for _ in range(2000)) / 2000
    assert share == pytest.approx(0.1, abs=0.03)


def test_a_request_is_late_after_the_percentile_of_its_kind() -> None:
    latencies = Latencies(90.0)
    for tenth in range(1, MIN_OBSERVED):
        latencies.add((0, "verdicts"), tenth / 10)
    assert latencies.late_after_s((0, "verdicts")) is None  # one too few
    latencies.add((0, "verdicts"), MIN_OBSERVED / 10)
    assert latencies.late_after_s((0, "verdicts")) == 1.8  # 90 % of 20 values: the 18th
    assert latencies.late_after_s((1, "verdicts")) is None
    assert latencies.late_after_s((0, "answer")) is None
    assert Latencies(None).late_after_s((0, "verdicts")) is None
