"""What the commands that make a run have in common: its folder from first to last, and how it goes on and ends."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from mrpo.config import Config, JudgeConfig, PriceConfig, plain
from mrpo.console import Console
from mrpo.controller import StopRequested
from mrpo.errors import JudgeBudgetError, MRPOError
from mrpo.eval.summary import EvalSummary, summarize
from mrpo.faults import FAULTS_FILE, Fault, FaultKind, FaultLog, read_faults
from mrpo.judge_bill import bill_text
from mrpo.judge_spending import SPENDING_FILE, UNKNOWN_MODEL, Spending, SpendingLedger, read_spending
from mrpo.judge_stop import larger, require_some_left
from mrpo.report.faults import faults_text
from mrpo.report.render import write_report
from mrpo.rows import read_rows
from mrpo.run_folder import RunFolder
from mrpo.run_reading import Checkpoint, RunStatus
from mrpo.stop_signals import StopSignals
from mrpo.tasks import in_thread
from mrpo.tracking import Tracker, make_trackers

logger = logging.getLogger(__name__)


def open_run(config: Config) -> RunFolder:
    """The folder of a new run, or of the one that is resumed."""
    if config.resume is None:
        return RunFolder.create(config.runs_dir, config.experiment, plain(config), name=config.run_name)
    run = RunFolder.open(config.resume)
    run.rewrite_config(plain(replace(config, resume=None)))
    return run


async def rewind_to_checkpoint(run: RunFolder, config: Config, console: Console, faults: FaultLog) -> Checkpoint | None:
    """The checkpoint a resumed run goes on from, with all that came after it taken off the record.

    Args:
        run: its folder.
        config: of the run.
        console: told where the run goes on, and of a checkpoint that is passed over.
        faults: of the run; what its earlier processes left open is over: every part of it is new.

    Returns:
        None: the run begins, anew where it was killed before its first checkpoint.

    Raises:
        DataError: every checkpoint is damaged.
    """
    if config.resume is None:
        return None

    def passed_over(bad: Checkpoint, reason: str) -> None:
        damages.append(faults.begin(FaultKind.CHECKPOINT_DAMAGED, bad.path.name, reason))
        console.note(f"{bad.path.name} is passed over: {reason}")

    damages: list[Fault] = []
    left_open = [fault for fault in read_faults(run.path) if fault.recovery_s is None]
    newest, checkpoint = run.latest_checkpoint(), None
    if newest is not None:
        with console.stage(f"checksums of {newest.path.name}"):
            checkpoint = await in_thread(partial(run.latest_good_checkpoint, passed_over))
    step = checkpoint.step if checkpoint else 0
    run.rewind(step)
    for damage in damages:
        faults.end(damage)
    for fault in left_open:
        if fault.kind == FaultKind.PREEMPTED:
            faults.resume(fault)
        elif fault.kind != FaultKind.NODE_LOST:  # a node may be missing still: `NodeWatch` looks
            faults.end(fault)
    console.note(f"resuming at step {step}")
    return checkpoint


def judge_ledger(run: RunFolder, judge: JudgeConfig) -> SpendingLedger:
    """What the run has spent on its judge; a run begun without such a record is known by its requests alone.

    Raises:
        DataError: the record is damaged.
        JudgeBudgetError: nothing is left; said before engines start.
    """
    path = run.path / SPENDING_FILE
    is_new = not path.exists()
    ledger = SpendingLedger(path)
    files = [*(run.path / "rollouts").glob("*.parquet"), *(run.path / "eval").glob("*.parquet")] if is_new else []
    rows = (row for file in files for row in read_rows(file))
    requests = sum((row.judge_attempts or 0) + (row.answer_judge_attempts or 0) for row in rows)
    if requests:
        ledger.add({UNKNOWN_MODEL: Spending(requests=requests)})
    require_some_left(ledger.spent, judge)
    return ledger


async def record_run(
    config: Config,
    console: Console,
    signals: StopSignals,
    train: Callable[[RunFolder, Tracker], Awaitable[None]],
    *,
    command: str | None,
    started: float,
) -> int:
    """Train in a new or resumed run folder; the report is written however training ends.

    Args:
        config: of the run.
        console: of the command.
        signals: that stop it.
        train: all the run does in its folder.
        command: that goes on with the run when it was stopped: `make train`; None: nothing does.
        started: `time.time()` when the command began.

    Returns:
        The exit code: 0, or that of an interrupted command.

    Raises:
        JudgeBudgetError: the judge may not be paid any more; the message says how to go on.
    """
    with open_run(config) as run:
        console.note(f"run folder: {run.path}")
        tracker: Tracker | None = None
        code: int | None = None
        try:
            tracker = make_trackers(
                config.wandb,
                config.tensorboard,
                folder=run.path,
                experiment=config.experiment,
                config_tree=plain(config),
            )
            code = await _until_stopped(
                run, tracker, console, signals, train, command=command, grace_s=config.checkpoint.grace_s
            )
        except MRPOError as error:
            _set_status(run, str(error))
            raise
        except BaseException as error:  # a bug, or Ctrl-C at a bad moment: whatever it is, the run is not running
            _set_status(run, ": ".join([type(error).__name__, *str(error).strip().splitlines()[-1:]]))
            raise
        finally:
            conclude(run, console, prices=config.judge.prices, started=started)
            if tracker is not None:
                signals.release()  # it may wait for a network, and the loop hears nothing while it does
                tracker.finish(failed=code is None)
        return code


async def _until_stopped(
    run: RunFolder,
    tracker: Tracker,
    console: Console,
    signals: StopSignals,
    train: Callable[[RunFolder, Tracker], Awaitable[None]],
    *,
    command: str | None,
    grace_s: float,
) -> int:
    signals.on_late = partial(_say_late, run, console, grace_s)
    try:
        await train(run, tracker)
    except StopRequested as stopped:
        reason = f"{stopped} {signals.who}"
        _set_status(run, reason)
        if signals.preempted:
            FaultLog(run.path / FAULTS_FILE).begin(FaultKind.PREEMPTED, "driver", reason)
        way_on = "" if command is None else f'; go on with: {command} ARGS="resume={run.path}"'
        console.note(f"{reason}{way_on}")
        return signals.exit_code
    except JudgeBudgetError as error:
        if command is None:
            raise
        way_on = f'{command} ARGS="resume={run.path} {larger(error)}"'
        raise JudgeBudgetError(f"{error}; the steps done are kept, go on with a larger one: {way_on}") from None
    except asyncio.CancelledError:
        if not signals.stop.is_set():
            raise
        reason = f"stopped {signals.who}"
        _set_status(run, reason)
        if signals.preempted:
            FaultLog(run.path / FAULTS_FILE).begin(FaultKind.PREEMPTED, "driver", reason)
        return signals.exit_code
    run.set_status(RunStatus.FINISHED)
    return 0


def _set_status(run: RunFolder, reason: str) -> None:
    """Say how the run ended early; a full disk must not hide it."""
    try:
        run.set_status(RunStatus.INTERRUPTED, reason)
    except MRPOError as error:
        logger.error("%s", error)


def _say_late(run: RunFolder, console: Console, grace_s: float) -> None:
    """The scheduler may kill the run any moment."""
    newest = run.latest_checkpoint()
    saved = newest.step if newest is not None else 0
    if saved == run.state.step:
        return
    text = (
        f"no checkpoint of step {run.state.step} within checkpoint.grace_s={grace_s:g} of SIGTERM: if the run is "
        f"killed now, it goes on from step {saved}; give it more time, or take checkpoints more often"
    )
    run.event(text, logging.WARNING)
    console.note(text)


def conclude(run: RunFolder, console: Console, *, prices: Mapping[str, PriceConfig], started: float) -> None:
    """Write the report of what there is, however the run ended, and show what came of it.

    Args:
        run: of this command.
        console: of this command.
        prices: of the judge's models.
        started: `time.time()` when the command began.
    """
    evaluations: dict[str, EvalSummary] = {}
    for name in ("before", "after"):
        file = run.path / "eval" / f"{name}.parquet"
        if file.is_file():
            evaluations[name] = summarize(read_rows(file))
    report: Path | None = None
    if evaluations or run.state.step:
        try:
            report = write_report(run.path)
        except (MRPOError, OSError) as error:  # must not hide how the run itself ended
            logger.error("no report: %s", error)
    try:
        spent = read_spending(run.path / SPENDING_FILE)
        if spent:
            console.note(f"the judge took {bill_text(spent, prices)}")
    except MRPOError as error:
        logger.error("what the judge took is not known: %s", error)
    faults = read_faults(run.path)
    if faults:
        console.note(f"faults: {faults_text(faults)}")
    console.finish(evaluations, report=report, wall_s=time.time() - started)
