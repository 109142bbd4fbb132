"""What a check of a judge measures: exact for a judge that knows, arithmetic for one whose errors are known."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mrpo.calibration.agreement import agreement, by_index, by_third, graded_agreement, pairs_of
from mrpo.calibration.asking import Asked, ask, calls_of, other_order
from mrpo.calibration.attacks import Attack, AttackKind, attack_success
from mrpo.calibration.bias import length_bias, position_bias
from mrpo.calibration.calls import call_summary
from mrpo.calibration.comparison import Comparison, compare_rulings
from mrpo.calibration.consistency import consistency
from mrpo.calibration.folder import CheckFolder, differences, read_earlier
from mrpo.calibration.kappa import Weights, cohen_kappa, table_under_flips
from mrpo.calibration.labels import LabelledCompletion, Mark, digest_of_labels, read_labels
from mrpo.calibration.measure import (
    CheckResult,
    Measures,
    first_rulings,
    measure,
    require_some_ruling,
    rulings_by_asking,
)
from mrpo.calibration.noise import NoisyJudge
from mrpo.calibration.phantom_labels import PHANTOM_LABELS
from mrpo.calibration.resampling import weighted_kappa
from mrpo.calibration.rulings import RecordedJudge, RulingFile, read_rulings
from mrpo.errors import ConfigError, DataError, JudgeUnavailableError
from mrpo.phantom.language import rule_steps
from mrpo.report.judge_check import place_errors, render_judge_check
from mrpo.types import (
    AnswerJudgement,
    AnswerRequest,
    FailureReason,
    JudgeFailure,
    Judgement,
    JudgeRequest,
    Verdicts,
)


@dataclass
class FunctionJudge:
    """A judge pool that is a function, and counts its calls."""

    rule: Callable[[JudgeRequest], Verdicts | JudgeFailure]
    num_calls: int = 0

    async def judge(self, request: JudgeRequest) -> Judgement:
        self.num_calls += 1
        return Judgement(
            key=request.key,
            outcome=self.rule(request),
            started_s=1.0,
            sent_s=2.0,
            ended_s=2.5,
            attempts=1,
            prompt_tokens=10,
            completion_tokens=4,
        )

    async def judge_answer(self, request: AnswerRequest) -> AnswerJudgement:
        raise NotImplementedError


def exact(request: JudgeRequest) -> Verdicts:
    return rule_steps(request.steps, question=request.question, answer=request.answer, rationale=request.rationale)


def verdicts(*marks: int) -> Verdicts:
    return Verdicts(alignment=[bool(mark) for mark in marks], contribution=[False] * len(marks))


def labelled(*marks: int, id: str = "a", steps: list[str] | None = None) -> LabelledCompletion:
    return LabelledCompletion(
        id=id,
        image=None,
        question="q",
        answer="a",
        rationale="r",
        steps=steps or [f"Step {k}." for k in range(len(marks))],
        labels={"": verdicts(*marks)},
    )


def check(
    judge: Any, completions: list[LabelledCompletion], *, repeats: int = 3, orders: int = 2
) -> tuple[Measures, list[Asked]]:
    asked = asyncio.run(ask(judge, calls_of(completions, repeats=repeats, orders=orders, seed=0)))
    return measure(completions, asked, seed=0), asked


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
    found = weighted_kappa(tables.reshape(5, 9).astype(np.float64), weights=weights)
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


def test_pairs_of_askings_are_counted() -> None:
    askings = [[verdicts(1, 1), None], [verdicts(1, 0), verdicts(1)], [verdicts(1, 1), None]]
    found = consistency(askings, Mark.ALIGNMENT, seed=0)
    assert found.agreement is not None
    assert (found.num_steps, found.num_changed) == (2, 1)  # the second completion was ruled on once
    assert found.agreement.value == pytest.approx(4 / 6)  # three pairs agree on the first step, one on the second


def test_a_judge_that_prefers_the_end_shows_it_and_one_that_does_not_shows_nothing() -> None:
    completions = [labelled(*[0] * 8, id=str(number)) for number in range(40)]

    def last_half(request: JudgeRequest) -> Verdicts:
        num = len(request.steps)
        return verdicts(*(place >= num / 2 for place in range(num)))

    def by_text(request: JudgeRequest) -> Verdicts:
        return verdicts(*(step in ("Step 2.", "Step 6.") for step in request.steps))

    found, _ = check(FunctionJudge(last_half), completions, repeats=1, orders=4)
    effect = found.position[0].effect
    assert effect is not None
    assert effect.low > 0.9  # Σ place·ruling / Σ place² of eight places, the last four ruled 1: 8/6·(3/4) + …
    fair, _ = check(FunctionJudge(by_text), completions, repeats=1, orders=4)
    assert [item.effect.value for item in fair.position if item.effect] == [0.0, 0.0, 0.0]
    assert [item.changed.value for item in fair.position if item.changed] == [0.0, 0.0, 0.0]


def test_a_repeated_step_counts_once_wherever_it_stands() -> None:
    item = labelled(1, 0, 0, steps=["Same.", "same. ", "Other."])
    seen_first = FunctionJudge(
        lambda request: verdicts(
            *(
                step.strip().casefold() not in [other.strip().casefold() for other in request.steps[:k]]
                for k, step in enumerate(request.steps)
            )
        )
    )
    calls = calls_of([item], repeats=1, orders=3, seed=0)
    asked = asyncio.run(ask(seen_first, calls))
    first = first_rulings(1, asked)
    found = position_bias([item], first, asked[1:], Mark.ALIGNMENT, seed=0)
    assert found.num_pairs == 3, "of each order the one step that is not repeated"
    assert found.changed is not None
    assert found.changed.value == 0.0


def test_length_bias_is_seen_beyond_what_labels_say() -> None:
    rng = np.random.default_rng(0)
    completions, said, fair = [], [], []
    for number in range(60):
        steps = ["x" * int(size) for size in rng.integers(5, 200, size=6)]
        labels = [int(mark) for mark in rng.random(6) < 0.5]
        completions.append(labelled(*labels, id=str(number), steps=steps))
        said.append(verdicts(*(mark or len(step) > 150 for mark, step in zip(labels, steps, strict=True))))
        fair.append(verdicts(*(mark ^ int(rng.random() < 0.1) for mark in labels)))
    biased = length_bias(pairs_of(completions, said, Mark.ALIGNMENT), Mark.ALIGNMENT, seed=0)
    assert biased.correlation is not None
    assert biased.correlation.low > 0.3
    assert biased.quarters[0].ruled == biased.quarters[0].labelled
    assert biased.quarters[-1].ruled == 1.0
    assert sum(quarter.num_steps for quarter in biased.quarters) == 360
    unbiased = length_bias(pairs_of(completions, fair, Mark.ALIGNMENT), Mark.ALIGNMENT, seed=0)
    assert unbiased.correlation is not None
    assert abs(unbiased.correlation.value) < 0.15


def test_rulings_come_back_in_the_completions_own_order() -> None:
    item = labelled(*[0] * 5)
    order = other_order(item, 0, seed=3)
    assert sorted(order) == list(range(5))
    assert order != list(range(5))
    assert order == other_order(labelled(*[1] * 5), 0, seed=3), "the same whatever else is there"
    judge = FunctionJudge(lambda request: verdicts(*(step == "Step 3." for step in request.steps)))
    calls = calls_of([item, labelled(1, id="b")], repeats=1, orders=2, seed=3)
    assert len(calls) == 4, "a single step has no other order"
    for asked in asyncio.run(ask(judge, calls)):
        if asked.call.completion == 0:
            assert asked.verdicts == verdicts(0, 0, 0, 1, 0)
    assert len({call.request.key for call in calls}) == len(calls)
    assert rulings_by_asking(2, []) == [[None, None]]


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


def test_rulings_on_disk_are_not_asked_again_and_failures_are(tmp_path: Path) -> None:
    completions = [labelled(1, 0, id="a"), labelled(1, id="ä")]
    file = RulingFile(tmp_path / "rulings.jsonl")
    failing = FunctionJudge(
        lambda request: (
            verdicts(1, 0) if request.key == "a#0" else JudgeFailure(reason=FailureReason.BAD_JSON, detail="'{'")
        )
    )
    check(RecordedJudge(failing, file), completions, repeats=1, orders=0)
    file.close()
    with (tmp_path / "rulings.jsonl").open("ab") as torn:
        torn.write(b'{"key": "a#0", "align')
    again = RulingFile(tmp_path / "rulings.jsonl")
    judge = FunctionJudge(lambda request: verdicts(0))
    found, _ = check(RecordedJudge(judge, again), completions, repeats=1, orders=0)
    again.close()
    assert judge.num_calls == 1
    assert found.marks[0].table == [[1, 0], [1, 1]]
    rulings = read_rulings(tmp_path / "rulings.jsonl")
    assert rulings["a#0"].outcome == verdicts(1, 0)
    assert (rulings["ä#0"].outcome, rulings["ä#0"].sent_s, rulings["ä#0"].prompt_tokens) == (verdicts(0), 2.0, 10)
    assert len((tmp_path / "rulings.jsonl").read_text().splitlines()) == 3


def test_a_damaged_ruling_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rulings.jsonl"
    file.write_text('{"key": "a", "alignment": [1], "contribution": [1, 0]}\n')
    with pytest.raises(DataError, match="line 1 is damaged"):
        read_rulings(file)
    assert read_rulings(tmp_path / "none.jsonl") == {}


def test_a_folder_holds_one_check(tmp_path: Path) -> None:
    identity = {"name": "x", "labels": "d", "judge": {"model": "m", "step_rubric": "1"}}
    with CheckFolder.open(tmp_path / "out", identity) as folder:
        folder.rulings.add(asyncio.run(FunctionJudge(exact_or_no).judge(REQUEST)))
    with CheckFolder.open(tmp_path / "out", {**identity, "name": "another name"}) as folder:
        assert folder.rulings.has_verdicts("k")
    other = {**identity, "judge": {"model": "m", "step_rubric": "2"}}
    with pytest.raises(ConfigError, match="another judge step_rubric: '2', was '1'"):
        CheckFolder.open(tmp_path / "out", other)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="no folder of a judge check"):
        CheckFolder.open(tmp_path / "full", identity)
    assert read_earlier(tmp_path / "out", "d").rulings.keys() == {"k"}
    with pytest.raises(ConfigError, match="other labels"):
        read_earlier(tmp_path / "out", "e")
    with pytest.raises(ConfigError, match=r"no check\.json there"):
        read_earlier(tmp_path / "full", "d")
    assert differences(identity, other) == ["judge step_rubric: '2', was '1'"]


REQUEST = JudgeRequest(key="k", image="", question="q", answer="a", rationale="r", steps=["s"])


def exact_or_no(request: JudgeRequest) -> Verdicts:
    return verdicts(*([0] * len(request.steps)))


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
