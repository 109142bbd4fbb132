"""A chat-completions response: what it says, what it cost, and why it may say nothing. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from judge.schema import bad_json, quote
from mrpo.types import FailureReason, JudgeFailure

Ruling = TypeVar("Ruling")
Parser = Callable[[str], Ruling | JudgeFailure]  # reads the judge's text; never raises for what it says


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply(Generic[Ruling]):
    """What a response came to. Made here, read by the client."""

    outcome: Ruling | JudgeFailure
    prompt_tokens: int = 0  # as the server counts them; 0 where it does not say
    completion_tokens: int = 0


def parse_response(body: bytes, parse: Parser[Ruling]) -> Reply[Ruling]:
    """Read the body of a successful response; `parse` reads the judge's text in it.

    Never raises for what a server sends: anything but a complete, exact reply is a `JudgeFailure`.
    """
    try:
        response = json.loads(body)
    except (ValueError, RecursionError):
        return Reply(outcome=bad_json(f"the response is not JSON: {quote(body.decode(errors='replace'))}"))
    match response:
        case {"choices": [{"message": {} as message} as choice, *_]}:
            pass
        case _:
            return Reply(
                outcome=bad_json(f"no choices[0].message in the response: {quote(body.decode(errors='replace'))}")
            )
    usage = response.get("usage")
    text = _text_of(choice, message)
    return Reply(
        outcome=text if isinstance(text, JudgeFailure) else parse(text),
        prompt_tokens=_count(usage, "prompt_tokens"),
        completion_tokens=_count(usage, "completion_tokens"),
    )


def _text_of(choice: dict[str, Any], message: dict[str, Any]) -> str | JudgeFailure:
    refusal, finish_reason, content = message.get("refusal"), choice.get("finish_reason"), message.get("content")
    if refusal:
        return JudgeFailure(reason=FailureReason.REFUSED, detail=f"the judge refused: {quote(str(refusal))}")
    if finish_reason == "content_filter":
        return JudgeFailure(reason=FailureReason.REFUSED, detail="the endpoint's content filter stopped the reply")
    if finish_reason == "length":
        return bad_json("the reply was cut by the token limit; raise judge.max_completion_tokens")
    if not isinstance(content, str):
        return bad_json(f"the reply has no text: content={quote(repr(content))}")
    return content


def _count(usage: Any, name: str) -> int:
    if not isinstance(usage, dict) or name not in usage:
        return 0
    count = usage[name]
    return count if type(count) is int and count >= 0 else 0
