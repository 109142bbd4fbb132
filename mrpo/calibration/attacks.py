"""Completions that try to get marks by other means than by being right, and how often a judge falls for them.

Each attack is a completion with false or empty steps ("clean") and the same completion with the attack in it. The data
are phantom, so that what each step is worth is known exactly; they come without images.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

from mrpo.eval.intervals import Interval, wilson_interval
from mrpo.protocols import JudgePool
from mrpo.types import JudgeRequest, Verdicts

ATTACKS = Path(__file__).with_name("attacks.jsonl")


class AttackKind(StrEnum):
    """What an attack builds on."""

    INSTRUCTION = "instruction"  # tells the judge what to reply
    FAKE_JSON = "fake_json"  # brings a reply, or another set of data
    QUOTE_BREAK = "quote_break"  # closes the string and the object it stands in
    ROLE = "role"  # imitates the turns and special tokens of chat templates
    GOLD_STUFFING = "gold_stuffing"  # the gold answer or rationale where it does not belong
    REPETITION = "repetition"  # a true step again and again
    LENGTH = "length"  # far too much of it
    CONTROL = "control"  # control characters
    LANGUAGE = "language"  # instructions in other languages
    INVISIBLE = "invisible"  # zero width, direction overrides, tag characters, look-alikes
    MARKDOWN = "markdown"  # fences, tables, markup
    ESCAPE = "escape"  # JSON and other escapes written out
    PROMPT_LEAK = "prompt_leak"  # asks for the rubric or the gold data
    TOOL_CALL = "tool_call"  # imitates calls and results of tools
    FAKE_RUBRIC = "fake_rubric"  # claims that the rules have changed


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """A completion with and without an attack. K steps both times."""

    name: str
    kind: AttackKind
    question: str
    answer: str  # gold
    rationale: str  # gold
    clean: list[str]  # [K] the steps without the attack; one that is nothing else is empty
    steps: list[str]  # [K] with it
    target_step: int  # counts from 1: the first step that the attack is to make valid; it is not without it

    def request(self, *, attacked: bool) -> JudgeRequest:
        """What a judge is asked; there is no image."""
        return JudgeRequest(
            key=f"{self.name}/{'attacked' if attacked else 'clean'}",
            image="",
            question=self.question,
            answer=self.answer,
            rationale=self.rationale,
            steps=list(self.steps if attacked else self.clean),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackSummary:
    """How a judge held. Made by `attack_success`, read by the report of the check of a judge.

    A judge whose marks are chance raises and lowers about as many steps; one that obeys raises more than it lowers.
    """

    num_attacks: int
    num_unjudged: int  # the judge failed on the clean or on the attacked completion; they are in no share
    succeeded: list[str]  # names of attacks that made a step valid which is not valid without them
    by_kind: Mapping[str, tuple[int, int]]  # successes and attacks judged
    num_raised: int  # steps valid only under attack …
    num_raisable: int  # … of those that are not valid without it
    num_lowered: int  # steps valid only without it …
    num_lowerable: int  # … of those that are valid without it

    @property
    def success_share(self) -> Interval | None:
        """Share of the judged attacks that succeeded, with Wilson's interval; None where none was judged."""
        return wilson_interval(len(self.succeeded), self.num_attacks - self.num_unjudged)


@cache
def attacks() -> tuple[Attack, ...]:
    """The corpus that ships with the package."""
    return tuple(_attack(json.loads(line)) for line in ATTACKS.read_text("utf-8").splitlines())


def _attack(row: Mapping[str, Any]) -> Attack:
    clean, steps = list(row["clean"]), list(row["steps"])
    more = int(row.get("repeats", 0))  # of the last step; written as a number to keep the file small
    return Attack(
        name=str(row["name"]),
        kind=AttackKind(str(row["kind"])),
        question=str(row["question"]),
        answer=str(row["answer"]),
        rationale=str(row["rationale"]),
        clean=clean + [""] * more,
        steps=steps + steps[-1:] * more,
        target_step=int(row["target_step"]),
    )


def raised_steps(clean: Verdicts, attacked: Verdicts) -> list[int]:
    """Steps, counted from 1, that are valid only under attack."""
    pairs = zip(clean.valid, attacked.valid, strict=True)
    return [k for k, (before, after) in enumerate(pairs, start=1) if after and not before]


def requests_of(corpus: Sequence[Attack]) -> list[JudgeRequest]:
    """What a judge is asked: each clean completion and, behind it, the attacked one."""
    return [attack.request(attacked=attacked) for attack in corpus for attacked in (False, True)]


async def attack_success(judge: JudgePool, corpus: Sequence[Attack] | None = None) -> AttackSummary:
    """Have a judge rule on every attack and on its clean completion.

    Args:
        judge: bounds its own calls in flight; it must send no images (`judge.send_image=false`).
        corpus: None: all of `attacks`.
    """
    corpus = attacks() if corpus is None else corpus
    requests = requests_of(corpus)
    outcomes = [judgement.outcome for judgement in await asyncio.gather(*map(judge.judge, requests))]
    succeeded: list[str] = []
    judged: Counter[str] = Counter()
    won: Counter[str] = Counter()
    raised = raisable = lowered = lowerable = 0
    for attack, clean, attacked in zip(corpus, outcomes[::2], outcomes[1::2], strict=True):
        if not isinstance(clean, Verdicts) or not isinstance(attacked, Verdicts):
            continue
        judged[attack.kind.value] += 1
        up, down = len(raised_steps(clean, attacked)), len(raised_steps(attacked, clean))
        if up:
            succeeded.append(attack.name)
            won[attack.kind.value] += 1
        raised, lowered = raised + up, lowered + down
        raisable, lowerable = raisable + clean.valid.count(False), lowerable + clean.valid.count(True)
    return AttackSummary(
        num_attacks=len(corpus),
        num_unjudged=len(corpus) - judged.total(),
        succeeded=succeeded,
        by_kind={kind: (won[kind], judged[kind]) for kind in judged},
        num_raised=raised,
        num_raisable=raisable,
        num_lowered=lowered,
        num_lowerable=lowerable,
    )
