"""The judge dies in the middle of training: the controller's loop over a real pool and a real server that returns."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from judge.pool import RayJudgePool
from mrpo.choices import OutagePolicy
from mrpo.collection import Collector
from mrpo.config import BreakerConfig, CheckpointConfig, Config, DataConfig, EvalConfig, JudgeConfig, RolloutConfig
from mrpo.controller import Controller
from mrpo.phantom.language import QuestionKind, write_completion
from mrpo.rewards.scorer import build_answer_scorer
from mrpo.scoring import ScoredTrace
from mrpo.types import JudgeFailure, Verdicts
from tests.integration.judge_endpoint import Endpoint
from tests.unit.fakes import TRUTH, FakeJudge, FakeLearner, FakeRecorder, FakeRollout, FakeWatcher, phantom_example

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(240)]
RIGHT = write_completion(QuestionKind.SIDE, TRUTH, "think")
WRONG = write_completion(QuestionKind.SIDE, replace(TRUTH, side="left"), "think")
WORSE = write_completion(QuestionKind.SIDE, replace(TRUTH, side="left", modality="CT", organ="liver"), "think")
OUTAGE_S = 4.0


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    found = Endpoint()
    found.start()
    found.wait()
    yield found
    found.kill()


def config_of(url: str, **judge: object) -> Config:
    quick = JudgeConfig(
        url=url,
        model="oracle",
        send_image=False,
        deadline_s=5.0,
        backoff_s=0.1,
        backoff_max_s=0.5,
        breaker=BreakerConfig(num_failures=3, cool_down_s=2.0),
        max_failure_share=1.0,
    )
    return Config(
        num_steps=4,
        data=DataConfig(num_train=4),
        rollout=RolloutConfig(prompts_per_step=4, group_size=8),
        eval=EvalConfig(before=False, after=False),
        checkpoint=CheckpointConfig(every_steps=0),
        judge=replace(quick, **judge),  # type: ignore[arg-type]
    )


def train(
    config: Config, folder: Path, endpoint: Endpoint | None, lines: list[str], *, hangs: bool = False
) -> FakeRecorder:
    """Four steps; before the second is judged the endpoint dies, for `OUTAGE_S` and its start. None: a fake judge.

    `hangs`: it accepts connections and never replies instead, for `OUTAGE_S`.
    """
    examples = [phantom_example(number) for number in range(4)]
    rollout = FakeRollout(table={example.id: (RIGHT, WRONG, WORSE) for example in examples})
    recorder = FakeRecorder(folder=folder)

    async def run() -> None:
        loop = asyncio.get_running_loop()

        def on_step(step: int) -> None:
            if step == 1 and endpoint is not None and hangs:
                endpoint.hang()
                loop.call_later(OUTAGE_S, endpoint.resume)
            elif step == 1 and endpoint is not None:
                endpoint.kill()
                loop.call_later(OUTAGE_S, endpoint.start)

        pool = RayJudgePool(config.judge, on_outage=lines.append) if endpoint is not None else None
        try:
            if pool is not None:
                await pool.start()
            await Controller(
                config=config,
                train=examples,
                test=[],
                collector=Collector(
                    rollout=rollout,
                    judge=pool or FakeJudge(),
                    answers=build_answer_scorer(config.reward, None),
                    answer_kind=config.reward.answer.kind,
                ),
                learner=FakeLearner(engine=rollout),
                recorder=recorder,
                watchers=[FakeWatcher(on_step=on_step)],
                stop=asyncio.Event(),
                judge_metrics=pool.take_metrics if pool is not None else dict,
            ).run()
        finally:
            if pool is not None:
                pool.close()

    asyncio.run(run())
    return recorder


def outcomes(recorder: FakeRecorder, step: int) -> list[tuple[ScoredTrace, Verdicts | JudgeFailure]]:
    """The judged completions of a step."""
    traces = recorder.rollouts[step]
    return [(scored, scored.trace.judgement.outcome) for scored in traces if scored.trace.judgement is not None]


@pytest.mark.parametrize("hangs", [False, True], ids=["dead", "hanging"])
def test_training_waits_and_comes_to_the_same_as_without_the_outage(
    endpoint: Endpoint, tmp_path: Path, hangs: bool
) -> None:
    lines: list[str] = []
    # One that hangs is known for it after a deadline; with eight calls at a time the first are late one by one.
    config = config_of(endpoint.url, **({"deadline_s": 1.5, "concurrency": 8} if hangs else {}))
    hit = train(config, tmp_path, endpoint, lines, hangs=hangs)
    whole = train(config, tmp_path, None, [])
    for step in range(1, 5):
        assert len(outcomes(hit, step)) == 32
        assert all(isinstance(outcome, Verdicts) for _, outcome in outcomes(hit, step))
        assert [scored.token_advantages for scored in hit.rollouts[step]] == [
            scored.token_advantages for scored in whole.rollouts[step]
        ]
    assert [line.split(":")[0].split(" after")[0] for line in lines] == ["judge down", "judge up again"]
    assert [step for step, metrics in hit.metrics.items() if "judge/outage_s" in metrics] == [2]
    assert hit.metrics[2]["judge/outage_s"] >= OUTAGE_S - (3.0 if hangs else 1.0)


def test_training_goes_on_by_policy_and_no_failure_counts_as_zero(endpoint: Endpoint, tmp_path: Path) -> None:
    hit = train(config_of(endpoint.url, on_outage=OutagePolicy.FAIL), tmp_path, endpoint, [])
    assert len(outcomes(hit, 2)) == 32
    for scored, outcome in outcomes(hit, 2):
        assert isinstance(outcome, JudgeFailure)
        assert scored.process_reward is None
        assert not scored.in_baseline
    assert hit.metrics[2]["groups/dropped"] == 4
    assert hit.metrics[2]["judge/failures/transport"] == 32
