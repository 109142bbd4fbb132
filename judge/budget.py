"""The hard budget of HTTP requests of a run, over all judge actors. Kept in the driver, where every call starts.

A call leases as many requests as it may need and gives back what it did not use, so the budget is never overrun, and a
call is only turned away when every request is spent: while others still hold leases it waits for what they give back.
"""

from __future__ import annotations

import asyncio


class RequestBudget:
    """Counts HTTP requests, retries included; `limit=None` only counts."""

    def __init__(self, limit: int | None, *, spent: int = 0) -> None:
        """Start a budget.

        Args:
            limit: requests of the whole run, or None.
            spent: requests of the run's earlier part, when it is resumed.
        """
        self.spent = spent
        self._limit = limit
        self._leased = 0
        self._changed = asyncio.Condition()

    async def lease(self, wanted: int) -> int:
        """Between 1 and `wanted` requests, or 0 when the budget is spent."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._free(wanted) > 0 or self._leased == 0)
            granted = self._free(wanted)
            self._leased += granted
            return granted

    async def settle(self, granted: int, used: int) -> None:
        """End a lease of `granted` requests of which `used` were made."""
        assert 0 <= used <= granted
        async with self._changed:
            self._leased -= granted
            self.spent += used
            self._changed.notify_all()

    def _free(self, wanted: int) -> int:
        return wanted if self._limit is None else max(0, min(wanted, self._limit - self.spent - self._leased))
