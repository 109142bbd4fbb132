"""Engines that die, stall or do not come up; in Ray, with stand-ins for the actor that holds vLLM."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest
import ray

from mrpo.config import Config, RolloutConfig
from mrpo.errors import EngineError, UserError
from mrpo.host import host_id
from mrpo.types import Completion, FinishReason, RolloutRequest
from rollout.pool import VllmRolloutPool
from rollout.spec import EngineSpec, engine_specs
from rollout.worker import WorkerInfo

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


def completion(request: RolloutRequest) -> Completion:
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
        policy_version=0,
        started_s=0.0,
        ended_s=1.0,
    )


class Worker:
    """Answers every request at once, up to its fault."""

    def __init__(self, fault: str | None) -> None:
        self._fault = fault

    async def generate(self, requests: Sequence[RolloutRequest]) -> AsyncGenerator[list[Completion], None]:
        yield [completion(requests[0])]
        if self._fault == "dies":
            os._exit(1)
        if self._fault == "stalls":
            await asyncio.sleep(3600)
        if self._fault == "refuses":
            raise UserError("'p2#0' is too long")
        if self._fault == "breaks":
            raise RuntimeError("out of blocks")
        yield [completion(request) for request in requests[1:]]

    async def close(self) -> None:
        """Nothing to end."""


def pool_of(*faults: str | None, stall_timeout_s: float = 60.0) -> VllmRolloutPool:
    config = Config(rollout=RolloutConfig(num_engines=len(faults), stall_timeout_s=stall_timeout_s))
    specs = engine_specs(config, "/model", "qwen2_5_vl", log_dir="/logs")
    handles = [ray.remote(Worker).options(num_cpus=0).remote(fault) for fault in faults]
    ray.get([handle.__ray_ready__.remote() for handle in handles])  # their start is not what stalls
    infos = [WorkerInfo(name=spec.name, host=host_id(), pid=0, start_s=0.0) for spec in specs]
    return VllmRolloutPool(specs, handles, infos)


def generate(pool: VllmRolloutPool, prompts: int) -> list[str]:
    async def collect() -> list[str]:
        return [completion.key async for completion in pool.generate(requests(prompts))]

    try:
        return asyncio.run(collect())
    finally:
        asyncio.run(pool.close())


def test_streams_of_all_engines_are_merged(ray_session: None) -> None:
    assert sorted(generate(pool_of(None, None), 6)) == [f"p{index}#0" for index in range(6)]


def test_an_engine_without_work_is_not_asked(ray_session: None) -> None:
    assert generate(pool_of(None, "dies"), 1) == ["p0#0"]


def test_an_engine_that_dies_is_named_with_its_log(ray_session: None) -> None:
    with pytest.raises(EngineError, match=r"engine-1 died: .*; see /logs/engine-1\.log"):
        generate(pool_of(None, "dies"), 6)


def test_an_engine_that_stalls_is_named_with_what_is_due(ray_session: None) -> None:
    with pytest.raises(EngineError, match=r"stall_timeout_s=3 s from engine-0 \(2 due\); see /logs/engine-0\.log"):
        generate(pool_of("stalls", None, stall_timeout_s=3.0), 6)


def test_a_users_mistake_arrives_as_it_was_raised(ray_session: None) -> None:
    with pytest.raises(UserError, match="'p2#0' is too long") as caught:
        generate(pool_of("refuses"), 3)
    assert type(caught.value) is UserError


def test_an_engine_that_breaks_is_named_with_the_reason(ray_session: None) -> None:
    with pytest.raises(EngineError, match=r"engine-0 failed: RuntimeError: out of blocks; see /logs/engine-0\.log"):
        generate(pool_of("breaks"), 3)


def spec_of(folder: str, **rollout: Any) -> list[EngineSpec]:
    return engine_specs(Config(rollout=RolloutConfig(**rollout)), folder, "qwen2_5_vl", log_dir=None)


def test_engines_that_do_not_come_up_in_time_are_named(ray_session: None, tmp_path: Any) -> None:
    with pytest.raises(EngineError, match=r"engine-0 not up after rollout\.start_timeout_s=0\.1"):
        asyncio.run(VllmRolloutPool.start(spec_of(str(tmp_path), start_timeout_s=0.1)))
