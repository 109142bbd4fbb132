"""Turns to send an HTTP request: as many as may be in flight at once.

Each slot owns an `httpx.AsyncClient` with one long-lived connection an endpoint. One client over all connections does
the same work at a higher price: its pool walks every connection at both ends of every request, which at 64 in flight
makes 2.0 ms of CPU time out of 0.7 ms, taken from the engines on the same cores.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from dataclasses import dataclass, field

import httpx

from judge.api_key import key_of
from mrpo.choices import JudgeKind
from mrpo.config import JudgeConfig
from mrpo.host import is_this_machine
from mrpo.judge_endpoints import endpoints_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """An endpoint to send to."""

    url: str  # of the chat completions
    model: str
    weight: float
    trust_env: bool  # a proxy from the environment must not be asked for this machine
    key: str | None = field(repr=False)


def trusts_env(judge: JudgeConfig, url: str) -> bool:
    """Whether a proxy of the environment is asked: a judge of the run's own is in the cluster, where none is."""
    return judge.kind == JudgeKind.OPENAI_COMPATIBLE and not is_this_machine(url)


def chat_url(url: str) -> str:
    """Where to ask an endpoint of this base URL."""
    return f"{url.rstrip('/')}/chat/completions"


def targets_of(config: JudgeConfig) -> list[Target]:
    """The endpoints with their keys, which are read here.

    Raises:
        ConfigError: see `endpoints_of` and `read_key`.
    """
    return [
        Target(
            url=chat_url(endpoint.url),
            model=endpoint.model,
            weight=endpoint.weight,
            trust_env=trusts_env(config, endpoint.url),
            key=key_of(config, endpoint),
        )
        for endpoint in endpoints_of(config)
    ]


class Slot:
    """One request at a time, and its connections, opened when they are first needed."""

    def __init__(self, contexts: dict[bool, ssl.SSLContext]) -> None:
        self._contexts = contexts
        self._clients: dict[Target, httpx.AsyncClient] = {}

    def client(self, target: Target) -> httpx.AsyncClient:
        """The connection to an endpoint."""
        if target not in self._clients:
            headers = {"content-type": "application/json"}
            if target.key is not None:
                headers["authorization"] = f"Bearer {target.key}"
            self._clients[target] = httpx.AsyncClient(
                headers=headers,
                timeout=None,  # the call's deadline covers every phase
                limits=httpx.Limits(max_keepalive_connections=1),
                trust_env=target.trust_env,
                verify=self._contexts[target.trust_env],
            )
        return self._clients[target]

    async def close(self) -> None:
        """Close the connections."""
        for client in self._clients.values():
            await client.aclose()


class Slots:
    """All slots of one actor. Calls that have begun go before those that have not, so that calls end in order."""

    def __init__(self, number: int) -> None:
        contexts = {trust_env: httpx.create_ssl_context(trust_env=trust_env) for trust_env in (False, True)}
        self._all = [Slot(contexts) for _ in range(number)]
        # Last in, first out: a few busy slots keep few connections, and keep them warm.
        self._free = list(self._all)
        self._begun: deque[asyncio.Future[Slot]] = deque()
        self._new: deque[asyncio.Future[Slot]] = deque()

    async def take(self, *, begun: bool) -> Slot:
        """A free slot, or the next to become free."""
        if self._free:
            return self._free.pop()
        waiting = self._begun if begun else self._new
        turn: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        waiting.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back(turn.result())  # it came as the caller left
            raise

    def give_back(self, slot: Slot) -> None:
        """Let the next one have it."""
        for waiting in (self._begun, self._new):
            while waiting:
                turn = waiting.popleft()
                if not turn.done():
                    turn.set_result(slot)
                    return
        self._free.append(slot)

    async def close(self) -> None:
        """Close every connection."""
        for slot in self._all:
            await slot.close()
