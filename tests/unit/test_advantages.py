"""Group advantages and step-aware shaping."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mrpo.advantages import (
    ADVANTAGES,
    advantage_function,
    dr_grpo_advantages,
    gdpo_advantages,
    grpo_advantages,
    rloo_advantages,
    shape_step_advantages,
    step_weights,
)
from mrpo.choices import AdvantageKind
from mrpo.errors import ConfigError, NonFiniteError, UserError

REWARDS = [0.0, 1.0, 2.0, 5.0]  # mean 2, deviations −2 −1 0 3, unbiased std sqrt(14/3)
STD = math.sqrt(14 / 3)


def test_grpo_by_hand() -> None:
    expected = [value / (STD + 1e-4) for value in (-2.0, -1.0, 0.0, 3.0)]
    assert grpo_advantages(REWARDS, 4).tolist() == pytest.approx(expected, rel=1e-12)


def test_dr_grpo_by_hand() -> None:
    assert dr_grpo_advantages(REWARDS, 4).tolist() == pytest.approx([-2.0, -1.0, 0.0, 3.0])


def test_rloo_by_hand() -> None:
    expected = [0 - 8 / 3, 1 - 7 / 3, 2 - 6 / 3, 5 - 3 / 3]
    assert rloo_advantages(REWARDS, 4).tolist() == pytest.approx(expected)


def test_gdpo_by_hand() -> None:
    # Two groups of two: each varying reward becomes ±1/sqrt(2) (eps 0), a constant one 0.
    components = [[0.0, 3.0], [1.0, 3.0], [0.0, 5.0], [2.0, 1.0]]
    total = [-1.0, 1.0, -1.0 + 2.0, 1.0 - 2.0]  # times 1/sqrt(2), with weights 1 and 2
    std = math.sqrt(sum(value**2 for value in total) / 3)
    expected = [value / std for value in total]
    assert gdpo_advantages(components, [1.0, 2.0], 2, eps=0.0).tolist() == pytest.approx(expected)


def test_completions_left_out_change_nothing_for_the_others() -> None:
    rewards = [0.0, 1.0, math.nan, 2.0, 5.0, 7.0]
    valid = [True, True, False, True, True, False]
    expected = _with_gaps(grpo_advantages(REWARDS, 4).tolist(), valid)
    assert grpo_advantages(rewards, 6, valid=valid).tolist() == pytest.approx(expected)


def _with_gaps(values: list[float], valid: list[bool]) -> list[float]:
    remaining = iter(values)
    return [next(remaining) if keep else 0.0 for keep in valid]


def test_gdpo_leaves_out_of_the_batch_what_is_left_out_of_its_group() -> None:
    components = [[0.0], [1.0], [9.0], [0.0], [3.0], [1.0], [7.0], [8.0], [9.0]]
    valid = [True, True, False, True, True, True, True, False, False]  # the last group keeps one: it is dropped
    full = gdpo_advantages(components, [1.0], 3, valid=valid).tolist()
    assert [full[index] for index in (2, 6, 7, 8)] == [0.0] * 4
    kept = [full[index] for index in (0, 1, 3, 4, 5)]
    assert sum(kept) == pytest.approx(0.0, abs=1e-9)
    assert math.sqrt(sum(value**2 for value in kept) / 4) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("name", list(ADVANTAGES))
def test_fewer_than_two_valid_completions_have_no_advantage(name: str) -> None:
    components = torch.tensor([[1.0], [0.0], [3.0], [5.0]])
    result = advantage_function(name)(components, [1.0], 2, 1e-4, [True, False, True, True])
    assert result[:2].tolist() == [0.0, 0.0]
    assert result[2] < 0 < result[3]


@pytest.mark.parametrize("name", list(ADVANTAGES))
@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, -7.7e8])
def test_equal_rewards_have_exactly_no_advantage(name: str, value: float) -> None:
    components = torch.full((14, 2), value, dtype=torch.float64)
    result = advantage_function(name)(components, [1.0, 0.3], 7, 1e-4, None)
    assert result.tolist() == [0.0] * 14
    assert not torch.signbit(result).any()


@pytest.mark.parametrize("name", list(ADVANTAGES))
def test_weights_reach_every_advantage(name: str) -> None:
    components = [[0.0, 1.0], [1.0, 0.0], [0.5, 0.9], [0.2, 0.1]]
    only_first = advantage_function(name)(components, [1.0, 0.0], 4, 1e-4, None)
    assert only_first.argmax() == 1
    assert advantage_function(name)(components, [0.0, 1.0], 4, 1e-4, None).argmax() == 0


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(-10, 10), min_size=12, max_size=12), st.permutations(range(4)), st.permutations(range(3)))
@pytest.mark.parametrize("name", list(ADVANTAGES))
def test_order_changes_nothing(name: str, rewards: list[float], members: list[int], groups: list[int]) -> None:
    order = [4 * group + member for group in groups for member in members]
    components = [[reward, abs(reward)] for reward in rewards]
    function = advantage_function(name)
    straight = function(components, [1.0, 0.5], 4, 1e-4, None)
    shuffled = function([components[index] for index in order], [1.0, 0.5], 4, 1e-4, None)
    torch.testing.assert_close(shuffled, straight[order], atol=1e-6, rtol=1e-6)


def test_results_have_the_type_of_the_input() -> None:
    assert grpo_advantages(torch.tensor([0.0, 1.0], dtype=torch.float32), 2).dtype == torch.float32
    assert grpo_advantages(torch.tensor([0, 1]), 2).dtype == torch.float64
    assert grpo_advantages([0.0, 1.0], 2).dtype == torch.float64


def test_bad_input_is_named() -> None:
    with pytest.raises(UserError, match="group_size=3"):
        grpo_advantages(REWARDS, 3)
    with pytest.raises(UserError, match=r"valid has shape \(1,\)"):
        grpo_advantages(REWARDS, 2, valid=[True])
    with pytest.raises(UserError, match="weights"):
        gdpo_advantages([[1.0, 2.0]] * 2, [1.0], 2)
    with pytest.raises(NonFiniteError, match="completion 1 of the batch is nan"):
        grpo_advantages([0.0, math.nan], 2)


def test_unknown_names_list_the_known_ones() -> None:
    assert set(ADVANTAGES) == set(AdvantageKind)
    with pytest.raises(ConfigError, match="'ppo' is unknown; known: grpo, gdpo, dr_grpo, rloo"):
        advantage_function("ppo")


@pytest.mark.parametrize(
    ("schedule", "base", "expected"),
    [
        ("exponential", math.e, [math.e, math.exp(0.5), 1.0]),
        ("exponential", 1.0, [1.0, 1.0, 1.0]),
        ("linear", 3.0, [3.0, 2.0, 1.0]),
        ("reversed", 4.0, [1.0, 2.0, 4.0]),
    ],
)
def test_step_weights_by_hand(schedule: str, base: float, expected: list[float]) -> None:
    assert step_weights(3, base, schedule) == pytest.approx(expected)
    assert step_weights(1, base, schedule) == [1.0]
    assert step_weights(0, base, schedule) == []


def test_bad_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match="'cubic'"):
        step_weights(2, 2.0, "cubic")
    with pytest.raises(ConfigError, match="'cubic'"):
        shape_step_advantages(1.0, [True], [(0, 1)], 1, 0.0, schedule="cubic")
    with pytest.raises(ConfigError, match="base=0"):
        step_weights(2, 0.0, "exponential")


SPANS = [(1, 3), (3, 4), (5, 6)]


@pytest.mark.parametrize("advantage", [0.5, -0.5])
def test_shaping_of_a_wrong_answer_by_hand(advantage: float) -> None:
    shaped = shape_step_advantages(advantage, [False, True, False], SPANS, 7, 0.6)
    a = advantage
    assert shaped == pytest.approx([a, -math.e / 2, -math.e / 2, 0.5, a, -0.5, a])


def test_a_right_answer_keeps_the_advantage() -> None:
    assert shape_step_advantages(-0.5, [False, True, False], SPANS, 7, 0.61) == [-0.5] * 7
    assert shape_step_advantages(-0.5, [False, True, False], SPANS, 7, 0.5, threshold=0.4) == [-0.5] * 7


def test_what_is_not_judged_or_has_no_steps_keeps_the_advantage() -> None:
    assert shape_step_advantages(-0.5, None, SPANS, 7, 0.0) == [-0.5] * 7
    assert shape_step_advantages(-0.5, [], [], 2, 0.0) == [-0.5] * 2
    assert shape_step_advantages(-0.5, [False] * 3, SPANS, 7, 0.0, schedule="none") == [-0.5] * 7


@pytest.mark.parametrize("verdicts", [[], [True], [True] * 4])
def test_a_wrong_number_of_verdicts_is_an_error(verdicts: list[bool]) -> None:
    with pytest.raises(UserError, match="for 3 steps"):
        shape_step_advantages(0.5, verdicts, SPANS, 7, 1.0)


def test_a_span_outside_the_completion_is_an_error() -> None:
    with pytest.raises(UserError, match=r"\(5, 6\) is not inside a completion of 5 tokens"):
        shape_step_advantages(0.5, [True] * 3, SPANS, 5, 0.0)


@settings(deadline=None)
@given(
    st.floats(-1e3, 1e3),
    st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.integers(0, 2)), max_size=8),
    st.floats(0, 1),
    st.sampled_from(["exponential", "linear", "reversed"]),
    st.sampled_from([1.0, 2.0, math.e, 10.0]),
)
def test_signs_and_bounds_of_shaping(
    advantage: float, plan: list[tuple[bool, int, int]], answer_reward: float, schedule: str, base: float
) -> None:
    spans, position = [], 0
    for _, length, gap in plan:
        spans.append((position + gap, position + gap + length))
        position += gap + length
    shaped = shape_step_advantages(
        advantage, [valid for valid, _, _ in plan], spans, position + 1, answer_reward, base=base, schedule=schedule
    )
    assert len(shaped) == position + 1
    assert all(math.copysign(1.0, value) == 1.0 for value in shaped if value == 0)
    inside = {index for first, stop in spans for index in range(first, stop)}
    assert all(shaped[index] == advantage for index in range(position + 1) if index not in inside)
    if answer_reward > 0.6 or advantage == 0:
        assert set(shaped) == {advantage}
        return
    for (first, stop), (valid, _, _) in zip(spans, plan, strict=True):
        for value in shaped[first:stop]:
            if valid:
                assert value == abs(advantage)
            else:
                assert -base * abs(advantage) * (1 + 1e-12) <= value <= -abs(advantage) * (1 - 1e-12)
