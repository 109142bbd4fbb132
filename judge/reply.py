"""A chat-completions response: what it says, what it cost, and why it may say nothing. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from judge.schema import bad_json, quote
from mrpo.choices import StructuredReply
from mrpo.types import FailureReason, JudgeFailure

Ruling = TypeVar("Ruling")
# A reply that nothing but the prompt holds to its form often comes as one fenced block. What stands around it counts.
FENCE = re.compile(r"\s*```(?:json)?[ \t]*\n((?:(?!```).)*)```\s*", re.DOTALL)
Parser = Callable[[str], Ruling | JudgeFailure]  # reads the judge's text; never raises for what it says


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply(Generic[Ruling]):
    """What a response came to. Made here, read by the client."""

    outcome: Ruling | JudgeFailure
    prompt_tokens: int = 0  # as the server counts them, cached ones included; 0 where it does not say
    cached_prompt_tokens: int = 0
    completion_tokens: int = 0


def parse_response(
    body: bytes, parse: Parser[Ruling], structured: StructuredReply = StructuredReply.JSON_SCHEMA
) -> Reply[Ruling]:
    """Read the body of a successful response.

    Never raises for what a server sends: anything but a complete, exact reply is a `JudgeFailure`.

    Args:
        body: what was received.
        parse: reads the judge's text in it.
        structured: how the reply was asked for, which says where its text stands.
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
    text = _text_of(choice, message, structured)
    details = usage.get("prompt_tokens_details") if isinstance(usage, dict) else None
    return Reply(
        outcome=text if isinstance(text, JudgeFailure) else parse(text),
        prompt_tokens=_count(usage, "prompt_tokens"),
        cached_prompt_tokens=_count(details, "cached_tokens"),
        completion_tokens=_count(usage, "completion_tokens"),
    )


def _text_of(choice: dict[str, Any], message: dict[str, Any], structured: StructuredReply) -> str | JudgeFailure:
    refusal, finish_reason, content = message.get("refusal"), choice.get("finish_reason"), message.get("content")
    if refusal:
        return JudgeFailure(reason=FailureReason.REFUSED, detail=f"the judge refused: {quote(str(refusal))}")
    if finish_reason == "content_filter":
        return JudgeFailure(reason=FailureReason.REFUSED, detail="the endpoint's content filter stopped the reply")
    if finish_reason == "length":
        return bad_json("the reply was cut by the token limit; raise judge.max_completion_tokens")
    if structured == StructuredReply.TOOL_CALL:
        return _arguments_of(message)
    if not isinstance(content, str):
        return bad_json(f"the reply has no text: content={quote(repr(content))}")
    if structured == StructuredReply.NONE and (fenced := FENCE.fullmatch(content)) is not None:
        return fenced[1]
    return content


def _arguments_of(message: dict[str, Any]) -> str | JudgeFailure:
    """What the one function was called with."""
    match message.get("tool_calls"):
        case [{"function": {"arguments": str(arguments)}}]:
            return arguments
        case calls:
            return bad_json(f"expected one call of the function that was named, got tool_calls={quote(repr(calls))}")


def _count(usage: Any, name: str) -> int:
    if not isinstance(usage, dict) or name not in usage:
        return 0
    count = usage[name]
    return count if type(count) is int and count >= 0 else 0
