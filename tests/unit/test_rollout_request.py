"""Rules about sets of requests, and how a finished completion is decoded."""

from __future__ import annotations

import pytest

from mrpo.errors import UserError
from mrpo.types import Completion, FinishReason, RolloutRequest
from rollout.request import build_completion, refuse_mixed
from rollout.vocabulary import Vocabulary

END = 0
PIECES = [
    b"",
    b"<think>",
    b"The",
    b" lung",
    b".",
    b" It",
    b" is",
    b"</think>",
    b"<answer>",
    b"caf",
    b"\xc3",
    b"\xa9",
    b"</answer>",
]
VOCABULARY = Vocabulary(pieces=PIECES, banned=[], end_of_turn=END, image_token=99, processor_adds_brackets=False)


def request(prompt_id: str = "p", sample_index: int = 0, temperature: float = 1.0) -> RolloutRequest:
    return RolloutRequest(
        prompt_id=prompt_id,
        sample_index=sample_index,
        question="?",
        image="/image.png",
        seed=sample_index,
        temperature=temperature,
        top_p=1.0,
        max_new_tokens=8,
    )


def completion(token_ids: list[int]) -> Completion:
    return build_completion(
        request(),
        VOCABULARY,
        think_tag="think",
        step_strategy="sentence",
        prompt_token_ids=[7, 8],
        completion_token_ids=token_ids,
        rollout_logprobs=[-0.5] * len(token_ids),
        policy_version=3,
        started_s=1.0,
        ended_s=2.0,
    )


def test_greedy_and_sampled_requests_do_not_share_a_call() -> None:
    with pytest.raises(UserError, match=r"'p#1' and sampled request 'p#0'"):
        refuse_mixed([request(), request(sample_index=1, temperature=0.0)])


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_requests_of_one_kind_may_share_a_call(temperature: float) -> None:
    refuse_mixed([request(sample_index=i, temperature=temperature) for i in range(3)])
    refuse_mixed([])


def test_steps_spans_and_answer_come_from_the_tokens() -> None:
    result = completion([1, 2, 3, 4, 5, 6, 3, 4, 7, 8, 9, 10, 11, 12, END])
    assert result.text == "<think>The lung. It is lung.</think><answer>café</answer>"
    assert [step.text for step in result.steps] == ["The lung.", "It is lung."]
    assert result.spans == [(1, 4), (4, 8)]
    assert result.answer == "café"
    assert (result.think_tokens, result.step_tokens) == (7, 7)
    assert result.finish_reason == FinishReason.STOP
    assert (result.policy_version, result.prompt_token_ids) == (3, [7, 8])


def test_a_completion_without_end_of_turn_was_cut() -> None:
    result = completion([1, 2])
    assert result.finish_reason == FinishReason.TRUNCATED
    assert (result.steps, result.spans, result.answer) == ([], [], None)
