"""How the calls of a check went: failures by reason, time and tokens. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mrpo.types import JudgeFailure, Judgement

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSummary:
    """Of all calls; a failure is no verdict, and no part of any agreement."""

    num_calls: int
    failures: dict[str, int]  # by reason
    examples: dict[str, str]  # by reason: detail of its first one
    num_requests: int  # HTTP requests, retries included
    prompt_tokens: int
    completion_tokens: int
    latency_s: dict[str, float]  # p50 … max, from the first request to the end; empty where nothing was sent
    cost: float | None  # of everything spent on this folder; None: no price is known

    @property
    def num_failed(self) -> int:
        """Over all reasons."""
        return sum(self.failures.values())


def call_summary(judgements: Sequence[Judgement], *, cost: float | None) -> CallSummary:
    """Count, and find the percentiles.

    Args:
        judgements: one a call.
        cost: in the currency of `judge.prices`.
    """
    failures: dict[str, int] = {}
    examples: dict[str, str] = {}
    for item in judgements:
        if isinstance(item.outcome, JudgeFailure):
            reason = item.outcome.reason.value
            failures[reason] = failures.get(reason, 0) + 1
            examples.setdefault(reason, item.outcome.detail)
    seconds = [item.ended_s - item.sent_s for item in judgements if item.sent_s is not None and item.attempts]
    latency = {f"p{share}": float(np.percentile(seconds, share)) for share in PERCENTILES} if seconds else {}
    return CallSummary(
        num_calls=len(judgements),
        failures=dict(sorted(failures.items(), key=lambda item: -item[1])),
        examples=examples,
        num_requests=sum(item.attempts for item in judgements),
        prompt_tokens=sum(item.prompt_tokens for item in judgements),
        completion_tokens=sum(item.completion_tokens for item in judgements),
        latency_s=latency | ({"max": max(seconds)} if seconds else {}),
        cost=cost,
    )
