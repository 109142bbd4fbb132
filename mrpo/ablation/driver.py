"""The order of a study: train what is missing, one variant after the other, and keep the table up to date."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mrpo.ablation.ledger import Record, VariantFolder
from mrpo.ablation.plan import Plan
from mrpo.ablation.plot import write_plot
from mrpo.ablation.results import ResultRow, collect_rows
from mrpo.ablation.tables import write_tables
from mrpo.ablation.trainer import Trainer, VariantStatus
from mrpo.atomic import write_text
from mrpo.run_folder import check_writable
from mrpo.run_lock import RunLock


class StudyWatcher(Protocol):
    """Who is told as the study goes on."""

    def begin(self, plan: Plan, num_finished: int) -> None: ...

    def training(self, number: int, folder: VariantFolder) -> AbstractContextManager[None]: ...

    def ended(self, number: int, record: Record, rows: Sequence[ResultRow]) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyOutcome:
    """What running a study came to."""

    rows: list[ResultRow]
    failed: list[Record]
    is_interrupted: bool


def study_folder(plan: Plan, runs_dir: str | Path) -> Path:
    """`<runs_dir>/ablation/<study>`."""
    return Path(runs_dir).expanduser().resolve() / "ablation" / plan.study


def run_study(plan: Plan, folder: Path, trainer: Trainer, watcher: StudyWatcher) -> StudyOutcome:
    """Train every variant that is not finished, and write the tables and the plot after each.

    A failed variant is recorded and the study goes on; an interrupted one ends it. Running the same plan again goes on
    where it stopped: finished variants stay, the others are resumed from their checkpoint or started again.

    Raises:
        ResourceError: another process runs this study, or its folder cannot be written.
        DataError: a record or a run in the folder is damaged.
    """
    check_writable(folder)
    lock = RunLock.take(folder)
    try:
        write_text(folder / "study.json", json.dumps(_describe(plan), indent=2, ensure_ascii=False) + "\n")
        return _run(plan, folder, trainer, watcher)
    finally:
        lock.release()


def _run(plan: Plan, folder: Path, trainer: Trainer, watcher: StudyWatcher) -> StudyOutcome:
    folders = [VariantFolder.locate(folder, variant) for variant in plan.variants]
    statuses = [item.record().status for item in folders]
    watcher.begin(plan, statuses.count(VariantStatus.FINISHED))
    failed: list[Record] = []
    is_interrupted = False
    rows = None
    for number, (item, status) in enumerate(zip(folders, statuses, strict=True)):
        if status == VariantStatus.FINISHED:
            continue
        with watcher.training(number, item):
            record = item.end(trainer.train(item.begin(), item.log))
        rows = _write(plan, folder)
        watcher.ended(number, record, [row for row in rows if row.config_hash == item.variant.key])
        if record.status == VariantStatus.FAILED:
            failed.append(record)
        if record.status == VariantStatus.INTERRUPTED:
            is_interrupted = True
            break
    if rows is None:  # nothing was left to train: the files may still be of an older version
        rows = _write(plan, folder)
    return StudyOutcome(rows=rows, failed=failed, is_interrupted=is_interrupted)


def _write(plan: Plan, folder: Path) -> list[ResultRow]:
    rows = collect_rows(plan, folder)
    write_tables(folder, rows)
    write_plot(folder, rows)
    return rows


def _describe(plan: Plan) -> dict[str, object]:
    """The plan as people look it up: which run has which overrides."""
    runs = {variant.key: list(variant.overrides) for variant in plan.variants}
    return {"study": plan.study, "runs": runs}
