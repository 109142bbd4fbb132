"""One HTTP request of a call, and what its response means. A judge's fault is a value, never an exception."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import httpx

from judge.availability import Availability
from judge.backoff import retry_after_s
from judge.call import Call, Replied, Retryable
from judge.latencies import Latencies
from judge.limiter import Limiter
from judge.reply import Reply, Ruling, parse_response
from judge.slots import Slot, Target
from mrpo.config import JudgeConfig
from mrpo.types import FailureReason, JudgeFailure

DETAIL_CHARS = 200  # of an error body, in a failure's detail
REDACTED = "***"


class Sender:
    """Sends requests and keeps what is learned of the endpoints."""

    def __init__(
        self,
        config: JudgeConfig,
        targets: Sequence[Target],
        availability: Availability,
        latencies: Latencies,
        limiter: Limiter | None,
    ) -> None:
        self._config = config
        self._targets = targets
        self._availability = availability
        self._latencies = latencies
        self._limiter = limiter
        self._keys = [target.key for target in targets if target.key]

    async def send(self, call: Call[Ruling], slot: Slot, endpoint: int) -> Replied[Ruling] | Retryable:
        """Make one request.

        Raises:
            DataError: the image cannot be read.
        """
        target = self._targets[endpoint]
        body = call.body(target.model)
        number = call.begin_request(endpoint, target.model)
        began_s = time.monotonic()
        try:
            response = await slot.client(target).post(target.url, content=body)
        except httpx.RequestError as error:
            detail = self.redact(f"{type(error).__name__}: {error}")
            self._availability.failed(endpoint, detail)
            return Retryable(failure=JudgeFailure(reason=FailureReason.TRANSPORT, detail=detail), endpoint=endpoint)
        if response.status_code == 429 or response.status_code >= 500:
            return self._turned_away(response, endpoint)
        self._availability.answered(endpoint)
        call.trial_passed |= endpoint == call.trial
        self._latencies.add((endpoint, call.prompt.schema_name), time.monotonic() - began_s)
        if response.status_code == 200:
            return Replied(reply=await self._read(response.content, call, number), model=target.model)
        # A redirect is no reply of a judge; other codes below 500 turn this very request down.
        reason = FailureReason.REFUSED if 400 <= response.status_code < 500 else FailureReason.TRANSPORT
        failure = JudgeFailure(reason=reason, detail=self._quote(response))
        return Replied(reply=Reply(outcome=failure), model=target.model)

    def late(self, call: Call[Any], endpoint: int, seconds: float) -> None:
        """A request was given up after so long, because another one was faster."""
        self._latencies.add((endpoint, call.prompt.schema_name), seconds)

    def redact(self, text: str) -> str:
        """Without the keys: some gateways quote the Authorization header in what they reply."""
        for key in self._keys:
            text = text.replace(key, REDACTED)
        return text

    def _turned_away(self, response: httpx.Response, endpoint: int) -> Retryable:
        asked_s = retry_after_s(response.headers.get("retry-after"), now_s=time.time())
        detail = self._quote(response)
        if response.status_code == 429:
            reason = FailureReason.RATE_LIMITED
            self._availability.limited(endpoint, asked_s, longest_s=self._config.deadline_s)
        else:
            reason = FailureReason.TRANSPORT
            self._availability.failed(endpoint, detail)
        return Retryable(failure=JudgeFailure(reason=reason, detail=detail), endpoint=endpoint, retry_after_s=asked_s)

    async def _read(self, content: bytes, call: Call[Ruling], number: int) -> Reply[Ruling]:
        for key in self._keys:  # before anything is quoted, because a quotation may end within a key
            content = content.replace(key.encode("ascii"), REDACTED.encode("ascii"))
        reply = parse_response(content, call.prompt.parse, self._config.provider.structured)
        call.count_tokens(number, reply)
        if self._limiter is not None and reply.prompt_tokens:
            await self._limiter.settle(reply.prompt_tokens + reply.completion_tokens - call.estimated_tokens)
        if isinstance(reply.outcome, JudgeFailure):
            failure = replace(reply.outcome, detail=self.redact(reply.outcome.detail))
            return replace(reply, outcome=failure)
        return reply

    def _quote(self, response: httpx.Response) -> str:
        return f"HTTP {response.status_code}: {self.redact(response.text)[:DETAIL_CHARS]}"
