"""Adapters loaded beside an engine's base weights: log-probs are the learner's, and those of merged weights."""

from __future__ import annotations

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from learner.adapter_sender import AdapterSender
from learner.step import score
from learner.weight_sync import RayWeightSyncClient
from mrpo.choices import LoraTransfer
from mrpo.config import Config, LearnerConfig, LoraConfig, ModelConfig, RolloutConfig
from mrpo.errors import WeightSyncError
from mrpo.types import ScoreSample
from rollout.pool import VllmRolloutPool
from rollout.spec import engine_specs
from tests.integration.learner_world import build_world, completions, make, spec, to_score

LORA = LoraConfig(r=4, alpha=8.0, dropout=0.0, to_engines=LoraTransfer.ADAPTER)


@dataclass
class World:
    """A learner with an adapter in this process, and an engine that takes adapters."""

    folder: Path
    family: str
    rank: Any
    pool: VllmRolloutPool
    samples: list[ScoreSample]

    def engine_scores(self) -> list[list[float]]:
        return asyncio.run(self.pool.score(self.samples))

    def learner_scores(self, rank: Any) -> list[list[float]]:
        found = score(rank, self.samples)
        return [found[index] for index in range(len(self.samples))]

    def perturb(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.rank.adapters.weights():
                if "lora_B" in name:
                    parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(
    scope="module",
    params=[
        "qwen2_5_vl",
        pytest.param("qwen3_vl", marks=pytest.mark.slow),
        pytest.param("internvl", marks=pytest.mark.slow),
    ],
)
def world(
    request: pytest.FixtureRequest, ray_session: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    folder = tmp_path_factory.mktemp(request.param)
    build_world(folder)
    config = Config(
        rollout=RolloutConfig(max_num_seqs=16, max_model_len=96, start_timeout_s=500.0),
        model=ModelConfig(max_pixels=10_000),
        learner=LearnerConfig(lora=LORA),
    )
    model = str(folder / request.param)
    pool = asyncio.run(VllmRolloutPool.start(engine_specs(config, model, request.param, log_dir=str(folder))))
    rank = make(spec(folder, request.param, lora=LORA))
    samples = to_score(completions(folder, request.param, num_groups=2, group_size=2))
    yield World(folder, request.param, rank, pool, samples)
    asyncio.run(pool.close())


def mean_difference(mine: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> float:
    pairs = [(a, b) for one, other in zip(mine, theirs, strict=True) for a, b in zip(one, other, strict=True)]
    return sum(abs(a - b) for a, b in pairs) / len(pairs)


def test_each_adapter_takes_the_place_of_the_former(world: World) -> None:
    sender = AdapterSender(RayWeightSyncClient(world.pool.handles), world.rank)
    sender.connect()
    base = world.engine_scores()
    sender.send()
    asyncio.run(world.pool.set_policy_version(1))
    assert mean_difference(world.engine_scores(), base) < 1e-5, "an adapter starts as zero"
    for version in (2, 3):
        world.perturb(version)
        stats = sender.send()
        asyncio.run(world.pool.set_policy_version(version))
        assert stats.num_bytes == sum(parameter.numel() * 4 for _, parameter in world.rank.adapters.weights())
        scores = world.engine_scores()
        assert mean_difference(scores, base) > 1e-2
        assert mean_difference(scores, world.learner_scores(world.rank)) < 1e-3
        base = scores


def test_an_adapter_gives_the_log_probs_of_merged_weights(world: World) -> None:
    world.perturb(4)
    AdapterSender(RayWeightSyncClient(world.pool.handles), world.rank).send()
    asyncio.run(world.pool.set_policy_version(4))
    merged = make(spec(world.folder, world.family))
    weights = dict(world.rank.source)
    with torch.no_grad():
        own = dict(merged.source)
        assert own.keys() == weights.keys()
        for name, tensor in own.items():
            tensor.copy_(weights[name])
    assert mean_difference(world.engine_scores(), world.learner_scores(merged)) < 1e-4


def test_a_damaged_adapter_leaves_an_engine_that_says_so(world: World) -> None:
    """Runs last: the engine has no adapter after it."""
    client = RayWeightSyncClient(world.pool.handles)
    with pytest.raises(WeightSyncError, match="no engine is left to receive weights"):
        client.load_adapter({"adapter_config.json": b"{}"})
    with pytest.raises(WeightSyncError, match="unfinished weight update"):
        world.engine_scores()
    (handle,) = world.pool.handles
    assert ray.get(handle.ready.remote()).name == "engine-0"
