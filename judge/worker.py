"""What runs inside a judge actor: a plain class, made an actor by the pool."""

from __future__ import annotations

from judge.accounting import Served
from judge.availability import Event
from judge.client import JudgeClient
from judge.limiter import Limiter
from mrpo.config import JudgeConfig
from mrpo.types import AnswerRequest, JudgeRequest


class JudgeWorker:
    """One client in one process. Keys are read where this process runs and never leave it."""

    def __init__(self, config: JudgeConfig, *, concurrency: int, limiter: Limiter | None) -> None:
        self._client = JudgeClient(config, concurrency=concurrency, limiter=limiter)

    async def has_keys(self) -> list[bool]:
        """Whether this process has the key of each endpoint. Answering at all says that the worker is up."""
        return self._client.has_keys

    async def rule(self, request: JudgeRequest | AnswerRequest, max_attempts: int, trial: int | None = None) -> Served:
        """See `JudgeClient.serve`."""
        return await self._client.serve(request, max_attempts=max_attempts, trial=trial)

    async def events(self) -> list[Event]:
        """See `JudgeClient.events`."""
        return await self._client.events()

    async def set_open(self, endpoint: int, is_open: bool) -> None:
        """See `JudgeClient.set_open`."""
        self._client.set_open(endpoint, is_open)

    async def hold(self, endpoint: int, seconds: float) -> None:
        """See `JudgeClient.hold`."""
        self._client.hold(endpoint, seconds)
