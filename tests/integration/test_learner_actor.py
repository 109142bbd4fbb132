"""A rank's actor in this process: what it leaves on a GPU that an engine takes next."""

from __future__ import annotations

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from learner.actor import LearnerActor
from learner.distributed import free_port
from learner.receivers import Receivers
from learner.spec import spec_of
from learner.weight_sync import SyncStats
from mrpo.choices import Device, Placement, WeightTransfer
from mrpo.config import ClusterConfig, Config
from mrpo.types import SftSample
from tests.integration.learner_world import build_world, completions, device, spec, to_score


class Sender:
    """Sends nothing."""

    def send(self) -> SyncStats:
        return SyncStats(num_bytes=0, num_buckets=0, seconds=0.0)


@pytest.mark.parametrize("placement", Placement)
def test_a_rank_knows_from_the_start_whether_an_engine_shares_its_gpu(placement: Placement) -> None:
    config = Config(cluster=ClusterConfig(device=Device.GPU, placement=placement))
    assert spec_of(config, "model").shares_gpu == (placement == Placement.COLOCATED)


@pytest.mark.parametrize("shares_gpu", [True, False])
def test_a_shared_gpu_gets_its_cached_memory_back_after_every_call(
    shares_gpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's cache of a GPU is emptied whatever the call was, and however it ended."""
    build_world(tmp_path)
    device()  # the process group that the actor would join
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # else `start` would leave it behind
    emptied: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append("emptied"))
    samples = completions(tmp_path, num_groups=1)
    examples = [SftSample(image=samples[0].image, question="Where?", target="There.")]
    bad = replace(samples[0], image=str(tmp_path / "gone.png"))
    actor = LearnerActor(replace(spec(tmp_path), shares_gpu=shares_gpu), 0)
    folder = tmp_path / "saved"
    folder.mkdir()
    nobody = Receivers(engines=(), transfer=WeightTransfer.SHM, ranks_per_engine=1)
    calls: dict[str, Callable[[], object]] = {
        "start": lambda: actor.start("127.0.0.1", free_port(), ["here"]),
        "warm_start": lambda: actor.warm_start(examples, 1, 1, 1e-3, 0),
        "step": lambda: actor.step(samples, 0.0),
        "score": lambda: actor.score(to_score(samples)),
        "publish": lambda: actor.publish(nobody),
        "snapshot": lambda: actor.snapshot(0.0),
        "save": lambda: actor.save(str(folder)),
        "load": lambda: actor.load(str(folder)),
    }
    for name, call in calls.items():
        call()
        assert len(emptied) == (1 if shares_gpu else 0), name
        emptied.clear()
        actor._sender, actor._met = Sender(), nobody.ids  # engines are not met here
    with pytest.raises(ValueError, match="cannot read image"):
        actor.step([bad], 0.0)
    assert len(emptied) == (1 if shares_gpu else 0)


@pytest.mark.parametrize(("configured", "expected"), [(0, 8), (3, 3)])
def test_a_rank_computes_with_its_share_of_its_own_machines_cores(
    configured: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever Ray has given the actor, and on GPUs too, where the optimizer may be on the CPU."""
    build_world(tmp_path)
    device()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    before = torch.get_num_threads()
    try:
        LearnerActor(spec(tmp_path, num_threads=configured), 0).start("127.0.0.1", free_port(), ["a", "b", "a"])
        assert (torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]) == (expected, str(expected))
    finally:
        torch.set_num_threads(before)
