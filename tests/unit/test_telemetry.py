"""State, durations and queues of a run while it is under way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest

from mrpo.telemetry.queues import ENGINES as ENGINE_COUNTS
from mrpo.telemetry.queues import QueueWatch, queue_readings
from mrpo.telemetry.stages import IDLE, Stages
from mrpo.telemetry.table import Reading
from mrpo.types import EngineDepth, JudgeDepths


class Shown:
    """Remembers what is shown."""

    def __init__(self) -> None:
        self.groups: dict[str, list[Reading]] = {}

    def show(self, group: str, readings: Iterable[Reading]) -> None:
        self.groups[group] = list(readings)

    @property
    def states(self) -> dict[str, float]:
        return {dict(item.labels)["state"]: item.value for item in self.groups["stages"] if item.name == "run/state"}

    @property
    def durations(self) -> dict[str, float]:
        return {dict(item.labels)["stage"]: item.value for item in self.groups["stages"] if item.name != "run/state"}


def make_stages() -> tuple[Stages, Shown, list[str]]:
    shown, marks = Shown(), list[str]()

    @contextmanager
    def mark(name: str) -> Iterator[None]:
        marks.append(f"{name} begins")
        yield
        marks.append(f"{name} ends")

    return Stages(shown, mark), shown, marks


def test_the_innermost_stage_is_the_state() -> None:
    stages, shown, marks = make_stages()
    assert shown.states == {IDLE: 1.0}
    assert not stages.ended
    with stages.span("rollout"):
        assert shown.states == {IDLE: 0.0, "rollout": 1.0}
        with stages.span("judge"):
            assert shown.states == {IDLE: 0.0, "rollout": 0.0, "judge": 1.0}
        assert shown.states["rollout"] == 1.0
    assert shown.states == {IDLE: 1.0, "rollout": 0.0, "judge": 0.0}
    assert shown.durations.keys() == {"rollout", "judge"}
    assert shown.durations["rollout"] >= shown.durations["judge"] >= 0.0
    assert marks == ["rollout begins", "judge begins", "judge ends", "rollout ends"]
    assert stages.ended == {"rollout": 1, "judge": 1}


def test_a_stage_that_fails_is_over() -> None:
    stages, shown, _ = make_stages()
    with pytest.raises(ConnectionError), stages.span("learn"):
        raise ConnectionError
    assert stages.state == IDLE
    assert shown.durations.keys() == {"learn"}


def test_stages_need_not_end_in_order() -> None:
    stages, _, _ = make_stages()
    checkpoint, rollout = stages.span("checkpoint"), stages.span("rollout")
    checkpoint.__enter__()
    rollout.__enter__()
    checkpoint.__exit__(None, None, None)
    assert stages.state == "rollout"
    rollout.__exit__(None, None, None)
    assert stages.state == IDLE


ENGINES = [
    EngineDepth(name="engine-0", state="up", running=4, waiting=3),
    EngineDepth(name="engine-1", state="up", running=4, waiting=0),
    EngineDepth(name="engine-2", state="lost", running=0, waiting=0),
]


def test_queues_are_shown_by_engine_and_engines_by_state() -> None:
    readings = queue_readings(ENGINES, 9, JudgeDepths(waiting=2, in_flight=5))
    found = {(item.name, item.labels): item.value for item in readings}
    assert found["rollout/engines", (("state", "up"),)] == 2.0
    assert found["rollout/engines", (("state", "lost"),)] == 1.0
    assert found["rollout/waiting", (("engine", "engine-0"),)] == 3.0
    assert found["rollout/waiting", (("engine", "none"),)] == 9.0
    assert found["rollout/running", (("engine", "engine-1"),)] == 4.0
    assert found["judge/waiting", ()] == 2.0
    assert found["judge/in_flight", ()] == 5.0
    assert not any(item.name.startswith("judge/") for item in queue_readings(ENGINES, 9, None))


def test_the_largest_of_a_step_is_over_all_engines_and_is_told_once() -> None:
    looks = iter([queue_readings(ENGINES, 0, None), queue_readings(ENGINES[1:], 1, None)])
    shown, refreshed = Shown(), list[bool]()
    watch = QueueWatch(lambda: next(looks), shown, refresh=lambda: refreshed.append(True))
    assert watch.take_metrics() == {}  # a step shorter than a look
    watch.sample()
    watch.sample()
    assert watch.take_metrics() == {"rollout/waiting_max": 3.0, "rollout/running_max": 8.0}
    assert watch.take_metrics() == {}
    assert len(refreshed) == 2
    assert not any(("engine", "engine-0") in item.labels for item in shown.groups["queues"])  # it has left


def test_requests_that_no_engine_has_count_as_waiting() -> None:
    watch = QueueWatch(lambda: queue_readings(ENGINES[2:], 64, None), Shown(), refresh=lambda: None)  # none is up
    watch.sample()
    assert watch.take_metrics() == {"rollout/waiting_max": 64.0, "rollout/running_max": 0.0}


def test_a_state_that_no_engine_has_any_more_is_shown_as_zero() -> None:
    """Prometheus' readers hold a gauge that is not set again for a while, and would count an engine twice."""
    looks = iter([queue_readings(ENGINES, 0, None), queue_readings(ENGINES[:2], 0, None)])
    shown = Shown()
    watch = QueueWatch(lambda: next(looks), shown, refresh=lambda: None)
    watch.sample()
    watch.sample()
    states = {dict(item.labels)["state"]: item.value for item in shown.groups["queues"] if item.name == ENGINE_COUNTS}
    assert states == {"up": 2.0, "lost": 0.0}


@pytest.mark.asyncio
async def test_looks_go_on_until_the_context_is_left() -> None:
    looks: list[int] = []
    watch = QueueWatch(lambda: looks.append(1) or [], Shown(), refresh=lambda: None)
    async with watch.running(0.001):
        while len(looks) < 3:
            await asyncio.sleep(0.001)
    seen = len(looks)
    await asyncio.sleep(0.01)
    assert len(looks) == seen
