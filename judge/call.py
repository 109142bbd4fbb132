"""One call on its way: what it asks, what it has left, and what it has cost so far."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any, Generic

from judge.accounting import RequestUsage
from judge.image import data_url
from judge.prompts import Prompt
from judge.reply import Reply, Ruling
from judge.request import build_body, estimate_tokens
from mrpo.config import JudgeConfig
from mrpo.types import JudgeFailure


@dataclass(frozen=True, slots=True, kw_only=True)
class Retryable:
    """A request that failed in a way the next one may not."""

    failure: JudgeFailure
    endpoint: int
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Replied(Generic[Ruling]):
    """A request that got a reply, or a refusal that would come again."""

    reply: Reply[Ruling]
    endpoint: int
    model: str  # that replied


@dataclass(frozen=True, slots=True, kw_only=True)
class Conclusion(Generic[Ruling]):
    """What a call came to."""

    reply: Reply[Ruling]
    model: str | None = None  # that ruled
    out: bool = False  # see `Served.out`
    more_after_s: float | None = None  # see `Served.more_after_s`


@dataclass(slots=True, kw_only=True)
class Call(Generic[Ruling]):
    """Its requests, one after the other or two at once."""

    prompt: Prompt[Ruling]
    image: str  # path
    config: JudgeConfig
    max_requests: int
    trial: int | None  # an endpoint whose circuit is open, to be tried first
    started_s: float = field(default_factory=time.time)
    left_s: float = field(init=False)  # of the deadline; waiting for one's turn does not count
    sent_s: float | None = None  # time.time() of the first request
    requests: list[RequestUsage] = field(default_factory=list)  # made
    failure: JudgeFailure | None = None  # of the last one
    not_before: dict[int, float] = field(default_factory=dict)  # by endpoint: a Retry-After, on time.monotonic()
    trial_passed: bool = False
    _bodies: dict[str, bytes] = field(default_factory=dict)  # by model
    _estimated_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.left_s = self.config.deadline_s
        self._estimated_tokens = estimate_tokens(self.prompt, send_image=self.config.send_image)

    @property
    def estimated_tokens(self) -> int:
        """About how many a request costs, reply included."""
        return self._estimated_tokens

    @property
    def has_more(self) -> bool:
        """Whether another request may be made."""
        return len(self.requests) < self.max_requests

    def body(self, model: str) -> bytes:
        """The request's body.

        Raises:
            DataError: the image cannot be read.
        """
        if model not in self._bodies:
            image_url = data_url(self.image) if self.config.send_image else None
            self._bodies[model] = build_body(self.prompt, self.config, model=model, image_url=image_url)
        return self._bodies[model]

    def begin_request(self, endpoint: int, model: str) -> int:
        """Put a request on the account before it is sent, so that none is forgotten; returns its number."""
        if self.sent_s is None:
            self.sent_s = time.time()
        self.requests.append(RequestUsage(endpoint=endpoint, model=model))
        return len(self.requests) - 1

    def count_reply(self, number: int, reply: Reply[Any]) -> None:
        """Put a reply on the account of its request, with what it cost where the endpoint says."""
        made = replace(self.requests[number], replied=True)
        if reply.prompt_tokens or reply.completion_tokens:
            made = replace(
                made,
                prompt_tokens=reply.prompt_tokens,
                cached_prompt_tokens=reply.cached_prompt_tokens,
                completion_tokens=reply.completion_tokens,
            )
        self.requests[number] = made
