"""Whether a judge says the same again, in another order and of longer steps."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from mrpo.calibration.agreement import pairs_of
from mrpo.calibration.asking import ask, calls_of, other_order
from mrpo.calibration.bias import length_bias, position_bias
from mrpo.calibration.consistency import consistency
from mrpo.calibration.labels import Mark
from mrpo.calibration.measure import (
    first_rulings,
    rulings_by_asking,
)
from mrpo.types import (
    JudgeRequest,
    Verdicts,
)
from tests.unit.checked_judges import FunctionJudge, check, labelled, verdicts


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
