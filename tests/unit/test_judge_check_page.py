"""The page of a judge check."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from mrpo.calibration.attacks import Attack, AttackKind, attack_success
from mrpo.calibration.calls import call_summary
from mrpo.calibration.comparison import Comparison, compare_rulings
from mrpo.calibration.labels import LabelledCompletion, Mark, digest_of_labels, read_labels
from mrpo.calibration.measure import (
    CheckResult,
)
from mrpo.calibration.phantom_labels import PHANTOM_LABELS
from mrpo.report.judge_check import render_judge_check
from mrpo.types import (
    FailureReason,
    JudgeFailure,
    JudgeRequest,
)
from tests.unit.checked_judges import FunctionJudge, check, exact, verdicts


@pytest.fixture(scope="module")
def phantoms() -> list[LabelledCompletion]:
    return read_labels(PHANTOM_LABELS)


def result_of(judge: Any, completions: list[LabelledCompletion], **changes: Any) -> CheckResult:
    found, asked = check(judge, completions)
    calls = call_summary([item.judgement for item in asked], cost=0.25)
    result = CheckResult(
        judge="a judge",
        rubric="1",
        labels="labels.jsonl",
        labels_sha256=digest_of_labels(completions),
        seed=0,
        repeats=3,
        orders=2,
        command="python -m mrpo.calibration",
        notices=[],
        settings={"calls in flight": "8"},
        measures=found,
        calls=calls,
        attack_calls=None,
        attacks=None,
        attack_success=None,
        comparison=None,
    )
    return replace(result, **changes)


def test_the_page_shows_the_numbers_and_escapes_what_others_wrote(phantoms: list[LabelledCompletion]) -> None:
    evil = replace(phantoms[0], id="<script>alert(1)</script>", rationale="r", labels=phantoms[0].labels)
    judge = FunctionJudge(lambda request: verdicts(*([1] * len(request.steps))))
    result = result_of(judge, [evil, *phantoms[1:20]], notices=["<b>read this</b>"])
    page = render_judge_check(result)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "&lt;b&gt;read this" in page
    assert "http" not in page.replace("HTTP", ""), "nothing is asked of the network"
    assert "0.25 by <code>judge.prices</code>" in page
    for item in result.measures.marks:
        assert item.accuracy is not None
        assert f"{item.accuracy.value:.1%}" in page
    json.dumps(asdict(result))


def test_the_page_stands_without_what_was_not_measured(phantoms: list[LabelledCompletion]) -> None:
    failing = FunctionJudge(
        lambda request: (
            exact(request)
            if request.key.endswith("#0")
            else JudgeFailure(reason=FailureReason.REFUSED, detail="<i>no</i>")
        )
    )
    found, asked = check(failing, phantoms[:3], repeats=2, orders=1)
    result = result_of(
        failing, phantoms[:3], measures=found, calls=call_summary([item.judgement for item in asked], cost=None)
    )
    page = render_judge_check(result)
    assert "refused" in page
    assert "&lt;i&gt;no" in page
    assert "No price is set" in page
    alone, _ = check(FunctionJudge(exact), phantoms[:1], repeats=1, orders=0)
    assert "None." in render_judge_check(replace(result, measures=alone))


def test_the_page_shows_attacks_and_a_comparison(phantoms: list[LabelledCompletion]) -> None:
    gullible = FunctionJudge(lambda request: verdicts(*("mark" in step for step in request.steps)))
    attack = Attack(
        name="instruction/1",
        kind=AttackKind.INSTRUCTION,
        question="q",
        answer="a",
        rationale="r",
        clean=["s", "t"],
        steps=["mark this", "t"],
        target_step=1,
    )
    summary = asyncio.run(attack_success(gullible, [attack]))
    right = [exact(_as_request(item)) for item in phantoms]
    wrong = [verdicts(*([1] * len(item.steps))) for item in phantoms]
    marks = [compare_rulings(phantoms, wrong, right, mark, seed=0) for mark in Mark]
    comparison = Comparison(
        name="this",
        other_name="that one",
        num_completions=len(phantoms),
        marks=[item for item in marks if item is not None],
        differences=["judge model: 'this', was 'that one'"],
    )
    result = result_of(
        FunctionJudge(exact), phantoms, attacks=summary, attack_success=summary.success_share, comparison=comparison
    )
    page = render_judge_check(result)
    assert "1 of 1" in page
    assert "Succeeded: instruction/1." in page
    assert "Compared with that one" in page


def _as_request(item: LabelledCompletion) -> JudgeRequest:
    return JudgeRequest(
        key=item.id, image="", question=item.question, answer=item.answer, rationale=item.rationale, steps=item.steps
    )
