"""A reply becomes verdicts only when it is complete and exact."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from judge.reply import Reply, parse_response
from judge.schema import answer_schema, parse_answer, parse_verdicts, verdict_schema
from mrpo.types import FailureReason, JudgeFailure, Verdicts

GOOD = {"step1": {"Alignment": 1, "Contribution": 0}, "step2": {"Alignment": 0, "Contribution": 1}}
GOOD_TEXT = json.dumps(GOOD)


def reason_of(content: str, num_steps: int = 2) -> FailureReason:
    outcome = parse_verdicts(content, num_steps)
    assert isinstance(outcome, JudgeFailure), outcome
    return outcome.reason


def read_response(body: bytes, num_steps: int) -> Reply[Verdicts]:
    return parse_response(body, partial(parse_verdicts, num_steps=num_steps))


def response(message: dict[str, Any], **choice: Any) -> bytes:
    return json.dumps({"choices": [{"message": message, **choice}]}).encode()


def test_exact_reply_becomes_verdicts() -> None:
    assert parse_verdicts(GOOD_TEXT, 2) == Verdicts(alignment=[True, False], contribution=[False, True])


def test_order_of_keys_does_not_matter() -> None:
    swapped = json.dumps({name: GOOD[name] for name in ("step2", "step1")})
    assert parse_verdicts(swapped, 2) == parse_verdicts(GOOD_TEXT, 2)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_every_ruling_survives_the_way_and_fits_the_schema(marks: list[tuple[bool, bool]]) -> None:
    reply = {f"step{k}": {"Alignment": int(a), "Contribution": int(c)} for k, (a, c) in enumerate(marks, 1)}
    jsonschema.validate(reply, verdict_schema(len(marks)))
    expected = Verdicts(alignment=[a for a, _ in marks], contribution=[c for _, c in marks])
    assert parse_verdicts(json.dumps(reply), len(marks)) == expected


@pytest.mark.parametrize("num_steps", [1, 3, 10])
def test_another_number_of_steps_is_wrong_count(num_steps: int) -> None:
    assert reason_of(GOOD_TEXT, num_steps) == FailureReason.WRONG_COUNT


def test_right_number_with_a_gap_is_wrong_count() -> None:
    assert reason_of(GOOD_TEXT.replace("step2", "step3")) == FailureReason.WRONG_COUNT


def test_no_step_at_all_is_wrong_count() -> None:
    assert reason_of("{}") == FailureReason.WRONG_COUNT


@pytest.mark.parametrize(
    "content",
    [
        "",
        "step1 is fine",
        "I'm sorry, I can't help with that.",
        GOOD_TEXT[:-1],
        GOOD_TEXT + GOOD_TEXT,
        f"```json\n{GOOD_TEXT}\n```",
        "null",
        "[1, 0]",
        "[" * 100_000,
        GOOD_TEXT.replace("1}", "true}"),
        GOOD_TEXT.replace("1}", "1.0}"),
        GOOD_TEXT.replace("1}", '"1"}'),
        GOOD_TEXT.replace("1}", "2}"),
        GOOD_TEXT.replace("1}", "-1}"),
        GOOD_TEXT.replace("1}", "null}"),
        GOOD_TEXT.replace("1}", "NaN}"),
        GOOD_TEXT.replace("1}", "Infinity}"),
        GOOD_TEXT.replace("1}", "1" * 5000 + "}"),
        GOOD_TEXT.replace('"Contribution": 1', '"Contribution": 1, "Contribution": 0'),
        GOOD_TEXT.replace('"Contribution": 1', '"Contribution": 1, "Reason": 0'),
        GOOD_TEXT.replace(', "Contribution": 1', ""),
        GOOD_TEXT.replace('"Contribution": 1', '"contribution": 1'),
        GOOD_TEXT.replace("step2", "step1"),
        GOOD_TEXT.replace("step2", "step02"),
        GOOD_TEXT.replace("step2", "verdict"),
        GOOD_TEXT.replace("step2", "step２"),
        '{"step1": 1, "step2": 1}',
    ],
)
def test_inexact_replies_are_bad_json(content: str) -> None:
    assert content != GOOD_TEXT
    assert reason_of(content) == FailureReason.BAD_JSON


@given(st.text())
def test_no_text_raises(content: str) -> None:
    assert isinstance(parse_verdicts(content, 1), JudgeFailure)


@given(st.binary())
def test_no_body_raises(body: bytes) -> None:
    assert isinstance(read_response(body, 1).outcome, JudgeFailure)


@pytest.mark.parametrize(
    "bad",
    [
        {"step1": {"Alignment": 1, "Contribution": 1}},
        {**GOOD, "step3": {"Alignment": 1, "Contribution": 1}},
        {**GOOD, "step2": {"Alignment": 1}},
        {**GOOD, "step2": {"Alignment": 2, "Contribution": 0}},
        {**GOOD, "step2": {"Alignment": 1, "Contribution": 0, "Comment": "?"}},
    ],
)
def test_schema_refuses_what_the_parser_refuses(bad: dict[str, Any]) -> None:
    jsonschema.validate(GOOD, verdict_schema(2))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(bad, verdict_schema(2))
    assert isinstance(parse_verdicts(json.dumps(bad), 2), JudgeFailure)


def test_response_gives_verdicts_and_token_counts() -> None:
    body = json.loads(response({"content": GOOD_TEXT}, finish_reason="stop"))
    body["usage"] = {"prompt_tokens": 700, "completion_tokens": 30}
    reply = read_response(json.dumps(body).encode(), 2)
    assert reply.outcome == parse_verdicts(GOOD_TEXT, 2)
    assert (reply.prompt_tokens, reply.completion_tokens) == (700, 30)


@pytest.mark.parametrize("usage", [None, {}, [], {"prompt_tokens": "700"}, {"prompt_tokens": -1}])
def test_unreadable_token_counts_are_zero(usage: Any) -> None:
    body = {**json.loads(response({"content": GOOD_TEXT})), "usage": usage}
    reply = read_response(json.dumps(body).encode(), 2)
    assert isinstance(reply.outcome, Verdicts)
    assert (reply.prompt_tokens, reply.completion_tokens) == (0, 0)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (response({"refusal": "I cannot judge this", "content": None}), FailureReason.REFUSED),
        (response({"content": GOOD_TEXT}, finish_reason="content_filter"), FailureReason.REFUSED),
        (response({"content": GOOD_TEXT}, finish_reason="length"), FailureReason.BAD_JSON),
        (response({"content": None}), FailureReason.BAD_JSON),
        (response({"content": [{"type": "text", "text": GOOD_TEXT}]}), FailureReason.BAD_JSON),
        (b'{"choices": []}', FailureReason.BAD_JSON),
        (b'{"error": {"message": "overloaded"}}', FailureReason.BAD_JSON),
        (b"<html>Bad gateway</html>", FailureReason.BAD_JSON),
        (b"\xff\xfe", FailureReason.BAD_JSON),
        (b"", FailureReason.BAD_JSON),
    ],
)
def test_responses_without_a_ruling_say_why(body: bytes, reason: FailureReason) -> None:
    outcome = read_response(body, 2).outcome
    assert isinstance(outcome, JudgeFailure)
    assert outcome.reason == reason
    assert 0 < len(outcome.detail) < 400


@pytest.mark.parametrize(("content", "correct"), [('{"Correct": 1}', True), (' {"Correct": 0}\n', False)])
def test_an_exact_mark_is_a_ruling_on_the_answer(content: str, correct: bool) -> None:
    jsonschema.validate(json.loads(content), answer_schema())
    assert parse_answer(content) is correct


@pytest.mark.parametrize(
    "content",
    [
        "",
        "1",
        "[1]",
        "{}",
        '{"Correct": true}',
        '{"Correct": 1.0}',
        '{"Correct": "1"}',
        '{"Correct": 2}',
        '{"Correct": null}',
        '{"correct": 1}',
        '{"Correct": 1, "Reason": 1}',
        '{"Correct": 0, "Correct": 1}',
        '{"step1": {"Correct": 1}}',
        '```json\n{"Correct": 1}\n```',
        '{"Correct": 1} I am sure.',
    ],
)
def test_any_other_form_is_no_ruling_on_the_answer(content: str) -> None:
    outcome = parse_answer(content)
    assert isinstance(outcome, JudgeFailure)
    assert outcome.reason == FailureReason.BAD_JSON


@pytest.mark.parametrize("bad", [{}, {"Correct": 2}, {"Correct": 1, "Reason": "x"}, {"Correct": "1"}, 1])
def test_the_answers_schema_refuses_what_its_parser_refuses(bad: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(bad, answer_schema())
    assert isinstance(parse_answer(json.dumps(bad)), JudgeFailure)


@given(st.text())
def test_no_text_about_an_answer_raises(content: str) -> None:
    assert isinstance(parse_answer(content), JudgeFailure)


def test_a_response_about_an_answer_is_read_like_any_other() -> None:
    body = json.loads(response({"content": '{"Correct": 1}'}, finish_reason="stop"))
    body["usage"] = {"prompt_tokens": 300, "completion_tokens": 6}
    assert parse_response(json.dumps(body).encode(), parse_answer) == Reply(
        outcome=True, prompt_tokens=300, completion_tokens=6
    )
    cut = parse_response(response({"content": '{"Correct": 1}'}, finish_reason="length"), parse_answer).outcome
    assert isinstance(cut, JudgeFailure)
