"""One judge call over HTTP: attempts, pauses and the deadline. A judge's fault is a value, never an exception.

Each slot for a call owns an `httpx.AsyncClient` with one long-lived connection. One client over all connections does
the same work at a higher price: its pool walks every connection at both ends of every request, which at 64 in flight
makes 2.0 ms of CPU time out of 0.7 ms, taken from the engines on the same cores.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import asdict, dataclass
from typing import Generic

import httpx

from judge.backoff import pause_s, retry_after_s
from judge.image import data_url
from judge.limiter import Limiter
from judge.prompts import Prompt, answer_prompt, step_prompt
from judge.reply import Parser, Reply, Ruling, parse_response
from judge.request import build_body, estimate_tokens
from mrpo.config import JudgeConfig
from mrpo.host import is_this_machine
from mrpo.types import AnswerJudgement, AnswerRequest, FailureReason, JudgeFailure, Judgement, JudgeRequest

DETAIL_CHARS = 200  # of an error body, in a failure's detail


@dataclass(frozen=True, slots=True, kw_only=True)
class Retryable:
    """An attempt that failed in a way the next one may not."""

    failure: JudgeFailure
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[Ruling]):
    """What every attempt of one call needs."""

    http: httpx.AsyncClient
    body: bytes
    parse: Parser[Ruling]
    estimated_tokens: int


@dataclass(slots=True, kw_only=True)
class Progress:
    """How far a call has come; outlives the deadline that may cut the call anywhere."""

    attempts: int = 0
    sent_s: float | None = None  # time.time() of the first attempt
    failure: JudgeFailure | None = None  # of the last attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What a call took; the part that all judgements have in common."""

    started_s: float
    sent_s: float | None
    ended_s: float
    attempts: int
    prompt_tokens: int
    completion_tokens: int


class JudgeClient:
    """A bounded number of calls in flight to one OpenAI-compatible endpoint."""

    def __init__(
        self,
        config: JudgeConfig,
        *,
        concurrency: int,
        limiter: Limiter | None = None,
        api_key: str | None = None,
    ) -> None:
        """Make a client; no connection is opened yet.

        Args:
            config: `url` and `model` must be set.
            concurrency: calls in flight of this client, a share of `config.concurrency`.
            limiter: the cluster's; None where no rate limit is set.
            api_key: sent as bearer token; never logged, and cut out of what a server quotes back.
        """
        assert config.url is not None and config.model is not None
        self._config = config
        self._limiter = limiter
        self._api_key = api_key
        self._rng = random.Random()
        self._endpoint = f"{config.url.rstrip('/')}/chat/completions"
        headers = {"content-type": "application/json"}
        if api_key is not None:
            headers["authorization"] = f"Bearer {api_key}"
        trust_env = not is_this_machine(config.url)  # a proxy from the environment must not be asked for this machine
        ssl_context = httpx.create_ssl_context(trust_env=trust_env)
        self._clients = [
            httpx.AsyncClient(
                headers=headers,
                timeout=None,  # the call's deadline covers every phase
                limits=httpx.Limits(max_keepalive_connections=1),
                trust_env=trust_env,
                verify=ssl_context,
            )
            for _ in range(concurrency)
        ]
        # Last in, first out: a few busy slots keep few connections, and keep them warm.
        self._slots: asyncio.LifoQueue[httpx.AsyncClient] = asyncio.LifoQueue()
        for client in self._clients:
            self._slots.put_nowait(client)

    async def close(self) -> None:
        """Close the connections."""
        for client in self._clients:
            await client.aclose()

    async def judge(self, request: JudgeRequest, *, max_attempts: int) -> Judgement:
        """Rule on the steps of one completion with at most `max_attempts` HTTP requests.

        The deadline runs from the first request on: time spent waiting for a free slot or for the rate limit is the
        caller's own queue and not the judge's fault.

        Raises:
            DataError: the image cannot be read.
        """
        reply, account = await self._rule(step_prompt(request), request.image, max_attempts)
        return Judgement(key=request.key, outcome=reply.outcome, **asdict(account))

    async def judge_answer(self, request: AnswerRequest, *, max_attempts: int) -> AnswerJudgement:
        """Rule on one answer, on the terms of `judge`."""
        reply, account = await self._rule(answer_prompt(request), request.image, max_attempts)
        return AnswerJudgement(key=request.key, outcome=reply.outcome, **asdict(account))

    async def _rule(self, prompt: Prompt[Ruling], image: str, max_attempts: int) -> tuple[Reply[Ruling], Account]:
        started_s = time.time()
        progress = Progress()
        http = await self._slots.get()
        try:
            image_url = data_url(image) if self._config.send_image else None
            body = build_body(prompt, self._config, image_url=image_url)
            estimated = estimate_tokens(prompt, send_image=self._config.send_image)
            await self._wait_for_rate(estimated)
            call = Call(http=http, body=body, parse=prompt.parse, estimated_tokens=estimated)
            reply = await self._call(call, max_attempts, progress)
        finally:
            self._slots.put_nowait(http)
        if self._limiter is not None and reply.prompt_tokens:
            await self._limiter.settle(reply.prompt_tokens + reply.completion_tokens - estimated)
        return reply, Account(
            started_s=started_s,
            sent_s=progress.sent_s,
            ended_s=time.time(),
            attempts=progress.attempts,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
        )

    async def _wait_for_rate(self, num_tokens: int) -> None:
        if self._limiter is not None:
            await asyncio.sleep(await self._limiter.reserve(num_tokens))

    async def _call(self, call: Call[Ruling], max_attempts: int, progress: Progress) -> Reply[Ruling]:
        """Attempt until a reply, a final failure, the last attempt or the deadline."""
        ends_at = asyncio.get_running_loop().time() + self._config.deadline_s
        deadline = asyncio.timeout_at(ends_at)
        try:
            async with deadline:
                return await self._attempts(call, max_attempts, progress, ends_at)
        except TimeoutError:
            if not deadline.expired():
                raise
            detail = f"no reply within judge.deadline_s={self._config.deadline_s:g} in {progress.attempts} attempts"
            if progress.failure is not None:
                detail += f"; before that: {progress.failure.detail}"
            return Reply(outcome=JudgeFailure(reason=FailureReason.TIMEOUT, detail=detail))

    async def _attempts(
        self, call: Call[Ruling], max_attempts: int, progress: Progress, ends_at: float
    ) -> Reply[Ruling]:
        progress.sent_s = time.time()
        while True:
            progress.attempts += 1
            result = await self._attempt(call)
            if isinstance(result, Reply):
                return result
            progress.failure = result.failure
            if progress.attempts >= max_attempts:
                return Reply(outcome=result.failure)
            pause = pause_s(progress.attempts, asked_s=result.retry_after_s, config=self._config, rng=self._rng)
            if asyncio.get_running_loop().time() + pause >= ends_at:
                # The next attempt would begin after the deadline: say so now and free the slot.
                detail = f"{result.failure.detail}; the next attempt, in {pause:.1f} s, would be past judge.deadline_s"
                return Reply(outcome=JudgeFailure(reason=result.failure.reason, detail=detail))
            await asyncio.sleep(pause)
            await self._wait_for_rate(call.estimated_tokens)

    async def _attempt(self, call: Call[Ruling]) -> Reply[Ruling] | Retryable:
        """One HTTP request."""
        try:
            response = await call.http.post(self._endpoint, content=call.body)
        except httpx.RequestError as error:
            detail = self._redact(f"{type(error).__name__}: {error}")
            return Retryable(failure=JudgeFailure(reason=FailureReason.TRANSPORT, detail=detail))
        status = response.status_code
        if status == 200:
            return parse_response(response.content, call.parse)
        detail = f"HTTP {status}: {self._redact(response.text)[:DETAIL_CHARS]}"
        if status == 429 or status >= 500:
            reason = FailureReason.RATE_LIMITED if status == 429 else FailureReason.TRANSPORT
            asked = retry_after_s(response.headers.get("retry-after"), now_s=time.time())
            return Retryable(failure=JudgeFailure(reason=reason, detail=detail), retry_after_s=asked)
        reason = FailureReason.REFUSED if 400 <= status < 500 else FailureReason.TRANSPORT
        return Reply(outcome=JudgeFailure(reason=reason, detail=detail))

    def _redact(self, text: str) -> str:
        # Some gateways quote the Authorization header in their error text.
        return text if not self._api_key else text.replace(self._api_key, "***")
