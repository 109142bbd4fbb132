"""From traces to training samples: rewards, failure policies, truncation, canonical order."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from mrpo.choices import AdvantageKind, AnswerKind, JudgeFailurePolicy, Schedule, Shaping, TruncatedPolicy
from mrpo.config import AlgorithmConfig, RewardConfig
from mrpo.errors import JudgeUnavailableError, MRPOError
from mrpo.scoring import ScoredBatch, ScoredTrace, Trace, answer_to_rate, score_group_batch
from mrpo.types import (
    AnswerJudgement,
    Completion,
    Example,
    FailureReason,
    FinishReason,
    JudgeFailure,
    Judgement,
    Step,
    Verdicts,
)

NO_COUNT = RewardConfig(step_count_weight=0.0)
TOKENS_PER_STEP = 2


def trace(
    prompt: str,
    sample: int,
    *,
    answer: str | None = "left",
    valid: str | FailureReason | None = "vv",
    num_steps: int | None = None,
    rationale: str | None = "It is left.",
    truncated: bool = False,
) -> Trace:
    """A completion of a question whose gold answer is "left": two tokens a step, and one before and after.

    `valid` has one letter a step (v valid, x invalid), or says why the judge failed; None: not judged.
    """
    if num_steps is None:
        num_steps = len(valid) if type(valid) is str else 2
    spans = [(1 + TOKENS_PER_STEP * k, 1 + TOKENS_PER_STEP * (k + 1)) for k in range(num_steps)]
    num_tokens = 2 + TOKENS_PER_STEP * num_steps
    key = f"{prompt}#{sample}"
    judgement = None
    if isinstance(valid, FailureReason):
        judgement = judged(key, JudgeFailure(reason=valid, detail="why"))
    elif valid:
        flags = [letter == "v" for letter in valid]
        judgement = judged(key, Verdicts(alignment=flags, contribution=[False] * len(flags)))
    return Trace(
        example=Example(
            id=prompt,
            image=f"/{prompt}.png",
            question="Which side?",
            answer="left",
            rationale=rationale,
            dataset="d",
            split="train",
            license="CC0",
        ),
        completion=Completion(
            prompt_id=prompt,
            sample_index=sample,
            prompt_token_ids=[1, 2, 3],
            completion_token_ids=list(range(num_tokens)),
            rollout_logprobs=[-0.5] * num_tokens,
            text="left",
            steps=[Step(text="s.", start=3 * k, end=3 * k + 2) for k in range(num_steps)],
            spans=spans,
            answer=answer,
            think_tokens=num_tokens,
            step_tokens=num_tokens,
            finish_reason=FinishReason.TRUNCATED if truncated else FinishReason.STOP,
            policy_version=7,
            started_s=0.0,
            ended_s=1.0,
        ),
        judgement=judgement,
        answer_reward=float(answer == "left"),
    )


def judged(key: str, outcome: Verdicts | JudgeFailure) -> Judgement:
    return Judgement(key=key, outcome=outcome, started_s=0.0, ended_s=1.0, attempts=1)


def score(
    traces: list[Trace],
    *,
    algorithm: AlgorithmConfig | None = None,
    reward: RewardConfig = NO_COUNT,
    on_failure: JudgeFailurePolicy = JudgeFailurePolicy.EXCLUDE,
    group_size: int = 4,
    prompt_order: list[str] | None = None,
) -> ScoredBatch:
    return score_group_batch(
        traces,
        group_size=group_size,
        algorithm=AlgorithmConfig() if algorithm is None else algorithm,
        reward=reward,
        on_failure=on_failure,
        prompt_order=prompt_order,
    )


def column(batch: ScoredBatch, name: str) -> list[object]:
    return [getattr(item, name) for item in batch.traces]


def by_key(batch: ScoredBatch) -> dict[str, ScoredTrace]:
    return {item.trace.completion.key: item for item in batch.traces}


MIXED_GROUP = [
    trace("a", 0, answer="left", valid="vv"),
    trace("a", 1, answer="right", valid="xv"),
    trace("a", 2, answer="right", valid="xx"),
    trace("a", 3, answer="left", valid="vx"),
]
REWARDS = [2.0, 0.5, 0.0, 1.5]  # answer and process; mean 1, unbiased std sqrt(2.5/3)
STD = math.sqrt(2.5 / 3) + 1e-4


def test_rewards_and_token_advantages_by_hand() -> None:
    batch = score(MIXED_GROUP)
    assert column(batch, "answer_reward") == [1.0, 0.0, 0.0, 1.0]
    assert column(batch, "process_reward") == [1.0, 0.5, 0.0, 0.5]
    assert column(batch, "reward") == REWARDS
    advantages = [(reward - 1.0) / STD for reward in REWARDS]
    assert column(batch, "advantage") == pytest.approx(advantages)
    right, wrong = batch.traces[3], batch.traces[1]
    assert right.token_advantages == pytest.approx([advantages[3]] * 6)
    a = advantages[1]
    penalty = -math.e * abs(a)
    assert wrong.token_advantages == pytest.approx([a, penalty, penalty, abs(a), abs(a), a])
    assert wrong.verdicts_used == [False, True]


def test_train_samples_carry_what_the_learner_needs() -> None:
    batch = score(MIXED_GROUP)
    sample, scored = batch.train_samples()[1], batch.traces[1]
    assert (sample.key, sample.image, sample.policy_version) == ("a#1", "/a.png", 7)
    assert sample.prompt_token_ids == [1, 2, 3]
    assert sample.completion_token_ids == scored.trace.completion.completion_token_ids
    assert sample.advantages == scored.token_advantages
    assert sample.rollout_logprobs == [-0.5] * 6


def test_weights_and_step_count_enter_the_reward() -> None:
    reward = RewardConfig(answer_weight=2.0, process_weight=0.5, step_count_weight=3.0, min_steps=4)
    batch = score(MIXED_GROUP, reward=reward)
    assert column(batch, "step_count_reward") == [-0.5] * 4
    assert column(batch, "reward") == pytest.approx([2.5 - 1.5, 0.25 - 1.5, -1.5, 2.25 - 1.5])


def test_without_shaping_every_token_has_the_advantage_of_its_completion() -> None:
    batch = score(MIXED_GROUP, algorithm=AlgorithmConfig(shaping=Shaping.NONE))
    for item in batch.traces:
        assert item.token_advantages == [item.advantage] * 6
        assert item.verdicts_used is None


FAILED_GROUP = [*MIXED_GROUP[:3], trace("a", 3, answer="left", valid=FailureReason.TIMEOUT)]


def test_a_failed_judgement_is_excluded_and_not_zero() -> None:
    batch = score(FAILED_GROUP)
    failed = batch.traces[3]
    assert (failed.process_reward, failed.reward, failed.advantage) == (None, None, 0.0)
    assert failed.token_advantages == [0.0] * 6
    assert not failed.in_baseline
    mean, std = 2.5 / 3, math.sqrt(((2 - 2.5 / 3) ** 2 + (0.5 - 2.5 / 3) ** 2 + (2.5 / 3) ** 2) / 2)
    expected = [(reward - mean) / (std + 1e-4) for reward in (2.0, 0.5, 0.0)]
    assert column(batch, "advantage")[:3] == pytest.approx(expected)
    assert [sample.key for sample in batch.train_samples()] == ["a#0", "a#1", "a#2"]
    assert batch.counts.judge_failures == {FailureReason.TIMEOUT: 1}
    assert (batch.counts.num_excluded, batch.counts.num_judged, batch.counts.groups_dropped) == (1, 3, 0)


def test_answer_only_drops_the_process_part_of_the_whole_group() -> None:
    other = [replace(item, completion=replace(item.completion, prompt_id="b")) for item in MIXED_GROUP]
    batch = score([*FAILED_GROUP, *other], on_failure=JudgeFailurePolicy.ANSWER_ONLY)
    assert column(batch, "process_reward") == [None] * 4 + [1.0, 0.5, 0.0, 0.5]
    assert column(batch, "reward") == [1.0, 0.0, 0.0, 1.0, *REWARDS]
    assert all(column(batch, "in_baseline"))
    advantage = 0.5 / (math.sqrt(1 / 3) + 1e-4)
    assert column(batch, "advantage")[:4] == pytest.approx([advantage, -advantage, -advantage, advantage])
    # Wrong, and judged: shaped all the same. The failed one is not.
    assert batch.traces[1].token_advantages == pytest.approx(
        [-advantage, *[-math.e * advantage] * 2, *[advantage] * 2, -advantage]
    )
    assert batch.traces[3].verdicts_used is None
    assert (batch.counts.groups_answer_only, batch.counts.groups_unjudged) == (1, 0)


def test_a_wrong_answer_with_a_failed_judgement_is_not_shaped() -> None:
    traces = [*MIXED_GROUP[:3], trace("a", 3, answer="right", valid=FailureReason.BAD_JSON)]
    failed = score(traces, on_failure=JudgeFailurePolicy.ANSWER_ONLY).traces[3]
    assert failed.advantage < 0
    assert failed.token_advantages == [failed.advantage] * 6


def test_fail_raises_and_names_the_completion() -> None:
    with pytest.raises(JudgeUnavailableError, match=r"a#3 failed \(timeout: why\).*judge.on_failure"):
        score(FAILED_GROUP, on_failure=JudgeFailurePolicy.FAIL)
    assert len(score(MIXED_GROUP, on_failure=JudgeFailurePolicy.FAIL).train_samples()) == 4


@pytest.mark.parametrize("kind", list(AdvantageKind))
def test_a_group_left_with_one_completion_is_dropped_and_counted(kind: AdvantageKind) -> None:
    failing = [trace("a", index, valid=FailureReason.REFUSED) for index in range(3)] + [trace("a", 3)]
    other = [replace(item, completion=replace(item.completion, prompt_id="b")) for item in MIXED_GROUP]
    batch = score([*failing, *other], algorithm=AlgorithmConfig(advantage=kind))
    assert column(batch, "in_baseline") == [False] * 4 + [True] * 4
    assert column(batch, "advantage")[:4] == [0.0] * 4
    assert [sample.key for sample in batch.train_samples()] == ["b#0", "b#1", "b#2", "b#3"]
    assert (batch.counts.groups_dropped, batch.counts.num_excluded) == (1, 4)
    alone = score(other, algorithm=AlgorithmConfig(advantage=kind))
    assert column(batch, "advantage")[4:] == pytest.approx(column(alone, "advantage"))


def test_a_question_without_rationale_is_answer_only_by_nature() -> None:
    traces = [
        trace("a", index, answer=answer, valid=None, rationale=None)
        for index, answer in enumerate(["left", "right", "right", "left"])
    ]
    batch = score(traces, reward=RewardConfig(), on_failure=JudgeFailurePolicy.FAIL)
    assert column(batch, "process_reward") == [None] * 4
    assert column(batch, "reward") == [0.5, -0.5, -0.5, 0.5]  # two steps: the step-count reward stays
    assert all(item.token_advantages == [item.advantage] * 6 for item in batch.traces)
    assert (batch.counts.groups_unjudged, batch.counts.num_unrated) == (1, 4)
    assert (batch.counts.groups_answer_only, batch.counts.judge_failures) == (0, {})


def test_without_a_judge_every_group_is_answer_only_by_nature() -> None:
    traces = [trace("a", index, valid=None) for index in range(3)] + [trace("a", 3, valid=None, num_steps=0)]
    batch = score(traces)
    assert column(batch, "process_reward") == [None] * 4
    assert batch.counts.groups_unjudged == 1


def test_no_steps_means_process_reward_zero_and_no_shaping() -> None:
    traces = [*MIXED_GROUP[:3], trace("a", 3, answer="right", valid=None, num_steps=0)]
    batch = score(traces, reward=RewardConfig())
    none = batch.traces[3]
    assert (none.process_reward, none.step_count_reward, none.reward) == (0.0, -1.0, -1.0)
    assert none.in_baseline
    assert none.token_advantages == [none.advantage] * 2
    assert (batch.counts.num_without_steps, batch.counts.groups_unjudged) == (1, 0)


def test_a_truncated_completion_is_kept_or_masked() -> None:
    traces = [*MIXED_GROUP[:3], trace("a", 3, answer=None, valid="vv", truncated=True)]
    kept = score(traces)
    assert kept.traces[3].reward == 1.0
    assert kept.traces[3].in_baseline
    masked = score(traces, algorithm=AlgorithmConfig(truncated=TruncatedPolicy.MASK))
    assert not masked.traces[3].in_baseline
    assert masked.traces[3].token_advantages == [0.0] * 6
    assert len(masked.train_samples()) == 3
    assert column(masked, "advantage")[:3] == pytest.approx(column(score(FAILED_GROUP), "advantage")[:3])
    assert kept.counts.num_truncated == masked.counts.num_truncated == 1


def test_a_failed_judgement_of_a_masked_completion_touches_nobody() -> None:
    traces = [*MIXED_GROUP[:3], trace("a", 3, valid=FailureReason.TIMEOUT, truncated=True)]
    masking = AlgorithmConfig(truncated=TruncatedPolicy.MASK)
    for policy in JudgeFailurePolicy:
        batch = score(traces, algorithm=masking, on_failure=policy)
        assert column(batch, "process_reward") == [1.0, 0.5, 0.0, None]
        assert batch.counts.judge_failures == {FailureReason.TIMEOUT: 1}


def test_a_missing_answer_tag_scores_the_text_only_where_overlap_counts() -> None:
    bare, tagged = trace("a", 0, answer=None).completion, trace("a", 1, answer=" right ").completion
    assert bare.text == tagged.text == "left"
    assert [answer_to_rate(bare, kind) for kind in AnswerKind] == ["", "left", ""]
    assert [answer_to_rate(tagged, kind) for kind in AnswerKind] == ["right"] * 3


def test_equal_rewards_stay_in_training_with_zero_advantage() -> None:
    batch = score([trace("a", index) for index in range(4)])
    assert column(batch, "advantage") == [0.0] * 4
    assert len(batch.train_samples()) == 4  # the KL penalty acts on them


@pytest.mark.parametrize("kind", list(AdvantageKind))
def test_arrival_order_changes_nothing(kind: AdvantageKind) -> None:
    traces = [
        trace(prompt, index, answer=answer, valid=valid)
        for prompt in ("c", "a", "b")
        for index, (answer, valid) in enumerate([("left", "vv"), ("right", "xv"), ("left", "xx"), ("up", "vx")])
    ]
    shuffled = random.Random(3).sample(traces, len(traces))
    order = ["c", "a", "b"]
    algorithm = AlgorithmConfig(advantage=kind)
    batch = score(shuffled, algorithm=algorithm, prompt_order=order)
    assert batch == score(traces, algorithm=algorithm)
    assert [sample.key for sample in batch.train_samples()] == [f"{prompt}#{i}" for prompt in order for i in range(4)]


def test_the_same_question_twice_in_a_batch_makes_two_groups() -> None:
    again = [replace(item, completion=replace(item.completion, prompt_id="a@1")) for item in MIXED_GROUP]
    batch = score([*MIXED_GROUP, *again])
    assert batch.counts.num_groups == 2
    assert column(batch, "advantage")[:4] == column(batch, "advantage")[4:]


@pytest.mark.parametrize("samples", [[0, 1, 2], [0, 1, 2, 2], [0, 1, 2, 4], [0, 1, 2, 3, 4]])
def test_an_incomplete_group_is_an_error(samples: list[int]) -> None:
    with pytest.raises(MRPOError, match="prompt 'a' has samples"):
        score([trace("a", index) for index in samples])


def test_a_prompt_that_never_arrived_is_an_error() -> None:
    with pytest.raises(MRPOError, match=r"prompt 'b' has samples \[\]"):
        score(MIXED_GROUP, prompt_order=["a", "b"])


def test_a_lost_judgement_is_an_error() -> None:
    with pytest.raises(MRPOError, match="a#2 has steps and no judgement"):
        score([*MIXED_GROUP[:2], trace("a", 2, valid=None), MIXED_GROUP[3]])


def test_another_number_of_verdicts_than_steps_is_an_error() -> None:
    with pytest.raises(MRPOError, match="a#0 has 3 steps and 2 verdicts"):
        score([trace("a", 0, valid="vv", num_steps=3), *MIXED_GROUP[1:]])


def test_keys_of_samples_are_those_of_the_baseline() -> None:
    batch = score(FAILED_GROUP)
    kept = {key for key, item in by_key(batch).items() if item.in_baseline}
    assert {sample.key for sample in batch.train_samples()} == kept


PURE = AlgorithmConfig(advantage=AdvantageKind.RLOO, shaping=Shaping.PURE, credit_temperature=0.0)
PROCESS = AlgorithmConfig(advantage=AdvantageKind.DR_GRPO, shaping=Shaping.PROCESS_SUPERVISION)
ANSWER_ONLY = RewardConfig(process_weight=0.0, step_count_weight=0.0)


def test_pure_credits_steps_beside_the_answers_advantage() -> None:
    batch = score([trace("a", 0), trace("a", 1, answer="right", valid="vx")], algorithm=PURE, group_size=2)
    assert column(batch, "advantage") == [1.0, -1.0], "of the answer alone: its steps' rewards go to their tokens"
    assert column(batch, "process_reward") == [1.0, 0.5]
    # Returns 1, 1 and −1, −1; five tokens up to the last step; each is measured against the other's mean.
    assert batch.traces[0].token_advantages == [1.0 + 1.0 + 1.0] * 5 + [1.0]
    assert batch.traces[1].token_advantages == [-1.0 - 1.0 - 1.0] * 5 + [-1.0]


def test_process_supervision_credits_what_follows() -> None:
    batch = score([trace("a", 0), trace("a", 1, answer="right", valid="vx")], algorithm=PROCESS, group_size=2)
    assert column(batch, "advantage") == [0.5, -0.5]
    up, down = 0.25 / (0.5 + 1e-4), -0.75 / (0.5 + 1e-4)  # of the steps 1, 1, 1, 0
    assert batch.traces[0].token_advantages == pytest.approx([0.5 + 2 * up] * 3 + [0.5 + up] * 2 + [0.5])
    assert batch.traces[1].token_advantages == pytest.approx([-0.5 + up + down] * 3 + [-0.5 + down] * 2 + [-0.5])


@pytest.mark.parametrize("algorithm", [PURE, PROCESS])
def test_a_group_scored_without_the_process_part_has_no_step_credit(algorithm: AlgorithmConfig) -> None:
    traces = [trace("a", 0), trace("a", 1, answer="right", valid="vx"), trace("a", 2, valid=FailureReason.TIMEOUT)]
    only = score(traces, algorithm=algorithm, group_size=3, on_failure=JudgeFailurePolicy.ANSWER_ONLY)
    assert all(set(item.token_advantages) == {item.advantage} for item in only.traces)
    assert all(item.verdicts_used is None for item in only.traces)
    excluded = score(traces, algorithm=algorithm, group_size=3)
    assert set(excluded.traces[2].token_advantages) == {0.0}
    assert len(set(excluded.traces[1].token_advantages)) > 1


def test_step_credits_do_not_depend_on_the_schedule_of_mrpo() -> None:
    traces = [trace("a", 0), trace("a", 1, answer="right", valid="vx")]
    without = score(traces, algorithm=replace(PURE, schedule=Schedule.NONE), group_size=2)
    assert [item.token_advantages for item in without.traces] == [
        item.token_advantages for item in score(traces, algorithm=PURE, group_size=2).traces
    ]


@pytest.mark.parametrize("policy", list(JudgeFailurePolicy))
def test_where_verdicts_decide_nothing_a_failed_judgement_harms_nobody(policy: JudgeFailurePolicy) -> None:
    traces = [trace("a", 0), trace("a", 1, answer="right"), trace("a", 2, valid=FailureReason.TIMEOUT)]
    unshaped = AlgorithmConfig(shaping=Shaping.NONE)
    batch = score(traces, algorithm=unshaped, reward=ANSWER_ONLY, on_failure=policy, group_size=3)
    assert column(batch, "in_baseline") == [True] * 3
    assert column(batch, "reward") == [1.0, 0.0, 1.0]
    assert column(batch, "process_reward") == [1.0, 1.0, None], "measured all the same"
    assert batch.counts.groups_answer_only == 0


def test_without_a_judge_a_group_that_wrote_no_step_is_unjudged_too() -> None:
    traces = [trace("a", index, valid=None) for index in range(2)]
    traces += [trace("b", index, valid=None, num_steps=0) for index in range(2)]
    batch = score(traces, group_size=2)
    assert column(batch, "process_reward") == [None] * 4
    assert batch.counts.groups_unjudged == 2


def unrated(item: Trace) -> Trace:
    """The same, with an answer that the judge failed to rate."""
    failure = JudgeFailure(reason=FailureReason.BAD_JSON, detail="prose")
    ruling = AnswerJudgement(key=item.completion.key, outcome=failure, started_s=0.0, ended_s=1.0, attempts=2)
    return replace(item, answer_reward=None, answer_judgement=ruling)


@pytest.mark.parametrize("policy", [JudgeFailurePolicy.EXCLUDE, JudgeFailurePolicy.ANSWER_ONLY])
def test_an_answer_that_could_not_be_rated_is_excluded_and_not_wrong(policy: JudgeFailurePolicy) -> None:
    traces = [trace("a", 0), unrated(trace("a", 1)), trace("a", 2, answer="right")]
    batch = score(traces, on_failure=policy, group_size=3)
    pair = score([trace("a", 0), trace("a", 1, answer="right")], group_size=2)
    assert column(batch, "in_baseline") == [True, False, True]
    assert column(batch, "reward")[1] is None
    assert column(batch, "advantage") == [pair.traces[0].advantage, 0.0, pair.traces[1].advantage]


def test_an_answer_that_could_not_be_rated_raises_under_fail() -> None:
    with pytest.raises(JudgeUnavailableError, match=r"judgement of a#1 failed \(bad_json: prose\)"):
        score([trace("a", 0), unrated(trace("a", 1))], on_failure=JudgeFailurePolicy.FAIL, group_size=2)
