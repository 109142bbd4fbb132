"""What a person sees while a run goes: stages, a live line of the newest step, and a table at the end.

On a terminal everything lives in one display that redraws itself. In a log file there are plain lines instead: one a
stage, one every few steps.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TextIO

import rich.console
from rich.console import Group, RenderableType
from rich.live import Live
from rich.logging import RichHandler
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from mrpo.eval.cascade import Stage
from mrpo.eval.intervals import Interval
from mrpo.eval.summary import EvalSummary

TIME_PARTS = (("rollout", "cyan"), ("judge", "magenta"), ("learn", "yellow"), ("sync", "green"))
SHOWN = (
    ("loss", "sft/loss"),
    ("reward", "reward/mean"),
    ("accuracy", "accuracy"),
    ("early failures", "cascade/early_share"),
)
RECENT_STEPS = 20  # whose mean duration gives the remaining time
BAR_WIDTH = 40  # characters


class Console:
    """The display of one run; use as a context manager."""

    def __init__(self, num_steps: int, *, file: TextIO | None = None, plain_every: int = 5) -> None:
        """Show nothing yet.

        Args:
            num_steps: optimizer steps of the whole run.
            file: where to write; standard error by default, so that piped output stays clean.
            plain_every: steps a line, where `file` is no terminal.
        """
        self._rich = rich.console.Console(file=file or sys.stderr, highlight=False)
        self._num_steps = num_steps
        self._plain_every = plain_every
        self._stages: dict[str, float] = {}  # name: time.monotonic() of its start
        self._statuses: list[Callable[[], str | None]] = []
        self._step = 0
        self._metrics: Mapping[str, float] = {}
        self._durations: deque[float] = deque(maxlen=RECENT_STEPS)
        self._live: Live | None = None

    def __enter__(self) -> Console:
        if self._rich.is_terminal:
            self._live = Live(console=self._rich, get_renderable=self._render, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def log_handler(self) -> logging.Handler:
        """A handler whose records appear above the live display instead of tearing it."""
        return RichHandler(console=self._rich, show_path=False, markup=False, rich_tracebacks=False)

    def route_logs(self) -> None:
        """Warnings of every library and our own notes go above the live display; chatter stays out."""
        logging.basicConfig(level=logging.WARNING, handlers=[self.log_handler()], format="%(message)s", force=True)
        logging.captureWarnings(True)
        logging.getLogger("mrpo.controller").setLevel(logging.INFO)  # the parity gate's result

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Show that something slow goes on, and how long it took; stages may run beside each other."""
        started = time.monotonic()
        self._stages[name] = started
        if self._live is None:
            self._line(f"{name} …")
        try:
            yield
        except BaseException:
            self._line(f"✗ {name}: failed after {time.monotonic() - started:.1f} s", style="red")
            raise
        else:
            self._line(f"✓ {name}: {time.monotonic() - started:.1f} s", style="green")
        finally:
            self._stages.pop(name, None)

    @contextmanager
    def watching(self, status: Callable[[], str | None]) -> Iterator[None]:
        """Show a part's own line on the live display for as long as it has one (in a file its warnings stand instead).

        Args:
            status: what the run waits for, in a line; None: for nothing. Asked from a thread, four times a second.
        """
        self._statuses.append(status)
        try:
            yield
        finally:
            self._statuses.remove(status)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show a finished step; `metrics` as `mrpo.metrics.step_metrics` names them, absent ones are left out."""
        self._step, self._metrics = step, metrics
        if "time/step_s" in metrics:
            self._durations.append(metrics["time/step_s"])
        if self._live is None and (step % self._plain_every == 0 or step in (1, self._num_steps)):
            self._line(self._plain_line())

    def evaluation(self, name: str, step: int, metrics: Mapping[str, float]) -> None:
        """Show an evaluation in one line; `metrics` as `mrpo.metrics.evaluation_metrics` names them."""
        parts = [f"evaluation {name} (step {step}): {metrics['eval/questions']:.0f} questions"]
        for label, key in (("accuracy", "eval/accuracy"), ("early failures", "eval/early_share")):
            if key in metrics:
                low, high = metrics[f"{key}_low"], metrics[f"{key}_high"]
                parts.append(f"{label} {share_text(Interval(value=metrics[key], low=low, high=high, num=0))}")
        for label, key in (("judgements", "eval/judge_failed"), ("answer judgements", "eval/answer_judge_failed")):
            if metrics[key]:
                parts.append(f"{metrics[key]:.0f} {label} failed")
        self._line(", ".join(parts), style="bold")

    def note(self, message: str) -> None:
        """Show one line that stays."""
        self._line(message)

    def finish(self, evaluations: Mapping[str, EvalSummary], *, report: Path | None, wall_s: float) -> None:
        """Show what came of the run.

        Args:
            evaluations: by name; before and after are shown, as far as they are there.
            report: the written report.
            wall_s: seconds since the command began.
        """
        if not evaluations.keys().isdisjoint(("before", "after")):
            self._rich.print(summary_table(evaluations.get("before"), evaluations.get("after")))
        self._line(f"{self._step} of {self._num_steps} steps, {duration(wall_s)}")
        if report is not None:
            self._line(f"report: {report}", style="bold")

    def _line(self, text: str, *, style: str = "") -> None:
        self._rich.print(Text(text, style=style), soft_wrap=True)

    def _remaining_s(self) -> float | None:
        if not self._durations:
            return None
        return sum(self._durations) / len(self._durations) * max(0, self._num_steps - self._step)

    def _shown(self) -> list[str]:
        parts = [f"{label} {self._metrics[name]:.3f}" for label, name in SHOWN if name in self._metrics]
        if "rollout/tokens_per_s" in self._metrics:
            parts.append(f"{self._metrics['rollout/tokens_per_s']:,.0f} tokens/s")
        if "time/step_s" in self._metrics:
            parts.append(f"{self._metrics['time/step_s']:.1f} s a step")
        return parts

    def _plain_line(self) -> str:
        shares = time_shares(self._metrics)
        parts = [f"step {self._step}/{self._num_steps}", *self._shown()]
        remaining = self._remaining_s()
        if remaining is not None:
            parts.append(f"{duration(remaining)} left")
        if shares:
            parts.append(" ".join(f"{part} {share:.0%}" for part, share in shares.items()))
        return " | ".join(parts)

    def _render(self) -> RenderableType:
        now = time.monotonic()
        lines: list[RenderableType] = [
            Spinner("dots", text=Text(f"{name} {now - started:.0f} s")) for name, started in list(self._stages.items())
        ]
        waits = [line for status in list(self._statuses) if (line := status()) is not None]
        lines += [Spinner("dots", text=Text(line, style="yellow")) for line in waits]
        if self._step:
            lines += [self._progress(), Text("  ".join(self._shown())), self._time_bar()]
        return Group(*lines)

    def _progress(self) -> RenderableType:
        grid = Table.grid(padding=(0, 1))
        remaining = self._remaining_s()
        grid.add_row(
            Text(f"step {self._step}/{self._num_steps}", style="bold"),
            ProgressBar(total=self._num_steps, completed=self._step, width=BAR_WIDTH),
            Text(f"{duration(remaining)} left" if remaining is not None else ""),
        )
        return grid

    def _time_bar(self) -> Text:
        bar, legend = Text(), Text()
        shares = time_shares(self._metrics)
        for part, colour in TIME_PARTS:
            if part in shares:
                bar.append("━" * round(shares[part] * BAR_WIDTH), style=colour)
                legend.append(f"  {part} {shares[part]:.0%}", style=colour)
        return bar + legend


def time_shares(metrics: Mapping[str, float]) -> dict[str, float]:
    """Share of the step's wall time by part; what the parts leave is not shown."""
    if not metrics.get("time/step_s"):
        return {}
    return {
        part: metrics[f"time/{part}_s"] / metrics["time/step_s"]
        for part, _ in TIME_PARTS
        if f"time/{part}_s" in metrics
    }


def duration(seconds: float) -> str:
    """Seconds as `1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def summary_table(before: EvalSummary | None, after: EvalSummary | None) -> Table:
    """Before and after side by side, with 95 % intervals."""
    table = Table(title="Held-out questions, 95 % intervals", title_justify="left")
    table.add_column("measure")
    columns = [(name, summary) for name, summary in (("before", before), ("after", after)) if summary is not None]
    for name, summary in columns:
        table.add_column(f"{name} (n = {summary.num_questions})", justify="right")
    summaries = [summary for _, summary in columns]
    rows: list[tuple[str, list[Interval | None], bool]] = [
        ("accuracy", [item.accuracy for item in summaries], True),
        ("early failures, of all judged", [item.early_share for item in summaries], True),
        ("early failures, of failing", [item.stage_shares[Stage.EARLY] for item in summaries], True),
        ("valid steps a completion", [item.valid_steps for item in summaries], False),
    ]
    for label, cells, is_share in rows:
        if any(cell is not None for cell in cells):
            table.add_row(label, *(_cell(cell, is_share=is_share) for cell in cells))
    table.add_row("judgements failed", *(str(item.num_judge_failed) for item in summaries))
    if any(item.num_answer_judge_failed for item in summaries):
        table.add_row("answers not rated (judge failed)", *(str(item.num_answer_judge_failed) for item in summaries))
    table.add_row("truncated", *(str(item.num_truncated) for item in summaries))
    return table


def share_text(interval: Interval) -> str:
    """A share and its interval, in per cent."""
    return f"{interval.value:.1%} ({interval.low * 100:.1f}–{interval.high * 100:.1f})"


def _cell(interval: Interval | None, *, is_share: bool = True) -> str:
    if interval is None:
        return "–"
    if is_share:
        return share_text(interval)
    return f"{interval.value:.2f} ({interval.low:.2f}–{interval.high:.2f})"
