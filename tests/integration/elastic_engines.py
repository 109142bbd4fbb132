"""Run as a program: engines that join with a node, and are lost with one, on a cluster of several nodes here.

Leaves one JSON object in `found.json`; the test that starts it says what must be in it. A program of its own, because
a process can be in one Ray cluster only.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
from PIL import Image
from ray.cluster_utils import Cluster

from mrpo.config import Config, RolloutConfig
from mrpo.faults import FAULTS_FILE, FaultLog, read_faults
from mrpo.phantom.toy_models import build_toy_model
from mrpo.types import RolloutRequest
from rollout.pool import VllmRolloutPool
from rollout.spec import engine_specs

CORPUS = ["The scan shows a liver.", "<think>The organ is the liver. It lies left.</think><answer>left</answer>"] * 3
PATIENCE_S = 400.0
SEAT = {"engine": 1.0}  # a node that has it has room for one engine


def requests(folder: Path) -> list[RolloutRequest]:
    return [
        RolloutRequest(
            prompt_id=f"{index // 4}",
            sample_index=index % 4,
            question="Which organ?",
            image=str(folder / "scan.png"),
            seed=1000 + index,
            temperature=1.0,
            top_p=1.0,
            max_new_tokens=60,
        )
        for index in range(64)
    ]


async def sample(
    pool: VllmRolloutPool, asked: list[RolloutRequest], on_third: Callable[[], None] | None = None
) -> dict[str, list[int]]:
    """Tokens of every request, doing something when three have come."""
    found: dict[str, list[int]] = {}
    async for completion in pool.generate(asked):
        assert completion.key not in found
        found[completion.key] = completion.completion_token_ids
        if len(found) == 3 and on_third is not None:
            on_third()
    return found


def states(pool: VllmRolloutPool) -> list[str]:
    return [depth.state for depth in pool.depths()]


async def until(pool: VllmRolloutPool, asked: list[RolloutRequest], wanted: list[str]) -> float:
    """Seconds until the engines stand as wanted; they are tended while something is generated."""
    started = time.monotonic()
    while states(pool) != wanted:
        assert time.monotonic() - started < PATIENCE_S, states(pool)
        await sample(pool, asked[:1])
        await asyncio.sleep(0.2)
    return time.monotonic() - started


async def main(folder: Path, cluster: Cluster, first: Any) -> dict[str, Any]:
    rollout = RolloutConfig(
        num_engines=1, max_engines=2, resources=SEAT, max_num_seqs=8, max_model_len=96, stall_timeout_s=60.0
    )
    config = Config(rollout=rollout)
    specs = engine_specs(config, str(folder / "model"), "qwen2_5_vl", log_dir=str(folder))
    pool = await VllmRolloutPool.start(specs, faults=FaultLog(folder / FAULTS_FILE))
    asked = requests(folder)
    begun_with = states(pool)
    undisturbed = await sample(pool, asked)
    pid = pool.processes()[0].pid
    cluster.add_node(num_cpus=1, resources=SEAT)
    joined_s = await until(pool, asked, ["up", "up"])
    nodes = {process.node_id for process in pool.processes()}
    disturbed = await sample(pool, asked, lambda: cluster.remove_node(first, allow_graceful=False))
    left_with = states(pool)
    deadline = time.monotonic() + 30.0
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    orphan = psutil.pid_exists(pid)
    cluster.add_node(num_cpus=1, resources=SEAT)
    back_s = await until(pool, asked, ["up", "up"])
    again = await sample(pool, asked)
    await pool.close()
    return {
        "begun_with": begun_with,
        "num_nodes": len(nodes),
        "same_when_a_node_is_lost": disturbed == undisturbed,
        "left_with": left_with,
        "orphan": orphan,
        "same_afterwards": again == undisturbed,
        "joined_s": joined_s,
        "back_s": back_s,
        "faults": [(fault.kind, fault.who, fault.recovery_s) for fault in read_faults(folder)],
    }


if __name__ == "__main__":
    place = Path(sys.argv[1])
    build_toy_model("qwen2_5_vl", place / "model", corpus=CORPUS)
    pixels = np.random.default_rng(0).integers(0, 255, (84, 84, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(place / "scan.png")
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    node = nodes.add_node(num_cpus=1, resources=SEAT)
    ray.init(address=nodes.address, namespace="elastic", log_to_driver=False)
    try:
        (place / "found.json").write_text(json.dumps(asyncio.run(main(place, nodes, node))))
    finally:
        ray.shutdown()
        nodes.shutdown()
