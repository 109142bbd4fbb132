"""Rules about sets of sampling requests, and what becomes of one that ended. Knows no engine."""

from __future__ import annotations

from collections.abc import Sequence

from mrpo.errors import UserError
from mrpo.steps import offsets_from_pieces, segment
from mrpo.types import Completion, FinishReason, RolloutRequest
from rollout.vocabulary import Vocabulary


def refuse_mixed(requests: Sequence[RolloutRequest]) -> None:
    """Greedy and sampled requests must not share a batch: on CPU vLLM then ignores the seeds without a word.

    Raises:
        UserError: both kinds are present; one of each is named.
    """
    greedy = next((request for request in requests if request.temperature == 0), None)
    sampled = next((request for request in requests if request.temperature > 0), None)
    if greedy and sampled:
        raise UserError(
            f"greedy request {greedy.key!r} and sampled request {sampled.key!r} in one call: their seeds would be "
            "ignored; call generate once for each temperature"
        )


def build_completion(
    request: RolloutRequest,
    vocabulary: Vocabulary,
    *,
    think_tag: str,
    step_strategy: str,
    prompt_token_ids: list[int],
    completion_token_ids: list[int],
    rollout_logprobs: list[float],
    policy_version: int,
    started_s: float,
    ended_s: float,
) -> Completion:
    """Decode a finished completion and find its steps, their token spans and its answer, once and for all.

    Args:
        request: what was asked for.
        vocabulary: bytes of every token id.
        think_tag: of the model's family.
        step_strategy: see `mrpo.steps.split_steps`.
        prompt_token_ids: [P] image placeholders expanded.
        completion_token_ids: [T] the end-of-turn token included where it came.
        rollout_logprobs: [T] nats.
        policy_version: of the weights it was sampled with.
        started_s: epoch seconds of submission.
        ended_s: epoch seconds of the last token.
    """
    assert len(completion_token_ids) == len(rollout_logprobs), request.key
    text, offsets = offsets_from_pieces([vocabulary.pieces[token] for token in completion_token_ids])
    found = segment(text, offsets, think_tag=think_tag, strategy=step_strategy)
    ended_turn = bool(completion_token_ids) and completion_token_ids[-1] == vocabulary.end_of_turn
    return Completion(
        prompt_id=request.prompt_id,
        sample_index=request.sample_index,
        prompt_token_ids=prompt_token_ids,
        completion_token_ids=completion_token_ids,
        rollout_logprobs=rollout_logprobs,
        text=text,
        steps=found.steps,
        spans=found.spans,
        answer=found.answer,
        think_tokens=found.think_tokens,
        step_tokens=found.step_tokens,
        finish_reason=FinishReason.STOP if ended_turn else FinishReason.TRUNCATED,
        policy_version=policy_version,
        started_s=started_s,
        ended_s=ended_s,
    )
