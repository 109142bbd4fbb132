"""The parity gate: hand-computed differences, and everything it must not let pass."""

from __future__ import annotations

import math

import pytest

from mrpo.errors import ParityError
from mrpo.parity import NUM_WORST, compare_logprobs, require_parity
from mrpo.types import ScoreSample


def sample(key: str, token_ids: list[int]) -> ScoreSample:
    return ScoreSample(key=key, image="/none.png", prompt_token_ids=[1], completion_token_ids=token_ids)


def test_mean_and_worst_are_over_all_tokens_of_all_samples() -> None:
    result = compare_logprobs(
        [sample("a", [10, 11]), sample("b", [12])],
        [[-1.0, -2.0], [-3.0]],
        [[-1.5, -2.0], [-2.0]],
        token_text=lambda token: f"<{token}>",
    )
    assert (result.mean_diff, result.max_diff, result.num_tokens) == (0.5, 1.0, 3)
    assert result.worst == [
        "b token 0 '<12>': learner -3.0000, engine -2.0000",
        "a token 0 '<10>': learner -1.0000, engine -1.5000",
        "a token 1 '<11>': learner -2.0000, engine -2.0000",
    ]


def test_only_the_worst_few_are_named() -> None:
    tokens = list(range(20))
    result = compare_logprobs([sample("a", tokens)], [[0.0] * 20], [[-0.01 * token for token in tokens]])
    assert [line.split()[2] for line in result.worst] == [str(token) for token in range(19, 19 - NUM_WORST, -1)]


def test_the_bound_itself_passes_and_anything_above_does_not() -> None:
    result = compare_logprobs([sample("a", [1, 2])], [[-1.0, -1.0]], [[-1.25, -1.25]])
    require_parity(result, bound=0.25, setting="parity.max_mean_diff")
    with pytest.raises(ParityError, match=r"2\.50e-01 over 2 tokens is above parity\.max_mean_diff=0\.249") as caught:
        require_parity(result, bound=0.249, setting="parity.max_mean_diff")
    assert "a token 0" in str(caught.value) and "a token 1" in str(caught.value)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", range(12))
def test_a_number_that_is_not_finite_fails_and_is_named_first(bad: float, position: int) -> None:
    ours = [-0.1 * k for k in range(12)]
    ours[position] = bad
    result = compare_logprobs([sample("a", list(range(12)))], [ours], [[-1.0] * 12])
    assert f"token {position} " in result.worst[0]
    with pytest.raises(ParityError):
        require_parity(result, bound=1e9, setting="s")


def test_two_minus_infinities_are_no_agreement() -> None:
    result = compare_logprobs([sample("a", [1])], [[-math.inf]], [[-math.inf]])
    with pytest.raises(ParityError):
        require_parity(result, bound=1e9, setting="s")


@pytest.mark.parametrize(("ours", "theirs"), [([-1.0], [-1.0, -2.0]), ([-1.0, -2.0], [-1.0]), ([-1.0], [-1.0])])
def test_other_lengths_name_the_completion(ours: list[float], theirs: list[float]) -> None:
    with pytest.raises(ParityError, match=rf"bad#3: 2 tokens.*learner scored {len(ours)} and the engine {len(theirs)}"):
        compare_logprobs([sample("bad#3", [1, 2])], [ours], [theirs])


def test_nothing_to_compare_is_no_agreement() -> None:
    with pytest.raises(ParityError, match="empty completions"):
        compare_logprobs([sample("a", [])], [[]], [[]])
    with pytest.raises(ParityError, match="no completion tokens"):
        compare_logprobs([], [], [])


def test_a_model_that_scored_too_few_samples_is_noticed() -> None:
    with pytest.raises(ValueError, match=r"shorter|longer"):
        compare_logprobs([sample("a", [1]), sample("b", [1])], [[-1.0]], [[-1.0], [-1.0]])
