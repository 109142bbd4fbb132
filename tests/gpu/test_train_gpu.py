"""The whole loop on CUDA devices: one that learner and engine share in turns, or one for each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mrpo.run_reading import RunStatus, read_metrics, read_state
from tests.locations import REPOSITORY

NUM_GPUS = torch.cuda.device_count()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(NUM_GPUS < 1, reason="needs a CUDA device, and torch finds none here"),
]
needs_two = pytest.mark.skipif(NUM_GPUS < 2, reason=f"needs two CUDA devices, and torch finds {NUM_GPUS} here")

SHORT = [
    *("num_steps=2", "data.num_train=16", "data.num_test=16"),
    *("model.warm_start.num_scans=64", "model.warm_start.true_steps=16", "model.warm_start.faulty_steps=2"),
    *("rollout.gpu_memory_utilization=0.3", "parity.max_mean_diff=0.05", "parity.probe_max_diff=0.1"),
]
FAMILIES = pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "internvl"])


@FAMILIES
def test_two_steps_on_a_shared_gpu(family: str, tmp_path: Path) -> None:
    train(tmp_path, "cluster=1x_gpu", f"model.toy_family={family}")


@pytest.mark.parametrize("transfer", ["merged", "adapter"])
def test_two_steps_of_adapters_on_a_shared_gpu(transfer: str, tmp_path: Path) -> None:
    train(tmp_path, "cluster=1x_gpu", "learner.lora.r=8", f"learner.lora.to_engines={transfer}")


@pytest.mark.parametrize("stage", [2, 3])
def test_two_steps_with_partitioned_states(stage: int, tmp_path: Path) -> None:
    train(tmp_path, "cluster=1x_gpu", f"learner.zero_stage={stage}", "learner.gradient_checkpointing=true")


@needs_two
@FAMILIES
def test_two_steps_on_a_gpu_each(family: str, tmp_path: Path) -> None:
    two = ["cluster=4x_gpu", "cluster.gpus_per_node=2", "learner.num_ranks=1"]
    train(tmp_path, *two, f"model.toy_family={family}")


def train(folder: Path, *overrides: str) -> None:
    """A short run, which ends by itself at the parity gate or the probe where learner and engine disagree."""
    command = [sys.executable, "-m", "mrpo.train", *overrides, *SHORT]
    command += [f"runs_dir={folder}/runs", f"cache_dir={folder}/cache"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    (run,) = (folder / "runs").glob("*/*/")
    assert read_state(run).status == RunStatus.FINISHED
    assert [row["step"] for row in read_metrics(run).rows] == [1, 2]
