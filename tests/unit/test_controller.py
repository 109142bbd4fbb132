"""The training loop against fakes: what it asks, in which order things happen, and how it ends."""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from mrpo.choices import AnswerKind, BestMetric, JudgeFailurePolicy, Shaping
from mrpo.collection import Collector
from mrpo.config import (
    AnswerConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    RewardConfig,
    RolloutConfig,
    plain,
)
from mrpo.controller import Controller, Recorder, StopRequested
from mrpo.errors import (
    EngineError,
    JudgeBudgetError,
    JudgeUnavailableError,
    ParityError,
    WeightSyncError,
)
from mrpo.phantom.language import QuestionKind, write_completion
from mrpo.rewards.scorer import build_answer_scorer
from mrpo.rows import read_rows
from mrpo.run_folder import RunFolder
from mrpo.run_reading import BestStep, list_checkpoints, list_evaluations, read_metrics
from mrpo.types import Example, FailureReason, JudgeRequest, RolloutRequest
from tests.unit.fakes import TRUTH, FakeJudge, FakeLearner, FakeRecorder, FakeRollout, FakeWatcher, phantom_example

G = 4
PATIENCE_S = 10.0
RIGHT = write_completion(QuestionKind.SIDE, TRUTH, "think")
WRONG = write_completion(QuestionKind.SIDE, replace(TRUTH, side="left"), "think")
WORSE = write_completion(QuestionKind.SIDE, replace(TRUTH, side="left", modality="CT", organ="liver"), "think")
NO_STEPS = "<answer>right</answer>"
MIXTURE = (RIGHT, WRONG, WORSE, WRONG.replace(" The right lower", ""))
CONFIG = Config(
    num_steps=2,
    data=DataConfig(num_train=5),
    rollout=RolloutConfig(prompts_per_step=2, group_size=G),
    eval=EvalConfig(before=False, after=False),
    checkpoint=CheckpointConfig(every_steps=0),
)


@dataclass
class World:
    """A controller and the fakes around it."""

    controller: Controller
    rollout: FakeRollout
    judge: FakeJudge
    learner: FakeLearner
    recorder: FakeRecorder
    watcher: FakeWatcher
    diary: list[str]

    @property
    def training_requests(self) -> list[list[RolloutRequest]]:
        """One list a training step; their prompt ids carry an epoch."""
        return [requests for requests in self.rollout.asked if "@" in requests[0].prompt_id]

    def run(self) -> None:
        """Run to the end; whatever happens, no task and no stream may be left behind."""

        async def body() -> None:
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await self.controller.run()
            finally:
                left = asyncio.all_tasks() - {asyncio.current_task()}
                assert not left, left
                assert self.rollout.open_streams == 0
                assert self.judge.in_flight == 0

        asyncio.run(body())


def make_world(
    folder: Path,
    config: Config = CONFIG,
    *,
    texts: Sequence[str] = MIXTURE,
    train: Sequence[Example] | None = None,
    test: Sequence[Example] | None = None,
    step: int = 0,
    recorder: Recorder | None = None,
) -> World:
    train = [phantom_example(number) for number in range(5)] if train is None else train
    test = [replace(phantom_example(number), id=f"t{number}", split="test") for number in range(3)]
    diary: list[str] = []
    rollout = FakeRollout(table={example.id: texts for example in (*train, *test)}, diary=diary)
    judge = FakeJudge(diary=diary)
    learner = FakeLearner(engine=rollout, diary=diary)
    fake_recorder = FakeRecorder(folder=folder, diary=diary)
    watcher = FakeWatcher()
    controller = Controller(
        config=config,
        train=train,
        test=test,
        collector=Collector(
            rollout=rollout,
            judge=judge,
            answers=build_answer_scorer(config.reward, None),
            answer_kind=config.reward.answer.kind,
        ),
        learner=learner,
        recorder=recorder or fake_recorder,
        watchers=[watcher],
        stop=asyncio.Event(),
        step=step,
    )
    return World(controller, rollout, judge, learner, fake_recorder, watcher, diary)


def with_config(config: Config = CONFIG, **sections: Any) -> Config:
    """`config` with fields of sections, or plain fields, changed."""
    changes = {
        name: replace(getattr(config, name), **value) if isinstance(value, dict) else value
        for name, value in sections.items()
    }
    return replace(config, **changes)


def on_the_third(action: Callable[[], None]) -> Callable[[int], None]:
    """Do something when three completions have been handed over."""

    def act(num_ended: int) -> None:
        if num_ended == 3:
            action()

    return act


# What a step asks and gives


def test_a_step_asks_group_size_differently_seeded_samples_of_each_prompt(tmp_path: Path) -> None:
    world = make_world(tmp_path, with_config(num_steps=3))
    world.run()
    assert [len(requests) for requests in world.training_requests] == [2 * G] * 3
    for requests in world.training_requests:
        assert [request.sample_index for request in requests] == [0, 1, 2, 3] * 2
        assert len({request.prompt_id for request in requests}) == 2
    every = [request for requests in world.training_requests for request in requests]
    assert len({request.seed for request in every}) == len(every)
    assert all(request.temperature == 1.0 and request.max_new_tokens == 96 for request in every)


def test_the_learner_gets_shaped_advantages_of_every_completion_in_canonical_order(tmp_path: Path) -> None:
    """By hand: right answer 1 + process 1, wrong answer 0 + process 3/6; a wrong side spoils steps 3, 4 and 5."""
    world = make_world(tmp_path, with_config(num_steps=1), texts=(RIGHT, WRONG))
    world.rollout.arrival_seed = 3
    world.run()
    (batch,) = world.learner.batches
    assert [sample.key for sample in batch] == [request.key for request in world.training_requests[0]]
    scored = world.recorder.rollouts[1]
    mixed = 0
    for first in range(0, 2 * G, G):
        texts = [item.trace.completion.text for item in scored[first : first + G]]
        rewards = [2.0 if text == RIGHT else 0.5 for text in texts]
        spread = statistics.stdev(rewards)
        mixed += spread > 0
        for item, sample, text, reward in zip(
            scored[first : first + G], batch[first : first + G], texts, rewards, strict=True
        ):
            a = (reward - statistics.mean(rewards)) / (spread + 1e-4)
            expected = [a] * len(sample.completion_token_ids)
            if text == WRONG:
                weights = {2: math.e**0.6, 3: math.e**0.4, 4: math.e**0.2}
                for k, (start, stop) in enumerate(item.trace.completion.spans):
                    expected[start:stop] = [-weights[k] * abs(a) if k in weights else abs(a)] * (stop - start)
            assert sample.advantages == pytest.approx(expected, abs=1e-6)
    assert mixed, "the seeds must give a group with both kinds, or nothing was tested"


def test_arrival_order_changes_nothing(tmp_path: Path) -> None:
    batches = []
    for arrival_seed in (None, 1, 2):
        world = make_world(tmp_path, with_config(num_steps=3))
        world.rollout.arrival_seed = arrival_seed
        world.run()
        batches.append(world.learner.batches)
        ended = [line for line in world.diary if line.startswith("ended") and "@" in line]
        asked = [f"ended {request.key}" for requests in world.training_requests for request in requests]
        assert sorted(ended) == sorted(asked)
        assert (ended == asked) == (arrival_seed is None), "the fake must really shuffle"
    assert batches[0] == batches[1] == batches[2]


def test_another_seed_asks_and_learns_something_else(tmp_path: Path) -> None:
    worlds = [make_world(tmp_path, with_config(seed=seed)) for seed in (0, 1)]
    for world in worlds:
        world.run()
    assert worlds[0].learner.batches != worlds[1].learner.batches


def test_progress_is_the_share_of_the_run_that_is_done(tmp_path: Path) -> None:
    world = make_world(tmp_path, with_config(num_steps=4))
    world.run()
    assert world.learner.progress == [0.0, 0.25, 0.5, 0.75]


def test_completions_carry_the_version_of_their_weights_and_the_order_is_learn_publish_stamp_probe(
    tmp_path: Path,
) -> None:
    world = make_world(tmp_path, with_config(num_steps=2))
    world.run()
    assert [{sample.policy_version for sample in batch} for batch in world.learner.batches] == [{0}, {1}]
    start = world.diary.index("learned 1")
    after = world.diary[start - 1 : start + 6]
    assert after[:5] == ["engine sleeps", "learned 1", "engine wakes", "published", "version 1"]
    assert sorted(after[5:]) == ["engine scores", "learner scores"]
    assert world.diary[:3] == ["engine wakes", "published", "version 0"], "it sleeps while the learner loads"


# Judging


def test_judging_starts_while_completions_are_still_being_sampled(tmp_path: Path) -> None:
    """The last completion ends only once a judge call has begun; a loop that judges afterwards would wait in vain."""
    world = make_world(tmp_path, with_config(num_steps=1))
    world.rollout.before_last = world.judge.started
    world.judge.latency_s = 0.05
    world.run()
    started = next(i for i, line in enumerate(world.diary) if line.startswith("judging"))
    ended = [i for i, line in enumerate(world.diary) if line.startswith("ended") and "@" in line]
    assert ended[0] < started < ended[1], "the first completion is judged before the second ends"
    assert world.judge.max_in_flight == 2 * G, "calls must not wait for each other"
    assert world.recorder.metrics[1]["judge/asked"] == 2 * G


def test_a_request_to_the_judge_holds_the_gold_and_the_steps(tmp_path: Path) -> None:
    world = make_world(tmp_path, with_config(num_steps=1), texts=(RIGHT,))
    world.run()
    example = phantom_example(0)
    for request in world.judge.calls:
        assert (request.question, request.answer, request.rationale) == (
            example.question,
            example.answer,
            example.rationale,
        )
        assert " ".join(request.steps) == example.rationale  # the right trace is the gold one


def test_a_question_without_rationale_is_never_judged(tmp_path: Path) -> None:
    train = [phantom_example(number, rationale=number % 2 == 0) for number in range(4)]
    config = with_config(num_steps=1, rollout={"prompts_per_step": 4})
    world = make_world(tmp_path, config, train=train)
    world.run()
    judged = {request.key.partition("@")[0] for request in world.judge.calls}
    assert judged == {"q000", "q002"}
    metrics = world.recorder.metrics[1]
    assert metrics["judge/failure_share"] == 0.0
    assert metrics["groups/answer_only_no_rationale"] == 2.0
    assert len(world.learner.batches[0]) == 4 * G, "answer-only groups are learned from"


def test_a_completion_without_steps_is_never_judged_and_stays_in_the_baseline(tmp_path: Path) -> None:
    world = make_world(tmp_path, with_config(num_steps=1), texts=(NO_STEPS, RIGHT))
    world.run()
    texts = {item.trace.completion.key: item.trace.completion.text for item in world.recorder.rollouts[1]}
    assert {request.key for request in world.judge.calls} == {key for key, text in texts.items() if text == RIGHT}
    assert NO_STEPS in texts.values(), "the seeds must give at least one"
    assert len(world.learner.batches[0]) == 2 * G


def test_without_a_judge_rewards_are_answer_only(tmp_path: Path) -> None:
    world = make_world(tmp_path, with_config(num_steps=1))
    world.controller.collector = replace(world.controller.collector, judge=None)
    world.run()
    assert all(item.process_reward is None for item in world.recorder.rollouts[1])
    assert len(world.learner.batches[0]) == 2 * G


def first_of_each_group(request: JudgeRequest) -> FailureReason | None:
    return FailureReason.TIMEOUT if request.key.endswith("#0") else None


def test_a_failed_judgement_is_excluded(tmp_path: Path) -> None:
    config = with_config(num_steps=1, judge={"max_failure_share": 0.25})
    world = make_world(tmp_path, config)
    world.judge.failing = first_of_each_group
    world.run()
    assert [sample.key[-2:] for sample in world.learner.batches[0]] == ["#1", "#2", "#3"] * 2
    failed = [item for item in world.recorder.rollouts[1] if item.trace.completion.sample_index == 0]
    assert [(item.process_reward, item.reward, item.advantage) for item in failed] == [(None, None, 0.0)] * 2
    assert world.recorder.metrics[1]["judge/failure_share"] == 0.25


def test_a_failed_judgement_makes_its_group_answer_only(tmp_path: Path) -> None:
    judge = {"max_failure_share": 0.25, "on_failure": JudgeFailurePolicy.ANSWER_ONLY}
    world = make_world(tmp_path, with_config(num_steps=1, judge=judge))
    world.judge.failing = lambda request: FailureReason.BAD_JSON if request.key.endswith("#2") else None
    world.run()
    assert len(world.learner.batches[0]) == 2 * G
    assert {item.process_reward for item in world.recorder.rollouts[1]} == {None}


def test_a_failed_judgement_ends_the_run_under_fail_with_a_checkpoint(tmp_path: Path) -> None:
    judge = {"max_failure_share": 1.0, "on_failure": JudgeFailurePolicy.FAIL}
    world = make_world(tmp_path, with_config(judge=judge))
    world.judge.failing = first_of_each_group
    with pytest.raises(JudgeUnavailableError, match="on_failure=fail"):
        world.run()
    assert world.recorder.checkpoints == [0]
    assert world.learner.batches == []


def test_too_many_failed_judgements_end_the_run_after_a_checkpoint(tmp_path: Path) -> None:
    world = make_world(tmp_path, with_config(num_steps=5, judge={"max_failure_share": 0.2}))

    def fails_later(request: JudgeRequest) -> FailureReason | None:
        return first_of_each_group(request) if world.learner.weights == 2 else None

    world.judge.failing = fails_later
    with pytest.raises(JudgeUnavailableError, match="the judge failed on 2 of 8 completions of step 3") as caught:
        world.run()
    assert "judge.max_failure_share=0.2" in str(caught.value)
    assert "timeout: as told" in str(caught.value)
    assert world.recorder.checkpoints == [2]
    assert sorted(world.recorder.metrics) == [1, 2]
    assert len(world.learner.batches) == 2


@pytest.mark.parametrize("verdicts", ["decide", "only measure"])
def test_a_spent_budget_ends_the_run_with_a_checkpoint_and_rewards_nothing(tmp_path: Path, verdicts: str) -> None:
    """One refusal is enough, whatever share of failures is allowed, and also where verdicts only measure."""
    changes: dict[str, Any] = {"num_steps": 5, "judge": {"max_failure_share": 1.0}}
    if verdicts == "only measure":
        changes |= {"algorithm": {"shaping": Shaping.NONE}, "reward": {"process_weight": 0.0}}
    world = make_world(tmp_path, with_config(**changes))

    def spent_later(request: JudgeRequest) -> FailureReason | None:
        return FailureReason.BUDGET if world.learner.weights == 2 and first_of_each_group(request) else None

    world.judge.failing = spent_later
    with pytest.raises(JudgeBudgetError, match="as told"):
        world.run()
    assert world.recorder.checkpoints == [2]
    assert sorted(world.recorder.metrics) == sorted(world.recorder.rollouts) == [1, 2]
    assert len(world.learner.batches) == 2


def test_an_evaluation_without_a_budget_leaves_no_numbers(tmp_path: Path) -> None:
    world = make_world(tmp_path, with_config(eval={"before": True}))
    world.judge.failing = lambda request: FailureReason.BUDGET
    with pytest.raises(JudgeBudgetError):
        world.run()
    assert world.recorder.evaluations == {}
    assert world.watcher.evaluations == []
    assert world.recorder.checkpoints == [0]


def test_failures_at_the_limit_are_tolerated(tmp_path: Path) -> None:
    world = make_world(tmp_path, with_config(num_steps=1, judge={"max_failure_share": 0.25}))
    world.judge.failing = first_of_each_group
    world.run()
    assert world.controller.step == 1


def test_a_step_whose_groups_are_all_dropped_counts_without_an_update(tmp_path: Path) -> None:
    config = with_config(num_steps=3, judge={"max_failure_share": 1.0})
    world = make_world(tmp_path, config)
    world.judge.failing = lambda request: FailureReason.REFUSED if len(world.recorder.metrics) == 1 else None
    world.run()
    assert [len(batch) for batch in world.learner.batches] == [2 * G, 2 * G]
    assert world.learner.progress == [0.0, 2 / 3]
    assert sorted(world.recorder.metrics) == sorted(world.recorder.rollouts) == [1, 2, 3]
    assert world.recorder.metrics[2]["groups/dropped"] == 2.0
    assert "policy/loss" not in world.recorder.metrics[2]
    assert world.diary.count("published") == 1 + 2, "nothing new to send after it"
    assert world.diary.count("engine sleeps") == 2, "no learner needs its memory"
    assert world.recorder.checkpoints == [3]
    prompts = [{request.prompt_id for request in requests} for requests in world.training_requests]
    assert prompts[1].isdisjoint(prompts[0] | prompts[2]), "its questions count as asked"
    versions = [entry for entry in world.diary if entry.startswith("version")]
    assert versions == [f"version {step}" for step in range(4)], "the engines' count follows the steps all the same"


def test_completions_of_another_policy_version_stop_the_run(tmp_path: Path) -> None:
    world = make_world(tmp_path)

    def fall_behind(number: int) -> None:
        world.rollout.policy_version = world.controller.step - 1

    world.rollout.on_ended = fall_behind
    with pytest.raises(WeightSyncError, match=r"policy version -1, expected 0"):
        world.run()
    assert world.learner.batches == []


def test_an_engine_error_ends_the_run_after_a_checkpoint(tmp_path: Path) -> None:
    world = make_world(tmp_path)

    def die() -> None:
        raise EngineError("engine-0 died")

    world.rollout.on_ended = on_the_third(die)
    with pytest.raises(EngineError, match="engine-0 died"):
        world.run()
    assert world.recorder.checkpoints == [0]


# Weights


def test_the_parity_gate_names_the_worst_tokens_and_nothing_was_trained(tmp_path: Path) -> None:
    world = make_world(tmp_path, texts=(RIGHT,))
    text_tokens = asyncio.run(first_completion_tokens(world))
    world.rollout.asked.clear()
    worst = text_tokens[5]
    world.learner.score_offsets = {worst: 2.0, text_tokens[1]: 0.5}
    with pytest.raises(ParityError, match=r"parity\.max_mean_diff=0\.001") as caught:
        world.run()
    first_named = str(caught.value).splitlines()[1]
    assert f"token 5 '{worst}'" in first_named
    assert world.training_requests == []
    assert world.recorder.checkpoints == []


async def first_completion_tokens(world: World) -> list[int]:
    """Token ids of the one text that a world writes."""
    request = RolloutRequest(
        prompt_id="q000", sample_index=0, question="", image="", seed=0, temperature=1.0, top_p=1.0, max_new_tokens=9
    )
    (completion,) = [completion async for completion in world.rollout.generate([request])]
    return completion.completion_token_ids


def test_the_parity_gate_asks_one_sample_of_the_configured_number_of_questions(tmp_path: Path) -> None:
    world = make_world(tmp_path, with_config(parity={"num_completions": 3}))
    world.run()
    assert [request.key for request in world.rollout.asked[0]] == ["q000#0", "q001#0", "q002#0"]


def test_a_weight_update_that_does_not_arrive_stops_the_run(tmp_path: Path) -> None:
    world = make_world(tmp_path, with_config(num_steps=4))
    world.learner.lost_updates = frozenset({2})
    with pytest.raises(ParityError, match=r"parity\.probe_max_diff"):
        world.run()
    assert len(world.learner.batches) == 2
    assert sorted(world.recorder.metrics) == sorted(world.recorder.rollouts) == [1, 2], "the update was made"
    assert world.recorder.checkpoints == [2]


def test_a_stop_in_the_evaluation_before_leaves_a_checkpoint(tmp_path: Path) -> None:
    world = make_world(tmp_path, with_config(eval={"before": True}))
    world.judge.latency_s = PATIENCE_S
    asyncio.run(_stop_when_judged(world))
    assert world.recorder.checkpoints == [0]
    assert world.training_requests == []


async def _stop_when_judged(world: World) -> None:
    task = asyncio.create_task(world.controller.run())
    await world.judge.started.wait()
    world.controller.stop.set()
    with pytest.raises(StopRequested):
        await task


# Stopping and failing


def test_a_stop_gives_up_the_step_in_hand_and_saves_the_steps_done(tmp_path: Path) -> None:
    world = make_world(tmp_path, with_config(num_steps=9))
    world.judge.latency_s = 0.02
    world.judge.give_up_s = 0.02

    def stop_in_the_third_step() -> None:
        if len(world.learner.batches) == 2:
            world.controller.stop.set()

    world.rollout.on_ended = on_the_third(stop_in_the_third_step)
    with pytest.raises(StopRequested, match="after 2 steps"):
        world.run()
    assert world.recorder.checkpoints == [2]
    assert sorted(world.recorder.metrics) == sorted(world.recorder.rollouts) == [1, 2]
    ended = [line for line in world.diary if line.startswith("ended") and "@" in line]
    assert len(ended) < 3 * 2 * G, "the third step was cut"


def test_a_stop_while_only_the_judge_is_waited_for(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    world.judge.latency_s = 10 * PATIENCE_S

    def stop_soon_after_the_last(num_ended: int) -> None:
        if num_ended == 2 * G - 1:
            asyncio.get_running_loop().call_later(0.05, world.controller.stop.set)

    world.rollout.on_ended = stop_soon_after_the_last
    with pytest.raises(StopRequested):
        world.run()
    assert len(world.judge.calls) == 2 * G
    assert world.recorder.checkpoints == [0]


def test_a_stop_between_steps_starts_no_other(tmp_path: Path) -> None:
    world = make_world(tmp_path, with_config(num_steps=5))
    world.watcher.on_step = lambda step: world.controller.stop.set() if step == 2 else None
    with pytest.raises(StopRequested):
        world.run()
    assert world.recorder.checkpoints == [2]
    assert len(world.learner.batches) == 2
    assert len(world.training_requests) == 2, "no request goes out after a stop"


def test_a_stop_during_an_evaluation(tmp_path: Path) -> None:
    world = make_world(tmp_path, with_config(num_steps=5, eval={"every_steps": 2}))
    world.watcher.on_step = lambda step: world.controller.stop.set() if step == 2 else None
    with pytest.raises(StopRequested):
        world.run()
    assert world.recorder.evaluations == {}
    assert world.recorder.checkpoints[-1] == 2


def test_a_dying_engine_cancels_the_outstanding_judgements(tmp_path: Path) -> None:
    """`World.run` checks that no task outlives the error."""
    world = make_world(tmp_path)
    world.judge.latency_s = 10 * PATIENCE_S
    world.judge.give_up_s = 0.02
    world.rollout.fail_after = 5
    with pytest.raises(ConnectionError, match="engine died"):
        world.run()
    assert len(world.judge.calls) == 5
    assert world.recorder.metrics == {}


def test_a_judge_that_breaks_is_not_swallowed(tmp_path: Path) -> None:
    world = make_world(tmp_path)

    def breaks(request: JudgeRequest) -> FailureReason | None:
        raise RuntimeError(f"bug at {request.key}")

    world.judge.failing = breaks
    with pytest.raises(RuntimeError, match="bug at"):
        world.run()
    assert world.learner.batches == []


# Checkpoints, evaluation, resume


def test_checkpoints_come_every_so_many_steps_and_at_the_end(tmp_path: Path) -> None:
    world = make_world(tmp_path, with_config(num_steps=6, checkpoint={"every_steps": 2, "keep_last": 3}))
    world.run()
    assert world.recorder.checkpoints == [2, 4, 6]
    assert world.recorder.keep_last == {3}


def test_evaluation_before_every_and_after(tmp_path: Path) -> None:
    config = with_config(num_steps=4, eval={"before": True, "every_steps": 2, "after": True})
    world = make_world(tmp_path, config, texts=(RIGHT,))
    world.run()
    assert [(name, step) for name, step, _ in world.watcher.evaluations] == [("before", 0), ("step_2", 2), ("after", 4)]
    assert world.diary.index("checkpoint 4") < world.diary.index("evaluated after"), "the weights are safe first"
    greedy = [requests for requests in world.rollout.asked if requests[0].temperature == 0.0]
    assert [[request.key for request in requests] for requests in greedy] == [["t0#0", "t1#0", "t2#0"]] * 3
    records = world.recorder.evaluations["after"]
    assert [(record.correct, record.valid) for record in records] == [(True, [True] * 6)] * 3
    assert world.watcher.evaluations[0][2]["eval/accuracy"] == 1.0


def test_the_last_step_is_evaluated_as_such_when_there_is_no_evaluation_after(tmp_path: Path) -> None:
    world = make_world(tmp_path, with_config(num_steps=4, eval={"every_steps": 2, "after": False}))
    world.run()
    assert list(world.recorder.evaluations) == ["step_2", "step_4"]


def test_the_best_step_of_a_slice_is_saved_and_marked(tmp_path: Path) -> None:
    sections: dict[str, Any] = {"eval": {"every_steps": 1, "num_periodic": 2}, "checkpoint": {"every_steps": 0}}
    world = make_world(tmp_path, with_config(num_steps=4, **sections), texts=(WRONG,))
    tables = {2: RIGHT, 3: WRONG}  # what the policy writes from this step on
    world.watcher.on_step = lambda step: world.rollout.table.update(
        dict.fromkeys(world.rollout.table, (tables[step],)) if step in tables else {}
    )
    world.run()
    assert [len(records) for records in world.recorder.evaluations.values()] == [2, 2, 2, 2]
    assert [metrics["eval/accuracy"] for _, _, metrics in world.watcher.evaluations] == [0.0, 1.0, 0.0, 0.0]
    assert world.recorder.best == BestStep(step=2, metric=BestMetric.ACCURACY, value=1.0)
    assert world.recorder.checkpoints == [1, 2, 4], "the first, the best and the last; none twice"


def test_the_last_step_may_be_the_best_one(tmp_path: Path) -> None:
    sections: dict[str, Any] = {"eval": {"every_steps": 1, "num_periodic": 2, "after": True}}
    world = make_world(tmp_path, with_config(num_steps=2, **sections), texts=(WRONG,))
    world.watcher.on_step = lambda step: world.rollout.table.update(
        dict.fromkeys(world.rollout.table, (RIGHT,)) if step == 2 else {}
    )
    world.run()
    assert list(world.recorder.evaluations) == ["step_1", "after"]
    assert world.recorder.best == BestStep(step=2, metric=BestMetric.ACCURACY, value=1.0)


def test_an_evaluation_that_was_cut_off_is_made_up_for_on_resume(tmp_path: Path) -> None:
    config = with_config(num_steps=3, eval={"every_steps": 2})
    world = make_world(tmp_path, config, step=2)
    world.run()
    assert list(world.recorder.evaluations) == ["step_2"]
    again = make_world(tmp_path, config, step=2)
    again.recorder.evaluations["step_2"] = []
    again.run()
    assert again.recorder.evaluations == {"step_2": []}


def test_evaluation_tells_wrong_from_right_and_valid_from_invalid(tmp_path: Path) -> None:
    world = make_world(tmp_path, with_config(num_steps=1, eval={"after": True}), texts=(WRONG,))
    world.run()
    record = world.recorder.evaluations["after"][0]
    assert record.correct is False
    assert record.valid == [True, True, False, False, False, True]


def test_evaluation_without_judging(tmp_path: Path) -> None:
    world = make_world(tmp_path, with_config(num_steps=1, eval={"before": True, "judge": False}))
    world.run()
    assert all("@" in request.key for request in world.judge.calls), "training alone is judged"
    assert {record.valid for record in world.recorder.evaluations["before"]} == {None}


def test_a_failed_judgement_in_an_evaluation_is_no_verdict(tmp_path: Path) -> None:
    world = make_world(tmp_path, with_config(num_steps=1, eval={"before": True}))
    world.judge.failing = lambda request: FailureReason.TIMEOUT if request.key == "t1#0" else None
    world.run()
    judged = [record.valid is not None for record in world.recorder.evaluations["before"]]
    assert judged == [True, False, True]
    assert world.watcher.evaluations[0][2]["eval/judge_failed"] == 1.0


@pytest.mark.parametrize(("kind", "correct"), [(AnswerKind.EXACT, False), (AnswerKind.MIXED, True)])
def test_an_answer_without_a_tag_is_evaluated_as_it_is_rewarded(
    tmp_path: Path, kind: AnswerKind, correct: bool
) -> None:
    config = with_config(num_steps=1, eval={"before": True}, reward=RewardConfig(answer=AnswerConfig(kind=kind)))
    world = make_world(tmp_path, config, texts=("right",))
    world.run()
    assert {record.correct for record in world.recorder.evaluations["before"]} == {correct}
    assert {item.answer_reward > 0.6 for item in world.recorder.rollouts[1]} == {correct}


def test_a_resumed_run_asks_and_learns_what_the_uninterrupted_one_would_have(tmp_path: Path) -> None:
    config = with_config(num_steps=6, eval={"before": True})
    whole = make_world(tmp_path / "whole", config)
    whole.run()
    first = make_world(tmp_path / "cut", config)
    first.watcher.on_step = lambda step: first.controller.stop.set() if step == 2 else None
    with pytest.raises(StopRequested):
        first.run()
    second = make_world(tmp_path / "cut", config, step=2)
    asyncio.run(second.learner.load(str(tmp_path / "cut" / "step_2")))
    second.run()
    assert first.training_requests + second.training_requests == whole.training_requests
    assert first.learner.batches + second.learner.batches == whole.learner.batches
    assert first.learner.progress + second.learner.progress == whole.learner.progress
    assert list(first.recorder.evaluations) == list(whole.recorder.evaluations) == ["before"]
    assert second.recorder.evaluations == {}, "it is not before the run any more"
    assert second.recorder.checkpoints == [6]


def test_a_run_that_was_only_not_evaluated_trains_no_further(tmp_path: Path) -> None:
    world = make_world(tmp_path, with_config(num_steps=2, eval={"after": True}), step=2)
    world.run()
    assert world.training_requests == []
    assert list(world.recorder.evaluations) == ["after"]


# The real run folder


def test_a_run_leaves_a_whole_record_on_disk(tmp_path: Path) -> None:
    config = with_config(
        num_steps=5,
        eval={"before": True, "after": True},
        checkpoint={"every_steps": 1, "keep_last": 2},
        judge={"max_failure_share": 0.25},
    )
    with RunFolder.create(tmp_path, "demo", plain(config)) as run:
        world = make_world(tmp_path, config, recorder=run)
        world.judge.failing = first_of_each_group
        world.run()
        assert [row["step"] for row in read_metrics(run.path).rows] == [1, 2, 3, 4, 5]
        assert [checkpoint.step for checkpoint in list_checkpoints(run.path)] == [4, 5]
        assert list(list_evaluations(run.path)) == ["before", "after"]
        rows = read_rows(run.path / "rollouts" / "step_00003.parquet")
    assert [row.key for row in rows] == [request.key for request in world.training_requests[2]]
    by_key = {sample.key: sample.advantages for sample in world.learner.batches[2]}
    for row in rows:
        assert (row.judge_failure == "timeout") == (row.sample_index == 0)
        assert row.in_baseline == (row.key in by_key)
        if row.in_baseline:
            assert row.token_advantages == by_key[row.key]


def test_a_run_folder_carries_an_interrupted_run_to_its_end(tmp_path: Path) -> None:
    config = with_config(num_steps=4, checkpoint={"every_steps": 3})
    with RunFolder.create(tmp_path, "demo", plain(config)) as run:
        world = make_world(tmp_path, config, recorder=run)
        world.judge.failing = lambda request: FailureReason.TIMEOUT if world.learner.weights == 3 else None
        with pytest.raises(JudgeUnavailableError):
            world.run()
    with RunFolder.open(run.path) as again:
        checkpoint = again.latest_checkpoint()
        assert checkpoint is not None and checkpoint.step == 3
        again.rewind(checkpoint.step)
        resumed = make_world(tmp_path, config, recorder=again, step=checkpoint.step)
        asyncio.run(resumed.learner.load(str(checkpoint.path)))
        resumed.run()
        assert [row["step"] for row in read_metrics(again.path).rows] == [1, 2, 3, 4]
        assert resumed.learner.weights == 4
