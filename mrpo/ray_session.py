"""Ray as long as a command needs it: started here or joined, and nothing that it started left behind."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import psutil

from mrpo.config import Config
from mrpo.console import Console
from mrpo.errors import ClusterError, ResourceError
from mrpo.placement import placement_of
from mrpo.preflight import check_gpus
from mrpo.processes import descendants_of, kill_and_wait
from mrpo.reaper import Reaper

logger = logging.getLogger(__name__)

# Of one process, for `ray timeline`; Ray keeps the newest 1,000, which a run of 140 steps fills.
TIMELINE_SPANS = 100_000
OBJECT_STORE_BYTES = 256 * 2**20  # completions and advantages are small; weights travel outside Ray
STRAY_GRACE_S = 3.0
PROBE_S = 5.0  # for a cluster's port to answer; Ray's own patience is minutes


def start_ray(
    config: Config,
    console: Console,
    stack: AsyncExitStack,
    *,
    after_ray: Callable[[], None],
    learner: bool = True,
    engines: bool = True,
    written: Path | None = None,
) -> None:
    """Start Ray or join the cluster's; `stack` ends it, and what was started and not ended.

    Args:
        config: of the run.
        console: told what starts.
        stack: of the caller.
        after_ray: called once Ray is up.
        learner: whether the cluster must have room for one.
        engines: whether it must have room for them.
        written: existing folder that they write to, which their nodes must share; None: nobody does.
    """
    spare = [child.pid for child in descendants_of([psutil.Process()])]
    reaper = Reaper(spare)
    stack.callback(reaper.close)
    stack.callback(end_stray_processes, spare=[*spare, reaper.pid])
    with console.stage("Ray"):
        init_ray(config, learner=learner, engines=engines, written=written)
        stack.callback(_stop_ray)
        after_ray()


def init_ray(config: Config, *, learner: bool, engines: bool, written: Path | None = None) -> None:
    """Connect this process to Ray. Arguments as `start_ray`.

    Raises:
        ResourceError: Ray does not come up on this machine, or the cluster's nodes do not do.
        ClusterError: no cluster answers at `cluster.address`.
    """
    import ray

    if config.cluster.address is None:
        _init_local(config, placement_of(config, learner=learner, engines=engines).num_cpus)
        return
    from mrpo.cluster_check import check_cluster

    address = config.cluster.address
    try:
        _require_listener(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ray.exceptions.RayError) as error:
        raise ClusterError(
            f"no Ray cluster can be joined at cluster.address={address} ({_first_line(error)}); does "
            "`ray status` there show one (`ray start --head` starts it)? Without the setting this machine is used alone"
        ) from error
    check_cluster(config, written)
    check_gpus(config, int(ray.cluster_resources().get("GPU", 0)), learner=learner, engines=engines)


def _require_listener(address: str) -> None:
    """Raises `OSError` where nobody listens at host:port; other forms of an address (`auto`) are Ray's to look up."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "://" not in address:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_S).close()


def _init_local(config: Config, num_cpus: int) -> None:
    import ray

    try:
        ray.init(
            address="local",  # a Ray that runs on this machine is joined by cluster.address=auto, and only so
            # Ranks claim a CPU each; a laptop with fewer cores shares them rather than wait for ever.
            num_cpus=config.cluster.num_cpus or max(os.cpu_count() or 1, num_cpus),
            include_dashboard=config.cluster.dashboard,
            object_store_memory=OBJECT_STORE_BYTES,
            _metrics_export_port=config.cluster.metrics_port,
            _system_config={"task_events_max_num_profile_events_per_task": TIMELINE_SPANS},
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except Exception as error:
        # Ray raises an `Exception` as such where its node is not up within its 30 s.
        if type(error) is not Exception and not isinstance(error, RuntimeError | OSError):
            raise
        raise ResourceError(
            f"Ray did not start on this machine ({_first_line(error)}): it is too busy, or short of memory, or what an "
            "earlier Ray left behind is in the way; try again, after `ray stop` where no other Ray is needed here"
        ) from error


def _stop_ray() -> None:
    import ray

    ray.shutdown()


def end_stray_processes(spare: Sequence[int]) -> None:
    """End what this process started and did not end, as a last resort; says so, because nothing should be left.

    Args:
        spare: pids that were there before the parts and belong to others (an experiment tracker's, say).
    """
    children = descendants_of([psutil.Process()])
    strays = [child for child in children if child.is_running() and child.pid not in spare]
    for child in strays:
        logger.warning("ending stray process %d", child.pid)
        with suppress(psutil.NoSuchProcess):
            child.terminate()
    kill_and_wait(strays, 0.0, grace_s=STRAY_GRACE_S)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
