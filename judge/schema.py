"""The reply the judge must give, and how a reply becomes verdicts or a failure. Pure.

Letter: K steps of the completion.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, NoReturn

from mrpo.types import FailureReason, JudgeFailure, Verdicts

FIELDS = ("Alignment", "Contribution")
STEP_NAME = re.compile(r"step[1-9][0-9]*")
QUOTE_CHARS = 160  # of a bad reply, in a failure's detail


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a chat-completions answer came to. Made here, read by the client."""

    outcome: Verdicts | JudgeFailure
    prompt_tokens: int = 0  # as the server counts them; 0 where it does not say
    completion_tokens: int = 0


def step_names(num_steps: int) -> list[str]:
    """`["step1", …, "stepK"]`: the names of the steps in request, schema and reply."""
    return [f"step{k}" for k in range(1, num_steps + 1)]


def verdict_schema(num_steps: int) -> dict[str, Any]:
    """Strict JSON schema of a reply: exactly step1…stepK, each with both marks in {0, 1}."""
    mark = {"type": "integer", "enum": [0, 1]}
    return {
        "type": "object",
        "properties": {
            name: {
                "type": "object",
                "properties": dict.fromkeys(FIELDS, mark),
                "required": list(FIELDS),
                "additionalProperties": False,
            }
            for name in step_names(num_steps)
        },
        "required": step_names(num_steps),
        "additionalProperties": False,
    }


def parse_response(body: bytes, num_steps: int) -> Reply:
    """Read the body of a successful chat-completions response.

    Never raises for what a server sends: anything but a complete, exact reply is a `JudgeFailure`.
    """
    try:
        response = json.loads(body)
    except (ValueError, RecursionError):
        return Reply(outcome=_bad(f"the response is not JSON: {_quote(body.decode(errors='replace'))}"))
    match response:
        case {"choices": [{"message": {} as message} as choice, *_]}:
            pass
        case _:
            return Reply(
                outcome=_bad(f"no choices[0].message in the response: {_quote(body.decode(errors='replace'))}")
            )
    usage = response.get("usage")
    return Reply(
        outcome=_parse_choice(choice, message, num_steps),
        prompt_tokens=_count(usage, "prompt_tokens"),
        completion_tokens=_count(usage, "completion_tokens"),
    )


def _parse_choice(choice: dict[str, Any], message: dict[str, Any], num_steps: int) -> Verdicts | JudgeFailure:
    refusal, finish_reason, content = message.get("refusal"), choice.get("finish_reason"), message.get("content")
    if refusal:
        return JudgeFailure(reason=FailureReason.REFUSED, detail=f"the judge refused: {_quote(str(refusal))}")
    if finish_reason == "content_filter":
        return JudgeFailure(reason=FailureReason.REFUSED, detail="the endpoint's content filter stopped the reply")
    if finish_reason == "length":
        return _bad("the reply was cut by the token limit; raise judge.max_completion_tokens")
    if not isinstance(content, str):
        return _bad(f"the reply has no text: content={_quote(repr(content))}")
    return parse_verdicts(content, num_steps)


def parse_verdicts(content: str, num_steps: int) -> Verdicts | JudgeFailure:
    """Read the judge's text.

    Args:
        content: what the judge wrote.
        num_steps: K, the number of steps it was asked about.

    Returns:
        `Verdicts` of length K, or a failure: `wrong_count` where the reply is well-formed for another number of
        steps, `bad_json` for everything else, duplicate keys, booleans, floats and NaN included.
    """
    try:
        reply = json.loads(content, object_pairs_hook=_unique, parse_constant=_not_json)
    except (ValueError, RecursionError) as error:
        return _bad(f"{error}: {_quote(content)}")
    if not isinstance(reply, dict):
        return _bad(f"expected an object, got {_quote(content)}")
    stray = [name for name in reply if not STEP_NAME.fullmatch(name)]
    if stray:
        return _bad(f"unexpected key {_quote(repr(stray[0]))}")
    wrong = [name for name, marks in reply.items() if not _is_marks(marks)]
    if wrong:
        return _bad(f"{wrong[0]} must hold exactly Alignment and Contribution, each 0 or 1: {_quote(content)}")
    names = step_names(num_steps)
    if set(reply) != set(names):
        return JudgeFailure(reason=FailureReason.WRONG_COUNT, detail=_count_detail(list(reply), names))
    return Verdicts(
        alignment=[reply[name]["Alignment"] == 1 for name in names],
        contribution=[reply[name]["Contribution"] == 1 for name in names],
    )


def _count_detail(got: list[str], expected: list[str]) -> str:
    missing = [name for name in expected if name not in got]
    extra = [name for name in got if name not in expected]
    parts = [f"{label} {names[0]}" for label, names in (("missing", missing), ("extra", extra)) if names]
    return f"expected verdicts on {len(expected)} steps, got {len(got)} ({', '.join(parts)})"


def _is_marks(marks: Any) -> bool:
    # `type(…) is int` keeps out True, which equals 1.
    return (
        isinstance(marks, dict)
        and set(marks) == set(FIELDS)
        and all(type(mark) is int and mark in (0, 1) for mark in marks.values())
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate key")
    return found


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _count(usage: Any, name: str) -> int:
    if not isinstance(usage, dict) or name not in usage:
        return 0
    count = usage[name]
    return count if type(count) is int and count >= 0 else 0


def _bad(detail: str) -> JudgeFailure:
    return JudgeFailure(reason=FailureReason.BAD_JSON, detail=detail)


def _quote(text: str) -> str:
    return repr(text if len(text) <= QUOTE_CHARS else text[:QUOTE_CHARS] + "…")
