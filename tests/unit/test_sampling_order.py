"""Which questions a step asks, and the seeds of its requests."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrpo.config import RolloutConfig
from mrpo.sampling_order import greedy_requests, prompts_of_step, request_seed, requests_of_step
from tests.unit.fakes import phantom_example


def ids_asked(num_examples: int, num_steps: int, per_step: int, *, seed: int = 0, shuffle: bool = True) -> list[str]:
    """Question ids in the order in which they are asked, over all steps."""
    examples = [phantom_example(number) for number in range(num_examples)]
    asked = []
    for step in range(num_steps):
        prompts = prompts_of_step(examples, step, prompts_per_step=per_step, seed=seed, shuffle=shuffle)
        assert len(prompts) == per_step, "prompt ids are unique within a step"
        assert [key.partition("@")[0] for key in prompts] == [example.id for example in prompts.values()]
        asked += [example.id for example in prompts.values()]
    return asked


@given(
    num_examples=st.integers(1, 12),
    per_step=st.integers(1, 30),
    num_steps=st.integers(1, 12),
    seed=st.integers(0, 2**31),
    shuffle=st.booleans(),
)
def test_every_epoch_asks_each_question_once(
    num_examples: int, per_step: int, num_steps: int, seed: int, shuffle: bool
) -> None:
    asked = ids_asked(num_examples, num_steps, per_step, seed=seed, shuffle=shuffle)
    everything = {phantom_example(number).id for number in range(num_examples)}
    for first in range(0, len(asked), num_examples):
        epoch = asked[first : first + num_examples]
        assert max(Counter(epoch).values()) == 1
        if len(epoch) == num_examples:
            assert set(epoch) == everything


def test_a_question_on_both_sides_of_an_epochs_end_has_two_prompt_ids() -> None:
    examples = [phantom_example(number) for number in range(3)]
    prompts = prompts_of_step(examples, 1, prompts_per_step=2, seed=0, shuffle=False)
    assert list(prompts) == ["q002@0", "q000@1"]
    whole = prompts_of_step(examples, 0, prompts_per_step=7, seed=0, shuffle=False)
    assert list(whole) == ["q000@0", "q001@0", "q002@0", "q000@1", "q001@1", "q002@1", "q000@2"]


def test_without_shuffling_the_order_is_the_files() -> None:
    assert ids_asked(5, 4, 3, shuffle=False) == [f"q{number % 5:03d}" for number in range(12)]


def test_shuffling_differs_between_epochs_and_seeds() -> None:
    asked = ids_asked(20, 4, 10)
    assert asked[:20] != asked[20:]
    assert asked[:20] != sorted(asked[:20])
    assert asked != ids_asked(20, 4, 10, seed=1)


def test_a_step_follows_from_its_number_alone() -> None:
    examples = [phantom_example(number) for number in range(7)]
    forwards = [prompts_of_step(examples, step, prompts_per_step=4, seed=5, shuffle=True) for step in range(6)]
    backwards = [
        prompts_of_step(examples, step, prompts_per_step=4, seed=5, shuffle=True) for step in reversed(range(6))
    ]
    assert [list(prompts.items()) for prompts in forwards] == [list(p.items()) for p in reversed(backwards)]


def test_seeds_are_unique_positive_63_bit_numbers() -> None:
    grid = itertools.product(range(3), range(60), [f"q{n}@{epoch}" for n in range(30) for epoch in range(2)], range(16))
    seeds = [request_seed(*cell) for cell in grid]
    assert len(seeds) == 3 * 60 * 60 * 16
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) >= 0 and max(seeds) < 2**63
    assert max(seeds) > 2**62, "all bits are used"


@pytest.mark.parametrize(
    ("one", "other"),
    [((1, 2, "3", 4), (1, 23, "", 4)), ((1, 2, "3/4", 5), (1, 2, "3", 45)), ((1, 1, "a", 0), (11, 1, "a", 0))],
)
def test_arguments_do_not_run_into_each_other(one: tuple[int, int, str, int], other: tuple[int, int, str, int]) -> None:
    assert request_seed(*one) != request_seed(*other)


def test_seeds_are_the_same_in_every_process_and_version() -> None:
    """The text's SHA-256 begins so, by `sha256sum`; a change would break the resumption of runs that exist."""
    assert request_seed(0, 0, "q000@0", 0) == 0xFF0653E33A3FA815 >> 1


def test_requests_come_group_by_group_with_the_configured_sampling() -> None:
    examples = [phantom_example(number) for number in range(2)]
    rollout = RolloutConfig(group_size=3, temperature=0.7, top_p=0.9, max_new_tokens=50)
    requests = requests_of_step({"a@0": examples[0], "b@0": examples[1]}, 4, rollout=rollout, seed=9)
    assert [request.key for request in requests] == ["a@0#0", "a@0#1", "a@0#2", "b@0#0", "b@0#1", "b@0#2"]
    assert [request.image for request in requests] == ["/nowhere/0.png"] * 3 + ["/nowhere/1.png"] * 3
    assert {(r.temperature, r.top_p, r.max_new_tokens) for r in requests} == {(0.7, 0.9, 50)}
    assert [request.seed for request in requests] == [
        request_seed(9, 4, prompt, index) for prompt in ("a@0", "b@0") for index in range(3)
    ]


def test_greedy_requests_are_one_a_question() -> None:
    requests = greedy_requests({"a": phantom_example(0), "b": phantom_example(1)}, max_new_tokens=7)
    assert [(r.key, r.temperature, r.max_new_tokens) for r in requests] == [("a#0", 0.0, 7), ("b#0", 0.0, 7)]
