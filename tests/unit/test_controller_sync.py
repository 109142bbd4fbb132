"""New weights on their way to engines that die, differ or are not there, against fakes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from mrpo.controller import StopRequested
from mrpo.errors import ParityError, ReceiverLostError, WeightSyncError
from mrpo.types import ScoreSample
from tests.unit.fakes import FakeLearner, FakeRollout
from tests.unit.test_controller import CONFIG, World, make_world


@dataclass
class TwoEngines(FakeRollout):
    """A pool whose second engine may be lost in a transfer, or have other log-probs."""

    engines: list[str] = field(default_factory=lambda: ["engine-0", "engine-1"])
    dies_in_transfer: bool = False
    offset: float = 0.0  # nats, of the second engine
    never_up: bool = False

    async def receivers(self) -> list[Any]:
        if self.never_up:
            self.diary.append("no engine is up")
            await asyncio.Event().wait()
        return list(self.engines)

    async def lost_receivers(self) -> bool:
        was_lost, self.dies_in_transfer = self.dies_in_transfer, False
        return was_lost

    async def probe(self, sample: ScoreSample, *, bound: float) -> list[list[float]]:
        (right,) = await self.score([sample])
        return [right, [value + self.offset for value in right]]


@dataclass
class FussyLearner(FakeLearner):
    """Its second transfer meets an engine that fails."""

    told: list[list[str]] = field(default_factory=list)
    error: type[WeightSyncError] = ReceiverLostError

    async def publish(self, receivers: Sequence[Any]) -> Mapping[str, float]:
        self.told.append(list(receivers))
        if len(self.told) == 2:
            if self.engine.dies_in_transfer:  # type: ignore[attr-defined]
                self.engine.engines.remove("engine-1")  # type: ignore[attr-defined]
            raise self.error("an engine failed")
        return await super().publish(receivers)


def with_two_engines(folder: Path, **engines: Any) -> tuple[World, FussyLearner]:
    world = make_world(folder, replace(CONFIG, num_steps=2))
    pool = TwoEngines(table=world.rollout.table, diary=world.diary, **engines)
    learner = FussyLearner(engine=pool, diary=world.diary)
    collector = replace(world.controller.collector, rollout=pool)
    world.controller = replace(world.controller, collector=collector, learner=learner)
    world.rollout, world.learner = pool, learner
    return world, learner


def test_a_transfer_in_which_an_engine_is_lost_is_repeated_with_those_that_are_left(tmp_path: Path) -> None:
    world, learner = with_two_engines(tmp_path, dies_in_transfer=True)
    world.run()
    both, left = ["engine-0", "engine-1"], ["engine-0"]
    assert learner.told == [both, both, left, left]
    assert sorted(world.recorder.metrics) == [1, 2]


@pytest.mark.parametrize("error", [WeightSyncError, ReceiverLostError])
def test_a_transfer_that_fails_with_all_engines_there_ends_the_run(
    tmp_path: Path, error: type[WeightSyncError]
) -> None:
    world, learner = with_two_engines(tmp_path)
    learner.error = error
    with pytest.raises(WeightSyncError, match="an engine failed"):
        world.run()
    assert len(learner.told) == 2


def test_a_refused_transfer_ends_the_run_whoever_is_lost_beside_it(tmp_path: Path) -> None:
    world, learner = with_two_engines(tmp_path, dies_in_transfer=True)
    learner.error = WeightSyncError
    with pytest.raises(WeightSyncError, match="an engine failed"):
        world.run()
    assert len(learner.told) == 2


def test_an_engine_other_than_the_first_that_lacks_the_weights_ends_the_run(tmp_path: Path) -> None:
    world, _ = with_two_engines(tmp_path, dies_in_transfer=True, offset=0.5)
    with pytest.raises(ParityError, match=r"parity\.probe_max_diff"):
        world.run()


def test_a_stop_is_heard_while_no_engine_is_up(tmp_path: Path) -> None:
    world, _ = with_two_engines(tmp_path, never_up=True)

    async def body() -> None:
        running = asyncio.create_task(world.controller.run())
        while "no engine is up" not in world.diary:
            await asyncio.sleep(0)
        world.controller.stop.set()
        with pytest.raises(StopRequested):
            await running

    asyncio.run(asyncio.wait_for(body(), 10.0))
