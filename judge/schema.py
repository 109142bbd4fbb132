"""What the judge must reply, on steps and on an answer, and how its text becomes a ruling or a failure. Pure.

Letter: K steps of the completion.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from mrpo.types import FailureReason, JudgeFailure, Verdicts

FIELDS = ("Alignment", "Contribution")
ANSWER_FIELD = "Correct"
MARK = {"type": "integer", "enum": [0, 1]}
STEP_NAME = re.compile(r"step[1-9][0-9]*")
QUOTE_CHARS = 160  # of a bad reply, in a failure's detail


def step_names(num_steps: int) -> list[str]:
    """`["step1", …, "stepK"]`: the names of the steps in request, schema and reply."""
    return [f"step{k}" for k in range(1, num_steps + 1)]


def verdict_schema(num_steps: int) -> dict[str, Any]:
    """Strict JSON schema of a reply on steps: exactly step1…stepK, each with both marks in {0, 1}."""
    return _exactly(dict.fromkeys(step_names(num_steps), _exactly(dict.fromkeys(FIELDS, MARK))))


def answer_schema() -> dict[str, Any]:
    """Strict JSON schema of a reply on an answer: one mark in {0, 1}."""
    return _exactly({ANSWER_FIELD: MARK})


def _exactly(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def parse_verdicts(content: str, num_steps: int) -> Verdicts | JudgeFailure:
    """Read the judge's text about steps.

    Args:
        content: what the judge wrote.
        num_steps: K, the number of steps it was asked about.

    Returns:
        `Verdicts` of length K, or a failure: `wrong_count` where the reply is well-formed for another number of
        steps, `bad_json` for everything else, duplicate keys, booleans, floats and NaN included.
    """
    reply = _load_object(content)
    if isinstance(reply, JudgeFailure):
        return reply
    stray = [name for name in reply if not STEP_NAME.fullmatch(name)]
    if stray:
        return bad_json(f"unexpected key {quote(repr(stray[0]))}")
    wrong = [name for name, marks in reply.items() if not _is_marks(marks, FIELDS)]
    if wrong:
        return bad_json(f"{wrong[0]} must hold exactly Alignment and Contribution, each 0 or 1: {quote(content)}")
    names = step_names(num_steps)
    if set(reply) != set(names):
        return JudgeFailure(reason=FailureReason.WRONG_COUNT, detail=_count_detail(list(reply), names))
    return Verdicts(
        alignment=[reply[name]["Alignment"] == 1 for name in names],
        contribution=[reply[name]["Contribution"] == 1 for name in names],
    )


def parse_answer(content: str) -> bool | JudgeFailure:
    """Read the judge's text about an answer: whether it is correct, or `bad_json` for anything but the exact form."""
    reply = _load_object(content)
    if isinstance(reply, JudgeFailure):
        return reply
    if not _is_marks(reply, (ANSWER_FIELD,)):
        return bad_json(f"the reply must hold exactly {ANSWER_FIELD}, 0 or 1: {quote(content)}")
    return bool(reply[ANSWER_FIELD] == 1)


def bad_json(detail: str) -> JudgeFailure:
    """The failure of a reply that is not what was asked for."""
    return JudgeFailure(reason=FailureReason.BAD_JSON, detail=detail)


def quote(text: str) -> str:
    """The beginning of what a judge sent, fit for one line."""
    return repr(text if len(text) <= QUOTE_CHARS else text[:QUOTE_CHARS] + "…")


def _load_object(content: str) -> dict[str, Any] | JudgeFailure:
    try:
        reply = json.loads(content, object_pairs_hook=_unique, parse_constant=_not_json)
    except (ValueError, RecursionError) as error:
        return bad_json(f"{error}: {quote(content)}")
    return reply if isinstance(reply, dict) else bad_json(f"expected an object, got {quote(content)}")


def _count_detail(got: list[str], expected: list[str]) -> str:
    missing = [name for name in expected if name not in got]
    extra = [name for name in got if name not in expected]
    parts = [f"{label} {names[0]}" for label, names in (("missing", missing), ("extra", extra)) if names]
    return f"expected verdicts on {len(expected)} steps, got {len(got)} ({', '.join(parts)})"


def _is_marks(marks: Any, fields: tuple[str, ...]) -> bool:
    # `type(…) is int` keeps out True, which equals 1.
    return (
        isinstance(marks, dict)
        and set(marks) == set(fields)
        and all(type(mark) is int and mark in (0, 1) for mark in marks.values())
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate key")
    return found


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
