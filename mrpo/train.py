"""`python -m mrpo.train [overrides]`: one training run, from command line to report.

Exit codes: 0 done, 1 a fault, 2 something the user can mend (one line says what), 130 interrupted.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from mrpo.checkpoint_source import local_checkpoint
from mrpo.choices import Device
from mrpo.collection import Collector
from mrpo.command_line import INTERRUPTED, exit_code, quiet_libraries
from mrpo.compose import compose_config, resume_config
from mrpo.config import Config, plain
from mrpo.console import Console
from mrpo.controller import Controller, StopRequested
from mrpo.data.load import Dataset, load_dataset
from mrpo.errors import MRPOError
from mrpo.judge_parts import check_judge_endpoint
from mrpo.judge_permission import require_judge_allowed
from mrpo.parts import Parts, answer_similarity, running_parts
from mrpo.plan.refusal import memory_note
from mrpo.preflight import check_local_gpus, check_memory
from mrpo.rewards.scorer import Similarity
from mrpo.run_folder import RunFolder, check_writable, resumed_run
from mrpo.run_reading import RunStatus
from mrpo.run_session import conclude, judge_ledger, open_run, rewind_to_checkpoint
from mrpo.sft.settings import require_reinforcement
from mrpo.tracking import Tracker, make_tracker

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> int:
    """Run one training; returns the exit code."""
    return exit_code(lambda: _train(arguments))


def _train(arguments: Sequence[str]) -> int:
    started = time.time()
    config = configure(arguments)
    if config.cluster.device == Device.CPU:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed searches, and says so on the console
    check_writable(config.runs_dir)
    check_memory(config)
    check_local_gpus(config)
    check_judge_endpoint(config)
    model_folder = None if config.model.path is None else local_checkpoint(config.model)
    similarity = answer_similarity(config)
    dataset = load_dataset(config)
    require_judge_allowed((*dataset.train, *dataset.test), config.judge)
    with Console(config.num_steps) as console:
        console.route_logs()
        for row in dataset.bad_rows:
            console.note(f"dropped: {row}")
        shortage = memory_note(config)
        if shortage is not None:
            console.note(shortage)
        return asyncio.run(_Run(config, dataset, similarity, model_folder, console, started).execute())


def configure(arguments: Sequence[str]) -> Config:
    """The configuration the command line asks for; that of the named run when it resumes one.

    Raises:
        ConfigError: see `mrpo.compose`; also where there is nothing to resume.
    """
    config = compose_config(arguments)
    if config.resume is None:
        return config
    run = resumed_run(config.resume, config.runs_dir, config.experiment)
    resumed = resume_config(run, [item for item in arguments if not item.startswith("experiment=")])
    require_reinforcement(resumed)
    return resumed


class _Run:
    """One run from start to report, with its signals."""

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        similarity: Similarity | None,
        model_folder: Path | None,
        console: Console,
        started: float,
    ) -> None:
        self.config = config
        self.dataset = dataset
        self.similarity = similarity
        self.model_folder = model_folder
        self.console = console
        self.started = started
        self.stop = asyncio.Event()
        self.training = False

    async def execute(self) -> int:
        """Train in a new or resumed run folder; the report is written however training ends."""
        config = self.config
        with open_run(config) as run:
            self.console.note(f"run folder: {run.path}")
            try:
                tracker = make_tracker(
                    config.wandb, folder=run.path, experiment=config.experiment, config_tree=plain(config)
                )
                code = 1
                try:
                    code = await self._train(run, tracker)
                finally:
                    tracker.finish(failed=code == 1)
            except MRPOError as error:
                run.set_status(RunStatus.INTERRUPTED, str(error))
                raise
            finally:
                conclude(run, self.console, started=self.started)
            return code

    async def _train(self, run: RunFolder, tracker: Tracker) -> int:
        self._catch_signals()
        log_dir = run.path / "logs"
        log_dir.mkdir(exist_ok=True)
        checkpoint = rewind_to_checkpoint(run, self.config, self.console)
        try:
            async with running_parts(
                self.config,
                self.dataset,
                self.console,
                model_folder=self.model_folder,
                similarity=self.similarity,
                judge_ledger=judge_ledger(run),
                log_dir=log_dir,
                after_ray=self._catch_signals,
                on_judge_event=partial(run.event, level=logging.WARNING),
            ) as parts:
                if checkpoint is not None:
                    await parts.learner.load(str(checkpoint.path))
                controller = self._controller(run, tracker, parts, step=checkpoint.step if checkpoint else 0)
                self.training = True
                await controller.run()
        except StopRequested as stopped:
            run.set_status(RunStatus.INTERRUPTED, str(stopped))
            self.console.note(f'{stopped}; go on with: make train ARGS="resume={run.path}"')
            return INTERRUPTED
        except asyncio.CancelledError:
            if not self.stop.is_set():
                raise
            run.set_status(RunStatus.INTERRUPTED, "stopped by the user")
            return INTERRUPTED
        run.set_status(RunStatus.FINISHED)
        return 0

    def _controller(self, run: RunFolder, tracker: Tracker, parts: Parts, *, step: int) -> Controller:
        config = self.config
        return Controller(
            config=config,
            train=self.dataset.train,
            test=self.dataset.test,
            collector=Collector(
                rollout=parts.rollout,
                judge=parts.judge,
                answers=parts.answers,
                answer_kind=config.reward.answer.kind,
            ),
            learner=parts.learner,
            recorder=run,
            watchers=[self.console, tracker],
            stop=self.stop,
            step=step,
            judge_metrics=parts.judge.take_metrics if parts.judge is not None else dict,
        )

    def _catch_signals(self) -> None:
        """The first signal ends the run in order, a second one at once."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def on_signal() -> None:
            if self.training and not self.stop.is_set():
                self.console.note("stopping: the step in hand is given up, a checkpoint is saved …")
            else:
                task.cancel()
            self.stop.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, on_signal)


if __name__ == "__main__":
    quiet_libraries()
    sys.exit(main(sys.argv[1:]))
