"""What a pool does with engines in every state, against stand-ins for slots: no Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from mrpo.choices import Device, Placement, WeightTransfer
from mrpo.config import ClusterConfig, Config
from mrpo.errors import EngineError, LearnerLostError
from mrpo.faults import FaultKind
from rollout.engine_slot import SlotState
from rollout.pool import STOP_TRACE_S, TICK_S, VllmRolloutPool
from rollout.spec import EngineSpec, engine_specs

COLOCATED = ClusterConfig(
    device=Device.GPU, placement=Placement.COLOCATED, weight_transfer=WeightTransfer.IPC, gpus_per_node=2
)
(SPEC,) = engine_specs(Config(cluster=COLOCATED), "/model", "qwen2_5_vl", log_dir=None)


@dataclass
class FakeHandle:
    """Writes down what it is asked, as `name method`."""

    name: str
    diary: list[str]
    is_inside: bool = False  # a weight update

    def __getattr__(self, method: str) -> Any:
        return FakeMethod(self, method)


@dataclass
class FakeMethod:
    handle: FakeHandle
    method: str

    def remote(self, *arguments: Any) -> Awaitable[Any]:
        async def answer() -> Any:
            self.handle.diary.append(f"{self.handle.name} {self.method}")
            if self.method in SLOW:
                await asyncio.sleep(3 * TICK_S)
            if self.method == "stop_trace":
                return [b"trace"]
            return {"updating": self.handle.is_inside, "set_policy_version": True}.get(self.method)

        return answer()


@dataclass
class FakePulse:
    """Silent when it is told so."""

    silent: bool = False
    asked: list[float] = field(default_factory=list)

    def sign(self) -> None: ...

    def is_silent(self, timeout_s: float) -> bool:
        self.asked.append(timeout_s)
        return self.silent


@dataclass
class FakeSlot:
    """Goes through the states it is given, one a poll, and stays in the last."""

    name: str
    diary: list[str]
    states: list[SlotState]
    spec: EngineSpec = SPEC
    causes: list[str] = field(default_factory=list)
    may_start: list[bool] = field(default_factory=list)
    is_hopeless: bool = False
    log: str = "its log"
    pulse: FakePulse = field(default_factory=FakePulse)

    def __post_init__(self) -> None:
        self.state = self.states.pop(0)
        self.handle = FakeHandle(self.name, self.diary)

    @property
    def is_there(self) -> bool:
        return self.state in (SlotState.LOADED, SlotState.UP)

    def poll(self, *, may_start: bool) -> None:
        self.may_start.append(may_start)
        if self.states:
            self.state = self.states.pop(0)

    def serve(self) -> None:
        self.state = SlotState.UP

    def withdraw(self) -> None:
        self.state = SlotState.LOST

    def fail(self, name: str, kind: FaultKind, cause: str) -> None:
        self.state = SlotState.LOST
        self.causes.append(f"{kind.value}: {cause}")


def pool_of(
    *states: Sequence[SlotState], no_engine_s: float = 60.0
) -> tuple[VllmRolloutPool, list[FakeSlot], list[str]]:
    diary: list[str] = []
    slots = [FakeSlot(f"engine-{number}", diary, list(of_one)) for number, of_one in enumerate(states)]
    pool = VllmRolloutPool(slots, no_engine_s=no_engine_s)  # type: ignore[arg-type]
    return pool, slots, diary


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def inside() -> None:
        await asyncio.wait_for(body(), 10.0)

    asyncio.run(inside())


SLOW = ("stop_trace",)
STARTS = (SlotState.STARTING, SlotState.STARTING, SlotState.LOADED)


@pytest.mark.parametrize("states", [(SlotState.LOADED,), STARTS], ids=["loaded", "starting"])
def test_an_engine_that_came_up_is_put_to_sleep_without_the_learner(states: Sequence[SlotState]) -> None:
    """A learner that was lost has no weights to give; its restart waits for this."""
    pool, slots, diary = pool_of((SlotState.UP,), states)

    async def bring(handles: Sequence[Any]) -> None:
        raise LearnerLostError("learner-0 died; there are no ranks to publish")

    pool.bring_weights = bring

    async def body() -> None:
        await pool.sleep()
        assert sorted(diary) == ["engine-0 sleep", "engine-1 sleep"]
        assert [slot.state for slot in slots] == [SlotState.UP, SlotState.LOADED]
        assert not any(slots[1].may_start), "the learner has the GPUs"

    run(body)


def test_it_gets_the_weights_when_the_engines_are_awake_and_serves(states: Sequence[SlotState] = STARTS) -> None:
    pool, slots, diary = pool_of((SlotState.UP,), states)
    brought: list[str] = []

    async def bring(handles: Sequence[Any]) -> None:
        brought.extend(handle.name for handle in handles)

    pool.bring_weights = bring

    async def body() -> None:
        await pool.sleep()
        assert brought == []
        diary.clear()
        await pool.wake_up()
        receivers = await pool.receivers()
        await pool.set_policy_version(3)
        assert [handle.name for handle in receivers] == ["engine-0"]
        assert diary == [
            "engine-0 wake_up", "engine-1 wake_up", "engine-0 updating", "engine-0 updating",
            "engine-0 set_policy_version",
        ]  # fmt: skip
        await pool._until(lambda: slots[1].state == SlotState.UP)
        assert brought == ["engine-1"]
        assert diary[-1] == "engine-1 set_policy_version"

    run(body)


@pytest.mark.parametrize("is_inside", [False, True])
def test_an_engine_that_a_broken_transfer_left_inside_the_update_is_lost(is_inside: bool) -> None:
    pool, slots, _ = pool_of((SlotState.UP,), (SlotState.UP,))

    async def body() -> None:
        await pool.receivers()
        slots[1].handle.is_inside = is_inside
        assert await pool.lost_receivers() is is_inside
        cause = "engine_lost: engine-1 is inside an unfinished weight update; see its log"
        assert slots[1].causes == ([cause] if is_inside else [])
        assert [handle.name for handle in await pool.receivers()] == ["engine-0", "engine-1"][: 2 - is_inside]

    run(body)


def test_a_wish_for_an_actor_without_room_is_taken_back_before_the_learner_works() -> None:
    pool, slots, diary = pool_of((SlotState.UP,), (SlotState.PENDING,))

    async def body() -> None:
        await pool.sleep()
        assert slots[1].state == SlotState.LOST
        assert diary == ["engine-0 sleep"]

    run(body)


@pytest.mark.parametrize("silent", [False, True])
def test_an_engine_that_writes_its_recording_has_a_deadline_of_its_own(silent: bool) -> None:
    pool, (slot,), _ = pool_of((SlotState.UP,))
    slot.pulse.silent = silent

    async def body() -> None:
        await pool.start_trace()
        traces = await pool.stop_trace()
        assert set(slot.pulse.asked) == {STOP_TRACE_S}
        assert traces == ([] if silent else [b"trace"])
        causes = ["engine_stuck: engine-0 did not answer stop_trace, and made no step, for 1800 s; see its log"]
        assert slot.causes == (causes if silent else [])

    run(body)


def test_a_pool_without_an_engine_ends_the_call_with_what_each_waits_for() -> None:
    pool, slots, _ = pool_of((SlotState.PENDING,), (SlotState.LOST,), no_engine_s=5 * TICK_S)
    slots[1].causes.append("engine-1 died: out of memory")
    message = (
        r"no rollout engine was up or starting for watchdog\.no_engine_s=0\.5 s: "
        r"engine-0 is pending \(Ray has no room for its actor\), engine-1 is lost \(engine-1 died: out of memory\); "
        r"add a node .* resume=auto"
    )

    async def body() -> None:
        with pytest.raises(EngineError, match=message):
            await pool.receivers()

    run(body)


def test_starting_is_bounded_by_its_own_deadline_and_one_that_serves_begins_the_wait_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rollout.absence.SAY_S", TICK_S)
    waits = [SlotState.PENDING] * 4
    states = [*waits, *[SlotState.STARTING] * 12, SlotState.LOADED]
    pool, (slot,), _ = pool_of(states, no_engine_s=6 * TICK_S)

    async def body() -> None:
        await pool._until(lambda: slot.state == SlotState.UP)
        slot.state, slot.states = SlotState.LOST, [*waits, SlotState.LOADED]
        await pool._until(lambda: slot.state == SlotState.UP)

    run(body)


def test_time_in_which_nobody_waits_for_an_engine_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The learner worked for an hour meanwhile."""
    monkeypatch.setattr("rollout.absence.SAY_S", TICK_S)
    pool, (slot,), _ = pool_of((SlotState.PENDING, SlotState.PENDING, SlotState.LOADED), no_engine_s=10 * TICK_S)
    pool._absence._looked_s -= 3600.0

    async def body() -> None:
        await pool._until(lambda: slot.state == SlotState.UP)

    run(body)


def test_a_learner_lost_while_an_engine_joins_breaks_off_nothing_that_others_do() -> None:
    pool, slots, _ = pool_of((SlotState.UP,), (SlotState.LOADED,))
    lost = True
    asked: list[str] = []

    async def bring(handles: Sequence[Any]) -> None:
        asked.extend(handle.name for handle in handles)
        if lost:
            raise LearnerLostError("learner-0 died")

    pool.bring_weights = bring

    async def body() -> None:
        nonlocal lost
        for _ in range(3):
            await pool._tend()
        assert asked == ["engine-1"], "it is not asked again"
        slots[0].state = SlotState.LOST
        with pytest.raises(LearnerLostError, match="learner-0 died"):
            await pool._until(lambda: bool(pool.handles))  # nobody serves
        slots[0].state, lost = SlotState.UP, False
        await pool.set_policy_version(4)
        await pool._tend()
        assert [slot.state for slot in slots] == [SlotState.UP, SlotState.UP]

    run(body)
