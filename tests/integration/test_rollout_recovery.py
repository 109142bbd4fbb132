"""Real engines that are killed, stopped or lost in the middle of a weight update, and come back.

Two engines serve every test; each test leaves them both up.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import pytest
import ray
import torch
from PIL import Image
from safetensors.torch import load_file

from learner.shm_sender import ShmSender
from learner.weight_source import WeightMeta, WeightSource
from learner.weight_sync import RayWeightSyncClient
from mrpo.config import Config, RolloutConfig
from mrpo.faults import FAULTS_FILE, Fault, FaultKind, FaultLog, read_faults
from mrpo.phantom.toy_models import build_toy_model
from mrpo.types import Completion, RolloutRequest
from rollout.pool import VllmRolloutPool
from rollout.spec import engine_specs

T = TypeVar("T")

CORPUS = ["The scan shows a liver.", "<think>The organ is the liver. It lies left.</think><answer>left</answer>"] * 3
FAMILY = "qwen2_5_vl"
NUM_REQUESTS = 64
BACK_WITHIN_S = 300.0  # of an engine that starts on a busy machine
BUCKET_BYTES = 256 * 1024  # several buckets


class Weights(WeightSource):
    """Weights of a checkpoint, changed by a step in a direction that follows from a number."""

    def __init__(self, folder: Path, number: int) -> None:
        generator = torch.Generator().manual_seed(number)
        self._weights = {
            name: weight + number * 0.02 * torch.randn(weight.shape, generator=generator)
            for name, weight in load_file(folder / "model.safetensors").items()
        }

    def metadata(self) -> list[WeightMeta]:
        return [WeightMeta(name=name, dtype=t.dtype, shape=tuple(t.shape)) for name, t in self._weights.items()]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self._weights.items()


@dataclass
class Started:
    """Two engines with what they sample from."""

    folder: Path
    pool: VllmRolloutPool
    number: int = 0  # of the weights that the policy has

    def requests(self, count: int = NUM_REQUESTS) -> list[RolloutRequest]:
        """Four samples of each prompt; each has tokens enough to be interrupted."""
        return [
            RolloutRequest(
                prompt_id=f"{index // 4}",
                sample_index=index % 4,
                question="Which organ?",
                image=str(self.folder / f"{index // 4 % 2}.png"),
                seed=1000 + index,
                temperature=1.0,
                top_p=1.0,
                max_new_tokens=60,
            )
            for index in range(count)
        ]

    async def generate(self, on_third: Callable[[], None] = lambda: None) -> dict[str, Completion]:
        """Everything, doing something when three have come; none comes twice and none is missing."""
        found: dict[str, Completion] = {}
        stream: AsyncIterator[Completion] = self.pool.generate(self.requests())
        async for completion in stream:
            assert completion.key not in found
            found[completion.key] = completion
            if len(found) == 3:
                on_third()
        assert found.keys() == {request.key for request in self.requests()}
        return found

    async def wait_for_both(self) -> None:
        """Engines join while something is generated."""
        deadline = time.monotonic() + BACK_WITHIN_S
        while not all(depth.state == "up" for depth in self.pool.depths()):
            assert time.monotonic() < deadline, self.pool.depths()
            async for _ in self.pool.generate(self.requests(1)):
                await asyncio.sleep(0.5)

    async def publish(self, receivers: Sequence[Any], client: type[RayWeightSyncClient] = RayWeightSyncClient) -> None:
        """Send the current weights as a learner does."""
        source = Weights(self.folder / "model", self.number)
        sender = ShmSender(client(receivers), source, bucket_bytes=BUCKET_BYTES, is_sender=True)

        def send() -> None:
            sender.connect()
            sender.send()

        await asyncio.to_thread(send)

    def pid(self, engine: int) -> int:
        info = self.pool.processes()[engine]
        return info.pid

    def faults(self) -> list[Fault]:
        return read_faults(self.folder)


@pytest.fixture(scope="module")
def engines(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    folder = tmp_path_factory.mktemp("recovery")
    build_toy_model(FAMILY, folder / "model", corpus=CORPUS)
    for index in range(2):
        pixels = np.random.default_rng(index).integers(0, 255, (84, 84, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    rollout = RolloutConfig(
        num_engines=2, max_num_seqs=8, max_model_len=96, stall_timeout_s=30.0, start_timeout_s=BACK_WITHIN_S
    )
    specs = engine_specs(Config(rollout=rollout), str(folder / "model"), FAMILY, log_dir=str(folder))
    pool = asyncio.run(VllmRolloutPool.start(specs, faults=FaultLog(folder / FAULTS_FILE)))
    started = Started(folder, pool)
    pool.bring_weights = started.publish
    yield started
    asyncio.run(pool.close())


def tokens(completions: dict[str, Completion]) -> dict[str, list[int]]:
    return {key: completion.completion_token_ids for key, completion in completions.items()}


def run(body: Awaitable[T]) -> T:
    async def inside() -> T:
        return await body

    return asyncio.run(inside())


def test_what_a_killed_engine_had_not_finished_is_done_again_to_the_bit(engines: Started) -> None:
    undisturbed = run(engines.generate())
    pid = engines.pid(0)
    disturbed = run(engines.generate(lambda: os.kill(pid, signal.SIGKILL)))
    assert tokens(disturbed) == tokens(undisturbed)
    (fault,) = engines.faults()
    assert (fault.kind, fault.who) == (FaultKind.ENGINE_LOST, "engine-0")
    assert not psutil.pid_exists(pid)
    run(engines.wait_for_both())
    assert engines.faults()[0].recovery_s is not None
    assert tokens(run(engines.generate())) == tokens(undisturbed)


def test_a_stopped_engine_is_found_and_killed_and_its_work_is_done_by_the_other(engines: Started) -> None:
    undisturbed = run(engines.generate())
    pid = engines.pid(1)
    disturbed = run(engines.generate(lambda: os.kill(pid, signal.SIGSTOP)))
    assert tokens(disturbed) == tokens(undisturbed)
    run(engines.wait_for_both())
    fault = engines.faults()[-1]
    assert (fault.kind, fault.who) == (FaultKind.ENGINE_STUCK, "engine-1")
    assert "is stopped (state T)" in fault.detail
    assert list(engines.folder.glob("stacks-engine-1-stuck-*.txt"))
    assert not psutil.pid_exists(pid)


class KillingClient(RayWeightSyncClient):
    """Kills its first engine before the third bucket."""

    num_buckets = 0

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.num_buckets += 1
        if self.num_buckets == 3:
            ray.kill(self._handles[0])
        super().update_weights(update_info)


def test_an_update_in_which_an_engine_dies_reaches_the_others_and_the_one_that_comes_back(engines: Started) -> None:
    before = run(engines.generate())

    async def update() -> dict[str, Completion]:
        engines.number = 1
        receivers = await engines.pool.receivers()
        assert len(receivers) == 2
        await engines.publish(receivers, KillingClient)
        assert await engines.pool.lost_receivers()
        await engines.pool.set_policy_version(1)
        return await engines.generate()

    by_one = run(update())
    assert tokens(by_one) != tokens(before)
    run(engines.wait_for_both())
    by_both = run(engines.generate())
    assert tokens(by_both) == tokens(by_one)
    assert {completion.policy_version for completion in by_both.values()} == {1}
    sample = next(iter(by_both.values()))
    assert engines.faults()[-1].recovery_s is not None
    assert sample.policy_version == 1
