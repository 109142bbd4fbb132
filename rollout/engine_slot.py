"""One engine's place in a pool, through all its lives: started, up, lost, started again."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from mrpo.errors import EngineError, MRPOError
from mrpo.faults import Fault, FaultKind, FaultLog
from mrpo.processes import EXIT_GRACE_S, descendants_of, kill_and_wait
from mrpo.ray_nodes import on_node, record_stacks, under_free_name
from mrpo.stacks import ActorProcess
from rollout.pulse import Pulse
from rollout.spec import EngineSpec
from rollout.worker import CLOSE_TIMEOUT_S, WorkerInfo

logger = logging.getLogger(__name__)

MAX_RESTARTS = 3  # of one engine, without a completion in between, until the pool no longer counts on it
BACK_OFF_S = (0.0, 5.0, 30.0, 60.0, 120.0, 300.0)  # before each of them; the last one before all further ones
NUM_LINES = 2  # of what Ray says of an actor's end
MAX_CHARACTERS = 300
GONE_TIMEOUT_S = 30.0  # of a killed process, until the kernel has taken it away with its memory

MakeActor = Callable[[EngineSpec, str], Any]  # the engine's description and the actor's name → a handle


class SlotState(StrEnum):
    """Where an engine stands."""

    PENDING = "pending"  # Ray has no room for its actor yet
    STARTING = "starting"  # it loads
    LOADED = "loaded"  # it is up, but without the policy's current weights
    UP = "up"  # it serves
    LOST = "lost"  # it is on its way to be started again
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class _Life:
    """One actor. Its calls are Ray's references: nothing here belongs to an event loop."""

    name: str
    handle: Any
    created_s: float  # time.monotonic()
    placed: Any  # → WorkerInfo, once Ray has found room
    ready: Any  # → WorkerInfo, once it is up
    watch: Any  # never answered: fails when the actor ends
    pulse: Pulse


class EngineSlot:
    """Whoever owns it calls `poll` now and then; starting and dying happen in Ray meanwhile."""

    def __init__(self, spec: EngineSpec, make: MakeActor, faults: FaultLog) -> None:
        self.spec = spec
        self.state = SlotState.LOST
        self.causes: list[str] = []  # of the restarts since its last completion
        self.start_error: MRPOError | None = None  # what the engine itself said against starting
        self._make = make
        self._faults = faults
        self._open: list[Fault] = []  # since it served last
        self._generations = itertools.count(1)  # no two lives share a name
        self._life: _Life | None = None
        self._info: WorkerInfo | None = None
        self._placed_s = 0.0
        self._not_before_s = 0.0
        self._burial: asyncio.Task[None] | None = None
        self._to_bury: WorkerInfo | None = None

    @property
    def name(self) -> str:
        """The actor's, or the last one's; no two lives share it."""
        return self._life.name if self._life is not None else self.spec.name

    @property
    def handle(self) -> Any:
        """The actor's."""
        assert self._life is not None
        return self._life.handle

    @property
    def pulse(self) -> Pulse:
        """The actor's signs of life."""
        assert self._life is not None
        return self._life.pulse

    @property
    def info(self) -> WorkerInfo | None:
        """Where it runs; None before it is placed."""
        return self._info

    @property
    def is_hopeless(self) -> bool:
        """Whether it was lost again and again: a pool goes on with others while it is tried ever more seldom."""
        return self.state == SlotState.LOST and len(self.causes) > MAX_RESTARTS

    @property
    def is_there(self) -> bool:
        """Whether it is up, with the current weights or without."""
        return self.state in (SlotState.LOADED, SlotState.UP)

    def start(self) -> None:
        """Ask Ray for the actor."""
        assert self.state == SlotState.LOST
        make = functools.partial(self._make, self.spec)
        handle, name = under_free_name(self.spec.name, make, self._generations)
        self._life = _Life(
            name=name,
            handle=handle,
            created_s=time.monotonic(),
            placed=handle.placed.remote(),
            ready=handle.ready.remote(),
            watch=handle.watch.remote(),
            pulse=Pulse(lambda: handle.progress.remote()),
        )
        self._info, self.state = None, SlotState.PENDING

    def poll(self, *, may_start: bool = True) -> None:
        """Find out what became of it, and go on from there.

        Args:
            may_start: whether this is a time to start an engine.
        """
        if self.state == SlotState.LOST:
            self._poll_lost(may_start)
        if self._life is None or self.state in (SlotState.LOST, SlotState.CLOSED):
            return
        life = self._life
        try:
            if self.state == SlotState.PENDING and _is_done(life.placed):
                self._info, self._placed_s = ray.get(life.placed), time.monotonic()
                self.state = SlotState.STARTING
            if self.state == SlotState.STARTING and _is_done(life.ready):
                self._info = ray.get(life.ready)
                logger.info("%s is up after %.1f s", life.name, self._info.start_s)
                self.state = SlotState.LOADED
            if _is_done(life.watch):
                ray.get(life.watch)
        except RayError as error:
            explained = explain(self.spec, error)
            if isinstance(error, RayTaskError) or (isinstance(error, RayActorError) and error.actor_init_failed):
                self.start_error = explained
            self.lose(FaultKind.ENGINE_LOST, str(explained))
        timeout_s = self.spec.rollout.start_timeout_s
        if self.state == SlotState.STARTING and time.monotonic() - self._placed_s > timeout_s:
            self.lose(FaultKind.ENGINE_STUCK, f"not up after rollout.start_timeout_s={timeout_s:g}; see {self.log}")

    @property
    def log(self) -> str:
        """Where its output is."""
        return self.spec.log_file or "the output above"

    def serve(self) -> None:
        """It is up, with the weights it should have."""
        self.state = SlotState.UP
        for fault in self._open:
            self._faults.end(fault)
        self._open.clear()

    def completed(self) -> None:
        """Something came of it: the next time it is lost is the first again."""
        self.causes.clear()

    def lose(self, kind: FaultKind, cause: str) -> None:
        """Give this life up: its processes are ended, and another is begun after a while."""
        assert self._life is not None
        logger.warning("%s", cause)
        process, fault = self._info, self._faults.begin(kind, self._life.name, cause)
        self._open.append(fault)
        self.causes.append(cause)
        self.state = SlotState.LOST
        back_off_s = BACK_OFF_S[min(len(self.causes), len(BACK_OFF_S)) - 1]
        self._not_before_s = time.monotonic() + back_off_s
        self._to_bury = process
        stuck = fault if kind == FaultKind.ENGINE_STUCK else None
        self._burial = asyncio.create_task(self._bury(self._life, process, stuck))
        if self.is_hopeless:
            times = len(self.causes)
            logger.error("%s was lost %d times without a completion; again in %g s", self.spec.name, times, back_off_s)

    def fail(self, name: str, kind: FaultKind, cause: str) -> None:
        """Lose the life of this name, once: several calls may notice the same."""
        if self.is_there and self.name == name:
            self.lose(kind, cause)

    def withdraw(self) -> None:
        """Take back the wish for an actor that Ray has no room for yet."""
        assert self._life is not None and self.state == SlotState.PENDING
        ray.kill(self._life.handle)
        self.state = SlotState.LOST

    async def close(self) -> None:
        """End the engine and its processes within a few seconds."""
        life, state, self.state = self._life, self.state, SlotState.CLOSED
        if self._burial is not None and not self._burial.done():
            await asyncio.wait([self._burial], timeout=CLOSE_TIMEOUT_S)
        if life is None or state in (SlotState.LOST, SlotState.CLOSED):
            return
        if state != SlotState.PENDING:
            with contextlib.suppress(TimeoutError, RayError, MRPOError):
                await asyncio.wait_for(life.handle.close.remote(), CLOSE_TIMEOUT_S + 1)
        with contextlib.suppress(TimeoutError):  # on a node that does not answer, it ends by itself
            await asyncio.wait_for(self._bury(life, self._info, None), CLOSE_TIMEOUT_S)

    def _poll_lost(self, may_start: bool) -> None:
        if self._burial is not None and self._burial.cancelled():  # its event loop ended before it did
            assert self._life is not None
            self._burial = asyncio.create_task(self._bury(self._life, self._to_bury, None))
        buried = self._burial is None or self._burial.done()
        if may_start and buried and time.monotonic() >= self._not_before_s:
            self._burial = None
            self.start()

    async def _bury(self, life: _Life, info: WorkerInfo | None, stuck: Fault | None) -> None:
        """End what is left of a life. A GPU's memory is free only when its processes are truly gone."""
        if info is not None and stuck is not None:
            process = ActorProcess(name=life.name, node_id=info.node_id, pid=info.pid)
            log_dir = Path(self.spec.log_file).parent if self.spec.log_file else None
            stacks = await record_stacks([process], log_dir=log_dir, stage=f"{life.name} stuck")
            stuck.detail += f"; {life.name} {stacks[life.name].summary}"
            self._faults.update(stuck)
            logger.warning("%s is stuck: %s", life.name, stacks[life.name].summary)
        ray.kill(life.handle)
        if info is None:
            return
        try:
            left = await on_node(info.node_id, end_processes, info.processes)
        except (RayError, TimeoutError) as error:
            logger.info("%s: its node does not answer (%s), and is taken for lost", life.name, type(error).__name__)
            return
        if left:
            logger.error("%s: processes %s did not end within %g s", life.name, left, GONE_TIMEOUT_S)


def _is_done(reference: Any) -> bool:
    return bool(ray.wait([reference], timeout=0, fetch_local=False)[0])


def end_processes(processes: tuple[tuple[int, float], ...]) -> list[int]:
    """Kill processes of this machine with all that descend from them, and wait until the kernel has let go of them.

    Args:
        processes: pid and start time (epoch seconds) of each, so that a number given anew is nobody's.

    Returns:
        Those that are still there.
    """
    found: list[psutil.Process] = []
    for pid, created_s in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if abs(process.create_time() - created_s) < 1.0:
                found.append(process)
    return kill_and_wait([*found, *descendants_of(found)], GONE_TIMEOUT_S, grace_s=EXIT_GRACE_S)


def explain(spec: EngineSpec, error: RayError) -> MRPOError:
    """Ray's error in our own words; one of ours leaves the actor as itself."""
    where = f"; see {spec.log_file}" if spec.log_file else ""
    if isinstance(error, RayTaskError):
        if isinstance(error.cause, MRPOError):
            return error.cause
        reason = " ".join(str(error.cause).split())
        return EngineError(f"{spec.name} failed: {type(error.cause).__name__}: {reason}{where}")
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("\t")]  # not Ray's ids
    if isinstance(error, RayActorError) and error.actor_init_failed:
        return EngineError(f"{spec.name} could not be created: {lines[-1].strip()}{where}")
    died = "died" if isinstance(error, RayActorError) else "did not answer"
    return EngineError(f"{spec.name} {died}: {' '.join(lines[:NUM_LINES])[:MAX_CHARACTERS]}{where}")
