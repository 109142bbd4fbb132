"""A judge on this machine that speaks the OpenAI chat-completions protocol and can be told to misbehave.

It knows nothing but the request: it reads question, gold and what the policy wrote from the user message, as any judge
would. Bodies are read as plain JSON and not as models of the whole protocol, because it shares cores with engines that
generate.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response

from judge.schema import ANSWER_FIELD, step_names
from mrpo.config import OracleConfig
from mrpo.errors import ConfigError
from mrpo.types import Verdicts

RETRY_AFTER_S = 1
GARBAGE = 'Certainly! Here are my marks: {"step1": {"Alignment": yes'
CHARS_PER_TOKEN = 4  # for the usage field


class Ruler(Protocol):
    """What rules behind the server; a ValueError says that it cannot rule on such data."""

    def rule_steps(self, steps: Sequence[str], *, question: str, answer: str, rationale: str) -> Verdicts:
        """[K] marks of the steps; `answer` and `rationale` are gold."""
        ...

    def rule_answer(self, generated: str, *, question: str, answer: str) -> bool:
        """Whether the generated answer is correct; `answer` is gold."""
        ...


class Fault(StrEnum):
    """What a request can be answered with instead of a ruling."""

    ERROR = "error"
    RATE_LIMIT = "rate_limit"
    GARBAGE = "garbage"


@dataclass(slots=True, kw_only=True)
class Stats:
    """What the server has seen; served at /stats."""

    requests: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    faults: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "requests": self.requests,
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
            "faults": dict(self.faults),
        }


class FaultPlan:
    """Decides by a seeded hash of body and attempt, so that faults do not depend on the order of requests."""

    def __init__(self, config: OracleConfig, *, seed: int) -> None:
        """Check the shares.

        Raises:
            ConfigError: they add up to more than 1.
        """
        self._shares = {
            Fault.ERROR: config.error_rate,
            Fault.RATE_LIMIT: config.rate_limit_rate,
            Fault.GARBAGE: config.garbage_rate,
        }
        if sum(self._shares.values()) > 1.0:
            raise ConfigError(
                f"judge.oracle: error_rate + rate_limit_rate + garbage_rate = {sum(self._shares.values()):g}; "
                "they are shares of all requests and must not exceed 1 together"
            )
        self._active = any(self._shares.values())
        self._key = seed.to_bytes(8, "little", signed=True)
        self._attempts: Counter[bytes] = Counter()

    def next(self, body: bytes) -> Fault | None:
        """The fault of this body's next attempt, or None."""
        if not self._active:
            return None
        digest = hashlib.blake2b(body, digest_size=16, key=self._key).digest()
        self._attempts[digest] += 1
        attempt = self._attempts[digest].to_bytes(8, "little")
        draw = int.from_bytes(hashlib.blake2b(digest + attempt, digest_size=8).digest(), "little") / 2**64  # [0, 1)
        for fault, share in self._shares.items():
            if draw < share:
                return fault
            draw -= share
        return None


def build_app(ruler: Ruler, *, model: str, faults: OracleConfig, seed: int) -> FastAPI:
    """The server's routes: /v1/chat/completions, /v1/models and /stats.

    Args:
        ruler: rules on what is asked.
        model: the name it goes by.
        faults: latency, and shares of requests to answer badly.
        seed: of the faults.

    Raises:
        ConfigError: the shares of faults add up to more than 1.
    """
    plan, stats = FaultPlan(faults, seed=seed), Stats()
    app = FastAPI(openapi_url=None)

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        stats.requests += 1
        stats.in_flight += 1
        stats.max_in_flight = max(stats.max_in_flight, stats.in_flight)
        try:
            body = await request.body()
            if faults.latency_s > 0:
                await asyncio.sleep(faults.latency_s)
            fault = plan.next(body)
            if fault is not None:
                stats.faults[fault] += 1
                return _faulty(fault, body, model)
            return _ruled(ruler, body, model)
        finally:
            stats.in_flight -= 1

    @app.get("/v1/models")
    async def models() -> Response:
        return _json({"object": "list", "data": [{"id": model, "object": "model", "owned_by": "mrpo"}]})

    @app.get("/stats")
    async def show_stats() -> Response:
        return _json(stats.as_json())

    return app


def _faulty(fault: Fault, body: bytes, model: str) -> Response:
    if fault is Fault.ERROR:
        return _error(500, "told to fail")
    if fault is Fault.RATE_LIMIT:
        return _error(429, "told to be busy", {"retry-after": str(RETRY_AFTER_S)})
    return _completion(GARBAGE, body, model)


def _ruled(ruler: Ruler, body: bytes, model: str) -> Response:
    try:
        reply = rule(ruler, read_user_data(body))
    except (ValueError, KeyError, TypeError) as error:
        return _error(400, f"the {model} judge cannot rule on this: {type(error).__name__}: {error}")
    return _completion(json.dumps(reply), body, model)


def read_user_data(body: bytes) -> dict[str, Any]:
    """The JSON object that is the user message's first text, or its second, after a rubric without a role.

    Raises:
        ValueError: the body has no such part.
    """
    match json.loads(body):
        case {"messages": [*before, {"role": "user", "content": [*parts]}]}:
            texts = [part["text"] for part in parts if part["type"] == "text"]
        case _:
            raise ValueError("no user message of parts at the end")
    place = 0 if before else 1
    if len(texts) <= place:
        raise ValueError("no data in the user message")
    data = json.loads(texts[place])
    if not isinstance(data, dict):
        raise ValueError("the user message's text is not an object")
    return data


def rule(ruler: Ruler, data: dict[str, Any]) -> dict[str, Any]:
    """The object a judge replies with to the data of `judge.prompts`, which name what is asked.

    Raises:
        KeyError: a part is missing.
        TypeError: a part is no text.
        ValueError: the ruler cannot rule on such data.
    """
    question, answer = _text(data, "question"), _text(data, "gold_answer")
    if "generated_answer" in data:
        return {ANSWER_FIELD: int(ruler.rule_answer(_text(data, "generated_answer"), question=question, answer=answer))}
    steps = [_text(data["steps"], name) for name in step_names(len(data["steps"]))]
    rationale = _text(data, "gold_rationale")
    return reply_of(ruler.rule_steps(steps, question=question, answer=answer, rationale=rationale))


def _text(data: dict[str, Any], name: str) -> str:
    value = data[name]
    if not isinstance(value, str):
        raise TypeError(f"{name} is no text")
    return value


def reply_of(verdicts: Verdicts) -> dict[str, dict[str, int]]:
    """Verdicts as the object a judge replies with."""
    marks = zip(verdicts.alignment, verdicts.contribution, strict=True)
    names = step_names(len(verdicts.alignment))
    return {name: {"Alignment": int(a), "Contribution": int(c)} for name, (a, c) in zip(names, marks, strict=True)}


def _completion(content: str, body: bytes, model: str) -> Response:
    prompt_tokens, completion_tokens = len(body) // CHARS_PER_TOKEN, len(content) // CHARS_PER_TOKEN
    return _json(
        {
            "id": f"mrpo-{model}",
            "object": "chat.completion",
            "model": model,
            "choices": [
                {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}},
            ],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": completion_tokens,
                "total_tokens": prompt_tokens + completion_tokens,
            },
        }
    )


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return _json({"error": {"message": message, "type": "mrpo"}}, status, headers)


def _json(data: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(data), status, headers, media_type="application/json")
