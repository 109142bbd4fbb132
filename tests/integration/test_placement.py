"""Layouts as Ray really places them: two nodes of four pretended GPUs, and actors that only tell where they are.

Ray runs in a process of its own, because it can join one cluster at a time and the other tests share theirs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from mrpo.choices import Device, JudgeKind, Placement
from mrpo.config import ClusterConfig, Config, JudgeConfig, LearnerConfig, RolloutConfig, VllmJudgeConfig
from mrpo.placement import Layout, placement_of

WORLD = """
import asyncio, json, sys
import ray
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from mrpo.errors import ResourceError
from mrpo.ray_placement import reserved
from tests.integration.test_placement import LAYOUTS, TOO_LARGE, layout

class Lodger:
    def where(self):
        return ray.get_runtime_context().get_node_id(), [str(gpu) for gpu in ray.get_gpu_ids()]

async def lodge(name):
    async with reserved(layout(**LAYOUTS[name])) as seats:
        actors = {}
        # Engines first and last, so that nothing rests on the order in which actors start.
        named = [*enumerate(seats.engines), *((f"rank {n}", seat) for n, seat in enumerate(seats.ranks))]
        named += [(f"judge {n}", seat) for n, seat in enumerate(seats.judges)]
        for who, seat in named:
            at = PlacementGroupSchedulingStrategy(seat.group, seat.bundle)
            actor = ray.remote(Lodger).options(num_cpus=1, num_gpus=seat.num_gpus, scheduling_strategy=at).remote()
            actors[str(who)] = (actor, seat)
        found = {}
        for who, (actor, seat) in actors.items():
            node, gpus = await actor.where.remote()
            found[who] = [node, list(seat.gpu_ids) or gpus]
        for actor, _ in actors.values():
            ray.kill(actor)
        return found

async def refuse():
    try:
        async with reserved(layout(**TOO_LARGE), timeout_s=1.0):
            return "found room"
    except ResourceError as error:
        return str(error)

async def main():
    found = {name: await lodge(name) for name in LAYOUTS}
    return {"found": found, "refused": await refuse(), "free": await lodge("split")}

small = dict(num_cpus=16, num_gpus=4, object_store_memory=80 * 2**20)
cluster = Cluster(initialize_head=True, head_node_args=small | dict(include_dashboard=False))
cluster.add_node(**small)
ray.init(address=cluster.address, log_to_driver=False)
print(json.dumps(asyncio.run(main())))
ray.shutdown()
cluster.shutdown()
"""
LAYOUTS: dict[str, dict[str, Any]] = {
    "split": {"engines": 1, "ranks": 3},
    "tensor parallel": {"engines": 1, "tensor_parallel": 2, "ranks": 6},
    "nobody said how many": {"engines": 2, "tensor_parallel": 2, "ranks": 2, "gpus_per_node": 0},
    "shared": {"engines": 4, "ranks": 4, "placement": Placement.COLOCATED},
    "shared, tensor parallel": {"engines": 4, "tensor_parallel": 2, "ranks": 8, "placement": Placement.COLOCATED},
    "split, a judge of its own": {"engines": 1, "ranks": 3, "judges": 2},
    "shared, a judge of its own": {"engines": 2, "ranks": 2, "judges": 2, "placement": Placement.COLOCATED},
}
TOO_LARGE: dict[str, Any] = {"engines": 5, "ranks": 4, "gpus_per_node": 0}


def layout(
    *,
    engines: int,
    ranks: int,
    tensor_parallel: int = 1,
    gpus_per_node: int = 4,
    placement: Placement = Placement.SPLIT,
    judges: int = 0,
) -> Layout:
    """`judges`: servers, of two GPUs each."""
    judge = JudgeConfig(
        kind=JudgeKind.VLLM if judges else JudgeKind.ORACLE,
        vllm=VllmJudgeConfig(model="m", num_servers=max(1, judges), tensor_parallel=2),
    )
    return placement_of(
        Config(
            cluster=ClusterConfig(device=Device.GPU, num_nodes=2, gpus_per_node=gpus_per_node, placement=placement),
            rollout=RolloutConfig(num_engines=engines, tensor_parallel=tensor_parallel),
            learner=LearnerConfig(num_ranks=ranks),
            judge=judge,
        )
    )


def bundle_of(plan: Layout, who: str) -> int | None:
    """Number of the bundle of an engine ("0"), a rank ("rank 0") or a judge's server ("judge 0")."""
    kind, _, number = who.rpartition(" ")
    if kind == "judge":
        return next(place for place, bundle in enumerate(plan.bundles) if bundle.judge == int(number))
    return plan.bundle_of_rank(int(number)) if kind == "rank" else plan.bundle_of_engine(int(number))


@pytest.fixture(scope="module")
def world() -> Any:
    done = subprocess.run([sys.executable, "-c", WORLD], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", LAYOUTS)
def test_ray_places_what_the_layout_says(world: Any, name: str) -> None:
    """Up to the numbers of nodes and GPUs, which are Ray's own: who shares a node or a GPU with whom is the plan's."""
    plan, found = layout(**LAYOUTS[name]), world["found"][name]
    nodes: dict[int, set[str]] = {}
    owners: dict[tuple[str, str], list[str]] = {}
    for who, (node, gpus) in found.items():
        number = bundle_of(plan, who)
        assert number is not None
        sizes = {"rank": 1, "judge": 2}
        assert len(gpus) == sizes.get(who.split()[0], plan.tensor_parallel)
        nodes.setdefault(number, set()).add(node)
        for gpu in gpus:
            owners.setdefault((node, gpu), []).append(who)
    assert all(len(there) == 1 for there in nodes.values()), "a bundle lies on one node"
    if plan.bundles[0].node is not None:
        together = {(plan.bundles[number].node, next(iter(there))) for number, there in nodes.items()}
        assert len(together) == len({node for node, _ in together}) == len({node for _, node in together})
    assert len(owners) == plan.num_gpus
    of_judges = [there for there in owners.values() if there[0].startswith("judge")]
    others = [there for there in owners.values() if there not in of_judges]
    assert all(len(there) == 1 for there in of_judges), owners
    expected = 2 if plan.shared else 1
    assert all(len(there) == expected for there in others), owners
    if plan.shared:
        for there in others:
            engine, rank = sorted(there)
            assert int(rank[5:]) // plan.tensor_parallel == int(engine)


def test_a_layout_that_is_not_free_is_refused_with_the_sum(world: Any) -> None:
    assert "9 GPUs" in world["refused"] and "8 GPUs" in world["refused"]


def test_what_was_reserved_is_given_back(world: Any) -> None:
    assert world["free"].keys() == world["found"]["split"].keys()
