"""Reading a run folder, also while its owner writes it: state, configuration, metrics, evaluations, checkpoints."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml

from mrpo.choices import BestMetric
from mrpo.errors import DataError
from mrpo.json_lines import read_lines

STEP_NAME = re.compile(r"step_(\d+)(\.parquet|\.json)?")
FORMAT = 2  # of a run folder: of its settings and of the columns of its Parquet files


class RunStatus(StrEnum):
    """How far a run came."""

    RUNNING = "running"  # or killed without a chance to say so
    INTERRUPTED = "interrupted"  # ended early, on a signal or an error
    FINISHED = "finished"


@dataclass(frozen=True, slots=True, kw_only=True)
class BestStep:
    """The step with the best evaluation during training; its checkpoint is kept."""

    step: int
    metric: BestMetric
    value: float

    def is_beaten_by(self, metric: BestMetric, value: float) -> bool:
        """Whether `value` is better, or of another metric than this."""
        if metric != self.metric:
            return True
        return value < self.value if metric == BestMetric.EARLY_SHARE else value > self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """The content of `state.json`."""

    experiment: str
    created_s: float  # time.time()
    status: RunStatus
    step: int  # last step whose metrics were written; 0: none
    format: int  # see `FORMAT`; a file that says none is of format 1
    best: BestStep | None = None  # None: not evaluated during training
    skipped_steps: tuple[int, ...] = ()  # on record without an update, which was not finite


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A whole checkpoint to resume from."""

    step: int
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsFile:
    """What `metrics.jsonl` holds."""

    rows: list[dict[str, float | None]]  # each with `step`; None where a value was not finite
    torn: str | None  # a last line that a crash left half written; not among the rows


def has_begun(folder: Path) -> bool:
    """Whether there is a record of a run; none where a process died while it made the folder."""
    return any((folder / name).exists() for name in ("state.json", "events.log", "metrics.jsonl"))


def read_state(folder: Path) -> RunState:
    """Read `state.json`.

    Raises:
        DataError: `folder` is no run folder, or the file is damaged.
    """
    path = folder / "state.json"
    try:
        tree = {"format": 1, **json.loads(path.read_text(encoding="utf-8"))}
        best = tree.pop("best", None)
        if best is not None:
            best = BestStep(**{**best, "metric": BestMetric(best["metric"])})
        typed: dict[str, Any] = {"format": int(tree["format"]), "status": RunStatus(tree["status"]), "best": best}
        typed["skipped_steps"] = tuple(int(step) for step in tree.get("skipped_steps", ()))
        return RunState(**{**tree, **typed})
    except OSError as error:
        raise DataError(
            f"{folder} is no run folder: state.json: {error.strerror}; expected runs/<experiment>/<time>"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged: {error}; restore it, or start a new run") from None


def require_current_format(folder: Path, state: RunState) -> None:
    """Refuse to go on with a run whose files would be half of one format, half of another.

    Raises:
        DataError: another version of mrpo wrote it.
    """
    if state.format != FORMAT:
        age = "an earlier" if state.format < FORMAT else "a later"
        raise DataError(
            f"{folder} was written by {age} version of mrpo (format {state.format}, this version writes {FORMAT}); "
            "start a new run, or resume it with that version"
        )


def read_config(folder: Path) -> dict[str, Any]:
    """The resolved configuration the run was started with, as plain data.

    Raises:
        DataError: the file is missing or no YAML.
    """
    path = folder / "config.yaml"
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    if not isinstance(tree, dict):
        raise DataError(f"{path}: expected a mapping, got {type(tree).__name__}")
    return tree


def read_environment(folder: Path) -> dict[str, str]:
    """Versions, machine, command and commit of the run's start.

    Raises:
        DataError: the file is missing or no JSON object.
    """
    path = folder / "environment.json"
    try:
        return {str(name): str(value) for name, value in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def read_metrics(folder: Path) -> MetricsFile:
    """Read `metrics.jsonl`; none yet gives no rows.

    A line that ends without a newline is being written or was cut by a crash: it is set apart, not parsed.

    Raises:
        DataError: a whole line is no JSON object with a step; the message names the line.
    """
    path = folder / "metrics.jsonl"
    found = read_lines(path)
    rows = []
    for number, line in enumerate(found.whole, start=1):
        try:
            row = json.loads(line)
            row["step"] = int(row["step"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} line {number}: {error}; expected one JSON object with a step") from None
        rows.append(row)
    return MetricsFile(rows=rows, torn=found.torn.decode("utf-8", "replace") if found.torn else None)


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """All whole checkpoints, oldest step first."""
    found = [
        Checkpoint(step=int(match[1]), path=item)
        for item in (folder / "checkpoints").glob("step_*")
        if (match := STEP_NAME.fullmatch(item.name)) and item.is_dir()
    ]
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def list_evaluations(folder: Path) -> dict[str, Path]:
    """Evaluation files by name, in the order they were made: before, step_N …, after."""

    def order(name: str) -> tuple[int, int]:
        match = STEP_NAME.fullmatch(name)
        return (1, int(match[1])) if match else (0 if name == "before" else 2, 0)

    found = {item.stem: item for item in (folder / "eval").glob("*.parquet") if not item.name.startswith(".")}
    return {name: found[name] for name in sorted(found, key=order)}


def read_evaluation(folder: Path, name: str) -> dict[str, float]:
    """The numbers of an evaluation on record.

    Raises:
        DataError: the file is missing or damaged.
    """
    path = folder / "eval" / f"{name}.json"
    try:
        return {str(key): float(value) for key, value in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is damaged: {error}; remove {path.with_suffix('.parquet')}, it is made again"
        ) from None


def best_left(folder: Path, best: BestStep | None) -> BestStep | None:
    """`best`, or where its checkpoint is gone, the best of those that are there; None where none was evaluated.

    Raises:
        DataError: the numbers of an evaluation are missing or damaged.
    """
    steps = [checkpoint.step for checkpoint in list_checkpoints(folder)]
    if best is None or best.step in steps:
        return best
    metric, evaluated, left = best.metric, list_evaluations(folder), None
    for step in steps:
        if f"step_{step}" in evaluated:
            value = read_evaluation(folder, f"step_{step}").get(f"eval/{metric}")  # absent where nothing was judged
            if value is not None and (left is None or left.is_beaten_by(metric, value)):
                left = BestStep(step=step, metric=metric, value=value)
    return left


def list_rollouts(folder: Path) -> dict[int, Path]:
    """Rollout files by step."""
    found = {
        int(match[1]): item
        for item in (folder / "rollouts").glob("step_*.parquet")
        if (match := STEP_NAME.fullmatch(item.name))
    }
    return dict(sorted(found.items()))
