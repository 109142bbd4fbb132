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
from judge.limiter import Gate, Turn
from judge.redaction import Redactor
from judge.reply import Reply, Ruling, parse_response
from judge.schema import bad_json
from judge.slots import Slot, Target
from mrpo.config import JudgeConfig
from mrpo.types import FailureReason, JudgeFailure

MAX_REPLY_BYTES = 4 * 2**20  # of a response; the longest ruling has some 10 kB
DETAIL_CHARS = 200  # of an error body, in a failure's detail
# What a call that tries an endpoint must get to say that it works. A gateway may reply 401, 403 or 404 for a model that
# is not there yet; a judge that turns the very request down (400, 422) has read it.
WORKING = (200, 400, 422)


class Sender:
    """Sends requests and keeps what is learned of the endpoints."""

    def __init__(
        self,
        config: JudgeConfig,
        targets: Sequence[Target],
        availability: Availability,
        latencies: Latencies,
        gate: Gate | None,
    ) -> None:
        self._config = config
        self._targets = targets
        self._availability = availability
        self._latencies = latencies
        self._gate = gate
        self._redactor = Redactor(target.key for target in targets if target.key)

    async def send(
        self, call: Call[Ruling], slot: Slot, endpoint: int, turn: Turn | None
    ) -> Replied[Ruling] | Retryable:
        """Make one request.

        Args:
            call: of which it is one.
            slot: whose connection is used.
            endpoint: to send to.
            turn: its place in the rate; None where no rate is limited.

        Raises:
            DataError: the image cannot be read.
        """
        cost: int | None = None
        try:
            number = call.begin_request(endpoint, self._targets[endpoint].model)
            result = await self._send(call, slot, endpoint, number)
            if isinstance(result, Replied):
                made = call.requests[number]
                # A reply that names no usage: the estimate stands.
                cost = (made.prompt_tokens or 0) + (made.completion_tokens or 0) or call.estimated_tokens
            return result
        finally:
            if self._gate is not None and turn is not None:
                await self._gate.leave(turn, cost)

    async def _send(self, call: Call[Ruling], slot: Slot, endpoint: int, number: int) -> Replied[Ruling] | Retryable:
        target = self._targets[endpoint]
        client, began_s = slot.client(target), time.monotonic()
        try:
            request = client.build_request("POST", target.url, content=call.body(target.model))
            response = await client.send(request, stream=True)
            content = await _read_bounded(response)
        except httpx.RequestError as error:
            detail = self._redactor.text(f"{type(error).__name__}: {error}")
            self._availability.failed(endpoint, detail)
            return Retryable(failure=JudgeFailure(reason=FailureReason.TRANSPORT, detail=detail), endpoint=endpoint)
        status, is_trial = response.status_code, endpoint == call.trial and not call.trial_passed
        if status == 429 or status >= 500 or (is_trial and status not in WORKING):
            return self._turned_away(response, content, endpoint)
        self._availability.answered(endpoint)
        call.trial_passed |= endpoint == call.trial
        self._latencies.add((endpoint, call.prompt.schema_name), time.monotonic() - began_s)
        if response.status_code == 200:
            reply = self._read(content, call)
            call.count_reply(number, reply)
            return Replied(reply=reply, endpoint=endpoint, model=target.model)
        # A redirect is no reply of a judge; other codes below 500 turn this very request down.
        reason = FailureReason.REFUSED if 400 <= response.status_code < 500 else FailureReason.TRANSPORT
        failure = JudgeFailure(reason=reason, detail=self._quote(response, content))
        return Replied(reply=Reply(outcome=failure), endpoint=endpoint, model=target.model)

    def late(self, call: Call[Any], endpoint: int, seconds: float, *, elsewhere: bool) -> None:
        """A request was given up after so long, because another one, perhaps `elsewhere`, was faster."""
        self._latencies.add((endpoint, call.prompt.schema_name), seconds)
        if elsewhere:
            self._availability.failed(endpoint, f"no reply within {seconds:.3g} s, while another endpoint replied")

    def _turned_away(self, response: httpx.Response, content: bytes, endpoint: int) -> Retryable:
        asked_s = retry_after_s(response.headers.get("retry-after"), now_s=time.time())
        detail = self._quote(response, content)
        if response.status_code == 429:
            reason = FailureReason.RATE_LIMITED
            self._availability.limited(endpoint, asked_s, longest_s=self._config.deadline_s)
        else:
            reason = FailureReason.TRANSPORT
            self._availability.failed(endpoint, detail)
        return Retryable(failure=JudgeFailure(reason=reason, detail=detail), endpoint=endpoint, retry_after_s=asked_s)

    def _read(self, content: bytes, call: Call[Ruling]) -> Reply[Ruling]:
        if len(content) > MAX_REPLY_BYTES:
            return Reply(outcome=bad_json(f"the response is longer than {MAX_REPLY_BYTES:,} bytes"))
        # Before anything is quoted, because a quotation may end within a key: what was received, and what it reads as.
        content, parse = self._redactor.content(content), call.prompt.parse
        reply = parse_response(content, lambda text: parse(self._redactor.text(text)), self._config.provider.structured)
        if isinstance(reply.outcome, JudgeFailure):
            failure = replace(reply.outcome, detail=self._redactor.text(reply.outcome.detail))
            return replace(reply, outcome=failure)
        return reply

    def _quote(self, response: httpx.Response, content: bytes) -> str:
        text = self._redactor.text(content.decode(errors="replace"))
        return f"HTTP {response.status_code}: {text[:DETAIL_CHARS]}"


async def _read_bounded(response: httpx.Response) -> bytes:
    """The body, or somewhat more of it than a reply may have."""
    parts: list[bytes] = []
    length = 0
    try:
        async for part in response.aiter_bytes():
            parts.append(part)
            length += len(part)
            if length > MAX_REPLY_BYTES:
                break
    finally:
        await response.aclose()
    return b"".join(parts)
