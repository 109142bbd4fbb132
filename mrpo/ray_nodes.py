"""What is asked of a Ray cluster's nodes: what an actor's process is doing there, and that it ends; actors' names.

Shared by the parts that keep actors (learner, rollout, judge) and by the composition root; needs Ray up.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import ActorAlreadyExistsError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mrpo.atomic import write_text
from mrpo.faults import FaultLog
from mrpo.installation import Installation, installation
from mrpo.node_watch import NodeWatch
from mrpo.stacks import ActorProcess, Stacks, kill, stacks_of

log = logging.getLogger(__name__)
T = TypeVar("T")

NODE_TIMEOUT_S = 40.0  # a worker that is started for the question takes seconds; py-spy up to 20
NUM_RETRIES = 3  # a stuck process must be found and killed on a node short of memory, too
INSTALLED_TIMEOUT_S = 120.0  # the first process of a node that has just joined


def under_free_name(name: str, make: Callable[[str], T], numbers: Iterator[int] | None = None) -> tuple[T, str]:
    """Make an actor under the first of `name`, `name.2`, … that is free: Ray frees the names of the dead late.

    Args:
        name: of the actor, as Ray's dashboard is to show it.
        make: makes it under the name it is given.
        numbers: those that may be tried, from 1 (without a suffix); None: all. What was tried is taken out of it.

    Returns:
        The actor and its name.
    """
    for number in itertools.count(1) if numbers is None else numbers:
        free = name if number == 1 else f"{name}.{number}"
        with suppress(ActorAlreadyExistsError):
            return make(free), free
    raise AssertionError(f"no number is left for another actor {name}")


def submit_to(node_id: str, function: Callable[..., object], *arguments: object, max_retries: int = 0) -> Any:
    """Ray's reference to what a plain function returns on a node; tried again so often if its process dies."""
    place = NodeAffinitySchedulingStrategy(node_id, soft=False)
    task = ray.remote(function).options(num_cpus=0, max_retries=max_retries, scheduling_strategy=place)
    return task.remote(*arguments)


async def on_node(node_id: str, function: Callable[..., T], *arguments: Any, timeout_s: float = NODE_TIMEOUT_S) -> T:
    """Call a plain function on a node; in this process where it is this one's.

    Raises:
        RayError: the node is gone.
        TimeoutError: it did not answer.
    """
    async with asyncio.timeout(timeout_s):
        if node_id == ray.get_runtime_context().get_node_id():
            return await asyncio.to_thread(function, *arguments)
        found: T = await submit_to(node_id, function, *arguments, max_retries=NUM_RETRIES)
        return found


async def actor_stacks(process: ActorProcess) -> Stacks:
    """What an actor's process is doing; an empty text with the reason where that cannot be found out."""
    try:
        return await on_node(process.node_id, stacks_of, process.pid)
    except (RayError, TimeoutError) as error:
        return Stacks(text="", state=f"its node {process.node_id[:8]} does not answer ({type(error).__name__})")


async def kill_process(process: ActorProcess) -> None:
    """SIGKILL, also to a process that Ray cannot end because it is stopped; where its node is gone, so is it."""
    try:
        await on_node(process.node_id, kill, process.pid)
    except (RayError, TimeoutError) as error:
        log.info("%s was not killed on its node: %s", process.name, type(error).__name__)


async def record_stacks(
    processes: Sequence[ActorProcess], *, log_dir: str | Path | None, stage: str
) -> dict[str, Stacks]:
    """Stacks of actors that are over a deadline, by name; kept in `logs/stacks-<stage>-<time>.txt`.

    Args:
        processes: all that the stage waits for.
        log_dir: existing folder; None: nothing is written.
        stage: what they were doing, a word or two.
    """
    if not processes:
        return {}
    found = dict(
        zip([item.name for item in processes], await asyncio.gather(*map(actor_stacks, processes)), strict=True)
    )
    if log_dir is not None:
        parts = [
            f"== {item.name} (pid {item.pid}, node {item.node_id}) {found[item.name].state}\n{found[item.name].text}"
            for item in processes
        ]
        name = f"stacks-{re.sub(r'[^a-z0-9]+', '-', stage.lower())}-{time.strftime('%Y%m%d-%H%M%S')}.txt"
        try:
            await asyncio.to_thread(write_text, Path(log_dir) / name, "\n".join(parts))
            log.warning("stacks of %s are in %s", ", ".join(found), Path(log_dir) / name)
        except OSError as error:  # a full disk must not hide what is stuck
            log.error("stacks of %s cannot be written: %s", ", ".join(found), error)
    return found


@asynccontextmanager
async def nodes_watched(faults: FaultLog, *, every_s: float) -> AsyncIterator[NodeWatch]:
    """Look at the cluster's nodes every so many seconds until the context is left, and ask those that join."""
    watch = NodeWatch(faults)
    watch.look(await asyncio.to_thread(alive_nodes))
    here = await asyncio.to_thread(installation)  # now: this process goes on with what it was started with
    task = asyncio.create_task(_watch(watch, every_s, here))
    try:
        yield watch
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _watch(watch: NodeWatch, every_s: float, here: Installation) -> None:
    async with asyncio.TaskGroup() as questions:
        while True:
            await asyncio.sleep(every_s)
            try:
                joined = watch.look(await asyncio.to_thread(alive_nodes))
            except RayError as error:  # the next look may succeed; what is lost by then is still lost
                log.warning("the cluster's nodes cannot be listed: %s", error)
                continue
            for node_id, address in joined.items():
                questions.create_task(_compare(here, node_id, address))


async def _compare(here: Installation, node_id: str, address: str) -> None:
    """Warn of a node on which actors of this run may fail, or do something else than on the others."""
    try:
        found = here.differences(await on_node(node_id, installation, timeout_s=INSTALLED_TIMEOUT_S))
        trouble = f"has {', '.join(found)}" if found else ""
    except RayTaskError as error:
        trouble = f"cannot run mrpo ({why(error)})"
    except (RayError, TimeoutError) as error:
        trouble = f"does not say what is installed there ({why(error, INSTALLED_TIMEOUT_S)})"
    if trouble:
        log.warning(
            "node %s (%s) has joined and %s: what Ray places there may fail or do something else; `ray stop` there, "
            "install what the others have (make setup, or one image for all), then `ray start` there again",
            *(address, node_id[:8], trouble),
        )


def why(error: RayError | TimeoutError, timeout_s: float = NODE_TIMEOUT_S) -> str:
    """Why a node did not answer, in half a line."""
    if isinstance(error, RayTaskError):
        return (str(error.cause).strip() or type(error.cause).__name__).splitlines()[-1]
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout_s:g} s"
    return f"{type(error).__name__}: {error}".splitlines()[0]


def alive_nodes() -> dict[str, str]:
    """Ray's id of every living node → its address, with its name where it has another one."""
    found = {}
    for node in ray.nodes():
        if node["Alive"]:
            address, name = node["NodeManagerAddress"], node["NodeName"]
            found[node["NodeID"]] = address if name == address else f"{name} {address}"
    return found
