"""Several Ray nodes on this machine: stacks and ends of actors on another node, nodes that leave and join."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mrpo.faults import FAULTS_FILE, FaultKind, FaultLog, read_faults
from mrpo.ray_nodes import actor_stacks, kill_process, nodes_watched, record_stacks
from mrpo.stacks import ActorProcess, answer_stack_requests
from tests.locations import REPOSITORY

TIMEOUT_S = 300.0
OBJECT_STORE_BYTES = 80 * 2**20


@pytest.mark.slow
def test_another_node(tmp_path: Path) -> None:
    """In a process of its own: this one may be connected to another Ray."""
    command = [sys.executable, "-m", "tests.integration.test_ray_nodes", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr


class Waiting:
    """An actor that does not come back."""

    def __init__(self) -> None:
        answer_stack_requests()

    def where(self) -> tuple[str, int]:
        import os

        return str(ray.get_runtime_context().get_node_id()), os.getpid()

    def wait_for_ever(self) -> None:
        import threading

        threading.Event().wait()


async def check(cluster: Cluster, folder: Path) -> None:
    node = cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES)
    cluster.wait_for_nodes()
    place = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
    actor = ray.remote(Waiting).options(scheduling_strategy=place).remote()
    node_id, pid = await actor.where.remote()
    assert node_id == node.node_id != ray.get_runtime_context().get_node_id()
    process = ActorProcess(name="waiting-0", node_id=node_id, pid=pid)
    call = actor.wait_for_ever.remote()
    await asyncio.sleep(1.0)

    found = await record_stacks([process], log_dir=folder, stage="a wait")
    assert "wait_for_ever" in found["waiting-0"].text
    [file] = folder.glob("stacks-a-wait-*.txt")
    assert file.read_text().startswith(f"== waiting-0 (pid {pid}, node {node_id})")
    await kill_process(process)
    with pytest.raises(ray.exceptions.RayActorError):
        await call

    async with nodes_watched(FaultLog(folder / FAULTS_FILE), every_s=0.5) as watch:
        cluster.remove_node(node, allow_graceful=False)
        while not watch.num_lost:
            await asyncio.sleep(0.2)
        [lost] = read_faults(folder)
        assert lost.kind == FaultKind.NODE_LOST and node_id[:8] in lost.who and lost.recovery_s is None
        gone = await actor_stacks(process)
        assert not gone.text and "does not answer" in gone.state
        cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES)
        while not watch.num_joined:
            await asyncio.sleep(0.2)
    [mended] = read_faults(folder)
    assert mended.recovery_s is not None


def main(folder: Path) -> None:
    head = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        asyncio.run(check(cluster, folder))
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
