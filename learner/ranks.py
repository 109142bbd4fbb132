"""Calls on all ranks of a group; one that dies or is stuck ends the others, which would wait for it for ever."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import time
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, NamedTuple

import ray
from ray.exceptions import ActorAlreadyExistsError, RayError, RayTaskError

from learner.actor import LearnerActor
from learner.spec import LearnerSpec
from mrpo.errors import LearnerLostError, LearnerStuckError, MRPOError, ResourceError
from mrpo.ray_nodes import kill_process, record_stacks
from mrpo.stacks import ActorProcess, waits_in_collective

WRITERS = "writers"  # Ray's concurrency group of calls that run beside all others
NOTICE_S = 30.0  # from a broken connection until Ray tells of a node that went without a word
# How gloo and NCCL say that a peer is not there any more.
COMMUNICATION = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe", re.IGNORECASE)


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

    def add(self, spec: LearnerSpec, options: Mapping[str, Any]) -> None:
        """Start the actor of the next rank; `options` are Ray's, without a name."""
        rank = len(self.handles)
        for generation in itertools.count(1):
            name = f"learner-{rank}" if generation == 1 else f"learner-{rank}.{generation}"
            with contextlib.suppress(ActorAlreadyExistsError):  # Ray frees the names of the dead late
                self.handles.append(
                    ray.remote(concurrency_groups={WRITERS: 1})(LearnerActor)
                    .options(name=name, **options)
                    .remote(spec, rank)
                )
                self._names.append(name)
                return

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
            LearnerLostError: a rank died, or is over the deadline; all are ended then.
            MRPOError: what a rank raised; there are no ranks (any more).
        """
        if self._loss is not None:
            raise LearnerLostError(f"{self._loss}; there are no ranks to {method}", self._loss.who)
        if not self.handles:
            raise MRPOError(f"the learner's ranks are not running, and cannot {method}")
        references = [getattr(handle, method).remote(*arguments) for handle in self.handles]
        calls = [asyncio.ensure_future(_answer(reference)) for reference in references]
        try:
            async with asyncio.timeout(deadline.seconds if deadline is not None else None):
                return list(await asyncio.gather(*map(asyncio.shield, calls)))
        except RayTaskError as error:
            if isinstance(error.cause, MRPOError):
                raise error.cause from error
            raise await self._lost(method, calls, error) from error
        except RayError as error:
            raise await self._lost(method, calls, error) from error
        except TimeoutError:
            if deadline is None:
                raise
            raise await self._stuck(method, calls, deadline) from None
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    async def call_writer(self, method: str, *arguments: Any, deadline: Deadline) -> None:
        """Call rank 0 in its thread for disks, while other calls go on; the ranks stay whatever comes of it.

        Raises:
            ResourceError: over the deadline: a disk hangs.
            LearnerLostError: rank 0 died; who calls all ranks next ends the others.
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
            raise
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

    async def _lost(self, method: str, calls: Sequence[asyncio.Future[Any]], error: Exception) -> Exception:
        """The error to raise when a rank failed: what its peers say first is that they lost it."""
        number, died = await _first_dead(calls)
        if died is None and COMMUNICATION.search(str(error)) is None:
            return error  # a fault of the code: another start would not mend it
        if died is not None:
            who, what = self._names[number], f"died during {method}: {_first_line(died)}"
        else:
            who, what = "learner", f"broke off {method}: {_first_line(error)}"
        self._loss = LearnerLostError(f"{who} {what}", who)
        await self.kill()
        return self._loss

    async def _stuck(self, method: str, calls: Sequence[asyncio.Future[Any]], deadline: Deadline) -> LearnerStuckError:
        waiting = [item for item, call in zip(self._processes, calls, strict=True) if not call.done()]
        found = await record_stacks(waiting, log_dir=self._log_dir, stage=f"learner {method}")
        # The rank that stands outside a collective is the one that the others wait for.
        apart = [name for name, stacks in found.items() if stacks.state or not waits_in_collective(stacks.text)]
        who = (sorted(apart, key=lambda name: not found[name].state) or list(found))[0]
        others = "".join(f"; {name} {found[name].summary}" for name in found if name != who)
        over = f"{deadline.setting}={deadline.seconds:g} s"
        loss = LearnerStuckError(f"{who} did not {method} within {over}: {found[who].summary}{others}", who)
        self._loss = loss
        await self.kill()
        return loss


async def _answer(reference: Awaitable[Any]) -> Any:
    return await reference


async def _first_dead(calls: Sequence[asyncio.Future[Any]]) -> tuple[int, Exception | None]:
    """Index and error of a rank that died, as soon as Ray knows of one; None where all live."""
    ends_at = time.monotonic() + NOTICE_S
    while True:
        for number, call in enumerate(calls):
            error = call.exception() if call.done() else None
            if isinstance(error, RayError) and not isinstance(error, RayTaskError):
                return number, error
        pending = [call for call in calls if not call.done()]
        left_s = ends_at - time.monotonic()
        if not pending or left_s <= 0:
            return 0, None
        await asyncio.wait(pending, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)


def _first_line(error: Exception) -> str:
    lines = str(error.cause if isinstance(error, RayTaskError) else error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
