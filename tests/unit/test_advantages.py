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


PROPERTY = settings(deadline=None, max_examples=50)
# Rewards are on a grid: differences near the rounding error of a sum have no advantage anyone could predict.
ON_GRID = st.integers(-2000, 2000).map(lambda value: value / 1000)
GROUP = 4
BATCH = st.lists(ON_GRID, min_size=6 * GROUP, max_size=6 * GROUP).map(
    lambda drawn: list(zip(drawn[::2], drawn[1::2], strict=True))
)
WEIGHTS = [1.0, 0.5]


@PROPERTY
@given(BATCH, st.permutations(range(GROUP)), st.permutations(range(3)))
@pytest.mark.parametrize("name", list(ADVANTAGES))
def test_completions_take_their_advantages_with_them(
    name: str, components: list[tuple[float, float]], members: list[int], groups: list[int]
) -> None:
    order = [GROUP * group + member for group in groups for member in members]
    function = advantage_function(name)
    straight = function(components, WEIGHTS, GROUP, 1e-4, None)
    shuffled = function([components[index] for index in order], WEIGHTS, GROUP, 1e-4, None)
    torch.testing.assert_close(shuffled, straight[order], atol=1e-9, rtol=1e-9)


@PROPERTY
@given(BATCH, st.lists(st.integers(-50_000, 50_000), min_size=3, max_size=3))
@pytest.mark.parametrize("name", list(ADVANTAGES))
def test_what_a_whole_group_gains_changes_nothing(
    name: str, components: list[tuple[float, float]], gains: list[int]
) -> None:
    function = advantage_function(name)
    shifted = [(first + gains[i // GROUP] / 1000, second) for i, (first, second) in enumerate(components)]
    before = function(components, WEIGHTS, GROUP, 1e-2, None)
    torch.testing.assert_close(function(shifted, WEIGHTS, GROUP, 1e-2, None), before, atol=1e-8, rtol=1e-8)


@PROPERTY
@given(
    st.lists(st.integers(-1000, 1000), min_size=2 * GROUP, max_size=2 * GROUP),
    st.lists(st.integers(-1000, 1000), min_size=2, max_size=2),
)
@pytest.mark.parametrize("name", list(ADVANTAGES))
def test_whole_numbers_in_groups_of_a_power_of_two_shift_to_the_bit(
    name: str, rewards: list[int], gains: list[int]
) -> None:
    function = advantage_function(name)
    components = torch.tensor([[float(reward)] for reward in rewards], dtype=torch.float64)
    gain = torch.tensor(gains, dtype=torch.float64).repeat_interleave(GROUP).unsqueeze(1)
    shifted, before = (function(values, [1.0], GROUP, 1e-4, None) for values in (components + gain, components))
    assert shifted.tolist() == before.tolist()


@PROPERTY
@given(st.lists(ON_GRID, min_size=2, max_size=8), st.sampled_from([0.001, 0.3, 7.0, 1000.0]))
def test_grpo_has_no_unit_of_reward(rewards: list[float], scale: float) -> None:
    # Exactly so when eps has the rewards' unit, and with a small eps but for what that is of the deviation.
    scaled = [scale * reward for reward in rewards]
    size = len(rewards)
    straight = grpo_advantages(rewards, size, eps=1e-4)
    torch.testing.assert_close(grpo_advantages(scaled, size, eps=scale * 1e-4), straight, atol=1e-9, rtol=1e-9)
    small = [grpo_advantages(values, size, eps=1e-10) for values in (rewards, scaled)]
    torch.testing.assert_close(small[0], small[1], atol=1e-3, rtol=1e-3)
    powers = [2.0**10 * reward for reward in rewards]
    assert grpo_advantages(powers, size, eps=2.0**10 * 1e-4).tolist() == straight.tolist()


@PROPERTY
@given(st.lists(ON_GRID, min_size=2, max_size=8))
def test_group_advantages_sum_to_zero_and_rloo_is_a_multiple_of_dr_grpo(rewards: list[float]) -> None:
    size = len(rewards)
    centred = dr_grpo_advantages(rewards, size)
    assert centred.sum().item() == pytest.approx(0.0, abs=1e-12)
    assert grpo_advantages(rewards, size).sum().item() == pytest.approx(0.0, abs=1e-9)
    torch.testing.assert_close(rloo_advantages(rewards, size), centred * size / (size - 1), atol=1e-12, rtol=1e-9)


def test_plain_numbers_are_read_in_full() -> None:
    # Neighbours in float64 that float32 cannot tell apart.
    root = math.sqrt(0.5)
    assert dr_grpo_advantages([1e8, 1e8 + 1], 2).tolist() == [-0.5, 0.5]
    for name in ADVANTAGES:
        result = advantage_function(name)([[1e8], [1e8 + 1]], [1.0], 2, 1e-12, None).tolist()
        expected = {"dr_grpo": 0.5, "rloo": 1.0}
        assert result == pytest.approx([-expected.get(name, root), expected.get(name, root)], rel=1e-9), name


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


def test_a_group_without_variance_is_exactly_zero_under_gdpo_beside_one_that_varies() -> None:
    components = [[1.0], [1.0], [1.0], [0.0], [0.0], [1.0]]
    assert gdpo_advantages(components, [1.0], 3)[:3].tolist() == [0.0, 0.0, 0.0]
