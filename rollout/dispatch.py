"""Which engine gets which requests of one call, and what is done again when an engine is lost. Knows no engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from mrpo.types import RolloutRequest


class Dispatch:
    """The requests of one call of `generate`: waiting, with an engine, or finished.

    Engines are known by the names of their actors, which no two lives of an engine share: what a lost one still says
    is nobody's.
    """

    def __init__(self, requests: Iterable[RolloutRequest], *, max_owned: int) -> None:
        """Args: the requests, and how many of them an engine may hold, running or queued in it."""
        groups: dict[str, list[RolloutRequest]] = {}
        for request in requests:
            groups.setdefault(request.prompt_id, []).append(request)
        self._waiting = deque(groups.values())  # a prompt's samples stay together, so that its prefix is shared
        self._owned: dict[str, dict[str, RolloutRequest]] = {}  # by engine, then by key
        self._max_owned = max_owned

    @property
    def num_waiting(self) -> int:
        """Requests that no engine has."""
        return sum(map(len, self._waiting))

    @property
    def remaining(self) -> int:
        """Requests not finished."""
        return self.num_waiting + sum(map(len, self._owned.values()))

    def owned(self, engine: str) -> int:
        """Requests with this engine."""
        return len(self._owned.get(engine, ()))

    def assign(self, engines: Sequence[str]) -> dict[str, list[RolloutRequest]]:
        """Give what waits to those of the engines that have room, the least busy first.

        Args:
            engines: that are up.

        Returns:
            What each must be sent now; engines that get nothing are left out.
        """
        sent: dict[str, list[RolloutRequest]] = {}
        while self._waiting and engines:
            engine = min(engines, key=self.owned)
            if self.owned(engine) >= self._max_owned:
                break
            group = self._waiting.popleft()
            self._owned.setdefault(engine, {}).update((request.key, request) for request in group)
            sent.setdefault(engine, []).extend(group)
        return sent

    def finish(self, engine: str, key: str) -> bool:
        """Note a completion; False where the request is not this engine's (any more), and must not be counted."""
        return self._owned.get(engine, {}).pop(key, None) is not None

    def give_back(self, engine: str) -> int:
        """The engine is lost: what it had waits again, before all else. Returns how many that are."""
        lost = self._owned.pop(engine, {})
        groups: dict[str, list[RolloutRequest]] = {}
        for request in lost.values():
            groups.setdefault(request.prompt_id, []).append(request)
        self._waiting.extendleft(reversed(groups.values()))
        return len(lost)
