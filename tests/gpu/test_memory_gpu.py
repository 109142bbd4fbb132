"""Memory on a CUDA device: the plan against the allocator's peak, and an engine that sleeps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu.engine_sleep import CONFIG
from tests.integration.plan_world import TOLERANCE
from tests.locations import REPOSITORY

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch finds none here"),
]


@pytest.mark.parametrize(
    ("family", "zero_stage"), [("qwen2_5_vl", 2), ("qwen3_vl", 2), ("internvl", 2), ("qwen2_5_vl", 3)]
)
def test_the_plan_is_within_15_per_cent_of_the_allocators_peak(family: str, zero_stage: int, tmp_path: Path) -> None:
    found = run("tests.gpu.step_memory", str(tmp_path), family, str(zero_stage))
    assert found["planned_at_rest"] == pytest.approx(found["at_rest"], rel=TOLERANCE), found
    assert found["planned_peak"] == pytest.approx(found["peak"], rel=TOLERANCE), found
    assert found["told"] == found["measured"], "the step's metric is the allocator's peak"


def test_a_sleeping_engine_gives_its_memory_back_and_writes_the_same_text_after(tmp_path: Path) -> None:
    found = run("tests.gpu.engine_sleep", str(tmp_path))
    free = found["free"]
    share = CONFIG.rollout.gpu_memory_utilization * found["total"]
    assert free["asleep"] - free["awake"] > 0.6 * share, found  # what stays is CUDA's context and vLLM's workspaces
    assert free["with weights"] > free["awake again"], "the cache comes back last"
    assert free["awake again"] == pytest.approx(free["awake"], abs=0.05 * share)
    assert "sleeps; wake_up and set_policy_version come before requests" in found["refused"]
    assert found["before"] and found["before"] == found["after"]


def run(module: str, *arguments: str) -> dict[str, Any]:
    """What a script of this folder prints."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-6000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
