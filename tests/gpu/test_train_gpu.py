"""The whole loop on one CUDA device that learner and engine share; not part of `make test`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mrpo.run_reading import RunStatus, read_metrics, read_state
from tests.locations import REPOSITORY

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch finds none here"),
]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "internvl"])
def test_two_steps_with_weights_by_ipc(family: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mrpo.train", "cluster=1x_gpu"]
    command += [f"model.toy_family={family}", "num_steps=2", "data.num_train=16", "data.num_test=16"]
    command += ["model.warm_start.num_scans=64", "model.warm_start.true_steps=16", "model.warm_start.faulty_steps=2"]
    command += ["rollout.gpu_memory_utilization=0.3", "parity.max_mean_diff=0.05", "parity.probe_max_diff=0.1"]
    command += [f"runs_dir={tmp_path}/runs", f"cache_dir={tmp_path}/cache"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").glob("*/*/")
    assert read_state(folder).status == RunStatus.FINISHED
    assert [row["step"] for row in read_metrics(folder).rows] == [1, 2]
