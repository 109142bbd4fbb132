"""Whose fault a call without a reply is: its own, or that of endpoints that reply to nobody any more.

A circuit opens after several failures in a row, as one actor sees them. Calls that failed before are not to pay for it:
where an endpoint has been silent towards all calls of the pool, it is asked for its models, without any data.
"""

from __future__ import annotations

import asyncio
import time

import httpx

from judge.accounting import Served
from judge.circuits import Circuits
from judge.slots import trusts_env
from mrpo.choices import OutagePolicy
from mrpo.config import JudgeConfig
from mrpo.judge_endpoints import endpoints_of
from mrpo.types import FailureReason, JudgeFailure

NO_REPLY = (FailureReason.TIMEOUT, FailureReason.TRANSPORT)
PROBE_TIMEOUT_S = 5.0
# How long other calls may still open the circuit of an endpoint that seems to live: a share of the deadline, but on a
# busy machine those that were sent together end a second apart.
VERDICT_SHARE = 0.1
VERDICT_AT_LEAST_S = 1.0
LOOK_EVERY_S = 0.05


class Silence:
    """When each endpoint was last heard. Use it from one event loop."""

    def __init__(self, config: JudgeConfig, circuits: Circuits) -> None:
        self._config = config
        self._circuits = circuits
        self._urls = [endpoint.url for endpoint in endpoints_of(config)]
        self._heard_s = [float("-inf")] * len(self._urls)  # time.time()
        self._probing = asyncio.Lock()  # one call asks, the others go by what it finds

    def set_url(self, endpoint: int, url: str) -> None:
        """Ask an endpoint at another base URL from now on."""
        self._urls[endpoint] = url

    async def is_theirs(self, served: Served) -> bool:
        """Whether the call is to be made again, because it failed with its endpoints; always told how a call ended."""
        outcome = served.judgement.outcome
        self._hear(served)
        if not (isinstance(outcome, JudgeFailure) and outcome.reason in NO_REPLY):
            return False
        if self._config.on_outage == OutagePolicy.FAIL:
            return False
        if self._circuits.is_out:
            return True
        silent = self._silent(served)
        for endpoint in silent:
            if not await self._answers(endpoint):
                self._circuits.opened(endpoint, f"{outcome.detail}; no reply when asked for its models either")
        return await self._opens(silent)

    def _hear(self, served: Served) -> None:
        for request in served.requests:
            if request.replied:
                self._heard_s[request.endpoint] = max(self._heard_s[request.endpoint], served.judgement.ended_s)

    def _silent(self, served: Served) -> list[int]:
        """Endpoints that were asked and have replied to nobody since the call was half over."""
        judgement = served.judgement
        if judgement.sent_s is None:
            return []
        half_s = (judgement.sent_s + judgement.ended_s) / 2
        return sorted({item.endpoint for item in served.requests if self._heard_s[item.endpoint] < half_s})

    async def _answers(self, endpoint: int) -> bool:
        async with self._probing:
            if endpoint in self._circuits.open:
                return False
            url = self._urls[endpoint]
            try:
                async with (
                    asyncio.timeout(min(PROBE_TIMEOUT_S, self._config.deadline_s)),
                    httpx.AsyncClient(trust_env=trusts_env(self._config, url), timeout=None) as client,
                ):
                    response = await client.get(f"{url.rstrip('/')}/models")
            except (TimeoutError, httpx.RequestError):
                return False
            return response.status_code < 500  # without the key: 401 is an answer

    async def _opens(self, endpoints: list[int]) -> bool:
        """Whether one of these circuits is open by the end of the grace; no wait once all of them are heard again."""
        clock = asyncio.get_running_loop().time
        grace_s = max(VERDICT_AT_LEAST_S, VERDICT_SHARE * self._config.deadline_s)
        began_s, ends_at = time.time(), clock() + grace_s
        while True:
            if any(endpoint in self._circuits.open for endpoint in endpoints):
                return True
            if clock() >= ends_at or all(self._heard_s[endpoint] > began_s for endpoint in endpoints):
                return False
            await asyncio.sleep(LOOK_EVERY_S)
