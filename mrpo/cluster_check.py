"""Whether the nodes of a cluster can work together, asked before anything expensive starts there. Ray must be up."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from mrpo.atomic import write_text
from mrpo.choices import Device, WeightTransfer
from mrpo.config import Config
from mrpo.errors import ResourceError, first_few
from mrpo.installation import Installation, installation
from mrpo.ray_nodes import INSTALLED_TIMEOUT_S, submit_to, why
from mrpo.record_errors import recording

SEEN_WITHIN_S = 5.0  # a shared file system may show a new file late


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node that is up."""

    node_id: str
    name: str  # as messages and Ray's dashboard show it
    resources: Mapping[str, float]  # in all
    installed: Installation | None  # None: it could not be asked
    trouble: str = ""  # why


def check_cluster(config: Config, written: Path | None) -> None:
    """Refuse a cluster whose nodes have other software than this process, or none, or share no memory or folder.

    Args:
        config: of the run.
        written: existing folder that learner ranks and engines write to; None: there are none.

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
    if written is not None:
        check_shared(config, nodes, written)


def check_one_host(config: Config, nodes: list[Node]) -> None:
    """Refuse engines and ranks that may land on several hosts, where weights go through the memory of one.

    Raises:
        ResourceError: names the hosts.
    """
    hosts = {
        (node.installed.host, node.name) for node in nodes if node.installed is not None and _may_compute(config, node)
    }
    if len({host for host, _ in hosts}) <= 1:
        return
    named = ", ".join(sorted(name for _, name in hosts))
    raise ResourceError(
        f"cluster.weight_transfer=shm passes weights through the memory of one host, and engines or learner ranks may "
        f"land on {len({host for host, _ in hosts})} hosts ({named}); use nccl on GPUs, or keep both on one host: "
        "`ray start --num-cpus=0` on the others (judge actors may stay there) and rollout.resources for the engines"
    )


def check_shared(config: Config, nodes: Sequence[Node], folder: Path) -> None:
    """Refuse a folder that a node which may hold an engine or a rank does not share: no checkpoint would get there.

    Raises:
        ResourceError: names the folder and the nodes.
    """
    probe = folder / f".probe.{uuid.uuid4().hex}.tmp"  # a new name: that an old one is missing may be remembered
    with recording(probe):
        write_text(probe, "")
    try:
        asked = [
            (node, submit_to(node.node_id, trouble_with, probe, SEEN_WITHIN_S))
            for node in nodes
            if _may_compute(config, node)
        ]
        faults = [f"{node.name} {trouble}" for node, reference in asked if (trouble := _trouble(reference))]
    finally:
        probe.unlink(missing_ok=True)
    if faults:
        raise ResourceError(
            f"{len(faults)} of {len(asked)} nodes that may hold a learner rank or an engine do not share {folder}: "
            f"{first_few(faults)}; checkpoints and logs are written there on whatever node they are, so runs_dir must "
            "lie on a file system that all of them have under the same path: set runs_dir=<shared folder>"
        )


def trouble_with(probe: Path, patience_s: float) -> str:
    """What keeps this machine from the folder where another one has just written `probe`; empty: nothing."""
    ends_at = time.monotonic() + patience_s
    while not probe.is_file():
        if time.monotonic() > ends_at:
            return "does not see it"
        time.sleep(0.2)
    return "" if os.access(probe.parent, os.W_OK) else "may not write there"


def _trouble(reference: Any) -> str:
    try:
        return str(ray.get(reference, timeout=INSTALLED_TIMEOUT_S))
    except RayError as error:
        return f"does not say whether it sees it ({why(error, INSTALLED_TIMEOUT_S)})"


def ask_nodes() -> list[Node]:
    """Every node that is up, with what is installed there."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    asked = [(node, submit_to(node["NodeID"], installation)) for node in alive]
    return [_answer(node, reference) for node, reference in asked]


def _answer(node: Mapping[str, Any], reference: Any) -> Node:
    name = f"node {node['NodeID'][:8]} ({node['NodeManagerHostname']}, {node['NodeManagerAddress']})"
    found: Installation | None = None
    trouble = ""
    try:
        found = ray.get(reference, timeout=INSTALLED_TIMEOUT_S)
    except RayError as error:
        trouble = why(error, INSTALLED_TIMEOUT_S)
    return Node(node_id=node["NodeID"], name=name, resources=node["Resources"], installed=found, trouble=trouble)


def _may_compute(config: Config, node: Node) -> bool:
    """Whether a learner rank or an engine may land there."""
    rank = {"CPU": 1.0} if config.cluster.device == Device.CPU else {"CPU": 1.0, "GPU": 1.0}
    engine: Mapping[str, float] = config.rollout.resources
    return _has(node, rank) or (bool(engine) and _has(node, engine))


def _has(node: Node, wanted: Mapping[str, float]) -> bool:
    return all(node.resources.get(name, 0.0) >= amount for name, amount in wanted.items())
