"""What a person sees while a study goes on: a line a variant, with a live one for that in training."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from mrpo.ablation.ledger import Record, VariantFolder
from mrpo.ablation.plan import Plan
from mrpo.ablation.results import ResultRow
from mrpo.ablation.trainer import VariantStatus
from mrpo.errors import DataError
from mrpo.report.charts import percent
from mrpo.report.facts import duration
from mrpo.run_reading import read_state

STYLES = {VariantStatus.FINISHED: "green", VariantStatus.FAILED: "bold red", VariantStatus.INTERRUPTED: "yellow"}


class StudyConsole:
    """The display of a study."""

    def __init__(self, file: TextIO | None = None) -> None:
        """Write to `file`, standard error by default."""
        self._rich = Console(file=file or sys.stderr, highlight=False)
        self._num_runs = 0

    def begin(self, plan: Plan, num_finished: int) -> None:
        """Say what there is to do."""
        self._num_runs = len(plan.variants)
        done = f", {num_finished} of them finished already" if num_finished else ""
        self._say(Text(f"study {plan.study}: {self._num_runs} runs for {len(plan.entries)} rows{done}"))

    @contextmanager
    def training(self, number: int, folder: VariantFolder) -> Iterator[None]:
        """A live line while a variant trains; without a terminal nothing until it ends."""
        if not self._rich.is_terminal:
            yield
            return
        started, spinner = time.monotonic(), Spinner("dots")

        def render() -> Spinner:
            parts = [self._name(number, folder.variant.label), _progress(folder)]
            spinner.update(text=Text(" · ".join([*parts, duration(time.monotonic() - started)])))
            return spinner

        with Live(console=self._rich, get_renderable=render, refresh_per_second=4, transient=True):
            yield

    def ended(self, number: int, record: Record, rows: Sequence[ResultRow]) -> None:
        """The variant's line: how it ended, and its two main numbers."""
        line = Text(self._name(number, record.label) + ": ")
        line.append(record.status.value, style=STYLES[record.status])
        line.append(f" after {duration(record.wall_s)}")
        if record.status == VariantStatus.FINISHED and rows:
            line.append(_numbers(rows[0]))
        if record.error is not None:
            line.append(f": {record.error}")
        self._say(line)

    def note(self, message: str) -> None:
        """A line of text."""
        self._say(Text(message))

    def _name(self, number: int, label: str) -> str:
        width = len(str(self._num_runs))
        return f"[{number + 1:>{width}}/{self._num_runs}] {label}"

    def _say(self, text: Text) -> None:
        self._rich.print(text, soft_wrap=True)


def _progress(folder: VariantFolder) -> str:
    """Steps done; before the first, that it starts."""
    try:
        run = folder.run()
        step = read_state(run).step if run is not None else 0
    except DataError:
        step = 0  # a display must not end a training; the table reads the file again and says so
    return f"step {step} of {folder.variant.config.num_steps}" if step else "starting"


def _numbers(row: ResultRow) -> str:
    measures = (
        ("accuracy", row.accuracy_before, row.accuracy_after),
        ("early failures", row.early_before, row.early_after),
    )
    shown = [
        f"{name} {percent(before)} → {percent(after)}"
        for name, before, after in measures
        if before is not None and after is not None
    ]
    return f", {', '.join(shown)}" if shown else ""
