"""Several Ray nodes on this machine, what runs on them, and how to kill it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.cluster_utils import Cluster

from tests.integration.chaos_plan import Kill, Victim
from tests.integration.chaos_recovery import Killed, first_name

OBJECT_STORE_BYTES = 80 * 2**20  # of a node; Ray asks for at least 75 MiB
PR_SET_CHILD_SUBREAPER = 36
SHM = Path("/dev/shm")
CLASSES = {
    Victim.ENGINE: "RolloutWorker",
    Victim.ROLLOUT_ACTOR: "RolloutWorker",
    Victim.JUDGE_ACTOR: "JudgeWorker",
    Victim.LEARNER_RANK: "LearnerActor",
}
# Of Ray itself, on every node, for as long as the node is up.
RAY_PROCESSES = (
    "raylet",
    "gcs_server",
    "/site-packages/ray/",
    "ray::IDLE",
    "ray::DashboardAgent",
    "ray::RuntimeEnvAgent",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One kind of node."""

    num_cpus: int = 0  # learner ranks take one each
    resources: Mapping[str, float] = field(default_factory=dict)


def shapes(*, num_ranks: int, spare: bool) -> dict[str, Shape]:
    """Two nodes for an engine each, one for learner and judge actors, and one that can stand in for any of them."""
    service = Shape(num_cpus=num_ranks, resources={"judge": 2.0})
    nodes = {"engines-a": Shape(resources={"engine": 1.0}), "engines-b": Shape(resources={"engine": 1.0})}
    nodes["service"] = service
    if spare:
        nodes["spare"] = Shape(num_cpus=num_ranks, resources={"engine": 1.0, "judge": 2.0})
    return nodes


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """A living actor of the run."""

    name: str
    class_name: str
    pid: int
    node_id: str


class ChaosCluster:
    """A head for the driver, which is left alone, and nodes that may go. This process becomes a driver of its own."""

    def __init__(self, nodes: Mapping[str, Shape]) -> None:
        """Start the head and all nodes."""
        adopt_orphans()
        self._shapes = dict(nodes)
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "object_store_memory": OBJECT_STORE_BYTES,
                "include_dashboard": False,
                "node_name": "head",
            },
        )
        self.address = str(self._cluster.gcs_address)
        self._nodes: dict[str, Any] = {}
        for name in nodes:
            self.add_node(name)
        ray.init(address=self.address, namespace="chaos", log_to_driver=False, logging_level="ERROR")

    def add_node(self, name: str) -> None:
        """Start a node of the shape of this name."""
        shape = self._shapes[name]
        self._nodes[name] = self._cluster.add_node(
            wait=False,
            num_cpus=shape.num_cpus,
            resources=dict(shape.resources),
            object_store_memory=OBJECT_STORE_BYTES,
            node_name=name,
        )

    def actors(self) -> list[Actor]:
        """Living actors, in the order of their names."""
        table = self._cluster.global_state.actor_table(None, None, "ALIVE")
        found = [
            Actor(name=row["Name"], class_name=row["ActorClassName"], pid=row["Pid"], node_id=row["Address"]["NodeID"])
            for row in table.values()
        ]
        return sorted(found, key=lambda actor: (actor.class_name, actor.name, actor.pid))

    def kill(self, kill: Kill, step: int, *, starting: Collection[str] = ()) -> Killed | None:
        """Carry a kill out; None where nothing of its kind is alive.

        Args:
            kill: what is due.
            step: the highest on record.
            starting: actors on their way back, killed again only where there are no others.
        """
        if kill.victim == Victim.NODE:
            return self._kill_node(kill, step)
        alive = [actor for actor in self.actors() if actor.class_name == CLASSES[kill.victim]]
        if not alive:
            return None
        candidates = [actor for actor in alive if first_name(actor.name) not in starting] or alive
        actor = candidates[int(kill.pick * len(candidates))]
        killed = Killed(
            kill=kill,
            name=actor.name,
            at_s=time.time(),
            step=step,
            actors=[actor.class_name],
            bearers=[first_name(actor.name)],
        )
        if kill.victim == Victim.ROLLOUT_ACTOR and actor.name:
            [namespace] = {
                row["namespace"] for row in ray.util.list_named_actors(all_namespaces=True) if row["name"] == actor.name
            }
            ray.kill(ray.get_actor(actor.name, namespace=namespace))
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(actor.pid, signal.SIGKILL)
        return killed

    def _kill_node(self, kill: Kill, step: int) -> Killed | None:
        """Of a node that has something to lose."""
        homes = {actor.node_id for actor in self.actors()}
        candidates = sorted(name for name, node in self._nodes.items() if node.node_id in homes)
        if not candidates:
            return None
        name = candidates[int(kill.pick * len(candidates))]
        node = self._nodes.pop(name)
        lost = [actor for actor in self.actors() if actor.node_id == node.node_id]
        killed = Killed(
            kill=kill,
            name=name,
            at_s=time.time(),
            step=step,
            actors=[actor.class_name for actor in lost],
            bearers=[name, *(first_name(actor.name) for actor in lost)],
        )
        self._cluster.remove_node(node, allow_graceful=False)
        return killed

    @property
    def missing(self) -> list[str]:
        """Names of nodes that were killed and have not been replaced."""
        return [name for name in self._shapes if name not in self._nodes]

    def close(self) -> None:
        """End all nodes."""
        ray.shutdown()
        self._cluster.shutdown()


@contextmanager
def chaos_cluster(nodes: Mapping[str, Shape]) -> Iterator[ChaosCluster]:
    """A cluster for the length of the block."""
    cluster = ChaosCluster(nodes)
    try:
        yield cluster
    finally:
        cluster.close()


def adopt_orphans() -> None:
    """Whatever a descendant of this process starts and leaves behind stays a descendant of it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def working_processes() -> dict[int, str]:
    """Living descendants of this process that are no part of Ray's own services: pid → command line."""
    return {pid: line for pid, line in descendants().items() if not any(item in line for item in RAY_PROCESSES)}


def descendants() -> dict[int, str]:
    """Living descendants of this process: pid → command line."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = " ".join(process.cmdline())[:160]
    return found


def left_after(look: Callable[[], dict[int, str]], patience_s: float) -> list[str]:
    """What is still there when there has been time to end, a line each."""
    ends_at = time.monotonic() + patience_s
    while (left := look()) and time.monotonic() < ends_at:
        time.sleep(0.2)
    return [f"process {pid}: {line}" for pid, line in left.items()]


def shared_memory() -> set[str]:
    """Names of what lies in /dev/shm."""
    return {path.name for path in SHM.iterdir()}


def left_in_shared_memory(before: Iterable[str], patience_s: float) -> list[str]:
    """What was not there before, and no living process has open, a line each.

    Other programs of this machine use it too, and what they leave for a moment is given time to go.
    """
    ends_at = time.monotonic() + patience_s
    while (left := _unused(shared_memory() - set(before))) and time.monotonic() < ends_at:
        time.sleep(1.0)
    return [f"{SHM}/{name} was left behind" for name in sorted(left)]


def _unused(names: set[str]) -> set[str]:
    open_now = set()
    for process in psutil.process_iter() if names else ():
        with contextlib.suppress(OSError, psutil.Error):
            for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines():
                if str(SHM) in line:
                    open_now.add(line.split(f"{SHM}/", 1)[1].removesuffix(" (deleted)"))
            for link in Path(f"/proc/{process.pid}/fd").iterdir():
                open_now.add(os.readlink(link).removeprefix(f"{SHM}/"))
    return names & shared_memory() - open_now
