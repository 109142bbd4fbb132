"""Learner ranks that die, hang or fail in the middle of a step: said at once, and made good from a checkpoint."""

from __future__ import annotations

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import asyncio
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from learner.group import DeepSpeedLearner
from mrpo.config import WatchdogConfig
from mrpo.errors import LearnerLostError, LearnerStuckError, NonFiniteError, ResourceError
from mrpo.stacks import is_actor
from mrpo.types import TrainSample
from tests.integration.learner_world import build_world, completions, first_moments, make, spec, to_score

pytestmark = pytest.mark.usefixtures("ray_session")

NUM_STEPS = 3
START_S = 120.0  # of two ranks on a busy machine


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("learner")
    build_world(folder)
    return folder


async def pids(learner: DeepSpeedLearner) -> list[int]:
    return [pid for _, pid in await learner._ranks.call("where")]


async def disturbed(
    learner: DeepSpeedLearner, samples: list[TrainSample], victim: int, number: signal.Signals
) -> LearnerLostError:
    """Send a rank a signal while it learns; returns what the learner says of it."""
    step = asyncio.create_task(learner.step(samples, progress=0.4))
    await asyncio.sleep(0.05)
    os.kill(victim, number)
    with pytest.raises(LearnerLostError) as caught:
        await step
    return caught.value


def test_a_lost_and_a_stuck_rank(world: Path, tmp_path: Path) -> None:
    """One group through all of it: the losses from the checkpoint on are those of a group that nothing happened to."""
    samples = completions(world, num_groups=40, group_size=4)  # a step takes a second

    async def body() -> None:
        settings = spec(world, num_ranks=2, watchdog=WatchdogConfig(learn_s=START_S))
        learner = DeepSpeedLearner(settings, log_dir=str(tmp_path))
        await learner.start()
        try:
            await learner.step(samples, progress=0.0)
            (tmp_path / "one").mkdir()
            await learner.save(str(tmp_path / "one"))
            expected = [(await learner.step(samples, progress=0.2 * (1 + n))).loss for n in range(NUM_STEPS)]

            first = await pids(learner)
            started = time.monotonic()
            lost = await disturbed(learner, samples, first[1], signal.SIGKILL)
            assert time.monotonic() - started < 30.0, "not after a collective's timeout"
            assert lost.who == "learner-1" and "died during step" in str(lost)
            assert not isinstance(lost, LearnerStuckError)
            assert not any(map(is_actor, first)), "the rank that waited for it is ended as well"
            with pytest.raises(LearnerLostError, match=r"learner-1 died during step.*no ranks to score"):
                await learner.score(to_score(samples[:1]))
            await learner.restart()
            await learner.load(str(tmp_path / "one"))
            again = [(await learner.step(samples, progress=0.2 * (1 + n))).loss for n in range(NUM_STEPS)]
            assert again == expected

            second = await pids(learner)
            assert not set(first) & set(second)
            learner._spec = spec(world, num_ranks=2, watchdog=WatchdogConfig(learn_s=4.0))
            stuck = await disturbed(learner, samples, second[0], signal.SIGSTOP)
            assert isinstance(stuck, LearnerStuckError)
            assert stuck.who.startswith("learner-0"), stuck
            told = str(stuck)
            assert "did not step within watchdog.learn_s=4 s: is stopped (state T)" in told
            assert "learner-1" in told and "learner/step.py" in told
            [file] = tmp_path.glob("stacks-learner-step-*.txt")
            assert "train_step" in file.read_text() and "learner-1" in file.read_text()
            assert not any(map(is_actor, second)), "a stopped process is ended too"

            learner._spec = spec(world, num_ranks=2, watchdog=WatchdogConfig(learn_s=START_S))
            await learner.restart()
            third = await pids(learner)
            # A token that the model does not have: on a GPU, an illegal access. One rank reads it, the other waits.
            samples[0] = replace(samples[0], completion_token_ids=[2**20, *samples[0].completion_token_ids[1:]])
            started = time.monotonic()
            with pytest.raises(LearnerLostError, match=r"learner-[01]\S* failed in step: IndexError: ") as caught:
                await learner.step(samples, progress=0.4)
            assert time.monotonic() - started < 30.0, "nobody waits for the rank that waits"
            assert not isinstance(caught.value, LearnerStuckError)
            assert not any(map(is_actor, third))
        finally:
            await learner.close()

    asyncio.run(body())


def test_a_rank_that_dies_while_it_starts(world: Path) -> None:
    async def body() -> None:
        learner = DeepSpeedLearner(spec(world, num_ranks=2))
        starting = asyncio.create_task(learner.start())
        while not learner._ranks._processes:
            await asyncio.sleep(0.05)
            assert not starting.done()
        os.kill(learner._ranks._processes[1].pid, signal.SIGKILL)
        with pytest.raises(LearnerLostError, match=r"learner-1.* died during (rendezvous|start)"):
            await starting
        await learner.close()

    asyncio.run(body())


def test_a_step_that_overflows_is_refused_and_leaves_no_trace(world: Path) -> None:
    """The step after it is, to the bit, that of a rank which never saw it."""
    from learner.step import train_step

    samples, others = completions(world), completions(world, seed=1)
    undisturbed, rank = make(spec(world)), make(spec(world))
    for item in (undisturbed, rank):
        train_step(item, samples, progress=0.0)
    embeddings = rank.model.get_input_embeddings().weight
    kept = embeddings.detach().clone()
    embeddings.data.mul_(1e38)  # finite, and too large to be squared
    with pytest.raises(NonFiniteError, match=r"^the update was not applied: the gradient is not finite"):
        train_step(rank, others, progress=0.2)
    embeddings.data.copy_(kept)
    assert rank.num_steps == 1
    assert train_step(rank, others, progress=0.2).loss == train_step(undisturbed, others, progress=0.2).loss
    assert torch.equal(first_moments(rank), first_moments(undisturbed))
    weights = zip(rank.model.parameters(), undisturbed.model.parameters(), strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in weights)


@pytest.mark.slow
def test_a_rank_that_hangs_while_it_starts_is_named(world: Path, tmp_path: Path) -> None:
    """At the beginning that is for the user to look at; in a recovery it is one more loss."""

    async def body() -> None:
        learner = DeepSpeedLearner(spec(world, num_ranks=2, start_timeout_s=40.0), log_dir=str(tmp_path))
        for start, error in ((learner.start, ResourceError), (learner.restart, LearnerStuckError)):
            starting = asyncio.create_task(start())
            while not learner._ranks._processes:
                await asyncio.sleep(0.05)
                assert not starting.done()
            os.kill(learner._ranks._processes[1].pid, signal.SIGSTOP)
            with pytest.raises(error, match=r"did not start .*40 s: .*learner-1\S* is stopped \(state T\)"):
                await starting
            await learner.close()
        assert len(list(tmp_path.glob("stacks-learner-start-*.txt"))) == 2

    asyncio.run(body())
