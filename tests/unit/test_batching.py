"""Micro-batch plans."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrpo.batching import plan_micro_batches
from mrpo.errors import UserError


def test_the_sum_decides_and_not_the_longest() -> None:
    # Padded to 6 these would be 18 tokens, and two micro-batches.
    assert plan_micro_batches([6, 5, 1], num_ranks=1, tokens_per_micro_batch=12) == [[[0, 1, 2]]]
    assert plan_micro_batches([6, 5, 1], num_ranks=1, tokens_per_micro_batch=11) == [[[0], [1, 2]]]


def test_short_samples_fill_the_room_beside_long_ones() -> None:
    plan = plan_micro_batches([9, 8, 7, 3, 2, 1], num_ranks=1, tokens_per_micro_batch=10)
    assert plan == [[[0, 5], [1, 4], [2, 3]]]


def test_attention_counts_in_the_balance() -> None:
    # By tokens 60,000 + 40,000 against 80,000 would do; but the long one's attention costs as much as nine short ones'.
    lengths = [60_000, *[20_000] * 6]
    plan = plan_micro_batches(lengths, num_ranks=2, tokens_per_micro_batch=130_000)
    assert [[[lengths[index] for index in batch] for batch in rank] for rank in plan] == [
        [[60_000, 20_000]],
        [[20_000] * 5],
    ]


def test_what_runs_at_one_time_costs_about_the_same() -> None:
    # Five micro-batches' worth, rounded up to six: dealt in pairs from the costliest to the cheapest.
    plan = plan_micro_batches([40, 39, 38, 30, 29, 28], num_ranks=2, tokens_per_micro_batch=40)
    assert plan == [[[0], [3], [4]], [[1], [2], [5]]]


def test_equal_samples_are_shared_equally() -> None:
    plan = plan_micro_batches([10] * 12, num_ranks=3, tokens_per_micro_batch=40)
    assert [[len(batch) for batch in rank] for rank in plan] == [[4], [4], [4]]


def test_every_rank_gets_as_many_micro_batches_though_one_would_need_fewer() -> None:
    plan = plan_micro_batches([100, 50, 30, 20, 20], num_ranks=2, tokens_per_micro_batch=100)
    assert [sorted(len(batch) for batch in rank) for rank in plan] == [[1, 1], [1, 2]]


def test_fewer_samples_than_ranks_leave_ranks_empty() -> None:
    assert plan_micro_batches([3], num_ranks=3, tokens_per_micro_batch=8) == [[[0]], [[]], [[]]]
    assert plan_micro_batches([], num_ranks=2, tokens_per_micro_batch=8) == [[], []]


def test_a_sample_above_the_budget_is_named() -> None:
    with pytest.raises(UserError, match=r"sample 1 has 9 tokens, more than learner.tokens_per_micro_batch=8"):
        plan_micro_batches([1, 9], num_ranks=1, tokens_per_micro_batch=8)
    with pytest.raises(UserError, match="sample 0 has 0 tokens"):
        plan_micro_batches([0], num_ranks=1, tokens_per_micro_batch=8)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.integers(1, 50), max_size=80), st.integers(1, 9), st.integers(50, 200))
def test_every_plan_keeps_the_promises(lengths: list[int], num_ranks: int, budget: int) -> None:
    plan = plan_micro_batches(lengths, num_ranks=num_ranks, tokens_per_micro_batch=budget)
    batches = [batch for rank in plan for batch in rank]
    assert len(plan) == num_ranks
    assert len({len(rank) for rank in plan}) == 1
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert sum(lengths[index] for index in batch) <= budget
        assert batch == sorted(batch, key=lambda index: (-lengths[index], index))
    if len(lengths) >= len(batches):
        assert all(batches)
    # First-fit leaves at most one micro-batch half empty, and rounding up to the ranks adds fewer than there are ranks.
    assert len(batches) <= 2 * sum(lengths) // budget + 1 + (num_ranks - 1)
    assert plan == plan_micro_batches(list(lengths), num_ranks=num_ranks, tokens_per_micro_batch=budget)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(100, 900), min_size=64, max_size=64), st.sampled_from([2, 4, 8]))
def test_ranks_of_a_usual_batch_are_balanced(lengths: list[int], num_ranks: int) -> None:
    plan = plan_micro_batches(lengths, num_ranks=num_ranks, tokens_per_micro_batch=4096)
    loads = [sum(lengths[index] for batch in rank for index in batch) for rank in plan]
    assert max(loads) <= 1.05 * sum(loads) / num_ranks
