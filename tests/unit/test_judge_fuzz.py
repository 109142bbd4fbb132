"""Ten thousand replies that are wrong in some way, in every form a reply can have: never a crash, never a wrong K."""

from __future__ import annotations

import json
import random
from collections import Counter
from functools import partial
from typing import Any

import pytest

from judge.reply import parse_response
from judge.schema import parse_answer, parse_verdicts
from mrpo.choices import StructuredReply
from mrpo.types import JudgeFailure, Verdicts

PER_KIND = 2000  # times five kinds
ODD: list[Any] = [None, True, False, -1, 2, 1.0, float("nan"), float("inf"), "1", "", [], {}, [1], {"a": 1}, 10**400]


def mutated_marks(rng: random.Random, num_steps: int) -> str:
    """The judge's text: a good one, changed in none, one or several ways."""
    marks: Any = {f"step{k}": {"Alignment": rng.randint(0, 1), "Contribution": 1} for k in range(1, num_steps + 1)}
    for _ in range(rng.randrange(3)):
        name = f"step{rng.randint(1, num_steps)}"
        match rng.randrange(9):
            case 0:
                marks[f"step{num_steps + rng.randint(1, 3)}"] = {"Alignment": 1, "Contribution": 1}
            case 1:
                marks.pop(name, None)
            case 2:
                marks[name] = rng.choice(ODD)
            case 3:
                marks[name] = {"Alignment": rng.choice(ODD), "Contribution": 1}
            case 4:
                marks[name] = {"Alignment": 1}
            case 5:
                marks[name] = {"Alignment": 1, "Contribution": 1, rng.choice(["Reason", "alignment", ""]): 1}
            case 6:
                marks[rng.choice(["step0", "step01", "Step1", "step１", "x" * 5000])] = {}
            case 7:
                marks[name] = nested(rng.choice([3, 400, 3000]))
            case 8:
                marks |= {f"step{k}": {"Alignment": 1, "Contribution": 1} for k in range(1, 2000)}
    return mangled(rng, json.dumps(marks) if not isinstance(marks, str) else marks)


def nested(depth: int) -> Any:
    """Lists within lists."""
    value: Any = 1
    for _ in range(min(depth, 400)):
        value = [value]
    return value


def mangled(rng: random.Random, text: str) -> str:
    """Text whose letters may be changed, too."""
    at = rng.randrange(len(text) + 1)
    match rng.randrange(12):
        case 0:
            return text[:at]
        case 1:
            return text[:at] + rng.choice(['"', "{", "}", "\\", "\x00", "\ud800", "é", ",", "NaN"]) + text[at:]
        case 2:
            return text + text
        case 3:
            return text.replace('"Alignment"', '"Contribution"', 1)
        case 4:
            return "[" * 50_000 + text
        case 5:
            return f"```json\n{text}\n```" + rng.choice(["", " ", "\n```json\n{}\n```", "done"])
        case 6:
            return rng.choice(["", "null", "0", "\ufeff" + text, "Sure! " + text])
        case 7:
            return text.replace("step1", "step2", 1)
        case _:
            return text


def response(rng: random.Random, text: str) -> bytes:
    """A body with this text where a reply may hold it, sometimes elsewhere or broken."""
    call = {"type": "function", "function": {"name": "verdicts", "arguments": text}}
    message: Any = {"role": "assistant", "content": text, "tool_calls": [call]}
    body: Any = {"choices": [{"finish_reason": "stop", "message": message}], "usage": {"prompt_tokens": 5}}
    match rng.randrange(16):
        case 0:
            message["tool_calls"] = rng.choice([None, [], [call, call], [{}], [{"function": rng.choice(ODD)}], 7])
        case 1:
            message["content"] = rng.choice(ODD)
        case 2:
            body["choices"] = rng.choice([*ODD, [None], [{"message": None}]])
        case 3:
            body = rng.choice(ODD)
        case 4:
            body["usage"] = rng.choice(
                [*ODD, {"prompt_tokens": rng.choice(ODD), "prompt_tokens_details": rng.choice(ODD)}]
            )
        case 5:
            body["choices"][0]["finish_reason"] = rng.choice(["length", "content_filter", 7, None])
        case 6:
            message["refusal"] = rng.choice(ODD)
    encoded = json.dumps(body).encode()
    if rng.randrange(12) == 0:
        at = rng.randrange(len(encoded))
        encoded = encoded[:at] + bytes([rng.randrange(256)]) + encoded[at + rng.randrange(3) :]
    return encoded


@pytest.mark.parametrize("structured", list(StructuredReply))
def test_no_reply_crashes_and_none_rules_on_another_number_of_steps(structured: StructuredReply) -> None:
    rng = random.Random(f"fuzz {structured}")
    seen: Counter[str] = Counter()
    for _ in range(PER_KIND):
        num_steps = rng.randint(1, 8)
        body = response(rng, mutated_marks(rng, num_steps))
        reply = parse_response(body, partial(parse_verdicts, num_steps=num_steps), structured)
        if isinstance(reply.outcome, Verdicts):
            assert len(reply.outcome.alignment) == len(reply.outcome.contribution) == num_steps
            seen["ruled"] += 1
        else:
            assert isinstance(reply.outcome, JudgeFailure)
            assert len(reply.outcome.detail) < 1000
            seen[reply.outcome.reason] += 1
        assert min(reply.prompt_tokens, reply.cached_prompt_tokens, reply.completion_tokens) >= 0
        about_answer = parse_response(body, parse_answer, structured).outcome
        assert isinstance(about_answer, JudgeFailure), "marks on steps are no mark on an answer"
    # The generator reaches what it is meant to reach.
    assert seen["ruled"] > 100
    assert seen["bad_json"] > 200
    assert seen["wrong_count"] > 50
    assert seen["refused"] > 10
