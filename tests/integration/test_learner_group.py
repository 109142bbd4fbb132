"""The learner as the controller sees it: ranks in Ray actors, sending weights through shared memory."""

from __future__ import annotations

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from safetensors.torch import load_file
from weight_receiver_fake import receiver_class

from learner.checkpoint import load
from learner.group import DeepSpeedLearner
from learner.spec import LearnerSpec
from learner.step import score, train_step
from mrpo.choices import WeightTransfer
from mrpo.errors import (
    ConfigError,
    DataError,
    LearnerLostError,
    MRPOError,
    NonFiniteError,
    ResourceError,
    WeightSyncError,
)
from mrpo.types import LearnStats
from tests.integration.learner_world import (
    build_world,
    completions,
    first_moments,
    make,
    relative_difference,
    spec,
    to_score,
)

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


@pytest.mark.parametrize("stage", [pytest.param(0, marks=pytest.mark.slow), 2, 3])
def test_ranks_change_nothing(world: Path, stage: int, tmp_path: Path) -> None:
    """Losses, gradients and log-probs on two ranks equal those of one, which can resume what two have saved.

    One rank and two make the same eight micro-batches here, so that the gradients' sum has another order and no more:
    `test_micro_batches_change_nothing` is about other micro-batches.
    """
    # Advantages of one sign, because rounding is large relative to gradients that cancel.
    samples = [replace(item, advantages=[abs(value) for value in item.advantages]) for item in completions(world)]
    alone = make(spec(world, tokens_per_micro_batch=60))

    async def on_two_ranks(learner: DeepSpeedLearner) -> None:
        assert_same(await learner.step(samples, progress=0.0), train_step(alone, samples, progress=0.0))
        await learner.save(str(tmp_path))
        saved = file_bytes(tmp_path)
        resumed = make(spec(world))
        load(resumed, tmp_path)
        assert relative_difference(first_moments(resumed), first_moments(alone)) < 1e-6
        (tmp_path / "behind").mkdir()
        await learner.snapshot()
        _, second = await asyncio.gather(learner.write(str(tmp_path / "behind")), learner.step(samples, progress=0.1))
        assert file_bytes(tmp_path / "behind") == saved, "written behind the back of a step, as before it"
        for rank in (alone, resumed):
            assert_same(second, train_step(rank, samples, progress=0.1))
        theirs = score(alone, to_score(samples))
        for index, mine in enumerate(await learner.score(to_score(samples))):
            assert mine == pytest.approx(theirs[index], abs=1e-4)

        await check_weights(learner, tmp_path)

        (tmp_path / "taken" / "learner").mkdir(parents=True)
        await learner.snapshot()
        with pytest.raises(ResourceError, match=r"no checkpoint can be written to .*taken \(.*File exists"):
            await learner.write(str(tmp_path / "taken"))
        with pytest.raises(ResourceError, match=r"no checkpoint can be written to .*taken \(.*File exists"):
            await learner.save(str(tmp_path / "taken"))  # only the rank that writes meets it
        with pytest.raises(ResourceError, match="learner-0 failed in write: AssertionError: each snapshot is written"):
            await learner.write(str(tmp_path / "taken"))  # an error nobody foresaw

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

    run(spec(world, num_ranks=2, zero_stage=stage, tokens_per_micro_batch=60, bucket_mib=0.7), on_two_ranks)


def file_bytes(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def check_weights(learner: DeepSpeedLearner, folder: Path) -> None:
    """Two engines get the weights under their checkpoint names; one that refuses leaves no shared memory taken."""
    actor = ray.remote(receiver_class()).options(num_cpus=0)
    receivers = [actor.remote() for _ in range(2)]
    learner.connect(transfer=WeightTransfer.SHM)
    fresh = folder / "after"
    fresh.mkdir()
    await learner.save(str(fresh))
    stats = await learner.publish(receivers)
    expected = load_file(fresh / "hf" / "model.safetensors")
    assert stats["bytes"] == sum(tensor.nbytes for tensor in expected.values())
    for receiver in receivers:
        calls, weights, _ = await receiver.report.remote()
        assert calls == ["init", "start", *["update"] * int(stats["buckets"]), "finish"]
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
    with pytest.raises(WeightSyncError, match="engine on fire"):
        await learner.publish([receivers[0], actor.remote(fail=True)])
    _, _, paths = await receivers[0].report.remote()
    assert not any(Path(path).exists() for path in paths)
    dying = actor.remote(die=True)
    await learner.publish([dying, receivers[1]])
    calls, weights, _ = await receivers[1].report.remote()
    assert calls[calls.index("finish") + 1 :] == ["init", "start", *["update"] * int(stats["buckets"]), "finish"]
    assert all(torch.equal(weights[name], expected[name]) for name in expected), "the other one has them all the same"
    with pytest.raises(WeightSyncError, match="no engine is left"):
        await learner.publish([dying])


def test_an_engine_that_hangs_in_a_transfer_is_left_behind_and_a_transfer_that_hangs_ends_the_ranks(
    world: Path,
) -> None:
    """As with an engine that dies in the middle of a broadcast: the ranks would wait for it for an hour."""

    async def publish(learner: DeepSpeedLearner) -> None:
        actor = ray.remote(receiver_class()).options(num_cpus=0)
        hanging = actor.remote(hang=True)
        learner.connect(transfer=WeightTransfer.SHM)
        started = time.monotonic()
        with pytest.raises(WeightSyncError, match=r"no engine is left .*no answer within 5 s"):
            await learner.publish([hanging])
        learner.publish_timeout_s = 1.0
        with pytest.raises(
            LearnerLostError, match=r"learner-0.* did not publish within learner\.publish_timeout_s=1 s: in "
        ):
            await learner.publish([hanging])
        assert time.monotonic() - started < 60.0
        with pytest.raises(MRPOError, match="there are no ranks to save"):
            await learner.save("nowhere")
        ray.kill(hanging)

    run(spec(world, publish_timeout_s=10.0), publish)


def assert_same(mine: LearnStats, other: LearnStats) -> None:
    assert mine.loss == pytest.approx(other.loss, rel=1e-5, abs=1e-6)
    assert mine.grad_norm == pytest.approx(other.grad_norm, rel=1e-5)
    assert mine.entropy == pytest.approx(other.entropy, rel=1e-5)
    assert (mine.num_tokens, mine.lr) == (other.num_tokens, other.lr)


def test_a_group_that_finds_no_place_says_what_it_needs(world: Path) -> None:
    async def start() -> None:
        await DeepSpeedLearner(spec(world, num_ranks=64, start_timeout_s=1.0)).start()

    with pytest.raises(ResourceError, match=r"64 × .* are not free .*lower learner\.num_ranks"):
        asyncio.run(start())


def test_a_bad_setting_arrives_as_the_users_error(world: Path) -> None:
    with pytest.raises(ConfigError, match="zero_stage"):
        run(spec(world, dtype="bfloat16", zero_stage=0), lambda learner: learner.publish([]))
