"""Micro-batch plans."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrpo.batching import plan_micro_batches
from mrpo.errors import UserError


def test_padded_cost_decides_and_not_the_sum() -> None:
    # 6 + 5 + 1 tokens are 12, but padded to 6 they are 18; one batch would do by the sum.
    assert plan_micro_batches([6, 5, 1], num_ranks=1, tokens_per_micro_batch=12) == [[[0], [1, 2]]]


def test_equal_samples_are_shared_equally() -> None:
    plan = plan_micro_batches([10] * 12, num_ranks=3, tokens_per_micro_batch=40)
    assert [[len(batch) for batch in rank] for rank in plan] == [[4], [4], [4]]


def test_every_rank_gets_as_many_micro_batches_though_one_would_need_fewer() -> None:
    plan = plan_micro_batches([100, 50, 30, 20], num_ranks=2, tokens_per_micro_batch=100)
    assert [[len(batch) for batch in rank] for rank in plan] == [[1, 1], [1, 1]]


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
        assert len(batch) * max((lengths[index] for index in batch), default=0) <= budget
    if len(lengths) >= len(batches):
        assert all(batches)
    assert plan == plan_micro_batches(list(lengths), num_ranks=num_ranks, tokens_per_micro_batch=budget)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(100, 900), min_size=64, max_size=64), st.sampled_from([2, 4, 8]))
def test_ranks_of_a_usual_batch_are_balanced(lengths: list[int], num_ranks: int) -> None:
    plan = plan_micro_batches(lengths, num_ranks=num_ranks, tokens_per_micro_batch=4096)
    loads = [sum(lengths[index] for batch in rank for index in batch) for rank in plan]
    assert max(loads) <= 1.25 * sum(loads) / num_ranks
