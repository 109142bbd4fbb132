"""Engines that die, stall or do not come up; in Ray, with stand-ins for the actor that holds vLLM."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
import ray

from mrpo.choices import Device, Placement, WeightTransfer
from mrpo.config import ClusterConfig, Config, RolloutConfig
from mrpo.errors import EngineError, UserError
from mrpo.faults import FaultKind, FaultLog, read_faults
from mrpo.types import Completion, FinishReason, RolloutRequest, ScoreSample
from rollout.pool import VllmRolloutPool
from rollout.spec import EngineSpec, engine_specs
from rollout.worker import WorkerInfo

T = TypeVar("T")

# Ray's workers cannot import a test module.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def requests(prompts: int) -> list[RolloutRequest]:
    return [
        RolloutRequest(
            prompt_id=f"p{index}",
            sample_index=0,
            question="?",
            image="/image.png",
            seed=index,
            temperature=1.0,
            top_p=1.0,
            max_new_tokens=4,
        )
        for index in range(prompts)
    ]


SAMPLE = ScoreSample(key="p0#0", image="/image.png", prompt_token_ids=[1], completion_token_ids=[2])


def completion(request: RolloutRequest, version: int) -> Completion:
    return Completion(
        prompt_id=request.prompt_id,
        sample_index=request.sample_index,
        prompt_token_ids=[1],
        completion_token_ids=[2],
        rollout_logprobs=[-1.0],
        text="a",
        steps=[],
        spans=[],
        answer=None,
        think_tokens=0,
        step_tokens=0,
        finish_reason=FinishReason.STOP,
        policy_version=version,
        started_s=0.0,
        ended_s=1.0,
    )


class Worker:
    """Answers every request at once, up to its fault."""

    def __init__(self, fault: str | None) -> None:
        if fault == "cannot be made":
            raise RuntimeError("no such library")
        self._fault = fault
        self._version = 0
        self._asleep = False

    async def placed(self) -> WorkerInfo:
        this = psutil.Process()
        node = ray.get_runtime_context().get_node_id()
        processes = ((this.pid, this.create_time()),)
        return WorkerInfo(name="engine", node_id=node, pid=this.pid, processes=processes, start_s=0.0)

    async def ready(self) -> WorkerInfo:
        if self._fault == "does not start":
            raise RuntimeError("out of memory")
        if self._fault == "starts slowly":
            await asyncio.sleep(2.0)
        if self._fault == "starts for ever":
            await asyncio.sleep(3600)
        return await self.placed()

    async def watch(self) -> None:
        await asyncio.Event().wait()

    async def generate(self, requests: Sequence[RolloutRequest]) -> AsyncGenerator[list[Completion], None]:
        yield [completion(requests[0], self._version)]
        if self._fault == "dies":
            os._exit(1)
        if self._fault == "stalls":
            await asyncio.sleep(3600)
        if self._fault == "takes long":
            await asyncio.sleep(8.0)
        if self._fault == "refuses":
            raise UserError("'p2#0' is too long")
        if self._fault == "breaks":
            raise RuntimeError("out of blocks")
        yield [completion(request, self._version) for request in requests[1:]]

    async def progress(self) -> int:
        return int(10 * time.monotonic()) if self._fault == "takes long" else 1

    async def score(self, samples: Sequence[ScoreSample]) -> list[list[float]]:
        if self._fault == "dies scoring":
            os._exit(1)
        return [[float(self._version)] for _ in samples]

    async def sleep(self) -> None:
        self._asleep = True

    async def wake_up(self) -> None:
        self._asleep = False

    async def is_asleep(self) -> bool:
        return self._asleep

    async def updating(self) -> bool:
        if self._fault == "stalls":
            await asyncio.sleep(3600)
        if self._fault == "dies when asked":
            os._exit(1)
        return self._fault == "is half updated"

    async def set_policy_version(self, version: int) -> bool:
        if self._fault != "keeps its version":
            self._version = version
        return True

    async def close(self) -> None:
        """Nothing to end."""


def dead_at_once(*faults: str | None) -> Callable[[EngineSpec, Any, str], Any]:
    """Makes actors of which each engine's first life has its fault, and further ones none."""

    def make(spec: EngineSpec, seat: object, name: str) -> Any:
        first = "." not in name.removeprefix(f"{PREFIX}-")
        fault = faults[int(spec.name.removeprefix(f"{PREFIX}-"))] if first else None
        return ray.remote(Worker).options(num_cpus=0, name=name, max_concurrency=8).remote(fault)

    return make


def always(fault: str) -> Callable[[EngineSpec, Any, str], Any]:
    """Makes actors of which every life has the fault."""

    def make(spec: EngineSpec, seat: object, name: str) -> Any:
        return ray.remote(Worker).options(num_cpus=0, name=name, max_concurrency=8).remote(fault)

    return make


PREFIX = "engine"


def run(
    make: Callable[[EngineSpec, Any, str], Any],
    body: Callable[[VllmRolloutPool], Awaitable[T]],
    *,
    num_engines: int = 1,
    faults: FaultLog | None = None,
    bring: Callable[[Sequence[Any]], Awaitable[object]] | None = None,
    cluster: ClusterConfig | None = None,
    **rollout: Any,
) -> T:
    """Start a pool, do something with it, and end it."""
    config = Config(rollout=RolloutConfig(num_engines=num_engines, **rollout), cluster=cluster or ClusterConfig())
    specs = engine_specs(config, "/model", "qwen2_5_vl", log_dir=None)

    async def inside() -> T:
        pool = await VllmRolloutPool.start(specs, faults=faults, make=make)
        pool.bring_weights = bring
        try:
            return await body(pool)
        finally:
            await pool.close()

    return asyncio.run(inside())


def generate(prompts: int) -> Callable[[VllmRolloutPool], Awaitable[list[str]]]:
    async def body(pool: VllmRolloutPool) -> list[str]:
        return sorted([completion.key async for completion in pool.generate(requests(prompts))])

    return body


def keys(prompts: int) -> list[str]:
    return [f"p{index}#0" for index in range(prompts)]


def test_streams_of_all_engines_are_merged(ray_session: None) -> None:
    assert run(dead_at_once(None, None), generate(6), num_engines=2) == keys(6)


def test_an_engine_without_work_is_not_asked(ray_session: None) -> None:
    assert run(dead_at_once(None, "dies"), generate(1), num_engines=2) == keys(1)


def test_what_an_engine_that_dies_had_not_finished_is_done_by_another(ray_session: None, tmp_path: Path) -> None:
    path = tmp_path / "faults.jsonl"
    assert run(dead_at_once(None, "dies"), generate(6), num_engines=2, faults=FaultLog(path)) == keys(6)
    (fault,) = read_faults(tmp_path)
    assert (fault.kind, fault.who) == (FaultKind.ENGINE_LOST, "engine-1")
    assert "engine-1 died" in fault.detail


def test_the_only_engine_comes_back_with_the_current_weights_before_its_first_request(
    ray_session: None, tmp_path: Path
) -> None:
    brought: list[int] = []

    async def bring(handles: Sequence[Any]) -> None:
        brought.append(len(handles))

    async def body(pool: VllmRolloutPool) -> list[int]:
        assert len(await pool.receivers()) == 1
        await pool.set_policy_version(7)
        versions = [completion.policy_version async for completion in pool.generate(requests(4))]
        assert [(depth.name, depth.state, depth.running) for depth in pool.depths()] == [("engine-0", "up", 0)]
        return versions

    faults = FaultLog(tmp_path / "faults.jsonl")
    assert run(dead_at_once("dies"), body, faults=faults, bring=bring) == [7] * 4
    assert brought == [1]
    (fault,) = read_faults(tmp_path)
    assert fault.recovery_s is not None
    assert faults.take_metrics()["faults/engine_lost"] == 1.0


def test_an_engine_that_stalls_is_named_with_its_stack_and_replaced(ray_session: None, tmp_path: Path) -> None:
    faults = FaultLog(tmp_path / "faults.jsonl")
    keys_of_all = run(dead_at_once("stalls", None), generate(6), num_engines=2, faults=faults, stall_timeout_s=3.0)
    assert keys_of_all == keys(6)
    (fault,) = read_faults(tmp_path)
    assert (fault.kind, fault.who) == (FaultKind.ENGINE_STUCK, "engine-0")
    assert "no completion or step for rollout.stall_timeout_s=3 s from engine-0 (2 due)" in fault.detail


def test_an_engine_that_makes_steps_is_not_stuck(ray_session: None, tmp_path: Path) -> None:
    """Long completions: nothing ends for more than twice what an engine may be silent."""
    faults = FaultLog(tmp_path / "faults.jsonl")
    assert run(dead_at_once("takes long"), generate(3), faults=faults, stall_timeout_s=3.0) == keys(3)
    assert read_faults(tmp_path) == []


def test_an_engine_that_always_dies_ends_the_call_with_its_causes(
    ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollout.engine_slot.BACK_OFF_S", (0.0,))

    async def body(pool: VllmRolloutPool) -> list[list[float]]:
        return await pool.score([SAMPLE])

    with pytest.raises(EngineError, match=r"no rollout engine is left.*engine-0 died"):
        run(always("dies scoring"), body)


def test_a_users_mistake_arrives_as_it_was_raised(ray_session: None) -> None:
    with pytest.raises(UserError, match="'p2#0' is too long") as caught:
        run(always("refuses"), generate(3))
    assert type(caught.value) is UserError


def test_an_engine_that_breaks_is_replaced_and_the_reason_kept(ray_session: None, tmp_path: Path) -> None:
    faults = FaultLog(tmp_path / "faults.jsonl")
    assert run(dead_at_once("breaks"), generate(3), faults=faults) == keys(3)
    (fault,) = read_faults(tmp_path)
    assert "engine-0 failed: RuntimeError: out of blocks" in fault.detail


def test_scores_come_from_those_that_are_left(ray_session: None) -> None:
    async def body(pool: VllmRolloutPool) -> list[list[float]]:
        return await pool.score([SAMPLE] * 5)

    assert run(dead_at_once("dies scoring", None), body, num_engines=2) == [[0.0]] * 5


def test_every_engine_is_probed(ray_session: None) -> None:
    async def body(pool: VllmRolloutPool) -> list[list[float]]:
        return await pool.probe(SAMPLE, bound=0.1)

    assert run(dead_at_once(None, None), body, num_engines=2) == [[0.0]] * 2


def test_an_engine_that_comes_back_with_other_weights_does_not_serve(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A stand-in's scores are its version, which those that come back do not take; the other engine goes on."""
    monkeypatch.setattr("rollout.engine_slot.BACK_OFF_S", (0.0,))

    def make(spec: EngineSpec, seat: object, name: str) -> Any:
        fault = {"engine-0": "dies", "engine-1": None}.get(name, "keeps its version")
        return ray.remote(Worker).options(num_cpus=0, name=name, max_concurrency=8).remote(fault)

    async def until_hopeless(pool: VllmRolloutPool) -> set[int]:
        await pool.receivers()
        await pool.set_policy_version(7)
        await pool.probe(SAMPLE, bound=0.1)
        versions: set[int] = set()
        while "engine-0 was lost 4 times without a completion" not in caplog.text:
            versions |= {completion.policy_version async for completion in pool.generate(requests(4))}
        return versions

    faults = FaultLog(tmp_path / "faults.jsonl")
    assert run(make, until_hopeless, num_engines=2, faults=faults) == {7}
    found = read_faults(tmp_path)
    assert [fault.who for fault in found[:4]] == ["engine-0", "engine-0.2", "engine-0.3", "engine-0.4"]
    assert all(fault.recovery_s is None for fault in found)


@pytest.mark.parametrize("fault", ["dies when asked", "is half updated", "stalls"])
def test_weights_are_meant_for_engines_that_are_sound_and_the_others_are_replaced(
    ray_session: None, tmp_path: Path, fault: str
) -> None:
    async def body(pool: VllmRolloutPool) -> tuple[int, int]:
        sound = await pool.receivers()
        await pool.set_policy_version(1)
        while len(pool.handles) < 2:
            await pool.score([SAMPLE])
            await asyncio.sleep(0.1)
        return len(sound), len(await pool.receivers())

    faults = FaultLog(tmp_path / "faults.jsonl")
    found = run(dead_at_once(fault, None), body, num_engines=2, faults=faults, stall_timeout_s=3.0)
    assert found == (1, 2)
    assert [item.recovery_s is not None for item in read_faults(tmp_path)] == [True]


COLOCATED = ClusterConfig(
    device=Device.GPU, placement=Placement.COLOCATED, weight_transfer=WeightTransfer.IPC, gpus_per_node=2
)


def test_an_engine_that_shares_gpus_is_started_only_while_the_learner_is_idle(ray_session: None) -> None:
    """It measures the memory it may take while nobody else takes or frees any."""

    async def body(pool: VllmRolloutPool) -> list[str]:
        await pool.receivers()
        await pool.set_policy_version(1)
        found = [completion.key async for completion in pool.generate(requests(4))]  # one dies
        while pool.depths()[1].state != "starting":
            found = [completion.key async for completion in pool.generate(requests(4))]
            await asyncio.sleep(0.05)
        await pool.sleep()
        assert [depth.state for depth in pool.depths()] == ["up", "loaded"], "its start was waited for"
        assert await asyncio.gather(*(slot.handle.is_asleep.remote() for slot in pool._slots)) == [True, True]
        ray.kill(pool.handles[0])
        await pool.probe(SAMPLE, bound=0.1)
        await asyncio.sleep(1.0)
        await pool.probe(SAMPLE, bound=0.1)
        assert [depth.state for depth in pool.depths()] == ["lost", "up"], "the learner works"
        await pool.wake_up()
        assert await asyncio.gather(*(handle.is_asleep.remote() for handle in pool.handles)) == [False]
        while len(pool.handles) < 2:
            assert [completion.key async for completion in pool.generate(requests(1))] == keys(1)
            await asyncio.sleep(0.05)
        return sorted(found)

    def make(spec: EngineSpec, seat: object, name: str) -> Any:
        fault = {"engine-0": None, "engine-1": "dies"}.get(name, "starts slowly")
        return ray.remote(Worker).options(num_cpus=0, name=name, max_concurrency=8).remote(fault)

    assert run(make, body, num_engines=2, cluster=COLOCATED) == keys(4)


def test_a_receiver_that_is_lost_is_noticed_after_the_publish(ray_session: None) -> None:
    async def body(pool: VllmRolloutPool) -> tuple[bool, bool]:
        handles = await pool.receivers()
        whole = await pool.lost_receivers()
        ray.kill(handles[0])
        return whole, await pool.lost_receivers()

    assert run(dead_at_once(None, None), body, num_engines=2) == (False, True)


def test_a_run_begins_with_as_many_engines_as_it_needs(ray_session: None) -> None:
    make = dead_at_once(None, "starts for ever")
    assert run(make, generate(4), num_engines=2, min_engines=1) == keys(4)


def test_an_engine_that_refuses_to_start_says_why(ray_session: None) -> None:
    with pytest.raises(EngineError, match=r"engine-0 failed: RuntimeError: out of memory"):
        run(always("does not start"), generate(1))


def test_an_actor_that_cannot_be_made_says_why(ray_session: None) -> None:
    with pytest.raises(EngineError, match=r"engine-0 could not be created: RuntimeError: no such library"):
        run(always("cannot be made"), generate(1))


def test_engines_that_do_not_come_up_in_time_are_named(ray_session: None) -> None:
    started = time.monotonic()
    with pytest.raises(EngineError, match=r"engine-0 not up after rollout\.start_timeout_s=3"):
        run(always("starts for ever"), generate(1), start_timeout_s=3.0)
    assert time.monotonic() - started < 60.0
