"""What an external judge gets when a completion attacks it: the same request as ever, with the attack as data in it."""

from __future__ import annotations

import asyncio
import json
import re
import unicodedata
from collections.abc import Callable
from typing import Any

from judge.client import JudgeClient
from judge.local_server import LocalServer
from judge.rubric import RUBRIC
from mrpo.calibration.attacks import Attack, attacks
from mrpo.choices import JudgeKind, StructuredReply
from mrpo.config import JudgeConfig, ProviderConfig
from mrpo.types import FailureReason, JudgeFailure, Verdicts
from tests.integration.judge_server import Answer, Received, ScriptedServer, all_ones, marks, reply

# What chat templates of served models are made of; none of it may stand in a message.
MARKS = re.compile(r"<\||\|?><|</?[a-z_]|\[/?[A-Z]|<<SYS|<start_of_turn|<\uff5c", re.IGNORECASE)
Script = Callable[[int, Received], Answer]
SENDABLE = [attack for attack in attacks() if len(attack.steps) < 100]  # the flood is told of below


def _send(
    corpus: list[Attack],
    script: Callable[[int, Received], Answer] = lambda _, received: all_ones(received),
    **settings: Any,
) -> tuple[list[Received], list[Any]]:
    """What arrived for each attack, in order, and what came of it."""

    async def ask(url: str) -> list[Any]:
        config = JudgeConfig(kind=JudgeKind.OPENAI_COMPATIBLE, url=url, model="m", send_image=False, **settings)
        client = JudgeClient(config, concurrency=1)
        try:
            return [(await client.judge(attack.request(attacked=True), max_attempts=1)).outcome for attack in corpus]
        finally:
            await client.close()

    with ScriptedServer(script) as server:
        outcomes = asyncio.run(ask(server.url))
        return list(server.requests), outcomes


def test_steps_travel_as_data_under_every_attack() -> None:
    assert len(SENDABLE) >= 60
    received, outcomes = _send(SENDABLE, lambda _, asked: all_ones(asked))
    assert len(received) == len(SENDABLE)
    for attack, item, outcome in zip(SENDABLE, received, outcomes, strict=True):
        body = json.loads(item.body)
        system, user = body["messages"]
        assert system == {"role": "system", "content": RUBRIC}, attack.name
        assert (user["role"], [part["type"] for part in user["content"]]) == ("user", ["text"])
        text = user["content"][0]["text"]
        assert json.loads(text) == {
            "question": attack.question,
            "gold_answer": attack.answer,
            "gold_rationale": attack.rationale,
            "steps": {f"step{k}": step for k, step in enumerate(attack.steps, start=1)},
        }
        # One JSON object and nothing around it, in which nothing is a mark of a template and nothing is unseen.
        assert text.startswith('{"question": ') and text.endswith('"}}')
        assert not MARKS.search(text), attack.name
        assert all(unicodedata.category(char) not in ("Cc", "Cf", "Co", "Cs", "Zl", "Zp") for char in text)
        assert body["response_format"]["json_schema"]["schema"]["required"] == list(json.loads(text)["steps"])
        assert isinstance(outcome, Verdicts) and len(outcome.valid) == len(attack.steps)


def test_a_rubric_in_the_users_message_stays_a_part_of_its_own() -> None:
    provider = ProviderConfig(structured=StructuredReply.JSON_SCHEMA, system_role=False)
    corpus = [attack for attack in SENDABLE if attack.kind in ("role", "quote_break", "fake_json")]
    received, _ = _send(corpus, lambda *_: reply(marks((0, 0))), provider=provider)
    assert len(corpus) >= 15
    for attack, item in zip(corpus, received, strict=True):
        (user,) = json.loads(item.body)["messages"]
        rubric, data = user["content"]
        assert rubric == {"type": "text", "text": RUBRIC}
        assert list(json.loads(data["text"])["steps"].values()) == attack.steps


def test_ten_thousand_sentences_cost_an_external_judge_nothing() -> None:
    (flood,) = [attack for attack in attacks() if len(attack.steps) == 10_000]
    received, (outcome,) = _send([flood], lambda _, asked: all_ones(asked), max_completion_tokens=2048)
    assert received == []
    assert isinstance(outcome, JudgeFailure) and outcome.reason == FailureReason.WRONG_COUNT
    assert outcome.detail.startswith(
        "10000 steps, and a reply of judge.max_completion_tokens=2048 holds verdicts on 170"
    )


def test_ten_thousand_sentences_are_ruled_on_by_the_oracle_and_raise_nothing() -> None:
    (flood,) = [attack for attack in attacks() if len(attack.steps) == 10_000]

    async def rule(config: JudgeConfig) -> list[Any]:
        client = JudgeClient(config, concurrency=1)
        try:
            requests = [flood.request(attacked=attacked) for attacked in (False, True)]
            return [(await client.judge(request, max_attempts=1)).outcome for request in requests]
        finally:
            await client.close()

    with LocalServer(JudgeConfig(kind=JudgeKind.ORACLE, send_image=False)) as server:
        clean, attacked = asyncio.run(rule(server.endpoint()))
    assert isinstance(clean, Verdicts) and clean == attacked
    assert len(clean.valid) == 10_000
