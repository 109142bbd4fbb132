"""How a run goes on when its learner was lost: from the newest good checkpoint, as if it had stopped there.

Prompts, samples and seeds follow from a step's number alone, so that the steps which are done again are the same to the
bit on a CPU, and none is on record twice.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from mrpo.errors import LearnerLostError, LearnerStuckError, MRPOError, NonFiniteError
from mrpo.faults import Fault, FaultKind, FaultLog
from mrpo.run_reading import Checkpoint
from mrpo.tasks import in_thread

logger = logging.getLogger(__name__)


class RestartableLearner(Protocol):
    """Owns the weights being trained."""

    async def restart(self) -> None:
        """End what is left of its ranks and start new ones, with the weights the run began with."""
        ...

    async def load(self, folder: str) -> None:
        """Restore what a checkpoint holds."""
        ...


class RewindableRecorder(Protocol):
    """Where the record is kept (the run folder)."""

    @property
    def step(self) -> int: ...

    def latest_good_checkpoint(
        self, on_damaged: Callable[[Checkpoint, str], None], given_up: threading.Event
    ) -> Checkpoint | None: ...

    def rewind(self, step: int) -> None: ...


class Saver(Protocol):
    """Who takes checkpoints."""

    async def settle(self) -> None: ...

    async def abandon(self) -> None: ...

    async def restart(self, step: int | None) -> None: ...


async def room_is_there() -> None:
    """Nobody else uses what the learner starts on."""


@dataclass(kw_only=True)
class Recovery:
    """Of one run's learner."""

    learner: RestartableLearner
    recorder: RewindableRecorder
    checkpoints: Saver
    faults: FaultLog
    max_restarts: int  # in a row, without a new step between them
    make_room: Callable[[], Awaitable[None]] = room_is_there  # awaited before each start
    is_whole: bool = True  # False: the learner does not hold the weights of the steps done, and must not be saved
    _highest: int = -1  # step that was reached before a loss
    _restarts: int = 0  # since it was reached
    _open: list[Fault] = field(default_factory=list)

    @asynccontextmanager
    async def steps_kept(self, save: Callable[[MRPOError], Awaitable[None]]) -> AsyncIterator[None]:
        """Around a run: whatever ends it early, the steps done are in a checkpoint.

        Args:
            save: called with what ended it, where the learner holds the weights of the steps done.
        """
        try:
            yield
        except NonFiniteError as error:
            await _keep_first(error, self.checkpoints.settle())
            raise  # the learner refused the update; what it holds is the last checkpoint's business
        except MRPOError as error:
            if self.is_whole:
                await _keep_first(error, save(error))
            raise
        finally:
            await self.checkpoints.abandon()  # one is left only where the run was broken off

    async def start_again(self, error: LearnerLostError, step: int) -> int:
        """Start the learner and rewind the record.

        Args:
            error: how it was lost.
            step: optimizer steps done by then.

        Returns:
            The steps done from which the run goes on.

        Raises:
            LearnerLostError: it was lost too often without a new step.
            EngineError: from `make_room`; no engine is left.
            ResourceError: there is no place for it any more.
            DataError: every checkpoint is damaged.
        """
        self.is_whole = False
        if step > self._highest:
            self._highest, self._restarts = step, 0
        while True:
            self._note(error)
            try:
                checkpoint = await self._start()
            except LearnerLostError as again:
                error = again
                continue
            back = checkpoint.step if checkpoint is not None else 0
            await self.checkpoints.restart(checkpoint.step if checkpoint is not None else None)
            self.recorder.rewind(back)
            self.is_whole = True
            logger.warning("the learner goes on from step %d; %d steps are done again", back, step - back)
            return back

    def mended(self) -> None:
        """The engines have its weights again."""
        while self._open:
            self.faults.end(self._open.pop())

    def _note(self, error: LearnerLostError) -> None:
        kind = FaultKind.LEARNER_STUCK if isinstance(error, LearnerStuckError) else FaultKind.LEARNER_LOST
        self._open.append(self.faults.begin(kind, error.who, str(error)))
        self._restarts += 1
        if self._restarts > self.max_restarts:
            raise LearnerLostError(
                f"{error}; the learner was started again {self.max_restarts} times (watchdog.max_restarts) and got no "
                f"further than step {self._highest}: mend the cause, then go on with resume=<this run>",
                error.who,
            ) from error

    async def _start(self) -> Checkpoint | None:
        await self.checkpoints.abandon()  # what was being written can no longer be finished
        checkpoint = await in_thread(partial(self.recorder.latest_good_checkpoint, self._passed_over))
        await self.make_room()
        await self.learner.restart()
        if checkpoint is not None:
            await self.learner.load(str(checkpoint.path))
        return checkpoint

    def _passed_over(self, checkpoint: Checkpoint, reason: str) -> None:
        self.faults.end(self.faults.begin(FaultKind.CHECKPOINT_DAMAGED, checkpoint.path.name, reason))


async def _keep_first(error: MRPOError, saving: Awaitable[None]) -> None:
    """Keep the steps done; where even that fails, the first error is still the one to report."""
    try:
        await saving
    except MRPOError as second:
        logger.error("no checkpoint could be saved after %r: %s", type(error).__name__, second)
