"""The record of a run, `runs/<experiment>/<time or name>/`: what it was told, what it measured, what to resume from.

Whole files appear at once (`mrpo.atomic`); `metrics.jsonl` and `events.log` grow by whole lines. One process owns a
run at a time, by a lock that its death releases; readers (`mrpo.run_reading`) need none.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

import yaml

from mrpo.atomic import remove_leftovers, remove_tree, write_text
from mrpo.checkpoint_folder import OnDamaged, new_checkpoint, newest_good, remove_old
from mrpo.environment import describe_environment
from mrpo.errors import ConfigError, ResourceError
from mrpo.eval.record import EvalRecord
from mrpo.folder_name import require_folder_name
from mrpo.metrics import evaluation_metrics
from mrpo.record_errors import recording
from mrpo.rows import write_rows
from mrpo.run_lock import LOCK_FILE, RunLock
from mrpo.run_reading import (
    FORMAT,
    STEP_NAME,
    BestStep,
    Checkpoint,
    RunState,
    RunStatus,
    best_left,
    has_begun,
    list_checkpoints,
    read_config,
    read_evaluation,
    read_metrics,
    read_state,
    require_current_format,
)
from mrpo.trace_row import row_of_evaluation, row_of_trace

if TYPE_CHECKING:
    from mrpo.scoring import ScoredTrace

log = logging.getLogger(__name__)

PARTS = ("rollouts", "eval", "checkpoints")
HALF_MADE = {*PARTS, "config.yaml", "environment.json", LOCK_FILE}  # what is there before a run's record


class RunFolder:
    """A run's folder, open for writing by this process. Use as a context manager, or call `close`."""

    def __init__(self, path: Path, config: Mapping[str, Any], state: RunState, lock: RunLock) -> None:
        """Use `create` or `open`."""
        self.path = path
        self.config = config  # what the run was started with
        self.state = state
        self._lock = lock
        self._metrics: TextIO | None = None

    @classmethod
    def create(
        cls, runs_dir: str | Path, experiment: str, config_tree: Mapping[str, Any], *, name: str | None = None
    ) -> RunFolder:
        """Make `runs_dir/<experiment>/<YYYYmmdd-HHMMSS>/`, with `-2`, `-3`, … added where that exists already.

        Args:
            runs_dir: made if missing.
            experiment: a plain folder name.
            config_tree: the full resolved configuration as plain data; it holds no secret.
            name: a plain folder name in place of the time. What a process that died while it made that folder left
                there is taken over.

        Raises:
            ConfigError: `experiment` or `name` is not a plain folder name, or there is a run of that name.
            ResourceError: the folder cannot be written, or another process is making it.
        """
        require_folder_name("experiment", experiment)
        check_writable(runs_dir)
        parent = Path(runs_dir).expanduser().resolve() / experiment
        path = _new_folder(parent, time.strftime("%Y%m%d-%H%M%S")) if name is None else _named_folder(parent, name)
        lock = RunLock.take(path)
        if has_begun(path):  # by another process since the look before the lock
            lock.release()
            raise _name_is_taken(path)
        for part in PARTS:
            (path / part).mkdir(exist_ok=True)
        write_text(path / "config.yaml", yaml.safe_dump(dict(config_tree), sort_keys=False, allow_unicode=True))
        write_text(path / "environment.json", json.dumps(describe_environment(), indent=2) + "\n")
        state = RunState(experiment=experiment, created_s=time.time(), status=RunStatus.RUNNING, step=0, format=FORMAT)
        run = cls(path, config_tree, state, lock)
        run._write_state()
        run.event("run created")
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Open an existing run to go on with it; repairs what a crash left half done and notes it in `events.log`.

        Raises:
            DataError: no run folder, one of another version's format, or one damaged beyond a torn last line.
            ResourceError: another process is writing this run, or the folder cannot be written.
        """
        folder = Path(path).expanduser().resolve()
        state = read_state(folder)
        require_current_format(folder, state)
        check_writable(folder)
        run = cls(folder, read_config(folder), state, RunLock.take(folder))
        for part in (folder, *(folder / name for name in PARTS)):
            for name in remove_leftovers(part):
                run.event(f"cleared {name}, which an interrupted write left in {part.name}", logging.WARNING)
        found = read_metrics(folder)
        if found.torn is not None:
            run._rewrite_metrics(found.rows)
            run.event(f"dropped a half-written last line of metrics.jsonl: {found.torn!r}", logging.WARNING)
        run.state = replace(state, status=RunStatus.RUNNING, step=_last_step(found.rows))
        run._write_state()
        run.event(f"run opened again at step {run.state.step}")
        return run

    @property
    def metrics_path(self) -> Path:
        """One JSON object a line, each with its `step`."""
        return self.path / "metrics.jsonl"

    @property
    def report_path(self) -> Path:
        """Where the report is written."""
        return self.path / "report.html"

    @property
    def step(self) -> int:
        """The last step on record; 0: none."""
        return self.state.step

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line and put it on disk; each step has one line, in order.

        NaN and infinity are no JSON: they become null, with an event.
        """
        assert step > self.state.step, f"metrics of step {step} after those of step {self.state.step}"
        bad = [name for name, value in metrics.items() if not math.isfinite(value)]
        if bad:
            self.event(f"step {step}: not finite, written as null: {', '.join(bad)}", logging.WARNING)
        line = {"step": step, **{name: None if name in bad else value for name, value in metrics.items()}}
        with recording(self.metrics_path):
            if self._metrics is None:
                self._metrics = self.metrics_path.open("a", encoding="utf-8")
            self._metrics.write(json.dumps(line, allow_nan=False) + "\n")
            self._metrics.flush()
            os.fsync(self._metrics.fileno())
        self.state = replace(self.state, step=step)
        self._write_state()

    def write_rollouts(self, step: int, traces: Sequence[ScoredTrace]) -> Path:
        """Write `rollouts/step_NNNNN.parquet`, one row a completion."""
        path = self.path / "rollouts" / f"step_{step:05d}.parquet"
        threshold = float(self.config["algorithm"]["threshold"])
        with recording(path):
            write_rows(path, [row_of_trace(trace, threshold=threshold) for trace in traces])
        return path

    def write_nonfinite(self, step: int, traces: Sequence[ScoredTrace]) -> Path:
        """Write `nonfinite/step_NNNNN.parquet`, the completions of a step that the learner refused.

        They stay where the run is rewound: what was done again may be finite.
        """
        path = self.path / "nonfinite" / f"step_{step:05d}.parquet"
        path.parent.mkdir(exist_ok=True)
        threshold = float(self.config["algorithm"]["threshold"])
        with recording(path):
            write_rows(path, [row_of_trace(trace, threshold=threshold) for trace in traces])
        return path

    def write_evaluation(self, name: str, records: Sequence[EvalRecord]) -> Path:
        """Write `eval/<name>.parquet`, and its numbers beside it; `name` is `before`, `after` or `step_N`."""
        assert name in ("before", "after") or STEP_NAME.fullmatch(name), f"evaluation name {name!r}"
        path = self.path / "eval" / f"{name}.parquet"
        # The numbers first: an evaluation that `has_evaluation` knows has both.
        with recording(path):
            write_text(path.with_suffix(".json"), json.dumps(evaluation_metrics(records), indent=2) + "\n")
            write_rows(path, [row_of_evaluation(record) for record in records])
        return path

    def has_evaluation(self, name: str) -> bool:
        """Whether an evaluation of this name is on record."""
        return (self.path / "eval" / f"{name}.parquet").is_file()

    def evaluation_metrics(self, name: str) -> dict[str, float]:
        """See `mrpo.run_reading.read_evaluation`."""
        return read_evaluation(self.path, name)

    @property
    def best(self) -> BestStep | None:
        """The best step so far by evaluations during training."""
        return self.state.best

    def mark_best(self, best: BestStep) -> None:
        """Keep this step's checkpoint, whatever its age."""
        self.state = replace(self.state, best=best)
        self._write_state()
        self.event(f"step_{best.step} is the best so far: {best.metric} {best.value:.4g}")

    def is_skipped(self, step: int) -> bool:
        """Whether this step of the record changed no weight, because the learner refused its update."""
        return step in self.state.skipped_steps

    def mark_skipped(self, step: int) -> None:
        """Note that the learner refused the update of this step."""
        self.state = replace(self.state, skipped_steps=(*self.state.skipped_steps, step))
        self._write_state()

    @contextmanager
    def checkpoint(self, step: int, *, keep_last: int | None = None) -> Iterator[Path]:
        """Yield an empty folder to fill; it becomes `checkpoints/step_N` when the block ends without an error.

        Args:
            step: optimizer steps done.
            keep_last: remove all but so many newest checkpoints and the best afterwards; None keeps all.
        """
        with new_checkpoint(self.path, step) as folder:
            yield folder
        self.event(f"checkpoint step_{step} saved")
        if keep_last is not None:
            remove_old(self.path, keep_last=keep_last, best=self.best.step if self.best is not None else None)

    def latest_checkpoint(self) -> Checkpoint | None:
        """The newest whole checkpoint; its files are not looked into."""
        found = list_checkpoints(self.path)
        return found[-1] if found else None

    def latest_good_checkpoint(
        self, on_damaged: OnDamaged, given_up: threading.Event | None = None
    ) -> Checkpoint | None:
        """The newest checkpoint all of whose files are as they were written; damaged ones are set aside, loudly.

        Args:
            on_damaged: told of each checkpoint that is passed over, and why.
            given_up: ends the search when set.

        Returns:
            None where there is no checkpoint at all: the run goes on from the state it began with.

        Raises:
            DataError: every checkpoint is damaged.
            GivenUpError: `given_up` is set.
        """

        def told(checkpoint: Checkpoint, reason: str) -> None:
            self.event(f"checkpoint {checkpoint.path.name} is passed over: {reason}", logging.ERROR)
            on_damaged(checkpoint, reason)

        return newest_good(self.path, told, given_up)

    def rewrite_config(self, config_tree: Mapping[str, Any]) -> None:
        """Put the configuration a resumed run goes on with on record, where it differs from the one before."""
        path = self.path / "config.yaml"
        text = yaml.safe_dump(dict(config_tree), sort_keys=False, allow_unicode=True)
        old = path.read_text(encoding="utf-8").splitlines()
        changes = [line.strip() for line in text.splitlines() if line not in old]
        if changes:
            write_text(path, text)
            self.config = dict(config_tree)
            self.event(f"configuration changed on resume: {'; '.join(changes)}")

    def rewind(self, step: int) -> None:
        """Forget everything after `step`, so that going on from its checkpoint writes no step twice."""
        rows = read_metrics(self.path).rows
        kept = [row for row in rows if row["step"] is not None and row["step"] <= step]
        self._rewrite_metrics(kept)
        for part in PARTS:
            for item in (self.path / part).glob("step_*"):
                match = STEP_NAME.fullmatch(item.name)
                if match and int(match[1]) > step:
                    remove_tree(item) if item.is_dir() else item.unlink()
        for suffix in ("parquet", "json"):
            (self.path / "eval" / f"after.{suffix}").unlink(missing_ok=True)
        skipped = tuple(number for number in self.state.skipped_steps if number <= step)
        self.state = replace(
            self.state, step=_last_step(kept), best=best_left(self.path, self.best), skipped_steps=skipped
        )
        self._write_state()
        self.event(f"rewound to step {step}: {len(rows) - len(kept)} later steps dropped")

    def event(self, message: str, level: int = logging.INFO) -> None:
        """Append one timed line to `events.log`, and pass it to logging; that alone where the disk is full."""
        log.log(level, "%s", message)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        flat = message.replace("\n", "\\n")
        try:
            with open(self.path / "events.log", "a", encoding="utf-8") as file:
                file.write(f"{stamp} {logging.getLevelName(level)} {flat}\n")
        except OSError as error:
            log.error("events.log cannot be written: %s", error)

    def set_status(self, status: RunStatus, reason: str = "") -> None:
        """Record how the run stands, and why."""
        self.state = replace(self.state, status=status)
        self._write_state()
        self.event(f"run {status}" + (f": {reason}" if reason else ""))

    def close(self) -> None:
        """Close the files and give up the lock; may be called twice."""
        self._close_metrics()
        self._lock.release()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _rewrite_metrics(self, rows: Sequence[Mapping[str, float | None]]) -> None:
        self._close_metrics()
        with recording(self.metrics_path):
            write_text(self.metrics_path, "".join(json.dumps(row) + "\n" for row in rows))

    def _close_metrics(self) -> None:
        if self._metrics is not None:
            metrics, self._metrics = self._metrics, None
            with contextlib.suppress(OSError):  # a line that could not be written is still in its buffer
                metrics.close()

    def _write_state(self) -> None:
        with recording(self.path / "state.json"):
            write_text(self.path / "state.json", json.dumps(asdict(self.state), indent=2) + "\n")


def check_writable(folder: str | Path) -> None:
    """Make `folder` if missing and prove that a file can be written there; call it before anything starts.

    Raises:
        ResourceError: it cannot; the message names folder, cause and remedy.
    """
    path = Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe.{os.getpid()}.tmp"
        write_text(probe, "probe")
        probe.unlink()
    except OSError as error:
        raise ResourceError(
            f"cannot write to {path}: {error.strerror}; set runs_dir to a folder you may write to, or free some space"
        ) from None


def _new_folder(parent: Path, name: str) -> Path:
    """Make and return `parent/name`, or the first free `parent/name-N`; two processes never get the same one."""
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = parent / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path


def _named_folder(parent: Path, name: str) -> Path:
    """Make and return `parent/name`, or take what is no run yet.

    Raises:
        ConfigError: there is a run of that name, or something else.
    """
    require_folder_name("run_name", name)
    path = parent / name
    path.mkdir(parents=True, exist_ok=True)
    if has_begun(path) or not {item.name for item in path.iterdir() if not item.name.startswith(".")} <= HALF_MADE:
        raise _name_is_taken(path)
    return path


def _name_is_taken(path: Path) -> ConfigError:
    return ConfigError(
        f"run_name={path.name}: {path} exists already; go on with that run by resume=auto, or choose another name"
    )


def _last_step(rows: Sequence[Mapping[str, float | None]]) -> int:
    step = rows[-1]["step"] if rows else 0
    assert step is not None
    return int(step)
