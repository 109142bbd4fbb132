"""When an engine of which nothing comes counts as stuck: with a clock and answers that are set by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from ray.exceptions import RayActorError

from rollout import pulse
from rollout.pulse import Pulse

TIMEOUT_S = 100.0  # it asks after 25 s of silence


@dataclass
class World:
    """The clock, and an actor that answers its count or nothing."""

    now: float = 1000.0
    count: int = 0
    answers: bool = True
    dead: bool = False
    questions: list[int] = field(default_factory=list)

    def ask(self) -> int:
        self.questions.append(self.count)
        return len(self.questions) - 1

    def monotonic(self) -> float:
        return self.now

    def wait(self, references: list[int], *, timeout: float, fetch_local: bool) -> tuple[list[int], list[int]]:
        return (references, []) if self.answers else ([], references)

    def get(self, reference: int) -> int:
        if self.dead:
            raise RayActorError()
        return self.questions[reference]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world: Any = World()
    monkeypatch.setattr(pulse, "time", world)
    monkeypatch.setattr(pulse, "ray", world)
    yield world


def silent_after(world: World, of: Pulse, *, steps_every_s: float | None = None, at_most_s: float = 1000.0) -> float:
    """Seconds until it is taken for stuck, looked at every second; `at_most_s` where it is not."""
    started_s = world.now
    while world.now - started_s < at_most_s:
        world.now += 1.0
        if steps_every_s and (world.now - started_s) % steps_every_s == 0:
            world.count += 1
        if of.is_silent(TIMEOUT_S):
            break
    return world.now - started_s


def test_one_that_does_not_answer_is_stuck_when_the_time_is_over(world: World) -> None:
    world.answers = False
    assert silent_after(world, Pulse(world.ask)) == 101.0
    assert len(world.questions) == 1, "the one that is not answered"


def test_one_whose_count_stands_still_is_stuck_though_it_answers(world: World) -> None:
    assert silent_after(world, Pulse(world.ask)) == 128.0, "the first count says that it lived then, after 27 s"


@pytest.mark.parametrize("steps_every_s", [1.0, 40.0, 70.0])
def test_one_that_makes_steps_is_not(world: World, steps_every_s: float) -> None:
    assert silent_after(world, Pulse(world.ask), steps_every_s=steps_every_s, at_most_s=2000.0) == 2000.0
    assert len(world.questions) <= 80, "asked when it was silent for a quarter of the time"


def test_one_that_gives_something_is_asked_nothing(world: World) -> None:
    found = Pulse(world.ask)
    for _ in range(100):
        world.now += 20.0
        found.sign()
        assert not found.is_silent(TIMEOUT_S)
    assert world.questions == []


def test_time_in_which_nobody_looked_counts_for_nothing(world: World) -> None:
    """This process was stopped: what came meanwhile is not read yet."""
    found = Pulse(world.ask)
    world.now += 5000.0
    assert not found.is_silent(TIMEOUT_S)
    world.answers = False
    assert silent_after(world, found) == 101.0


def test_an_actor_that_ended_gives_no_sign(world: World) -> None:
    world.dead = True
    assert silent_after(world, Pulse(world.ask)) == 101.0
