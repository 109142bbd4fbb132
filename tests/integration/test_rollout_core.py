"""The actor of an engine around stand-ins: vLLM's core that dies, and more streams than the actor takes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

import rollout.worker
from mrpo.config import Config, RolloutConfig
from mrpo.faults import FaultKind, FaultLog, read_faults
from mrpo.phantom.toy_models import build_toy_model
from mrpo.types import RolloutRequest, ScoreSample
from rollout.engine_actor import NUM_OTHER_CALLS, make_actor
from rollout.pool import VllmRolloutPool
from rollout.sampling import OWNED_PER_SEQUENCE
from rollout.spec import EngineSpec, engine_environment, engine_specs
from rollout.worker import RolloutWorker

# Ray's workers cannot import a test module.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

PATIENCE_S = 120.0  # on a busy machine
SAMPLE = ScoreSample(key="p0#0", image="/image.png", prompt_token_ids=[1], completion_token_ids=[2])


class Engine:
    """Scores at once, completes nothing, and has a core that is a process of its own."""

    busy = False
    updating = False

    def __init__(self, spec: EngineSpec) -> None:
        self._core = subprocess.Popen(["sleep", "3600"])

    @property
    def core_is_lost(self) -> bool:
        return self._core.poll() is not None

    def step(self) -> None: ...

    def sample(self, request: RolloutRequest, done: Callable[[Any], None]) -> str:
        return request.key

    def score(self, sample: ScoreSample, done: Callable[[list[float]], None]) -> str:
        done([0.0])
        return sample.key

    def close(self) -> None: ...


class Worker(RolloutWorker):
    """Holds a stand-in."""

    def __init__(self, spec: EngineSpec) -> None:
        rollout.worker._build_engine = Engine  # type: ignore[assignment]
        super().__init__(spec)


class WorkerWithTwoProcesses(RolloutWorker):
    """Holds vLLM as on GPUs."""

    def __init__(self, spec: EngineSpec) -> None:
        two = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
        rollout.worker.engine_environment = lambda spec: engine_environment(spec) | two  # type: ignore[attr-defined]
        super().__init__(spec)


async def survives_the_end_of_its_core(spec: EngineSpec, folder: Path, core: str) -> None:
    """Nobody steps the engine meanwhile, or asks it for anything."""
    pool = await VllmRolloutPool.start([spec], faults=FaultLog(folder / "faults.jsonl"))
    try:
        (process,) = (psutil.Process(info.pid) for info in pool.processes())
        (child,) = (child for child in process.children() if core in child.name() or core in " ".join(child.cmdline()))
        child.kill()
        await asyncio.to_thread(psutil.wait_procs, [process], timeout=PATIENCE_S)
        assert not process.is_running()
        assert len(await pool.receivers()) == 1, "another life of it"
        assert pool.processes()[0].pid != process.pid
        (fault,) = read_faults(folder)
        assert (fault.kind, fault.who) == (FaultKind.ENGINE_LOST, spec.name)
    finally:
        await pool.close()


def test_an_engine_whose_core_dies_ends_and_is_started_again(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollout.engine_actor.RolloutWorker", Worker)
    (spec,) = engine_specs(Config(), "/model", "qwen2_5_vl", log_dir=None)
    asyncio.run(survives_the_end_of_its_core(spec, tmp_path, "sleep"))


@pytest.mark.slow
def test_so_is_one_of_vllm_with_a_core_of_its_own(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollout.engine_actor.RolloutWorker", WorkerWithTwoProcesses)
    build_toy_model("qwen2_5_vl", tmp_path / "model", corpus=["The scan shows a liver."] * 3)
    config = Config(rollout=RolloutConfig(max_num_seqs=4, max_model_len=96, start_timeout_s=500.0))
    (spec,) = engine_specs(config, str(tmp_path / "model"), "qwen2_5_vl", log_dir=str(tmp_path))
    asyncio.run(survives_the_end_of_its_core(spec, tmp_path, "EngineCore"))
    assert "core process is gone" in (tmp_path / "engine-0.log").read_text()


def test_an_engine_takes_a_stream_for_each_request_it_may_hold_and_answers_beside_them(
    ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollout.engine_actor.RolloutWorker", Worker)
    config = Config(rollout=RolloutConfig(max_num_seqs=40))
    (spec,) = engine_specs(config, "/model", "qwen2_5_vl", log_dir=None)
    handle = make_actor(spec, None, "engine-of-many-streams")
    try:
        watch = handle.watch.remote()
        ray.get(handle.ready.remote(), timeout=PATIENCE_S)
        held = OWNED_PER_SEQUENCE * config.rollout.max_num_seqs
        streams = [
            handle.generate.options(num_returns="streaming").remote([request(number)])
            for number in range(held + 2 * NUM_OTHER_CALLS)  # more than there is room for
        ]
        deadline = time.monotonic() + PATIENCE_S
        while (submitted := ray.get(handle.progress.remote(), timeout=PATIENCE_S)) < held:
            assert time.monotonic() < deadline, f"{submitted} of {len(streams)}"
            time.sleep(0.1)
        assert ray.get(handle.updating.remote(), timeout=PATIENCE_S) is False
        assert not ray.wait([watch], timeout=0)[0]
    finally:
        ray.kill(handle)


def request(number: int) -> RolloutRequest:
    return RolloutRequest(
        prompt_id=f"p{number}",
        sample_index=0,
        question="?",
        image="/image.png",
        seed=number,
        temperature=1.0,
        top_p=1.0,
        max_new_tokens=4,
    )
