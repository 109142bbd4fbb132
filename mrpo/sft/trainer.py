"""The supervised loop: show demonstrations, step by step; measure the held-out loss epoch by epoch; save.

All that a step does follows from its number, the seed and the learner's state, so that a run can stop after any step
and go on from its checkpoint to the bit.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from mrpo.checkpoints import CheckpointLearner, CheckpointRecorder, Checkpoints
from mrpo.config import Config
from mrpo.controller import StopRequested
from mrpo.errors import LearnerLostError, MRPOError, NonFiniteError
from mrpo.faults import FaultLog
from mrpo.recovery import Recovery, RestartableLearner, RewindableRecorder
from mrpo.sft.heldout import HeldOutLoss, read_heldout, rewind_heldout, write_heldout
from mrpo.sft.order import Order
from mrpo.tasks import unless_set
from mrpo.types import LearnStats, SftSample

HELD_OUT_CHUNK = 64  # demonstrations of one call, between two of which a stop is heard


class SupervisedLearner(CheckpointLearner, RestartableLearner, Protocol):
    """Owns the weights being trained."""

    async def sft_step(
        self, examples: Sequence[SftSample], *, num_steps: int, lr: float, warmup_share: float
    ) -> LearnStats:
        """One optimizer step; the learner knows how many it has done."""
        ...

    async def sft_loss(self, examples: Sequence[SftSample]) -> tuple[float, int]:
        """Summed negative log-prob of the target tokens in nats, and how many tokens they are."""
        ...


class Recorder(CheckpointRecorder, RewindableRecorder, Protocol):
    """Where a run leaves its record (the run folder)."""

    path: Path

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None: ...


class Watcher(Protocol):
    """Who is told as the run goes on."""

    def step(self, step: int, metrics: Mapping[str, float]) -> None: ...


@dataclass(kw_only=True)
class SupervisedTrainer:
    """One supervised run. Holds the order of things and nothing else."""

    config: Config
    order: Order
    train: Sequence[SftSample]
    held_out: Sequence[SftSample]  # may be empty: nothing is measured then
    learner: SupervisedLearner
    recorder: Recorder
    watchers: Sequence[Watcher]
    on_held_out: Callable[[HeldOutLoss], None]
    stop: asyncio.Event
    step: int = 0  # optimizer steps done
    faults: FaultLog = field(default_factory=lambda: FaultLog(None))
    progress: Callable[[int], object] = int  # told from which step the run goes on
    span: Callable[[str], AbstractContextManager[object]] = nullcontext  # around each stage, for a timeline
    checkpoints: Checkpoints = field(init=False)
    recovery: Recovery = field(init=False)

    def __post_init__(self) -> None:
        self.checkpoints = Checkpoints(
            learner=self.learner,
            recorder=self.recorder,
            config=self.config.checkpoint,
            faults=self.faults,
            step=self.step or None,  # it began from there
        )
        self.recovery = Recovery(
            learner=self.learner,
            recorder=self.recorder,
            checkpoints=self.checkpoints,
            faults=self.faults,
            max_restarts=self.config.watchdog.max_restarts,
        )

    async def run(self) -> None:
        """Train to the end and save. Whatever ends it early, the steps done are in a checkpoint.

        Raises:
            StopRequested: `stop` was set.
            DataError: an image that can no longer be read.
            NonFiniteError: the learner refused an update; resume goes on from the newest earlier checkpoint.
            LearnerLostError: it was lost again and again, and got no further.
        """
        async with self.recovery.steps_kept(self._keep_steps):
            await self._run()

    async def _keep_steps(self, error: MRPOError) -> None:
        if self.recorder.step != self.step:  # it could not be written down, and is done again from the one before
            await self.checkpoints.settle()
        else:
            await self._finish_saving()

    async def _run(self) -> None:
        """To the end, however often the learner is lost on the way."""
        while True:
            try:
                return await self._go_on()
            except LearnerLostError as error:
                with self.span("recover"):
                    again = self.recovery.start_again(error, self.step)
                    self.step = await unless_set(self.stop, again, self._stopped)
                rewind_heldout(self.recorder.path, self.step)
                self.recovery.mended()

    async def _go_on(self) -> None:
        every = self.config.checkpoint.every_steps
        self.progress(self.step)
        await self._measure()
        while self.step < self.order.num_steps:
            self._refuse_when_stopped()
            await self._train_step()
            if every and self.step % every == 0 and self.step < self.order.num_steps:
                with self.span("checkpoint"):
                    await self.checkpoints.save(self.step)
            await self._measure()
        await self._finish_saving()

    async def _train_step(self) -> None:
        started, sft = time.perf_counter(), self.config.sft
        examples = [self.train[index] for index in self.order.batch(self.step)]
        try:
            with self.span("learn"):
                stats = await self.learner.sft_step(
                    examples, num_steps=self.order.num_steps, lr=sft.lr, warmup_share=sft.warmup_share
                )
        except NonFiniteError as error:
            raise NonFiniteError(f"step {self.step + 1}: {error}") from None
        self.step += 1
        metrics = {
            "sft/loss": stats.loss,
            "sft/epoch": self.step / self.order.steps_per_epoch,
            "policy/grad_norm": stats.grad_norm,
            "policy/lr": stats.lr,
            "policy/tokens": float(stats.num_tokens),
            "policy/micro_batches": float(stats.num_micro_batches),
            "time/learn_s": stats.seconds,
            "time/step_s": time.perf_counter() - started,
        }
        metrics |= self.faults.take_metrics() | self.checkpoints.take_metrics()
        self.recorder.log_metrics(self.step, metrics)
        for watcher in self.watchers:
            watcher.step(self.step, metrics)

    async def _measure(self) -> None:
        """The held-out loss before training and after every epoch, unless it is on record."""
        epoch, known = self.order.epochs_done(self.step), read_heldout(self.recorder.path)
        if epoch is None or not self.held_out or any(item.step == self.step for item in known):
            return
        total, num_tokens = 0.0, 0
        for start in range(0, len(self.held_out), HELD_OUT_CHUNK):
            self._refuse_when_stopped()
            with self.span("evaluate"):
                part, counted = await self.learner.sft_loss(self.held_out[start : start + HELD_OUT_CHUNK])
            total, num_tokens = total + part, num_tokens + counted
        found = HeldOutLoss(
            step=self.step, epoch=epoch, loss=total / num_tokens, num_tokens=num_tokens, num_examples=len(self.held_out)
        )
        write_heldout(self.recorder.path, [*known, found])
        self.on_held_out(found)

    def _refuse_when_stopped(self) -> None:
        if self.stop.is_set():
            raise self._stopped

    @property
    def _stopped(self) -> StopRequested:
        return StopRequested(f"stopped after {self.step} of {self.order.num_steps} steps")

    async def _finish_saving(self) -> None:
        """A checkpoint of the steps done, on disk."""
        with self.span("checkpoint"):
            await self.checkpoints.finish(self.step)
