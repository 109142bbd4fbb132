"""Calls from one process: a bounded number of HTTP requests in flight to the judge's endpoints."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from judge.accounting import RequestUsage, Served
from judge.attempts import Attempts
from judge.availability import Availability, Event
from judge.call import Call, Conclusion
from judge.limiter import Limiter
from judge.prompts import LEAST_REPLY_TOKENS_PER_STEP, prompt_of
from judge.reply import Ruling
from judge.slots import Slots, chat_url, targets_of
from mrpo.choices import LOCAL_KINDS, TokenLimitField
from mrpo.config import JudgeConfig
from mrpo.types import AnswerJudgement, AnswerRequest, FailureReason, JudgeFailure, Judgement, JudgeRequest


class JudgeClient:
    """Rules on steps and answers by asking the endpoints of a configuration."""

    def __init__(self, config: JudgeConfig, *, concurrency: int, limiter: Limiter | None = None) -> None:
        """Make a client; keys are read, no connection is opened yet.

        Args:
            config: names the endpoints.
            concurrency: HTTP requests in flight of this client, a share of `config.concurrency`.
            limiter: the cluster's; None where no rate limit is set.

        Raises:
            ConfigError: there is no endpoint, or a key cannot be read.
        """
        targets = targets_of(config)
        self.has_keys = [target.key is not None for target in targets]
        self._config = config
        self._targets = targets  # seen by all below
        self._slots = Slots(concurrency)
        self._availability = Availability(
            weights=[target.weight for target in targets], num_failures=config.breaker.num_failures
        )
        self._attempts = Attempts(
            config, targets=targets, slots=self._slots, availability=self._availability, limiter=limiter
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._slots.close()

    async def judge(self, request: JudgeRequest, *, max_attempts: int) -> Judgement:
        """Rule on the steps of one completion with at most `max_attempts` HTTP requests.

        Raises:
            DataError: the image cannot be read.
        """
        judgement = (await self.serve(request, max_attempts=max_attempts)).judgement
        assert isinstance(judgement, Judgement)
        return judgement

    async def judge_answer(self, request: AnswerRequest, *, max_attempts: int) -> AnswerJudgement:
        """Rule on one answer, on the terms of `judge`."""
        judgement = (await self.serve(request, max_attempts=max_attempts)).judgement
        assert isinstance(judgement, AnswerJudgement)
        return judgement

    async def serve(
        self,
        request: JudgeRequest | AnswerRequest,
        *,
        max_attempts: int,
        trial: int | None = None,
        made: list[RequestUsage] | None = None,
    ) -> Served:
        """Make one call, with its account.

        Args:
            request: what to rule on.
            max_attempts: HTTP requests at most.
            trial: an endpoint whose circuit is open, to be asked first of all.
            made: gets the requests as they are made, for whoever cancels the call.

        Raises:
            DataError: the image cannot be read.
        """
        made = [] if made is None else made
        unsent = too_long(request, self._config)
        if unsent is not None:
            return unsent
        call = self._call(prompt_of(request), request, max_attempts, trial, made)
        ended = await self._attempts.run(call)
        kind = AnswerJudgement if isinstance(request, AnswerRequest) else Judgement
        return _served(kind(outcome=ended.reply.outcome, **_account(request.key, call)), call, ended)

    async def events(self) -> list[Event]:
        """What happened to endpoints since the last call; waits until something has."""
        return await self._availability.events()

    def set_open(self, endpoint: int, is_open: bool) -> None:
        """Open or close an endpoint's circuit."""
        self._availability.set_open(endpoint, is_open)

    def set_all_open(self, endpoints: Sequence[int]) -> None:
        """Open the circuits of these endpoints and close all others."""
        for endpoint in range(len(self.has_keys)):
            self._availability.set_open(endpoint, endpoint in endpoints)

    def set_url(self, endpoint: int, url: str) -> None:
        """Ask an endpoint at another base URL from now on."""
        self._targets[endpoint] = replace(self._targets[endpoint], url=chat_url(url))

    def hold(self, endpoint: int, seconds: float) -> None:
        """Ask an endpoint nothing for so long."""
        self._availability.hold(endpoint, seconds)

    def _call(
        self,
        prompt: Any,
        request: JudgeRequest | AnswerRequest,
        max_attempts: int,
        trial: int | None,
        made: list[RequestUsage],
    ) -> Call[Any]:
        return Call(
            prompt=prompt,
            image=request.image,
            config=self._config,
            max_requests=max_attempts,
            trial=trial,
            requests=made,
        )


def too_long(request: JudgeRequest | AnswerRequest, config: JudgeConfig) -> Served | None:
    """The failure of a completion of more steps than a reply can hold, which is not sent; None: it is not so long."""
    limited = config.kind not in LOCAL_KINDS and config.provider.token_limit != TokenLimitField.NONE
    most = config.max_completion_tokens // LEAST_REPLY_TOKENS_PER_STEP
    if isinstance(request, AnswerRequest) or not limited or len(request.steps) <= most:
        return None
    detail = (
        f"{len(request.steps)} steps, and a reply of judge.max_completion_tokens={config.max_completion_tokens} holds "
        f"verdicts on {most} at most; it was not sent"
    )
    now_s = time.time()
    failure = JudgeFailure(reason=FailureReason.WRONG_COUNT, detail=detail)
    unsent = Judgement(key=request.key, outcome=failure, started_s=now_s, ended_s=now_s, attempts=0)
    return Served(judgement=unsent, requests=())


def _account(key: str, call: Call[Ruling]) -> dict[str, Any]:
    """What a call took; the part that all judgements have in common."""
    return {
        "key": key,
        "started_s": call.started_s,
        "sent_s": call.sent_s,
        "ended_s": time.time(),
        "attempts": len(call.requests),
        "prompt_tokens": sum(made.prompt_tokens or 0 for made in call.requests),
        "completion_tokens": sum(made.completion_tokens or 0 for made in call.requests),
    }


def _served(judgement: Judgement | AnswerJudgement, call: Call[Ruling], ended: Conclusion[Ruling]) -> Served:
    return Served(
        judgement=judgement,
        requests=tuple(call.requests),
        model=ended.model,
        out=ended.out,
        more_after_s=ended.more_after_s,
        trial_passed=call.trial_passed,
    )
