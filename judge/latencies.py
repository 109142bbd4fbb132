"""How long recent requests took, and when one is late enough to be sent a second time. Pure."""

from __future__ import annotations

import math
from collections import deque

MIN_OBSERVED = 20  # requests before a percentile means anything
RECENT = 200  # requests it is taken over


class Latencies:
    """Recent latencies by class of request (which endpoint, which question)."""

    def __init__(self, percentile: float | None) -> None:
        """`percentile` in (0, 100); None: nothing is ever late."""
        self._percentile = percentile
        self._recent: dict[tuple[int, str], deque[float]] = {}

    def add(self, kind: tuple[int, str], seconds: float) -> None:
        """A request of this class took so long, or was given up after it."""
        if self._percentile is not None:
            self._recent.setdefault(kind, deque(maxlen=RECENT)).append(seconds)

    def late_after_s(self, kind: tuple[int, str]) -> float | None:
        """The percentile of the class (nearest rank); None: never, or too few are known."""
        recent = self._recent.get(kind, ())
        if self._percentile is None or len(recent) < MIN_OBSERVED:
            return None
        rank = math.ceil(self._percentile / 100.0 * len(recent))
        return sorted(recent)[max(rank, 1) - 1]
