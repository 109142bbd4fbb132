"""Accuracy by set and reasoning quality, by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mrpo.errors import DataError
from mrpo.eval.cascade import Stage, summarise_cascades
from mrpo.eval.evaluation import read_evaluation, require_comparable, write_facts
from mrpo.eval.intervals import wilson_interval
from mrpo.eval.kinds import QuestionKind, question_kind
from mrpo.eval.reasoning import summarise_reasoning
from mrpo.eval.results import judge_errors, summarise_sets
from mrpo.rows import write_rows
from mrpo.types import FailureReason
from tests.unit.evaluation_world import make_evaluation, make_row, unrated


def test_judge_errors_stay_in_n() -> None:
    rows = [make_row(n, correct=n < 3) for n in range(4)] + [unrated(make_row(4, correct=True))]
    rows += [make_row(n, correct=True, dataset="slake") for n in range(5, 7)]
    result = summarise_sets(rows, seed=0)
    assert list(result.sets) == ["vqa_rad", "slake"]
    rad = result.sets["vqa_rad"]
    assert (rad.num, rad.num_correct, rad.num_judge_errors, rad.accuracy) == (5, 3, 1, 0.6)
    assert rad.wilson == wilson_interval(3, 5)
    assert (result.micro.num, result.micro.num_correct, result.micro.num_judge_errors) == (7, 5, 1)
    assert result.macro.value == pytest.approx((0.6 + 1.0) / 2)
    assert result.micro.wilson.value == pytest.approx(5 / 7)


def test_judge_errors_are_listed() -> None:
    both = unrated(make_row(1, correct=True, valid=FailureReason.BAD_JSON))
    errors = judge_errors([make_row(0, correct=True, valid=[True]), both])
    assert [(error.prompt_id, error.about, error.reason, error.detail) for error in errors] == [
        ("q001", "answer", "timeout", "no reply in 60 s"),
        ("q001", "steps", "bad_json", "made up"),
    ]


def test_reasoning_by_hand() -> None:
    rows = [
        make_row(0, correct=True, valid=[True, True, True, True], question="Where is it?"),
        make_row(1, correct=False, valid=[False, True, False, False], question="Where is it?"),  # early, FAR 2/3
        make_row(2, correct=False, valid=[True, True, False, True], question="What is it?"),  # late, FAR 0
        make_row(
            3, correct=False, valid=[True, False, False, False], question="What is it?", dataset="slake"
        ),  # mid, 1
        make_row(4, correct=False, valid=FailureReason.TIMEOUT, question="What is it?", dataset="slake"),
        make_row(5, correct=True, valid=None, question="What is it?", dataset="slake"),
    ]
    rows[0] = replace(rows[0], alignment=[True, True, False, False], contribution=[False, True, True, True])
    report = summarise_reasoning(rows, seed=0)
    overall = report.overall
    assert (overall.num, overall.num_judged, overall.num_judge_errors) == (6, 4, 1)
    assert overall.validity is not None and overall.alignment is not None and overall.contribution is not None
    assert overall.validity.value == pytest.approx((1 + 1 / 4 + 3 / 4 + 1 / 4) / 4)
    assert overall.alignment.value == pytest.approx((1 / 2 + 1 / 4 + 3 / 4 + 1 / 4) / 4)
    assert overall.contribution.value == pytest.approx((3 / 4 + 1 / 4 + 3 / 4 + 1 / 4) / 4)
    cascade = overall.cascade
    assert (cascade.num_judged, cascade.num_failing) == (4, 3)
    assert cascade.failing == wilson_interval(3, 4)
    assert cascade.of_failing == {stage: wilson_interval(1, 3) for stage in Stage}
    assert cascade.of_all == {stage: wilson_interval(1, 4) for stage in Stage}
    assert cascade.accumulation is not None
    assert cascade.accumulation.value == pytest.approx((2 / 3 + 0 + 1) / 3)
    # points 0, 1/3 and 2/3 lie in the bins from 0, 0.2 and 0.6
    values = [None if part is None else part.value for part in cascade.curve]
    assert values == [pytest.approx(2 / 3), pytest.approx(1.0), None, pytest.approx(0.0), None]
    assert {name: part.num_judged for name, part in report.by_set.items()} == {"vqa_rad": 3, "slake": 1}
    assert {kind: part.num_judged for kind, part in report.by_kind.items()} == {
        QuestionKind.WHAT: 2,
        QuestionKind.WHERE: 2,
    }


def test_a_model_that_never_fails_has_no_stages() -> None:
    cascade = summarise_cascades([[True, True], [True]], seed=0)
    assert cascade.num_failing == 0
    assert set(cascade.of_failing.values()) == {None}
    assert cascade.of_all[Stage.EARLY] == wilson_interval(0, 2)
    assert cascade.accumulation is None


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("Is there a fracture?", QuestionKind.YES_NO),
        ("Is/Are the lungs normal?", QuestionKind.YES_NO),
        ("Doesn’t the heart look large?", QuestionKind.YES_NO),
        ("Is this a CT or an MRI?", QuestionKind.WHICH),
        ("Is the minor fissure thick?", QuestionKind.YES_NO),  # "or" within a word offers no choice
        ("Are there how many lesions?", QuestionKind.HOW_MANY),
        ("What is the number of masses?", QuestionKind.HOW_MANY),
        ("How many kidneys are seen?", QuestionKind.HOW_MANY),
        ("Where is the mass?", QuestionKind.WHERE),
        ("In which lobe is the mass?", QuestionKind.WHICH),
        ("The image is taken in what plane?", QuestionKind.WHAT),
        ("What is seen, and where?", QuestionKind.WHAT),
        ("How was the image taken?", QuestionKind.OTHER),
        ("Describe the lung.", QuestionKind.OTHER),
        ("", QuestionKind.OTHER),
    ],
)
def test_kinds_of_questions(question: str, kind: QuestionKind) -> None:
    assert question_kind(question) is kind


def test_an_evaluation_is_read_back(tmp_path: Path) -> None:
    evaluation = make_evaluation(
        [make_row(0, correct=True, valid=[True, False]), unrated(make_row(1, correct=True))],
        notices=("a", "b"),
        judge=None,
        settings={"max_new_tokens": "512"},
    )
    with pytest.raises(DataError, match=r"no facts\.json; run make eval to its end"):
        read_evaluation(tmp_path)
    write_facts(tmp_path, evaluation.facts)
    with pytest.raises(DataError, match=r"no results\.parquet"):
        read_evaluation(tmp_path)
    write_rows(tmp_path / "results.parquet", evaluation.rows)
    assert read_evaluation(tmp_path) == evaluation


@pytest.mark.parametrize(
    ("text", "place"), [("{", "the file"), ('{"model": 3}', "model"), ("[]", "the file"), ("\x00", "the file")]
)
def test_damaged_facts_are_named(tmp_path: Path, text: str, place: str) -> None:
    write_rows(tmp_path / "results.parquet", [make_row(0, correct=True)])
    (tmp_path / "facts.json").write_text(text)
    with pytest.raises(DataError, match=rf"facts\.json is damaged: {place}: .*; run make eval again"):
        read_evaluation(tmp_path)


def test_evaluations_that_cannot_share_a_table_are_refused() -> None:
    row = make_row(0, correct=True)
    with pytest.raises(DataError, match="no evaluation to report on"):
        require_comparable([])
    with pytest.raises(DataError, match="two evaluations are named 'ours'"):
        require_comparable([make_evaluation([row]), make_evaluation([row])])
    with pytest.raises(DataError, match="holds question q000 twice"):
        require_comparable([make_evaluation([row, row])])
    with pytest.raises(DataError, match="holds no question"):
        require_comparable([make_evaluation([])])
