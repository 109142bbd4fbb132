"""Calls on all ranks of a group; one that dies or is stuck ends the others, which would wait for it for ever."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError, RayTaskError

from learner.actor import LearnerActor
from learner.spec import LearnerSpec
from mrpo.errors import LearnerLostError, LearnerStuckError, MRPOError, ResourceError
from mrpo.ray_nodes import kill_process, record_stacks, under_free_name
from mrpo.stacks import ActorProcess, waits_in_collective

log = logging.getLogger(__name__)

WRITERS = "writers"  # Ray's concurrency group of calls that run beside all others
# From a rank's word that it lost a peer until Ray, or that peer, says why: Ray tells of a node that went without a word
# after about 20 s. A rank that says what befell itself is waited for no longer.
NOTICE_S = 30.0
# How gloo, NCCL and torch.distributed say that a peer is not there any more.
COMMUNICATION = re.compile(
    r"gloo|nccl|^dist\w*error|connection (closed|reset|refused)|broken pipe|socket (has )?(closed|timed out)",
    re.IGNORECASE,
)


class Deadline(NamedTuple):
    """Of one call."""

    setting: str  # that gives it
    seconds: float


class Ranks:
    """The actors of one start of a group."""

    def __init__(self, log_dir: str | None = None) -> None:
        """None yet.

        Args:
            log_dir: existing folder for the stacks of ranks that are stuck; None: they are only quoted.
        """
        self.handles: list[Any] = []
        self._names: list[str] = []
        self._processes: list[ActorProcess] = []
        self._log_dir = log_dir
        self._loss: LearnerLostError | None = None  # what ended them
        self._ending = asyncio.Lock()  # of two calls that fail together one ends them, and the other waits for it

    def add(self, spec: LearnerSpec, options: Mapping[str, Any]) -> None:
        """Start the actor of the next rank; `options` are Ray's, without a name."""
        rank = len(self.handles)
        actor_class: Any = ray.remote(concurrency_groups={WRITERS: 1})(LearnerActor)
        handle, name = under_free_name(
            f"learner-{rank}", lambda free: actor_class.options(name=free, **options).remote(spec, rank)
        )
        self.handles.append(handle)
        self._names.append(name)

    async def locate(self) -> list[str]:
        """The node of every rank; from here on their stacks can be asked for."""
        places = await self.call("where")
        self._processes = [
            ActorProcess(name=name, node_id=node_id, pid=pid)
            for name, (node_id, pid) in zip(self._names, places, strict=True)
        ]
        return [node_id for node_id, _ in places]

    async def call(self, method: str, *arguments: Any, deadline: Deadline | None = None) -> list[Any]:
        """Call every rank and wait for all; an error of our own leaves the actor boundary as itself.

        Args:
            method: of `LearnerActor`.
            arguments: its arguments.
            deadline: None: the caller keeps one.

        Raises:
            LearnerLostError: a rank died, is over the deadline, or failed with an error that is not ours (CUDA's, say);
                all are ended then, since its peers may wait for it in a collective.
            MRPOError: what a rank raised; there are no ranks (any more).
        """
        if self._loss is not None:
            raise self._lost_before(method)
        if not self.handles:
            raise MRPOError(f"the learner's ranks are not running, and cannot {method}")
        names, processes = self._names, self._processes  # as they are now: another call that fails empties them
        references = [getattr(handle, method).remote(*arguments) for handle in self.handles]
        calls = [asyncio.ensure_future(reference) for reference in references]
        try:
            async with asyncio.timeout(deadline.seconds if deadline is not None else None):
                return list(await asyncio.gather(*map(asyncio.shield, calls)))
        except RayError as error:
            raise await self._failed(method, names, calls, error) from error
        except TimeoutError:
            if deadline is None:
                raise
            waiting = [item for item, call in zip(processes, calls, strict=True) if not call.done()]
            raise await self._stuck(method, waiting or processes, deadline) from None  # the last may end right now
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    async def call_writer(self, method: str, *arguments: Any, deadline: Deadline) -> None:
        """Call rank 0 in its thread for disks, while other calls go on; the ranks stay whatever comes of it.

        Raises:
            ResourceError: over the deadline: a disk hangs; or it failed with an error that is not ours.
            LearnerLostError: rank 0 died; who calls all ranks next, or starts the group again, ends what is left.
            MRPOError: what rank 0 raised; there are no ranks (any more).
        """
        if not self.handles:
            raise LearnerLostError(f"the learner's ranks are not running, and cannot {method}")
        reference = getattr(self.handles[0], method).options(concurrency_group=WRITERS).remote(*arguments)
        try:
            async with asyncio.timeout(deadline.seconds):
                await reference
        except RayTaskError as error:
            if isinstance(error.cause, MRPOError):
                raise error.cause from error
            # The thread works on a copy in main memory: the ranks and their weights are as they were.
            raise ResourceError(
                f"{_told_of('learner-0', method, error)}; its traceback is in the log. Training is unharmed: mend the "
                "cause; where memory ran out, checkpoint.asynchronous=false needs no copy"
            ) from error
        except RayError as error:
            raise LearnerLostError(f"learner-0 died during {method}: {_first_line(error)}", "learner-0") from error
        except TimeoutError:
            raise ResourceError(
                f"learner-0 did not {method} within {deadline.setting}={deadline.seconds:g} s: the disk hangs or is "
                "slow; mend it, or raise the setting"
            ) from None

    async def whereabouts(self, stage: str) -> str:
        """What every rank is doing, in a line, its stacks kept; empty where none was ever located."""
        found = await record_stacks(self._processes, log_dir=self._log_dir, stage=f"learner {stage}")
        return "; ".join(f"{name} {stacks.summary}" for name, stacks in found.items())

    async def kill(self) -> None:
        """At once, whatever they are doing."""
        handles, processes = self.handles, self._processes
        self.handles, self._processes, self._names = [], [], []
        for handle in handles:
            ray.kill(handle)
        # Ray asks a process to end; one that is stopped does not hear it.
        await asyncio.gather(*map(kill_process, processes))

    async def _failed(
        self, method: str, names: Sequence[str], calls: Sequence[asyncio.Future[Any]], first: RayError
    ) -> MRPOError:
        """The error to raise when a rank failed: what its peers say first is that they lost it."""
        number, error = await _root(calls)
        if isinstance(error, RayTaskError):
            if isinstance(error.cause, MRPOError):
                return error.cause
            # Whether another start mends it is seen by trying.
            loss = LearnerLostError(_told_of(names[number], method, error), names[number])
        elif error is not None:
            loss = LearnerLostError(f"{names[number]} died during {method}: {_first_line(error)}", names[number])
        else:
            loss = LearnerLostError(f"learner broke off {method}: {_first_line(first)}")
        return await self._end(loss, method)

    async def _stuck(self, method: str, waiting: Sequence[ActorProcess], deadline: Deadline) -> LearnerLostError:
        found = await record_stacks(waiting, log_dir=self._log_dir, stage=f"learner {method}")
        # The rank that stands outside a collective is the one that the others wait for.
        apart = [name for name, stacks in found.items() if stacks.state or not waits_in_collective(stacks.text)]
        who = (sorted(apart, key=lambda name: not found[name].state) or list(found))[0]
        others = "".join(f"; {name} {found[name].summary}" for name in found if name != who)
        over = f"{deadline.setting}={deadline.seconds:g} s"
        loss = LearnerStuckError(f"{who} did not {method} within {over}: {found[who].summary}{others}", who)
        return await self._end(loss, method)

    async def _end(self, loss: LearnerLostError, method: str) -> LearnerLostError:
        """Kill all ranks, unless another call has done so; returns what to raise."""
        async with self._ending:
            if self._loss is not None:
                return self._lost_before(method)
            self._loss = loss
            await self.kill()
        return loss

    def _lost_before(self, method: str) -> LearnerLostError:
        assert self._loss is not None
        return LearnerLostError(f"{self._loss}; there are no ranks to {method}", self._loss.who)


async def _root(calls: Sequence[asyncio.Future[Any]]) -> tuple[int, RayError | None]:
    """Index and error of the rank that died or failed by itself, as soon as one is known; None: all lost a peer."""
    ends_at = time.monotonic() + NOTICE_S
    while True:
        errors = [(number, call.exception()) for number, call in enumerate(calls) if call.done()]
        for number, error in errors:
            if isinstance(error, RayError) and not isinstance(error, RayTaskError):
                return number, error
        for number, error in errors:
            if isinstance(error, RayTaskError) and COMMUNICATION.search(_cause(error)) is None:
                return number, error
        pending = [call for call in calls if not call.done()]
        left_s = ends_at - time.monotonic()
        if not pending or left_s <= 0:
            return 0, None
        await asyncio.wait(pending, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)


def _told_of(name: str, method: str, error: RayTaskError) -> str:
    """Log what a rank raised that is not ours, with the traceback of its process; returns it in a line."""
    log.error("%s failed in %s:\n%s", name, method, error)
    return f"{name} failed in {method}: {_first_line(error)}"


def _cause(error: RayTaskError) -> str:
    """What a rank raised, without where: a traceback names modules that have nothing to do with it."""
    return f"{type(error.cause).__name__}: {error.cause}"


def _first_line(error: RayError) -> str:
    text = _cause(error) if isinstance(error, RayTaskError) else str(error)
    lines = text.strip().splitlines()
    return lines[0] if lines else type(error).__name__
