"""Pauses between attempts."""

from __future__ import annotations

import random
import time
from email.utils import formatdate

import pytest

from judge.backoff import pause_s, retry_after_s
from mrpo.config import JudgeConfig

NOW_S = 1_800_000_000.0
CONFIG = JudgeConfig(backoff_s=0.5, backoff_max_s=20.0)


@pytest.mark.parametrize(("header", "seconds"), [("0", 0.0), ("7", 7.0), (" 120 ", 120.0)])
def test_seconds_are_read(header: str, seconds: float) -> None:
    assert retry_after_s(header, now_s=NOW_S) == seconds


@pytest.mark.parametrize(("ahead_s", "seconds"), [(30, 30.0), (0, 0.0), (-30, 0.0)])
def test_dates_are_read_and_the_past_means_now(ahead_s: float, seconds: float) -> None:
    assert retry_after_s(formatdate(NOW_S + ahead_s, usegmt=True), now_s=NOW_S) == seconds


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "soon",
        "-5",
        "1.5",
        "nan",
        "²",
        f"Mon, 01 Jan 2027 00:00:00 +{9**30}",
        "Mon, 32 Dec 99999 00:00:00 GMT",
    ],
)
def test_what_cannot_be_read_asks_for_nothing(header: str | None) -> None:
    assert retry_after_s(header, now_s=NOW_S) is None


@pytest.mark.parametrize(("num_failed", "most"), [(1, 0.5), (2, 1.0), (3, 2.0), (6, 16.0), (7, 20.0), (5000, 20.0)])
def test_pause_doubles_up_to_the_cap_within_its_jitter(num_failed: int, most: float) -> None:
    rng = random.Random(0)
    pauses = [pause_s(num_failed, asked_s=None, config=CONFIG, rng=rng) for _ in range(200)]
    assert most / 2 <= min(pauses) < 0.6 * most
    assert 0.9 * most < max(pauses) <= most


def test_what_the_server_asks_for_is_a_floor_with_jitter() -> None:
    rng = random.Random(0)
    pauses = {pause_s(1, asked_s=30.0, config=CONFIG, rng=rng) for _ in range(50)}
    assert min(pauses) > 30.0
    assert max(pauses) <= 30.25
    assert len(pauses) == 50


def test_a_date_of_no_known_place_is_in_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert retry_after_s(formatdate(NOW_S + 30).replace("+0000", "-0000"), now_s=NOW_S) == 30.0
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("header", ["9" * 12, "9" * 400, formatdate(NOW_S + 1e9, usegmt=True)])
def test_nobody_is_waited_for_longer_than_a_day(header: str) -> None:
    assert retry_after_s(header, now_s=NOW_S) == 86_400.0
