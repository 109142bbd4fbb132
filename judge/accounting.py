"""What a pool tells of its work, and whom it asks before it calls: the seams for caches and budgets. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from mrpo.types import AnswerJudgement, AnswerRequest, Judgement, JudgeRequest, Verdicts


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestUsage:
    """One HTTP request that was made, whatever came of it. A count is None where the endpoint did not say."""

    endpoint: int  # its place in `mrpo.judge_endpoints.endpoints_of`
    model: str
    prompt_tokens: int | None = None  # cached ones included
    cached_prompt_tokens: int | None = None
    completion_tokens: int | None = None
    replied: bool = False  # HTTP 200, so that it is paid for, whatever the reply says


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What an actor hands back for one call."""

    judgement: Judgement | AnswerJudgement
    requests: tuple[RequestUsage, ...]  # `judgement.attempts` of them
    model: str | None = None  # that ruled; None: the judgement is a failure
    out: bool = False  # it failed because no endpoint can be asked; another try may find one
    more_after_s: float | None = None  # it failed for want of requests alone: another one was due after so long
    trial_passed: bool = False  # the endpoint that the call was told to try works


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownRuling:
    """A ruling from before, and which model made it."""

    ruling: Verdicts | bool
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LookedUp:
    """What is known of a call, and the names under which a ruling on it as it was then may be kept."""

    known: KnownRuling | None = None
    keys: Mapping[str, str] = field(default_factory=dict)  # by model, those that were found out


OnRequest = Callable[[RequestUsage], None]


class Rulings(Protocol):
    """Rulings made before, asked before anything is spent. It reports its own troubles and never raises for them."""

    async def find(self, request: JudgeRequest | AnswerRequest) -> LookedUp:
        """Look for a ruling on the same content by the same judge."""
        ...

    async def keep(
        self, request: JudgeRequest | AnswerRequest, ruling: Verdicts | bool, *, model: str, key: str
    ) -> None:
        """Remember what `model` ruled under the `key` that `find` gave, if that is still the call's."""
        ...

    def take_metrics(self) -> dict[str, float]:
        """What it counted since this was asked last, as `judge/...`."""
        ...
