"""The hard budgets of a run — requests, tokens, money — over all judge actors. Kept in the driver, where calls start.

A call leases what it may need and gives back what it did not, so that calls under way never want more together than is
left. It is turned away only when not even one request fits: while others hold leases, it waits for what they give back.
Requests are leased exactly. Tokens and money are leased by an estimate, which the replies correct as they come: a
budget can be overrun by what the requests in flight take beyond their estimates, and by nothing else.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import astuple, dataclass

UNLIMITED = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Amounts:
    """Of the three quantities a budget may bound."""

    requests: float = 0.0
    tokens: float = 0.0
    cost: float = 0.0

    def __add__(self, other: Amounts) -> Amounts:
        return Amounts(
            requests=self.requests + other.requests, tokens=self.tokens + other.tokens, cost=self.cost + other.cost
        )

    def times(self, number: float) -> Amounts:
        """So often."""
        return Amounts(requests=self.requests * number, tokens=self.tokens * number, cost=self.cost * number)


NO_LIMITS = Amounts(requests=UNLIMITED, tokens=UNLIMITED, cost=UNLIMITED)
ONE_REQUEST = Amounts(requests=1)


class Budget:
    """Leases and counts; a quantity whose limit is infinite is only counted."""

    def __init__(self, limits: Amounts, *, spent: Amounts = Amounts()) -> None:
        """Start a budget.

        Args:
            limits: of the whole run.
            spent: by the run's earlier part, when it is resumed.
        """
        self.limits = limits
        self.spent = spent
        self._leased: dict[int, Amounts] = {}
        self._in_leases = Amounts()  # their sum
        self._next = 0
        self._waiting: list[asyncio.Future[None]] = []

    async def lease(self, wanted: int, each: Amounts = ONE_REQUEST) -> tuple[int, int]:
        """Between 1 and `wanted` requests that may take `each`, or 0 when the budget is spent; and the lease's name."""
        while not (granted := self._fitting(wanted, each)) and self._leased:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            await turn
        self._next += 1
        if granted:
            self._leased[self._next] = each.times(granted)
            self._in_leases += self._leased[self._next]
        return granted, self._next

    def settle(self, name: int, used: Amounts) -> None:
        """End a lease, with what was really taken."""
        ended = self._leased.pop(name)
        # Without any, the sum is exact again: it may have gathered rounding.
        self._in_leases = self._in_leases + ended.times(-1) if self._leased else Amounts()
        self.spent += used
        waiting, self._waiting = self._waiting, []
        for turn in waiting:
            if not turn.done():
                turn.set_result(None)

    def shares_left(self) -> Amounts:
        """Of each limit, in [0, 1]; infinite where there is none."""
        left = [
            UNLIMITED if math.isinf(limit) else max(0.0, 1.0 - spent / limit)
            for limit, spent in zip(astuple(self.limits), astuple(self.spent), strict=True)
        ]
        return Amounts(requests=left[0], tokens=left[1], cost=left[2])

    def _fitting(self, wanted: int, each: Amounts) -> int:
        """Requests for which there is room."""
        taken = self.spent + self._in_leases
        most = float(wanted)
        for limit, gone, one in zip(astuple(self.limits), astuple(taken), astuple(each), strict=True):
            if math.isinf(limit):
                continue
            # What is spent to the last ends a budget even where a request were free.
            most = min(most, 0.0 if gone >= limit else (limit - gone) / one if one else most)
        return max(0, math.floor(most + 1e-9))
