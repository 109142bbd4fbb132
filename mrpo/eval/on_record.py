"""What every command that trains does with the completions of an evaluation: write them down and tell its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from mrpo.config import Config
from mrpo.eval.record import EvalRecord, record_of
from mrpo.judge_stop import require_budget
from mrpo.metrics import evaluation_metrics
from mrpo.scoring import Trace


class Recorder(Protocol):
    """Where evaluations are kept (the run folder)."""

    def write_evaluation(self, name: str, records: Sequence[EvalRecord]) -> Path: ...


class Watcher(Protocol):
    """Who is told."""

    def evaluation(self, name: str, step: int, metrics: Mapping[str, float]) -> None: ...


def put_on_record(
    name: str,
    traces: Sequence[Trace],
    config: Config,
    *,
    step: int,
    recorder: Recorder,
    watchers: Sequence[Watcher],
) -> list[EvalRecord]:
    """Write down and tell what an evaluation came to.

    Raises:
        JudgeBudgetError: the judge may not be paid any more.
    """
    require_budget(traces)
    records = [record_of(trace, threshold=config.algorithm.threshold) for trace in traces]
    recorder.write_evaluation(name, records)
    metrics = evaluation_metrics(records)
    for watcher in watchers:
        watcher.evaluation(name, step, metrics)
    return records
