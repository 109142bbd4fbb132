"""When checkpoints are taken, written, kept and given up, over a learner that only counts and the real run folder."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from mrpo import atomic, checkpoint_folder
from mrpo.atomic import commit_folder
from mrpo.checkpoints import Checkpoints
from mrpo.choices import BestMetric
from mrpo.config import CheckpointConfig
from mrpo.errors import LearnerLostError, ResourceError
from mrpo.faults import FAULTS_FILE, FaultKind, FaultLog, read_faults
from mrpo.run_folder import RunFolder
from mrpo.run_reading import BestStep, list_checkpoints
from tests.unit.fakes import FakeLearner, FakeRollout
from tests.unit.synthetic_run import config_tree


class World:
    """A run whose learner takes a while to write."""

    def __init__(self, folder: Path, *, asynchronous: bool = True, keep_last: int = 2) -> None:
        self.run = RunFolder.create(folder, "demo", config_tree())
        self.learner = FakeLearner(engine=FakeRollout(table={}), write_s=0.02)
        self.faults = FaultLog(self.run.path / FAULTS_FILE)
        config = CheckpointConfig(asynchronous=asynchronous, keep_last=keep_last)
        self.checkpoints = Checkpoints(learner=self.learner, recorder=self.run, config=config, faults=self.faults)

    @property
    def saved(self) -> dict[int, int]:
        """Weights by step, of what is on disk."""
        found = list_checkpoints(self.run.path)
        return {item.step: json.loads((item.path / "weights.json").read_text()) for item in found}

    @property
    def leftovers(self) -> list[str]:
        return [item.name for item in (self.run.path / "checkpoints").iterdir() if item.name.startswith(".")]

    async def step(self, number: int) -> None:
        """Train one step, then save."""
        self.learner.weights = number
        await self.checkpoints.save(number)

    def go(self, work: Callable[[], Awaitable[None]]) -> None:
        async def inside() -> None:
            await work()

        asyncio.run(inside())


def best(step: int, value: float) -> BestStep:
    return BestStep(step=step, metric=BestMetric.ACCURACY, value=value)


def test_training_goes_on_while_a_checkpoint_is_written_and_the_next_one_waits_for_it(tmp_path: Path) -> None:
    world = World(tmp_path)

    async def work() -> None:
        await world.step(1)
        assert world.saved == {}, "on its way"
        world.learner.weights = 99  # trained on: the copy is of step 1
        await world.step(2)
        assert world.saved == {1: 1}
        await world.checkpoints.finish(2)
        assert world.saved == {1: 1, 2: 2}
        await world.checkpoints.finish(2)

    world.go(work)
    assert world.learner.diary == ["saved 1", "saved 2"], "none twice"
    measured = world.checkpoints.take_metrics()
    assert set(measured) == {"checkpoint/blocked_s", "checkpoint/write_s"} and measured["checkpoint/write_s"] >= 0.02
    assert world.checkpoints.take_metrics() == {}


def test_the_time_for_which_training_stood_still_outlives_an_evaluation_that_finds_the_best(tmp_path: Path) -> None:
    world, pause_s = World(tmp_path), 0.02

    def pause(method: str) -> None:
        if method == "snapshot":
            time.sleep(pause_s)

    world.learner.on_call = pause

    async def work() -> None:
        await world.step(1)
        await world.checkpoints.save(1, best=best(1, 0.5))  # of this step there is one
        await world.checkpoints.settle()

    world.go(work)
    assert world.checkpoints.take_metrics()["checkpoint/blocked_s"] >= pause_s


def test_an_old_checkpoint_that_cannot_be_removed_is_said_and_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The name that it is given before is taken: an earlier removal did not come to its end."""
    world = World(tmp_path, keep_last=1)
    taken = world.run.path / "checkpoints" / f".step_1.{os.getpid()}.removed.tmp"
    (taken / "rest").mkdir(parents=True)

    async def work() -> None:
        for number in (1, 2, 3):
            await world.step(number)
        await world.checkpoints.finish(3)

    world.go(work)
    assert world.saved == {1: 1, 3: 3} and read_faults(world.run.path) == []
    assert "step_1 cannot be removed (" in caplog.text
    world.run.close()
    with RunFolder.open(world.run.path) as again:
        assert not taken.exists()
        with again.checkpoint(4, keep_last=1):
            pass
    assert [item.step for item in list_checkpoints(world.run.path)] == [4]


def test_what_resists_its_removal_keeps_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that grew at every try would be too long for the file system in the end."""
    folder = tmp_path / "step_1"
    folder.mkdir()

    def resist(path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(atomic.shutil, "rmtree", resist)
    atomic.remove_tree(folder)
    (hidden,) = tmp_path.iterdir()
    assert hidden.name == f".step_1.{os.getpid()}.removed.tmp"
    assert atomic.remove_leftovers(tmp_path) == [hidden.name]
    assert list(tmp_path.iterdir()) == [hidden]
    monkeypatch.undo()
    atomic.remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_synchronous_checkpoint_is_on_disk_when_training_goes_on(tmp_path: Path) -> None:
    world = World(tmp_path, asynchronous=False)

    async def work() -> None:
        await world.step(1)
        assert world.saved == {1: 1}

    world.go(work)


def test_a_full_disk_is_a_fault_and_the_next_checkpoint_ends_it(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.learner.full_disk = {2, 3}

    async def work() -> None:
        for number in (1, 2, 3, 4):
            await world.step(number)
        await world.checkpoints.finish(4)

    world.go(work)
    assert world.saved == {1: 1, 4: 4} and world.leftovers == []
    faults = read_faults(world.run.path)
    assert [(fault.kind, fault.who) for fault in faults] == [
        (FaultKind.CHECKPOINT_FAILED, "step_2"),
        (FaultKind.CHECKPOINT_FAILED, "step_3"),
    ]
    assert all(fault.recovery_s is not None for fault in faults)
    assert world.faults.take_metrics()["faults/checkpoint_failed"] == 2.0


def test_the_last_checkpoint_must_be_written(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.learner.full_disk = {2}

    async def work() -> None:
        await world.step(1)
        world.learner.weights = 2
        with pytest.raises(ResourceError, match="the disk is full"):
            await world.checkpoints.finish(2)
        world.learner.full_disk.clear()
        await world.checkpoints.finish(2)

    world.go(work)
    assert world.saved == {1: 1, 2: 2}


def test_the_best_step_is_marked_when_its_checkpoint_is_on_disk(tmp_path: Path) -> None:
    world = World(tmp_path, keep_last=1)

    async def work() -> None:
        await world.step(1)
        await world.checkpoints.save(1, best=best(1, 0.5))
        assert world.run.best is None and world.checkpoints.best == best(1, 0.5)
        await world.step(2)
        assert world.run.best == best(1, 0.5)
        await world.checkpoints.settle()
        await world.checkpoints.save(2, best=best(2, 0.75))  # evaluated after its checkpoint was written
        assert world.run.best == best(2, 0.75)
        await world.step(3)
        await world.step(4)
        await world.checkpoints.finish(4)

    world.go(work)
    assert world.saved == {2: 2, 4: 4}, "the best and the last"


def test_a_best_step_that_could_not_be_written_is_not_marked(tmp_path: Path) -> None:
    world = World(tmp_path, keep_last=1)
    world.learner.full_disk = {2}

    async def work() -> None:
        await world.step(1)
        await world.checkpoints.save(1, best=best(1, 0.5))
        world.learner.weights = 2
        await world.checkpoints.save(2, best=best(2, 0.75))
        await world.step(3)
        await world.checkpoints.finish(3)

    world.go(work)
    assert world.run.best == best(1, 0.5) == world.checkpoints.best
    assert world.saved == {1: 1, 3: 3}


def test_a_write_that_is_given_up_leaves_nothing_behind(tmp_path: Path) -> None:
    world = World(tmp_path)

    async def work() -> None:
        await world.step(1)
        await asyncio.sleep(0.01)
        await world.checkpoints.abandon()
        assert world.saved == {} and world.leftovers == []
        await world.checkpoints.finish(1)  # the step may still be saved
        await world.checkpoints.abandon()

    world.go(work)
    assert world.saved == {1: 1}


def test_a_checkpoint_that_is_being_put_in_place_is_waited_for_and_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever gives up the write looks for the newest checkpoint next: it must not come, or go, behind his back."""
    world = World(tmp_path, keep_last=1)
    commits: list[str] = []

    def slow(temporary: Path, final: Path) -> None:
        commits.append("began")
        time.sleep(0.2)
        commit_folder(temporary, final)
        commits.append("ended")

    async def work() -> None:
        await world.step(1)
        await world.checkpoints.settle()
        monkeypatch.setattr(checkpoint_folder, "commit_folder", slow)
        world.learner.weights = 2
        await world.checkpoints.save(2, best=best(2, 0.5))
        while not commits:
            await asyncio.sleep(0.01)
        await world.checkpoints.abandon()
        assert commits == ["began", "ended"] and world.saved == {2: 2}, "the older one is gone by now"
        await world.checkpoints.save(2)  # there is one of this step
        assert world.checkpoints.step == 2 and world.run.best == best(2, 0.5)

    world.go(work)
    assert world.learner.diary == ["saved 1", "saved 2"] and len(commits) == 2


def test_a_copy_that_cannot_be_taken_is_a_fault_and_the_next_one_tries_again(tmp_path: Path) -> None:
    world = World(tmp_path)

    def refuse(method: str) -> None:
        if method == "snapshot" and world.learner.weights in (2, 4):
            raise ResourceError("the one before is still being written")

    world.learner.on_call = refuse

    async def work() -> None:
        await world.step(1)
        world.learner.weights = 2
        await world.checkpoints.save(2, best=best(2, 0.5))
        assert world.checkpoints.best is None and world.saved == {1: 1}
        await world.step(3)
        world.learner.weights = 4
        with pytest.raises(ResourceError, match="still being written"):
            await world.checkpoints.finish(4)

    world.go(work)
    assert world.saved == {1: 1, 3: 3} and world.leftovers == []
    faults = read_faults(world.run.path)
    assert [(fault.kind, fault.who, fault.recovery_s is None) for fault in faults] == [
        (FaultKind.CHECKPOINT_FAILED, "step_2", False),
        (FaultKind.CHECKPOINT_FAILED, "step_4", True),
    ]


def test_a_learner_that_is_lost_takes_its_write_with_it(tmp_path: Path) -> None:
    world = World(tmp_path)

    def lost(method: str) -> None:
        if method == "write" and world.learner.copied == 2:
            raise LearnerLostError("rank 0 died")

    world.learner.on_call = lost

    async def work() -> None:
        await world.step(1)
        await world.step(2)
        with pytest.raises(LearnerLostError):
            await world.step(3)
        await world.checkpoints.restart(1)
        await world.checkpoints.save(1)  # of this step there is one
        await world.step(4)
        await world.checkpoints.finish(4)

    world.go(work)
    assert world.saved == {1: 1, 4: 4} and world.leftovers == []
    assert read_faults(world.run.path) == [], "the disk was not at fault"
