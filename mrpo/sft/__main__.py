"""`python -m mrpo.sft [overrides]`: supervised training on gold rationales, from command line to report.

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

from mrpo.checkpoint_source import local_checkpoint
from mrpo.choices import Device
from mrpo.collection import Collector
from mrpo.command_line import exit_code, quiet_libraries
from mrpo.compose import compose_config, resume_config
from mrpo.config import Config
from mrpo.console import Console
from mrpo.data.load import load_dataset
from mrpo.data.run_data import note_data, require_same_data
from mrpo.faults import FAULTS_FILE, FaultLog
from mrpo.judge_parts import check_judge_endpoint
from mrpo.judge_permission import require_judge_allowed
from mrpo.parts import answer_similarity, running_evaluation_parts
from mrpo.preflight import check_local_gpus, check_memory
from mrpo.resumable import resumed_run
from mrpo.rewards.scorer import Similarity
from mrpo.run_folder import RunFolder, check_writable
from mrpo.run_reading import Checkpoint
from mrpo.run_session import judge_ledger, record_run, rewind_to_checkpoint
from mrpo.sft.evaluation import evaluate
from mrpo.sft.heldout import HeldOutLoss, read_heldout, rewind_heldout
from mrpo.sft.job import Job, plan_job
from mrpo.sft.parts import policy_folder, policy_processor, running_learner
from mrpo.sft.settings import DEFAULTS, SUFFIX, is_evaluated, require_supervised, supervised
from mrpo.sft.tokens import check_demonstrations
from mrpo.sft.trainer import SupervisedTrainer
from mrpo.stop_signals import StopSignals
from mrpo.telemetry.live import running_telemetry
from mrpo.tracking import Tracker


def main(arguments: Sequence[str]) -> int:
    """Run one supervised training; returns the exit code."""
    return exit_code(lambda: _sft(arguments))


def _sft(arguments: Sequence[str]) -> int:
    started = time.time()
    config = configure(arguments)
    if config.cluster.device == Device.CPU:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed searches, and says so on the console
    check_writable(config.runs_dir)
    check_memory(config)
    check_local_gpus(config, engines=False)
    model_folder = None if config.model.path is None else local_checkpoint(config.model)
    similarity: Similarity | None = None
    if is_evaluated(config):
        check_local_gpus(config, learner=False)
        check_judge_endpoint(config)
        similarity = answer_similarity(config)
    dataset = load_dataset(config)
    if config.resume is not None:
        require_same_data(Path(config.resume), dataset)
    require_judge_allowed(dataset.test, config.judge)
    job = plan_job(config, dataset, model_folder)
    with Console(job.order.num_steps) as console:
        console.route_logs()
        for line in job.notices:
            console.note(line)
        _check_lengths(job, model_folder, console)
        return asyncio.run(_Run(job, similarity, model_folder, console, started).execute())


def configure(arguments: Sequence[str]) -> Config:
    """The configuration the command line asks for; that of the named run when it resumes one.

    Raises:
        ConfigError: see `mrpo.compose` and `mrpo.sft.settings`; also where there is nothing to resume.
    """
    config = compose_config([*DEFAULTS, *arguments], adjust=supervised)
    if config.resume is None:
        return config
    run = resumed_run(config.resume, config.runs_dir, config.experiment, config.run_name)
    if run is None:
        return replace(config, resume=None)
    require_supervised(run)
    return resume_config(run, arguments, adjust=supervised)


def _check_lengths(job: Job, model_folder: Path | None, console: Console) -> None:
    """Refuse what training would stumble over hours later."""
    shown = [*job.train.shown, *job.held_out.shown]
    with console.stage(f"length of {len(shown)} demonstrations"):
        longest = check_demonstrations(
            shown,
            policy_processor(job.config, job.dataset, model_folder),
            job.family,
            max_pixels=job.config.model.max_pixels,
            terse=job.config.model.terse_prompt,
            tokens_per_micro_batch=job.config.learner.tokens_per_micro_batch,
        )
    console.note(
        f"{len(job.train.shown)} demonstrations, {job.order.num_epochs} epochs of {job.order.steps_per_epoch} steps; "
        f"the longest has {longest} tokens"
    )


class _Run:
    """One run from start to report, with its signals."""

    def __init__(
        self, job: Job, similarity: Similarity | None, model_folder: Path | None, console: Console, started: float
    ) -> None:
        self.job = job
        self.config = job.config
        self.similarity = similarity
        self.model_folder = model_folder
        self.console = console
        self.started = started
        self.signals = StopSignals(
            console, "after the step in hand, a checkpoint is saved", grace_s=job.config.checkpoint.grace_s
        )

    async def execute(self) -> int:
        """Returns the exit code."""
        return await record_run(
            self.config, self.console, self.signals, self._train, command="make sft", started=self.started
        )

    async def _train(self, run: RunFolder, tracker: Tracker) -> None:
        """The phases of a run, each with the machine to itself."""
        self.signals.catch()
        (run.path / "logs").mkdir(exist_ok=True)
        note_data(run.path, self.job.dataset)
        faults = FaultLog(run.path / FAULTS_FILE)
        checkpoint = await rewind_to_checkpoint(run, self.config, self.console, faults)
        step = checkpoint.step if checkpoint else 0
        rewind_heldout(run.path, step)
        folder = await policy_folder(
            self.config,
            self.job.dataset,
            self.console,
            model_folder=self.model_folder,
            log_dir=run.path / "logs",
            after_ray=self.signals.catch,
        )
        if self.config.eval.before and not run.has_evaluation("before"):
            await self._evaluate("before", folder, run, tracker, step=0)
        if not self._is_trained(run, step):
            await self._learn(folder, checkpoint, run, tracker, faults)
        last = run.latest_checkpoint()
        assert last is not None, "training ends with a checkpoint"
        if self.config.eval.after:
            await self._evaluate("after", last.path / "hf", run, tracker, step=last.step)
        self._show_way_on(run, last)

    def _is_trained(self, run: RunFolder, step: int) -> bool:
        measured = not self.job.held_out.shown or any(item.step == step for item in read_heldout(run.path))
        return step >= self.job.order.num_steps and measured

    async def _learn(
        self, folder: Path, checkpoint: Checkpoint | None, run: RunFolder, tracker: Tracker, faults: FaultLog
    ) -> None:
        def on_held_out(found: HeldOutLoss) -> None:
            self.console.note(
                f"held-out loss after {found.epoch} of {self.job.order.num_epochs} epochs: {found.loss:.4f} nats a "
                f"token ({found.num_examples} questions)"
            )
            metrics = {"heldout/loss": found.loss}
            tracker.step(found.step, metrics)
            telemetry.watcher.evaluation("heldout", found.step, metrics)

        step = checkpoint.step if checkpoint else 0
        async with (
            running_learner(
                self.config, folder, self.console, log_dir=run.path / "logs", after_ray=self.signals.catch
            ) as learner,
            running_telemetry(self.config, run.path, list, faults=faults, step=step) as telemetry,
        ):
            if checkpoint is not None:
                await learner.load(str(checkpoint.path))
            trainer = SupervisedTrainer(
                config=self.config,
                order=self.job.order,
                train=self.job.train.samples,
                held_out=self.job.held_out.samples,
                learner=learner,
                recorder=run,
                watchers=[self.console, tracker, telemetry.watcher],
                on_held_out=on_held_out,
                stop=self.signals.stop,
                faults=faults,
                progress=telemetry.watcher.progress,
                span=telemetry.span,
                step=step,
            )
            self.signals.training = True
            await trainer.run()
            self.signals.training = False

    async def _evaluate(self, name: str, folder: Path, run: RunFolder, tracker: Tracker, *, step: int) -> None:
        """Start engines and judge for one evaluation; the learner's memory is free then."""
        async with running_evaluation_parts(
            self.config,
            self.console,
            model_folder=folder,
            similarity=self.similarity,
            judge_ledger=judge_ledger(run, self.config.judge),
            log_dir=run.path / "logs",
            after_ray=self.signals.catch,
            on_judge_event=partial(run.event, level=logging.WARNING),
        ) as parts:
            assert parts.rollout is not None
            collector = Collector(
                rollout=parts.rollout,
                judge=parts.judge,
                answers=parts.answers,
                answer_kind=self.config.reward.answer.kind,
            )
            questions = self.job.dataset.test
            with self.console.stage(f"evaluation {name}: {len(questions)} questions"):
                await evaluate(
                    name,
                    questions,
                    collector,
                    self.config,
                    step=step,
                    recorder=run,
                    watchers=[self.console, tracker],
                )

    def _show_way_on(self, run: RunFolder, last: Checkpoint) -> None:
        """The commands that take what this one made."""
        experiment = self.config.experiment.removesuffix(SUFFIX)
        named = "" if experiment == "phantom" else f"EXP={experiment} "
        self.console.note(f'reinforcement from here: make train {named}ARGS="model.path={last.path / "hf"}"')
        self.console.note(f"benchmarks: make eval MODEL={run.path} SETS=<prepared sets>")


if __name__ == "__main__":
    quiet_libraries()
    sys.exit(main(sys.argv[1:]))
