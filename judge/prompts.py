"""What is asked of a judge, on the steps of a completion and on its answer. Pure.

A prompt holds all in which the two differ; body, transport and failures are the same for both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic

from judge.answer_rubric import ANSWER_RUBRIC
from judge.reply import Parser, Ruling
from judge.rubric import RUBRIC
from judge.schema import answer_schema, parse_answer, parse_verdicts, step_names, verdict_schema
from mrpo.types import AnswerRequest, JudgeRequest, Verdicts

REPLY_TOKENS_PER_STEP = 20
LEAST_REPLY_TOKENS_PER_STEP = 12  # {"step1": {"Alignment": 1, "Contribution": 1}} takes more, whatever the tokenizer
REPLY_TOKENS_OF_ANSWER = 10
# Special tokens begin with "<" or "[" and something like a name: <|im_end|>, [/INST], [|user|]. "< 5 mm" does not.
_OPENING = r"<(?=[^\s\d=])|\[(?=[/|A-Za-z])"
# Unicode's controls, formats, surrogates, private use, and separators of lines and paragraphs, above ASCII's controls,
# which JSON escapes anyway; and what is drawn as nothing: fillers, joiners, selectors of variants, blank Braille.
_UNSEEN = (
    r"[\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    r"\ud800-\udfff\ue000-\uf8ff\ufeff\ufff9-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3"
    r"\U0001d173-\U0001d17a\U000e0000-\U000e0fff\U000f0000-\U0010ffff"
    r"\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2800\u3164\ufe00-\ufe0f\uffa0]"
)
_UNSAFE = re.compile(f"{_OPENING}|{_UNSEEN}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt(Generic[Ruling]):
    """One thing to rule on."""

    rubric: str
    text: str  # the data, one JSON object
    schema_name: str
    schema: dict[str, Any]  # of the reply, strict
    reply_tokens: int  # about how many the reply has
    parse: Parser[Ruling]


def prompt_of(request: JudgeRequest | AnswerRequest) -> Prompt[Any]:
    """Rule on what a request is about."""
    return answer_prompt(request) if isinstance(request, AnswerRequest) else step_prompt(request)


def step_prompt(request: JudgeRequest) -> Prompt[Verdicts]:
    """Rule on every step; the request has at least one."""
    assert request.steps, f"{request.key}: a completion without steps is not judged"
    num_steps = len(request.steps)
    data = {
        "question": request.question,
        "gold_answer": request.answer,
        "gold_rationale": request.rationale,
        "steps": dict(zip(step_names(num_steps), request.steps, strict=True)),
    }
    return Prompt(
        rubric=RUBRIC,
        text=_data_text(data),
        schema_name="verdicts",
        schema=verdict_schema(num_steps),
        reply_tokens=REPLY_TOKENS_PER_STEP * num_steps,
        parse=partial(parse_verdicts, num_steps=num_steps),
    )


def answer_prompt(request: AnswerRequest) -> Prompt[bool]:
    """Rule on the answer; the request has one."""
    assert request.generated, f"{request.key}: a completion without an answer is not judged"
    data = {"question": request.question, "gold_answer": request.answer, "generated_answer": request.generated}
    return Prompt(
        rubric=ANSWER_RUBRIC,
        text=_data_text(data),
        schema_name="answer",
        schema=answer_schema(),
        reply_tokens=REPLY_TOKENS_OF_ANSWER,
        parse=parse_answer,
    )


def _data_text(data: Mapping[str, Any]) -> str:
    """The data of a call as one JSON object, so that no text in it can pass for a part of the message around it.

    What a chat template's tokenizer would read as a mark of its own, and what nobody sees, is escaped as JSON may: the
    data stay what they are, and a served model reads the characters of an escape in place of a special token.
    """
    return _UNSAFE.sub(_escape, json.dumps(data, ensure_ascii=False))  # a judge reads "µm", not "\\u00b5m"


def _escape(found: re.Match[str]) -> str:
    plain = json.dumps(found[0])[1:-1]  # what is not ASCII comes out escaped, in two halves above U+FFFF
    return plain if plain.startswith("\\") else f"\\u{ord(found[0]):04x}"
