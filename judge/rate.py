"""When the next request may begin, by the requests and tokens of a minute. Pure: time is given.

Requests are evenly spaced, without a burst, and a little further apart than the limit says, because they may leave a
little late: no window of a minute holds more than the limit, however a server counts it. Tokens are spaced by their
number likewise. What they cost is known after the reply; until then an estimate stands for it, scaled by the most
that recent replies have shown, and the tokens of the last minute are summed up, corrected as replies come.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

MINUTE_S = 61.0  # over which a minute's worth is spread; the second is for requests that leave late
CATCH_UP_S = 0.25  # by which a booking may be late without the ones after it being late, too
RECENT = 64  # replies by which estimates are scaled
SURPRISE = 1.1  # a request may cost a little more than any of them
UNKNOWN_AT_ONCE = 4  # requests under way while no reply has shown yet what one costs


class Lane:
    """Even spacing of one quantity."""

    def __init__(self, per_minute: int) -> None:
        self._seconds_each = MINUTE_S / per_minute
        self._free_at = float("-inf")

    def wait_s(self, now: float) -> float:
        """Seconds until the next booking may begin."""
        return max(0.0, self._free_at - now)

    def book(self, amount: int, now: float) -> None:
        """Begin now; the next may once this amount has passed, from when this one might have begun."""
        self._free_at = max(now - CATCH_UP_S, self._free_at) + amount * self._seconds_each

    def adjust(self, amount: int) -> None:
        """The last bookings turned out larger, or (negative) smaller, by so much."""
        self._free_at += amount * self._seconds_each


@dataclass(slots=True)
class Entry:
    """One request of the last minute."""

    at_s: float
    estimate: int
    tokens: int  # that it stands for
    is_under_way: bool = True


class TokenLane:
    """The tokens of the last minute."""

    def __init__(self, per_minute: int) -> None:
        self._limit = per_minute
        self._spacing = Lane(per_minute)
        self._entries: deque[Entry] = deque()
        self._sum = 0  # of their tokens
        self._under_way = 0  # of them
        self._shown: deque[float] = deque(maxlen=RECENT)  # cost as a multiple of the estimate

    def wait_s(self, estimate: int, now: float) -> float:
        """Seconds until a request of about so many tokens may begin, as far as is known now."""
        self._forget(now)
        until = now
        if not self._shown and self._under_way >= UNKNOWN_AT_ONCE:
            until = self._entries[0].at_s + MINUTE_S
        left = self._sum + self._scaled(estimate) - self._limit
        for entry in self._entries:  # one above the limit begins when it is alone
            if left <= 0:
                break
            left -= entry.tokens
            until = max(until, entry.at_s + MINUTE_S)
        return max(until - now, self._spacing.wait_s(now))

    def book(self, estimate: int, now: float) -> Entry:
        """Begin a request of about so many tokens now."""
        tokens = self._scaled(estimate)
        entry = Entry(now, estimate, tokens)
        self._entries.append(entry)
        self._sum += tokens
        self._under_way += 1
        self._spacing.book(tokens, now)
        return entry

    def settle(self, entry: Entry, tokens: int | None) -> None:
        """A request ended and cost so many tokens; None: not known."""
        is_counted = bool(self._entries) and entry.at_s >= self._entries[0].at_s
        if entry.is_under_way and is_counted:
            self._under_way -= 1
        entry.is_under_way = False
        if tokens is None:
            return
        if tokens and entry.estimate:
            self._shown.append(tokens / entry.estimate)
        self._spacing.adjust(tokens - entry.tokens)
        if is_counted:
            self._sum += tokens - entry.tokens
        entry.tokens = tokens

    def _scaled(self, estimate: int) -> int:
        if not self._shown:
            return estimate
        return math.ceil(estimate * SURPRISE * max(self._shown))

    def _forget(self, now: float) -> None:
        while self._entries and now - self._entries[0].at_s >= MINUTE_S:
            entry = self._entries.popleft()
            self._sum -= entry.tokens
            self._under_way -= entry.is_under_way
