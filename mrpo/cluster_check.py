"""Whether the nodes of a cluster can work together, asked before anything expensive starts there. Ray must be up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mrpo.choices import WeightTransfer
from mrpo.config import Config
from mrpo.errors import ResourceError, first_few
from mrpo.installation import Installation, installation
from mrpo.ray_nodes import INSTALLED_TIMEOUT_S, why


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node that is up."""

    name: str  # as messages and Ray's dashboard show it
    resources: Mapping[str, float]  # in all
    installed: Installation | None  # None: it could not be asked
    trouble: str = ""  # why


def check_cluster(config: Config) -> None:
    """Refuse a cluster whose nodes have other software than this process, or none, or share no memory they need to.

    Raises:
        ResourceError: which node, what it has and what is expected.
    """
    nodes, here = ask_nodes(), installation()
    faults = [f"{node.name} cannot run mrpo ({node.trouble})" for node in nodes if node.installed is None]
    for node in nodes:
        if node.installed is not None and (found := here.differences(node.installed)):
            faults.append(f"{node.name} has {', '.join(found)}")
    if faults:
        raise ResourceError(
            f"{len(faults)} of {len(nodes)} nodes of the cluster have not what is installed here: {first_few(faults)}; "
            "install the same on every node (make setup, or one image for all), then `ray start` there again"
        )
    if config.cluster.weight_transfer == WeightTransfer.SHM:
        check_one_host(config, nodes)


def check_one_host(config: Config, nodes: list[Node]) -> None:
    """Refuse engines and ranks that may land on several hosts, where weights go through the memory of one.

    Raises:
        ResourceError: names the hosts.
    """
    wanted: Mapping[str, float] = config.rollout.resources
    hosts = {
        (node.installed.host, node.name)
        for node in nodes
        if node.installed is not None and (_has(node, {"CPU": 1.0}) or (wanted and _has(node, wanted)))
    }
    if len({host for host, _ in hosts}) <= 1:
        return
    named = ", ".join(sorted(name for _, name in hosts))
    raise ResourceError(
        f"cluster.weight_transfer=shm passes weights through the memory of one host, and engines or learner ranks may "
        f"land on {len({host for host, _ in hosts})} hosts ({named}); use nccl on GPUs, or keep both on one host: "
        "`ray start --num-cpus=0` on the others (judge actors may stay there) and rollout.resources for the engines"
    )


def ask_nodes() -> list[Node]:
    """Every node that is up, with what is installed there."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    asked = [(node, _ask(node)) for node in alive]
    return [_answer(node, reference) for node, reference in asked]


def _ask(node: Mapping[str, Any]) -> Any:
    place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return ray.remote(installation).options(num_cpus=0, max_retries=0, scheduling_strategy=place).remote()


def _answer(node: Mapping[str, Any], reference: Any) -> Node:
    name = f"node {node['NodeID'][:8]} ({node['NodeManagerHostname']}, {node['NodeManagerAddress']})"
    found: Installation | None = None
    trouble = ""
    try:
        found = ray.get(reference, timeout=INSTALLED_TIMEOUT_S)
    except RayError as error:
        trouble = why(error, INSTALLED_TIMEOUT_S)
    return Node(name=name, resources=node["Resources"], installed=found, trouble=trouble)


def _has(node: Node, wanted: Mapping[str, float]) -> bool:
    return all(node.resources.get(name, 0.0) >= amount for name, amount in wanted.items())
