"""A run folder as the report needs it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrpo.eval.summary import EvalSummary, summarize
from mrpo.faults import Fault, read_faults
from mrpo.judge_spending import SPENDING_FILE, Spending, read_spending
from mrpo.rows import read_rows
from mrpo.run_reading import (
    MetricsFile,
    RunState,
    list_evaluations,
    list_rollouts,
    read_config,
    read_environment,
    read_metrics,
    read_state,
)
from mrpo.sft.heldout import HeldOutLoss, read_heldout
from mrpo.sft.settings import SUFFIX
from mrpo.trace_row import TraceRow


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """Everything read from a run folder; rollouts are read one file at a time, when asked for."""

    folder: Path
    state: RunState
    config: dict[str, Any]
    environment: dict[str, str]
    metrics: MetricsFile
    evaluations: dict[str, list[TraceRow]]  # by name: before, step_N …, after
    rollouts: dict[int, Path]  # by step
    held_out: list[HeldOutLoss]  # of a supervised run
    spending: dict[str, Spending]  # on the judge, by model; empty: none, or not recorded
    faults: list[Fault]

    @property
    def is_supervised(self) -> bool:
        """Whether it learned from gold rationales instead of its own completions."""
        return self.state.experiment.endswith(SUFFIX)

    def series(self, name: str) -> list[tuple[float, float]]:
        """(step, value) of a metric, at the steps that have it."""
        pairs = [(row["step"], row[name]) for row in self.metrics.rows if name in row]
        return [(float(step), value) for step, value in pairs if step is not None and value is not None]

    def total(self, name: str) -> float:
        """Sum of a counted metric over the run."""
        return sum(value for _, value in self.series(name))


def load_run(folder: Path) -> RunData:
    """Read a run folder, finished or not.

    Raises:
        DataError: `folder` is no run folder, or a file in it is damaged.
    """
    return RunData(
        folder=folder.resolve(),
        state=read_state(folder),
        config=read_config(folder),
        environment=read_environment(folder),
        metrics=read_metrics(folder),
        evaluations={name: read_rows(path) for name, path in list_evaluations(folder).items()},
        rollouts=list_rollouts(folder),
        held_out=read_heldout(folder),
        spending=read_spending(folder / SPENDING_FILE),
        faults=read_faults(folder),
    )


def load_summaries(folder: Path) -> dict[str, EvalSummary]:
    """Summaries of a run's evaluations by name, in the order they were made."""
    return {name: summarize(read_rows(path)) for name, path in list_evaluations(folder).items()}
