"""How long to pause before the next attempt. Pure."""

from __future__ import annotations

import random
from datetime import UTC
from email.utils import parsedate_to_datetime

from mrpo.config import JudgeConfig

MAX_ASKED_S = 86_400.0  # a day: a longer pause is as good as a mistake


def retry_after_s(header: str | None, *, now_s: float) -> float | None:
    """Seconds a Retry-After header asks for, in either of its two forms; None where it is missing or unreadable.

    Args:
        header: a number of seconds, or an HTTP date.
        now_s: time.time(), against which a date is read.
    """
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.isdigit():
        return min(float(text), MAX_ASKED_S)
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    if date.tzinfo is None:  # "-0000": UTC, from a place that is not told
        date = date.replace(tzinfo=UTC)
    return min(max(0.0, date.timestamp() - now_s), MAX_ASKED_S)


def pause_s(num_failed: int, *, asked_s: float | None, config: JudgeConfig, rng: random.Random) -> float:
    """Seconds to wait after the `num_failed`-th failed attempt (1 is the first).

    The pause doubles from `backoff_s` up to `backoff_max_s` and is jittered to between half and all of that, so that
    calls that failed together do not return together. What the server asked for is a floor, with jitter on top.
    """
    exponent = min(num_failed - 1, 62)  # 2**62 times any pause is above every cap
    cap = min(config.backoff_max_s, config.backoff_s * 2.0**exponent)
    own = cap * rng.uniform(0.5, 1.0)
    return own if asked_s is None else asked_s + own / 2
