"""The requests of one call: turns, pauses, the deadline, other endpoints, a second request where the first is late."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence

from judge.availability import Availability
from judge.backoff import pause_s
from judge.call import Call, Conclusion, Replied, Retryable
from judge.latencies import Latencies
from judge.limiter import Gate, Limiter, Turn
from judge.reply import Reply, Ruling
from judge.sender import Sender
from judge.slots import Slot, Slots, Target
from mrpo.config import JudgeConfig
from mrpo.types import FailureReason, JudgeFailure

TRIAL_SHARE = 0.5  # of the deadline that a call spends on an endpoint it only tries, while others work
TELLING_SHARE = 0.5  # likewise: no reply within less of it says nothing about an endpoint
HOLD_JITTER_S = 0.25  # calls that waited out a pause return over so long


class Attempts:
    """Makes the requests of calls within slots, rate limits and deadlines."""

    def __init__(
        self,
        config: JudgeConfig,
        *,
        targets: Sequence[Target],
        slots: Slots,
        availability: Availability,
        limiter: Limiter | None,
    ) -> None:
        self._config = config
        self._targets = targets
        self._slots = slots
        self._availability = availability
        self._gate = Gate(limiter) if limiter is not None else None
        self._latencies = Latencies(config.hedge_percentile)
        self._sender = Sender(config, targets, availability, self._latencies, self._gate)
        self._rng = random.Random()

    async def run(self, call: Call[Ruling]) -> Conclusion[Ruling]:
        """Request until a reply, a final failure, the last request or the deadline.

        Raises:
            DataError: the image cannot be read.
        """
        avoid: int | None = None
        endpoint = call.trial
        while True:
            if endpoint is None:
                endpoint = self._availability.choose(avoid=avoid, not_before=call.not_before)
            if endpoint is None:
                if not await self._wait_out_hold(call):
                    return self._nobody(call)
                continue
            result = await self._request(call, endpoint)
            if result is None:
                endpoint = None
                continue
            if isinstance(result, Replied):
                return Conclusion(reply=result.reply, model=result.model)
            call.failure = result.failure
            if result.retry_after_s is not None:
                call.not_before[result.endpoint] = time.monotonic() + result.retry_after_s
            pause = self._pause(call, result)
            if not call.has_more or pause >= call.left_s:
                return self._given_up(call, pause)
            await asyncio.sleep(pause)
            call.left_s -= pause
            avoid, endpoint = result.endpoint, None

    def _pause(self, call: Call[Ruling], result: Retryable) -> float:
        """Seconds until the next request; none where another endpoint has not been asked yet."""
        if call.left_s <= 0:
            return 0.0
        other = self._availability.choose(avoid=result.endpoint, not_before=call.not_before)
        asked = {request.endpoint for request in call.requests}
        if other is not None and other not in asked:
            return 0.0
        return pause_s(len(call.requests), asked_s=self._asked_s(call, result), config=self._config, rng=self._rng)

    def _asked_s(self, call: Call[Ruling], result: Retryable) -> float | None:
        """Seconds until the first pause is over that this call was asked for; None: one asks for none."""
        closed = self._availability.closed or [result.endpoint]
        if not all(endpoint in call.not_before for endpoint in closed):
            return None
        left_s = min(call.not_before[endpoint] for endpoint in closed) - time.monotonic()
        return left_s if left_s > 0 else None

    async def _wait_out_hold(self, call: Call[Ruling]) -> bool:
        """Wait where a pause is all that keeps a call from being sent; False: it is not, or is too long."""
        hold_s = self._availability.hold_s(call.not_before)
        if hold_s is None or hold_s > self._config.deadline_s:
            return False
        await asyncio.sleep(hold_s + self._rng.uniform(0.0, HOLD_JITTER_S))
        return True

    def _nobody(self, call: Call[Ruling]) -> Conclusion[Ruling]:
        detail = "no endpoint of the judge may be asked now"
        reason = FailureReason.TRANSPORT
        if call.failure is not None:
            detail, reason = f"{call.failure.detail}; {detail}", call.failure.reason
        return Conclusion(reply=Reply(outcome=JudgeFailure(reason=reason, detail=detail)), out=True)

    def _given_up(self, call: Call[Ruling], pause: float) -> Conclusion[Ruling]:
        """The last failure is final; where meanwhile no endpoint may be asked, it is theirs and not the call's."""
        assert call.failure is not None
        failure, out = call.failure, self._availability.hold_s() is None
        if call.has_more and call.left_s > 0:
            # The next request would begin after the deadline: say so now.
            detail = f"{failure.detail}; the next attempt, in {pause:.1f} s, would be past judge.deadline_s"
            failure = JudgeFailure(reason=failure.reason, detail=detail)
        wants_more = not call.has_more and pause < call.left_s
        return Conclusion(reply=Reply(outcome=failure), out=out, more_after_s=pause if wants_more else None)

    async def _request(self, call: Call[Ruling], endpoint: int) -> Replied[Ruling] | Retryable | None:
        """One request, or two, in slots of their own; None: the endpoint may not be asked any more."""
        slot = await self._slots.take(begun=bool(call.requests))
        try:
            if not self._may_ask(call, endpoint):
                return None
            turn = await self._wait_for_rate(call, slot, endpoint)
            if not self._may_ask(call, endpoint):
                await self._pass_on(turn)
                return None
            return await self._within_deadline(call, slot, endpoint, turn)
        finally:
            self._slots.give_back(slot)

    def _may_ask(self, call: Call[Ruling], endpoint: int) -> bool:
        is_trial = endpoint == call.trial and not call.requests
        return is_trial or self._availability.may_ask(endpoint)

    async def _wait_for_rate(self, call: Call[Ruling], slot: Slot, endpoint: int) -> Turn | None:
        target = self._targets[endpoint]
        call.body(target.model)  # whatever takes time is done before, so that the request leaves at its time
        slot.client(target)
        return await self._gate.enter(call.estimated_tokens) if self._gate is not None else None

    async def _pass_on(self, turn: Turn | None) -> None:
        """A turn is not used."""
        if self._gate is not None and turn is not None:
            await self._gate.leave(turn, 0)

    async def _within_deadline(
        self, call: Call[Ruling], slot: Slot, endpoint: int, turn: Turn | None
    ) -> Replied[Ruling] | Retryable:
        limit_s = call.left_s
        if endpoint == call.trial and self._availability.hold_s() is not None:
            limit_s = min(limit_s, TRIAL_SHARE * self._config.deadline_s)
        clock = asyncio.get_running_loop().time
        began = clock()
        deadline = asyncio.timeout_at(began + limit_s)
        try:
            async with deadline:
                return await self._hedged(call, slot, endpoint, turn)
        except TimeoutError:
            if not deadline.expired():
                raise
            failure = self._timed_out(call, limit_s)
            if limit_s >= TELLING_SHARE * self._config.deadline_s:
                self._availability.failed(endpoint, f"no reply within {limit_s:g} s")
            return Retryable(failure=failure, endpoint=endpoint)
        finally:
            call.left_s -= clock() - began

    def _timed_out(self, call: Call[Ruling], limit_s: float) -> JudgeFailure:
        if limit_s < call.left_s:
            return JudgeFailure(reason=FailureReason.TIMEOUT, detail=f"no reply within {limit_s:g} s of a trial")
        detail = f"no reply within judge.deadline_s={self._config.deadline_s:g} in {len(call.requests)} attempts"
        if call.failure is not None:
            detail += f"; before that: {call.failure.detail}"
        return JudgeFailure(reason=FailureReason.TIMEOUT, detail=detail)

    async def _hedged(
        self, call: Call[Ruling], slot: Slot, endpoint: int, turn: Turn | None
    ) -> Replied[Ruling] | Retryable:
        """Send; where no reply comes in the usual time, send again elsewhere, and take the first that comes."""
        late_after_s = self._latencies.late_after_s((endpoint, call.prompt.schema_name))
        if late_after_s is None or len(call.requests) + 1 >= call.max_requests:
            return await self._sender.send(call, slot, endpoint, turn)
        began = asyncio.get_running_loop().time()
        first = asyncio.create_task(self._sender.send(call, slot, endpoint, turn))
        running: set[asyncio.Task[Replied[Ruling] | Retryable | None]] = {first}
        try:
            await asyncio.wait(running, timeout=late_after_s)
            if not first.done():
                running.add(asyncio.create_task(self._second(call, avoid=endpoint)))
            result = await _first_reply(running)
            if not first.done():
                took_s = asyncio.get_running_loop().time() - began
                self._sender.late(call, endpoint, took_s, elsewhere=result.endpoint != endpoint)
            return result
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)  # its connection is closed before its slot is free

    async def _second(self, call: Call[Ruling], *, avoid: int) -> Replied[Ruling] | Retryable | None:
        endpoint = self._availability.choose(avoid=avoid, not_before=call.not_before)
        if endpoint is None:
            return None
        slot = await self._slots.take(begun=True)
        try:
            turn = await self._wait_for_rate(call, slot, endpoint)
            if not self._availability.may_ask(endpoint):
                await self._pass_on(turn)
                return None
            return await self._sender.send(call, slot, endpoint, turn)
        finally:
            self._slots.give_back(slot)


async def _first_reply(
    running: set[asyncio.Task[Replied[Ruling] | Retryable | None]],
) -> Replied[Ruling] | Retryable:
    """The first reply; where none replies, a failure."""
    failed: Retryable | None = None
    pending = set(running)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            result = task.result()
            if isinstance(result, Replied):
                return result
            failed = result or failed
    assert failed is not None  # the first request is always made
    return failed
