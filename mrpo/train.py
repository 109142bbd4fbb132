"""`python -m mrpo.train [overrides]`: one training run, from command line to report.

Exit codes: 0 done, 1 a fault, 2 something the user can mend (one line says what), 130 interrupted, 143 preempted.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from mrpo.checkpoint_source import local_checkpoint, policy_family
from mrpo.choices import DataKind, Device
from mrpo.collection import Collector
from mrpo.command_line import exit_code, quiet_libraries
from mrpo.compose import compose_config, resume_config
from mrpo.config import Config
from mrpo.console import Console
from mrpo.controller import Controller
from mrpo.data.load import Dataset, load_dataset
from mrpo.data.run_data import note_data, require_same_data
from mrpo.faults import FAULTS_FILE, FaultLog
from mrpo.judge_parts import check_judge_endpoint
from mrpo.judge_permission import require_judge_allowed
from mrpo.parts import Parts, answer_similarity, running_parts
from mrpo.plan.refusal import memory_note
from mrpo.preflight import check_local_gpus, check_memory, unused_gpus
from mrpo.prompt_tokens import check_prompts
from mrpo.resumable import resumed_run
from mrpo.rewards.scorer import Similarity
from mrpo.run_folder import RunFolder, check_writable
from mrpo.run_session import judge_ledger, record_run, rewind_to_checkpoint
from mrpo.sampling_order import epochs_note
from mrpo.sft.parts import policy_processor
from mrpo.sft.settings import require_reinforcement
from mrpo.stop_signals import StopSignals
from mrpo.telemetry.live import Telemetry, running_telemetry
from mrpo.telemetry.queues import queue_readings
from mrpo.telemetry.table import Reading
from mrpo.tracking import Tracker


def main(arguments: Sequence[str]) -> int:
    """Run one training; returns the exit code."""
    return exit_code(lambda: _train(arguments))


def _train(arguments: Sequence[str]) -> int:
    started = time.time()
    return carry_out(configure(arguments), TrainingRun, started=started)


def carry_out(config: Config, kind: type[TrainingRun], *, started: float) -> int:
    """Check what can be checked, then run; returns the exit code.

    Args:
        config: of the run.
        kind: of run.
        started: time.time() when the command began.
    """
    if config.cluster.device == Device.CPU:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed searches, and says so on the console
    check_writable(config.runs_dir)
    check_memory(config)
    check_local_gpus(config)
    check_judge_endpoint(config)
    model_folder = None if config.model.path is None else local_checkpoint(config.model)
    similarity = answer_similarity(config)
    dataset = load_dataset(config)
    if config.resume is not None:
        require_same_data(Path(config.resume), dataset)
    require_judge_allowed((*dataset.train, *dataset.test), config.judge)
    with Console(config.num_steps) as console:
        console.route_logs()
        for row in dataset.bad_rows:
            console.note(f"dropped: {row}")
        for line in (memory_note(config), unused_gpus(config), epochs_note(config, len(dataset.train))):
            if line is not None:
                console.note(line)
        if config.data.kind != DataKind.PHANTOM:
            _check_prompts(config, dataset, model_folder, console)
        return asyncio.run(kind(config, dataset, similarity, model_folder, console, started).execute())


def _check_prompts(config: Config, dataset: Dataset, model_folder: Path | None, console: Console) -> None:
    """Refuse what an engine would stumble over hours later."""
    examples = [*dataset.train, *dataset.test]
    with console.stage(f"length of {len(examples)} prompts"):
        processor = policy_processor(config, dataset, model_folder)
        longest = check_prompts(examples, processor, policy_family(config, model_folder), config)
    console.note(f"the longest prompt has {longest} tokens")


def configure(arguments: Sequence[str]) -> Config:
    """The configuration the command line asks for; that of the named run when it resumes one.

    Raises:
        ConfigError: see `mrpo.compose`.
    """
    config = compose_config(arguments)
    if config.resume is None:
        return config
    run = resumed_run(config.resume, config.runs_dir, config.experiment, config.run_name)
    if run is None:
        return replace(config, resume=None)
    resumed = resume_config(run, arguments)
    require_reinforcement(resumed)
    return resumed


class TrainingRun:
    """One run from start to report, with its signals."""

    promise = "the step in hand is given up, a checkpoint is saved"  # of a stop in order
    command: str | None = "make train"  # goes on with it after a stop

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
        self.signals = StopSignals(console, self.promise, grace_s=config.checkpoint.grace_s)

    async def execute(self) -> int:
        """Returns the exit code."""
        return await record_run(
            self.config, self.console, self.signals, self._train, command=self.command, started=self.started
        )

    async def _train(self, run: RunFolder, tracker: Tracker) -> None:
        self.signals.catch()
        log_dir = run.path / "logs"
        log_dir.mkdir(exist_ok=True)
        note_data(run.path, self.dataset)
        faults = FaultLog(run.path / FAULTS_FILE)
        checkpoint = await rewind_to_checkpoint(run, self.config, self.console, faults)
        step = checkpoint.step if checkpoint else 0
        async with (
            running_parts(
                self.config,
                self.dataset,
                self.console,
                model_folder=self.model_folder,
                similarity=self.similarity,
                judge_ledger=judge_ledger(run, self.config.judge),
                log_dir=log_dir,
                after_ray=self.signals.catch,
                on_judge_event=partial(run.event, level=logging.WARNING),
                faults=faults,
            ) as parts,
            running_telemetry(self.config, run.path, partial(_queues, parts), faults=faults, step=step) as telemetry,
        ):
            if checkpoint is not None:
                await parts.learner.load(str(checkpoint.path))
            controller = self.controller(run, tracker, parts, faults, telemetry, step=step)
            self.signals.training = True
            await controller.run()

    def controller(
        self, run: RunFolder, tracker: Tracker, parts: Parts, faults: FaultLog, telemetry: Telemetry, *, step: int
    ) -> Controller:
        """The loop over these parts."""
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
                span=telemetry.span,
            ),
            learner=parts.learner,
            recorder=run,
            watchers=[self.console, tracker, telemetry.watcher],
            stop=self.signals.stop,
            step=step,
            judge_metrics=parts.judge.take_metrics if parts.judge is not None else dict,
            faults=faults,
            span=telemetry.span,
            queue_metrics=telemetry.queue_metrics,
            observe=telemetry.watcher.observe,
            progress=telemetry.watcher.progress,
        )


def _queues(parts: Parts) -> list[Reading]:
    rollout, judge = parts.rollout, parts.judge
    return queue_readings(rollout.depths(), rollout.num_waiting, judge.depths() if judge is not None else None)


if __name__ == "__main__":
    quiet_libraries()
    sys.exit(main(sys.argv[1:]))
