"""What a check of a judge measures: exact for a judge that knows, arithmetic for one whose errors are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mrpo.calibration.agreement import agreement, by_index, by_third, graded_agreement, pairs_of
from mrpo.calibration.calls import call_summary
from mrpo.calibration.comparison import compare_rulings
from mrpo.calibration.kappa import Weights, cohen_kappa, table_under_flips
from mrpo.calibration.labels import LabelledCompletion, Mark, read_labels
from mrpo.calibration.measure import (
    require_some_ruling,
)
from mrpo.calibration.noise import NoisyJudge
from mrpo.calibration.phantom_labels import PHANTOM_LABELS
from mrpo.calibration.resampling import table_kappa
from mrpo.errors import JudgeUnavailableError
from mrpo.report.judge_check import place_errors
from mrpo.types import (
    FailureReason,
    JudgeFailure,
    JudgeRequest,
    Verdicts,
)
from tests.unit.checked_judges import FunctionJudge, check, exact, labelled, verdicts


@pytest.fixture(scope="module")
def phantoms() -> list[LabelledCompletion]:
    return read_labels(PHANTOM_LABELS)


def test_a_judge_that_knows_is_perfect_in_every_measure(phantoms: list[LabelledCompletion]) -> None:
    found, asked = check(FunctionJudge(exact), phantoms)
    assert len(asked) == len(phantoms) * 5
    for mark in found.marks:
        assert mark.accuracy is not None
        assert mark.kappa is not None
        assert (mark.accuracy.value, mark.kappa.value, mark.kappa.low, mark.kappa.high) == (1.0, 1.0, 1.0, 1.0)
        assert (mark.band, mark.too_kind, mark.too_strict) == ("almost perfect", 0.0, 0.0)
        assert mark.num_steps == found.labels.num_steps >= 400
    assert [item.kappa.value for item in found.graded if item.kappa] == [1.0, 1.0]
    assert all(item.num_changed == 0 for item in found.consistency)
    assert all(item.effect is not None and item.effect.value == 0.0 for item in found.position)
    assert all(item.correlation is None for item in found.length), "no error has no correlation with anything"
    assert found.disagreements == []


def test_ten_per_cent_of_random_flips_give_the_analytic_values(phantoms: list[LabelledCompletion]) -> None:
    inside = []
    for seed in range(4):
        found, _ = check(NoisyJudge(FunctionJudge(exact), probability=0.1, seed=seed), phantoms, repeats=2, orders=0)
        valid = next(item for item in found.marks if item.mark == Mark.VALID)
        share = sum(valid.table[1]) / valid.num_steps
        expected = cohen_kappa(table_under_flips(share, 0.1))
        assert valid.kappa is not None
        assert valid.accuracy is not None
        assert expected is not None
        assert expected == pytest.approx(0.8, abs=0.001)  # half of the labels are valid
        assert valid.kappa.value == pytest.approx(expected, abs=0.08)
        inside.append(valid.kappa.low <= expected <= valid.kappa.high)
        assert valid.accuracy.low <= 0.9 <= valid.accuracy.high
        (again,) = [item.agreement for item in found.consistency if item.mark == Mark.VALID]
        assert again is not None
        assert again.low <= 0.1**2 + 0.9**2 <= again.high, "both askings right, or both turned over"
    assert sum(inside) >= 3, "an interval of 95 % may miss, but not as a rule"


def test_flips_do_not_depend_on_who_is_asked_first(phantoms: list[LabelledCompletion]) -> None:
    def first(items: list[LabelledCompletion]) -> dict[str, Verdicts | None]:
        judge = NoisyJudge(FunctionJudge(exact), probability=0.3, seed=1)
        _, asked = check(judge, items, repeats=1, orders=0)
        return {items[item.call.completion].id: item.verdicts for item in asked}

    assert first(phantoms) == first(phantoms[::-1])


def test_agreement_of_a_table_worked_by_hand() -> None:
    # 20 labelled 1 and ruled 1, 5 and 0, 10 labelled 0 and ruled 1, 15 and 0: kappa 0.4 (0.7 agreed, 0.5 by chance).
    completions = [labelled(*[1] * 25, *[0] * 25)]
    said = [verdicts(*[1] * 20, *[0] * 5, *[1] * 10, *[0] * 15)]
    found = agreement(pairs_of(completions, said, Mark.ALIGNMENT), Mark.ALIGNMENT, seed=0)
    assert found.table == [[15, 10], [5, 20]]
    assert found.kappa is not None
    assert found.kappa.value == pytest.approx(0.4)
    assert found.band == "moderate"
    assert (found.too_kind, found.too_strict) == (10 / 25, 5 / 25)


@pytest.mark.parametrize("weights", list(Weights))
def test_resamples_are_measured_as_single_tables_are(weights: Weights) -> None:
    tables = np.random.default_rng(0).integers(0, 20, size=(5, 3, 3))
    tables[0] = [[9, 0, 0], [0, 0, 0], [0, 0, 0]]
    expected = [cohen_kappa(table, weights=weights) for table in tables]
    found = table_kappa(tables.reshape(5, 9).astype(np.float64), weights=weights)
    assert np.isnan(found[0]) and expected[0] is None
    assert found[1:].tolist() == pytest.approx(expected[1:], abs=1e-12)


def test_a_failed_call_is_no_wrong_verdict(phantoms: list[LabelledCompletion]) -> None:
    def rule(request: JudgeRequest) -> Verdicts | JudgeFailure:
        if request.key == f"{phantoms[0].id}#0":
            return JudgeFailure(reason=FailureReason.TIMEOUT, detail="too slow")
        return exact(request)

    found, asked = check(FunctionJudge(rule), phantoms)
    assert found.num_unjudged == 1
    valid = found.marks[-1]
    assert valid.accuracy is not None
    assert valid.accuracy.value == 1.0
    assert valid.num_steps == found.labels.num_steps - len(phantoms[0].steps)
    calls = call_summary([item.judgement for item in asked], cost=None)
    assert (calls.failures, calls.examples, calls.num_failed) == ({"timeout": 1}, {"timeout": "too slow"}, 1)
    assert calls.prompt_tokens == 10 * len(asked)
    assert set(calls.latency_s.values()) == {0.5}


def test_a_judge_that_never_rules_is_an_error_with_its_reason(phantoms: list[LabelledCompletion]) -> None:
    judge = FunctionJudge(lambda request: JudgeFailure(reason=FailureReason.REFUSED, detail="not allowed"))
    found, asked = check(judge, phantoms[:2], repeats=1, orders=0)
    calls = call_summary([item.judgement for item in asked], cost=None)
    with pytest.raises(JudgeUnavailableError, match=r"it gave no ruling: 2 calls failed, 2 by refused \(not allowed\)"):
        require_some_ruling("it", found, calls)


def test_split_labels_are_in_no_agreement() -> None:
    split = replace(labelled(1, 1), labels={"A": verdicts(1, 1), "B": verdicts(0, 1)})
    pairs = pairs_of([split], [verdicts(1, 0)], Mark.VALID)
    assert [(pair.index, pair.label, pair.ruling) for pair in pairs] == [(1, True, False)]
    (graded, _) = graded_agreement([split], [verdicts(1, 0)], seed=0)
    assert graded.table == [[0, 0, 0], [1, 0, 0], [0, 0, 0]]


def test_steps_are_told_apart_by_place() -> None:
    completions = [labelled(1, 1, 1, 1), labelled(1, id="b")]
    pairs = pairs_of(completions, [verdicts(0, 1, 1, 1), verdicts(1)], Mark.ALIGNMENT)
    assert [item.num_steps for item in by_third(pairs, Mark.ALIGNMENT)] == [2, 1, 2]  # 0 and 1/3 and 2/3 and 1; 0
    places = by_index(pairs, Mark.ALIGNMENT)
    assert [(item.place, item.table) for item in places[:2]] == [("1", [[0, 0], [1, 1]]), ("2", [[0, 0], [0, 1]])]
    errors = place_errors(places)
    assert errors is not None
    assert [bar.label for bar in errors.bars if bar.height][:1] == ["labelled 1, ruled 0, 1: 50 %"]


def test_two_judges_are_compared_on_what_both_ruled() -> None:
    completions = [labelled(1, 1, 0, 0, id=str(number)) for number in range(30)]
    good = [verdicts(1, 1, 0, 0) for _ in completions]
    worse = [verdicts(1, 0, 0, 0) for _ in completions]
    one_failed: list[Verdicts | None] = [None, *worse[1:]]
    found = compare_rulings(completions, good, one_failed, Mark.ALIGNMENT, seed=0)
    assert found is not None
    assert (found.num_steps, found.num_gained, found.num_lost) == (29 * 4, 29, 0)
    assert (found.accuracy, found.other_accuracy) == (1.0, 0.75)
    assert found.accuracy_difference.value == pytest.approx(0.25)
    assert found.kappa_difference is not None
    assert found.kappa_difference.value == pytest.approx(0.5)
    assert found.p == pytest.approx(2**-28)
    assert found.between is not None
    assert found.between.value == pytest.approx(0.5)
    assert compare_rulings(completions, good, [None] * 30, Mark.ALIGNMENT, seed=0) is None
