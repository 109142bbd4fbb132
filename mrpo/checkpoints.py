"""When a run's checkpoints are taken, written and kept: copied off the learner, then written while it trains on.

One write is under way at a time; the next copy waits for it. A write that fails is a fault on record and the run goes
on, since the next one may succeed; only the last one of a run must. A step is marked as the best when its checkpoint is
on disk, not before.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from mrpo.config import CheckpointConfig
from mrpo.errors import MRPOError, ResourceError
from mrpo.faults import Fault, FaultKind, FaultLog
from mrpo.run_reading import BestStep

T = TypeVar("T")


class CheckpointLearner(Protocol):
    """Owns the weights being trained."""

    async def save(self, folder: str) -> None:
        """Write everything needed to resume, `hf/` and `manifest.json` into an existing folder."""
        ...

    async def snapshot(self) -> None:
        """Copy what `save` would write to main memory.

        Raises:
            ResourceError: the copy before is still there, because its write was given up and has not ended.
        """
        ...

    async def write(self, folder: str) -> None:
        """Write the newest snapshot as `save` does; other calls may be made meanwhile."""
        ...


class CheckpointRecorder(Protocol):
    """Where checkpoints are kept (the run folder)."""

    @property
    def best(self) -> BestStep | None: ...

    def mark_best(self, best: BestStep) -> None: ...

    def checkpoint(self, step: int, *, keep_last: int | None = None) -> AbstractContextManager[Path]: ...


@dataclass(kw_only=True)
class Checkpoints:
    """Those of one run."""

    learner: CheckpointLearner
    recorder: CheckpointRecorder
    config: CheckpointConfig
    faults: FaultLog
    step: int | None = None  # of the newest copy, whose checkpoint is on disk or on its way
    _writing: asyncio.Task[None] | None = None
    _candidate: BestStep | None = None  # the best step, whose checkpoint is on its way
    _failures: list[Fault] = field(default_factory=list)  # since the last write that succeeded
    _error: ResourceError | None = None  # of the newest write
    _measured: dict[str, float] = field(default_factory=dict)

    @property
    def best(self) -> BestStep | None:
        """The best step so far, also where its checkpoint is still being written."""
        return self._candidate or self.recorder.best

    async def save(self, step: int, *, best: BestStep | None = None) -> None:
        """Take a checkpoint of the learner as it is, unless there is one of this step. Returns when it may train on.

        Args:
            step: optimizer steps done.
            best: what makes it the best step so far.

        Raises:
            LearnerLostError: the learner was lost, here or while the write before was under way.
        """
        started = time.perf_counter()
        if self.step != step:
            await self.settle()
        is_new = self.step != step
        if is_new and self.config.asynchronous:
            try:
                await self.learner.snapshot()
            except ResourceError as error:
                self._failed(step, error)
                self._measured["checkpoint/blocked_s"] = time.perf_counter() - started
                return
        if best is not None:
            self._candidate = best
        if is_new:
            self.step = step
            self._writing = asyncio.create_task(self._write(step))
            if not self.config.asynchronous:
                await self.settle()
            self._measured["checkpoint/blocked_s"] = time.perf_counter() - started
        elif self._writing is None or self._writing.done():
            self._mark_best()

    async def finish(self, step: int) -> None:
        """As `save`, and wait until the checkpoint is on disk.

        Raises:
            ResourceError: it could not be written.
            LearnerLostError: see `save`.
        """
        await self.save(step)
        await self.settle()
        if self._error is not None:
            raise self._error

    async def settle(self) -> None:
        """Wait for the write under way."""
        writing = self._writing
        if writing is not None:
            await asyncio.shield(writing)
            self._writing = None

    async def restart(self, step: int | None) -> None:
        """The learner was lost and goes on from the checkpoint of `step`; None: from the state the run began with."""
        await self.abandon()
        self.step, self._candidate, self._error = step, None, None

    async def abandon(self) -> None:
        """Give up the write under way, if there is one; its half leaves nothing behind.

        One that is already being put in place is waited for: it counts, and removes old ones before this returns.
        """
        writing, self._writing = self._writing, None
        if writing is None:
            return
        writing.cancel()
        await asyncio.wait({writing})
        if writing.cancelled():
            self.step, self._candidate = None, None
        elif (error := writing.exception()) is not None and not isinstance(error, MRPOError):
            raise error

    def take_metrics(self) -> dict[str, float]:
        """Seconds for which the last checkpoint held up training, and of the last write, since this was asked last."""
        measured, self._measured = self._measured, {}
        return measured

    async def _write(self, step: int) -> None:
        started = time.perf_counter()
        try:
            async with _left_in_thread(self.recorder.checkpoint(step, keep_last=self.config.keep_last)) as folder:
                await (self.learner.write if self.config.asynchronous else self.learner.save)(str(folder))
        except ResourceError as error:
            self._failed(step, error)
            return
        except BaseException:
            self.step, self._candidate = None, None
            raise
        self._measured["checkpoint/write_s"] = time.perf_counter() - started
        self._error = None
        while self._failures:
            self.faults.end(self._failures.pop())
        self._mark_best()

    def _failed(self, step: int, error: ResourceError) -> None:
        self.step, self._candidate, self._error = None, None, error
        self._failures.append(self.faults.begin(FaultKind.CHECKPOINT_FAILED, f"step_{step}", str(error)))

    def _mark_best(self) -> None:
        if self._candidate is not None:
            self.recorder.mark_best(self._candidate)
        self._candidate = None


@asynccontextmanager
async def _left_in_thread(context: AbstractContextManager[T]) -> AsyncIterator[T]:
    """Leave `context` in a thread: putting a checkpoint in place and removing an old one may take the disk a while.

    Once begun, that is waited for: whoever cancels the task finds it done.
    """
    value = context.__enter__()
    try:
        yield value
    except BaseException as error:
        await _to_the_end(context.__exit__, type(error), error, error.__traceback__)
        raise
    await _to_the_end(context.__exit__, None, None, None)


async def _to_the_end(function: Callable[..., object], *arguments: object) -> None:
    """Run it in a thread, whatever is cancelled meanwhile."""
    thread = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    while not thread.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({thread})
    thread.result()
