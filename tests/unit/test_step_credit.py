"""Step credit by hand: PURE's min-form returns, and process supervision in the manner of GRPO."""

from __future__ import annotations

import math
import random

import pytest

from mrpo.advantages import process_supervision_advantages, pure_advantages, pure_returns
from mrpo.advantages.credit import Credited
from mrpo.errors import UserError

QUARTERS = 2 / math.log(3)  # the temperature at which an invalid step weighs three times what a valid one does


def completion(verdicts: str | None, spans: list[tuple[int, int]], num_tokens: int, advantage: float = 0.0) -> Credited:
    """`verdicts` has one letter a step: v valid, x invalid."""
    return Credited(
        advantage=advantage,
        verdicts=None if verdicts is None else [letter == "v" for letter in verdicts],
        spans=spans,
        num_tokens=num_tokens,
        answer_reward=0.0,
    )


# A token before the first step and one between the two, two after the last.
LOOSE = completion("xv", [(1, 3), (4, 5)], 7, advantage=10.0)
TIGHT = completion("vv", [(0, 2), (2, 4)], 4, advantage=-10.0)
SHORT = completion("x", [(0, 1)], 1, advantage=100.0)
UNJUDGED = completion(None, [(0, 2)], 3, advantage=0.5)
NO_STEPS = completion("", [], 2, advantage=-0.5)


def close(rows: list[list[float]]) -> list[object]:
    return [pytest.approx(row, rel=1e-12, abs=1e-12) for row in rows]


@pytest.mark.parametrize(
    ("rewards", "temperature", "expected"),
    [
        ([], 0.0, []),
        ([], 0.1, []),
        ([0.3], 0.0, [0.3]),
        ([0.3], 0.1, [0.3]),
        ([1.0, -1.0, 0.5], 0.0, [-1.0, -1.0, 0.5]),
        ([-1.0, 1.0], 0.0, [-1.0, 1.0]),
        ([1.0, -1.0], QUARTERS, [0.25 - 0.75, -0.75]),
        ([-1.0, 1.0], QUARTERS, [-0.75 + 0.25, 0.25]),
        ([1.0, 1.0, 1.0, 1.0], 0.1, [1.0, 0.75, 0.5, 0.25]),  # equal rewards share the weight
        ([1.0, -1.0, -1.0], QUARTERS, [1 / 7 - 6 / 7, -6 / 7, -3 / 7]),
    ],
)
def test_min_form_returns(rewards: list[float], temperature: float, expected: list[float]) -> None:
    assert pure_returns(rewards, temperature) == pytest.approx(expected, rel=1e-12)


def test_the_first_soft_return_tends_to_the_minimum_from_above() -> None:
    rng = random.Random(0)
    for _ in range(200):
        rewards = [rng.randint(-10, 10) / 10 for _ in range(rng.randint(1, 12))]
        distances = [pure_returns(rewards, temperature)[0] - min(rewards) for temperature in (10.0, 1.0, 0.1, 0.01)]
        assert distances == sorted(distances, reverse=True)
        assert distances[-1] == pytest.approx(0.0, abs=1e-3)
    assert pure_returns([1.0, -1.0], 1e-300) == [-1.0, -1.0]
    assert pure_returns([-1.0, 1.0], 1e-300) == [-1.0, 0.0]  # later returns do not: the minimum is behind them


def test_pure_compares_with_the_mean_return_of_the_others_tokens() -> None:
    # LOOSE returns −1 −1 −1 1 1, TIGHT 1 1 1 1, SHORT −1; means over tokens of the others: 3/5, −2/6, 3/9.
    group = [LOOSE, UNJUDGED, TIGHT, SHORT, NO_STEPS]
    assert pure_advantages(group, temperature=0.0) == close(
        [
            [10 - 1.6, 10 - 1.6, 10 - 1.6, 10 + 0.4, 10 + 0.4, 10.0, 10.0],
            [0.5] * 3,
            [-10 + 4 / 3] * 4,
            [100 - 4 / 3],
            [-0.5] * 2,
        ]
    )


def test_pure_in_its_softmax_form() -> None:
    # LOOSE returns −½ −½ −½ ¼ ¼ (mean −1/5), TIGHT 1 1 ½ ½ (mean ¾).
    assert pure_advantages([LOOSE, TIGHT], temperature=QUARTERS) == close(
        [[8.75, 8.75, 8.75, 9.5, 9.5, 10.0, 10.0], [-8.8, -8.8, -9.3, -9.3]]
    )


def test_process_supervision_sums_the_normalised_rewards_of_the_steps_ahead() -> None:
    # Rewards 0 1 1 1: mean ¾, unbiased deviation ½, normalised −1.5 ½ ½ ½.
    group = [LOOSE, UNJUDGED, TIGHT, NO_STEPS]
    assert process_supervision_advantages(group, eps=0.0) == close(
        [[9.0, 9.0, 9.0, 10.5, 10.5, 10.0, 10.0], [0.5] * 3, [-9.0, -9.0, -9.5, -9.5], [-0.5] * 2]
    )
    assert process_supervision_advantages(group, eps=0.5)[0] == pytest.approx([9.5] * 3 + [10.25] * 2 + [10.0] * 2)


def test_steps_without_a_token_count_and_have_none() -> None:
    # The invalid second step of "vxv" lost its token to the third; the last step of "vx" has none either.
    first = completion("vxv", [(0, 1), (1, 1), (1, 2)], 2)
    second = completion("vx", [(0, 1), (3, 3)], 4)
    assert pure_advantages([first, second], temperature=0.0) == close([[-1 + 1, 1 + 1], [-1.0, -1.0, -1.0, 0.0]])
    # 3 of 5 valid: mean 0.6, deviation sqrt(0.3); normalised 0.4 and −0.6 over that.
    unit = 1 / math.sqrt(0.3)
    assert process_supervision_advantages([first, second], eps=0.0) == close(
        [[0.2 * unit, 0.4 * unit], [-0.2 * unit, -0.6 * unit, -0.6 * unit, 0.0]]
    )


def test_one_judged_completion() -> None:
    group = [LOOSE, UNJUDGED, NO_STEPS]
    kept = [[item.advantage] * item.num_tokens for item in group]
    assert pure_advantages(group) == kept  # nothing to compare with
    root = math.sqrt(0.5)  # rewards 0 and 1: its own steps are
    assert process_supervision_advantages(group, eps=0.0) == close(
        [[10.0] * 3 + [10 + root] * 2 + [10.0] * 2, *kept[1:]]
    )
    assert process_supervision_advantages([SHORT, UNJUDGED]) == [[100.0], [0.5] * 3]  # one step has no deviation


@pytest.mark.parametrize("letter", ["v", "x"])
def test_verdicts_that_are_all_the_same_say_nothing_under_process_supervision(letter: str) -> None:
    group = [completion(letter * 2, LOOSE.spans, 7, 3.0), completion(letter * 2, TIGHT.spans, 4, -1.0)]
    assert process_supervision_advantages(group, process_weight=7.0, eps=0.0) == [[3.0] * 7, [-1.0] * 4]


@pytest.mark.parametrize("credit", [pure_advantages, process_supervision_advantages])
def test_the_weight_scales_the_part_of_the_steps_only(credit: object) -> None:
    group = [LOOSE, TIGHT, SHORT, UNJUDGED]
    once, thrice, never = (credit(group, process_weight=weight) for weight in (1.0, 3.0, 0.0))
    for item, single, triple, none in zip(group, once, thrice, never, strict=True):
        assert none == [item.advantage] * item.num_tokens
        steps = [value - item.advantage for value in single]
        assert [value - item.advantage for value in triple] == pytest.approx([3 * step for step in steps], abs=1e-12)
    assert any(value != LOOSE.advantage for value in once[0])


def test_an_empty_group() -> None:
    assert pure_advantages([]) == process_supervision_advantages([]) == []


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="got 1 verdicts for 2 steps"):
        completion("v", [(0, 1), (1, 2)], 2)
    with pytest.raises(UserError, match=r"\(1, 3\) is not inside a completion of 2 tokens"):
        completion("v", [(1, 3)], 2)
    with pytest.raises(UserError, match=r"\(1, 3\) begins before"):
        completion("vv", [(0, 2), (1, 3)], 3)
