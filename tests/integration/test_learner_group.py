"""The learner as the controller sees it: ranks in Ray actors, sending weights through shared memory."""

from __future__ import annotations

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from learner_world import build_world, completions, make, spec, to_score
from safetensors.torch import load_file

from learner.checkpoint import load
from learner.group import DeepSpeedLearner
from learner.spec import LearnerSpec
from learner.step import score, train_step
from mrpo.config import WeightTransfer
from mrpo.errors import ConfigError, DataError, NonFiniteError, ResourceError, WeightSyncError
from mrpo.types import LearnStats

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("learner")
    build_world(folder)
    return folder


@asynccontextmanager
async def running(settings: LearnerSpec) -> AsyncIterator[DeepSpeedLearner]:
    learner = DeepSpeedLearner(settings)
    await learner.start()
    try:
        yield learner
    finally:
        await learner.close()


def run(settings: LearnerSpec, work: Callable[[DeepSpeedLearner], Awaitable[Any]]) -> Any:
    async def inside() -> Any:
        async with running(settings) as learner:
            return await work(learner)

    return asyncio.run(inside())


def engine_class() -> type[Any]:
    """Made in a function, so that Ray sends its code along: workers cannot import a test module."""

    class Engine:
        """Receives weights as an engine does."""

        def __init__(self, fail: bool = False) -> None:
            self.calls: list[str] = []
            self.weights: dict[str, torch.Tensor] = {}
            self.paths: set[str] = set()
            self.fail = fail

        def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
            from mrpo.host import host_id

            assert init_info == {"host": host_id()}
            self.calls.append("init")

        def start_weight_update(self) -> None:
            self.calls.append("start")

        def update_weights(self, update_info: dict[str, Any]) -> None:
            import mmap
            import zlib

            if self.fail:
                raise RuntimeError("engine on fire")
            with open(update_info["path"], "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                data = bytearray(view[: update_info["num_bytes"]])
            assert zlib.crc32(data) == update_info["checksum"]
            fields = ("names", "dtypes", "shapes", "offsets")
            for name, dtype_name, shape, offset in zip(*(update_info[field] for field in fields), strict=True):
                dtype = getattr(torch, dtype_name)
                flat = torch.frombuffer(data, dtype=dtype, count=torch.Size(shape).numel(), offset=offset)
                self.weights[name] = flat.view(shape).clone()
            self.paths.add(update_info["path"])
            self.calls.append("update")

        def finish_weight_update(self) -> None:
            self.calls.append("finish")

        def report(self) -> tuple[list[str], dict[str, torch.Tensor], set[str]]:
            return self.calls, self.weights, self.paths

    return Engine


def engines(*fail: bool) -> list[Any]:
    actor = ray.remote(engine_class())
    return [actor.options(num_cpus=0).remote(flag) for flag in fail]


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_ranks_change_nothing(world: Path, stage: int, tmp_path: Path) -> None:
    """Losses, gradient norms and log-probs on two ranks equal those of one, which can resume what two have saved."""
    samples = completions(world)
    alone = make(spec(world))

    async def on_two_ranks(learner: DeepSpeedLearner) -> None:
        for number in range(2):
            assert_same(
                await learner.step(samples, progress=0.1 * number), train_step(alone, samples, progress=0.1 * number)
            )
        theirs = score(alone, to_score(samples))
        for index, mine in enumerate(await learner.score(to_score(samples))):
            assert mine == pytest.approx(theirs[index], abs=1e-4)
        await learner.save(str(tmp_path))
        resumed = make(spec(world))
        load(resumed, tmp_path)
        assert_same(await learner.step(samples, progress=0.5), train_step(resumed, samples, progress=0.5))

        single = await learner.step(samples[:1], progress=0.5)
        assert single.num_tokens == len(samples[0].completion_token_ids), "fewer completions than ranks"
        # Only one of the ranks meets this image.
        gone = replace(samples[3], image=str(world / "gone.png"))
        with pytest.raises(DataError, match=r"cannot read image .*gone\.png"):
            await learner.step([*samples[:3], gone], progress=0.5)
        bad = replace(samples[0], advantages=[float("inf")] * len(samples[0].advantages))
        with pytest.raises(NonFiniteError, match=samples[0].key):
            await learner.step([bad, *samples[1:]], progress=0.5)
        assert (await learner.step(samples, progress=0.5)).grad_norm > 0, "the group works on after an error"

    run(spec(world, num_ranks=2, zero_stage=stage, tokens_per_micro_batch=60), on_two_ranks)


def assert_same(mine: LearnStats, other: LearnStats) -> None:
    assert mine.loss == pytest.approx(other.loss, rel=1e-5, abs=1e-6)
    assert mine.grad_norm == pytest.approx(other.grad_norm, rel=1e-5)
    assert mine.entropy == pytest.approx(other.entropy, rel=1e-5)
    assert (mine.num_tokens, mine.lr) == (other.num_tokens, other.lr)


@pytest.mark.parametrize(("num_ranks", "stage"), [(1, 2), (2, 3)])
def test_weights_reach_every_engine_under_their_checkpoint_names(
    world: Path, tmp_path: Path, num_ranks: int, stage: int
) -> None:
    receivers = engines(False, False)
    before = set(Path("/dev/shm").glob("mrpo-weights-*"))

    async def work(learner: DeepSpeedLearner) -> dict[str, float]:
        await learner.connect(receivers, transfer=WeightTransfer.SHM)
        await learner.step(completions(world), progress=0.0)
        await learner.publish()
        await learner.save(str(tmp_path))
        stats = dict(await learner.publish())
        await learner.connect(engines(False, True), transfer=WeightTransfer.SHM)
        with pytest.raises(WeightSyncError, match="engine on fire"):
            await learner.publish()
        assert set(Path("/dev/shm").glob("mrpo-weights-*")) <= before, "a failure leaves no shared memory"
        return stats

    stats = run(spec(world, num_ranks=num_ranks, zero_stage=stage, bucket_mib=0.7), work)
    expected = load_file(tmp_path / "hf" / "model.safetensors")
    assert stats["buckets"] > 2
    assert stats["bytes"] == sum(tensor.nbytes for tensor in expected.values())
    for receiver in receivers:
        calls, weights, paths = ray.get(receiver.report.remote())
        one_update = ["start", *["update"] * int(stats["buckets"]), "finish"]
        assert calls == ["init", *one_update, *one_update]
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
        assert len(paths) == 4, "two alternating buffers an update"
        assert not any(Path(path).exists() for path in paths)


def test_a_group_that_finds_no_place_says_what_it_needs(world: Path) -> None:
    async def start() -> None:
        await DeepSpeedLearner(spec(world, num_ranks=64, start_timeout_s=1.0)).start()

    with pytest.raises(ResourceError, match=r"64 × .* are not free .*lower learner\.num_ranks"):
        asyncio.run(start())


def test_a_bad_setting_arrives_as_the_users_error(world: Path) -> None:
    with pytest.raises(ConfigError, match="use auto, float32 or bfloat16"):
        run(spec(world, dtype="float8"), lambda learner: learner.publish())
