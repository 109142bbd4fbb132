"""The funnel and the leakage report as tables for a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from mrpo.data.funnel import Funnel
from mrpo.data.leaks import LeakReport


def funnel_table(title: str, funnel: Funnel) -> Table:
    """Rows read, left out with the reason, and kept, by split."""
    table = Table("split", "", title=title, title_justify="left")
    table.add_column("rows", justify="right")
    split = ""
    for name, what, count in funnel.lines():
        if split and name != split:
            table.add_section()
        table.add_row(name if name != split else "", escape(what), str(count), style="bold" if what == "kept" else None)
        split = name
    return table


def rationale_table(facts: Mapping[str, Any]) -> Table:
    """Rationales read, joined and not, by split."""
    table = Table("rationales of", title="Gold rationales", title_justify="left")
    columns = ("read", "bad", "repeated", "joined", "without_a_question")
    for name in columns:
        table.add_column(name.replace("_", " "), justify="right")
    for split, counts in facts["splits"].items():
        table.add_row(split, *(str(counts[name]) for name in columns))
    return table


def leak_table(leaks: Sequence[LeakReport], *, excluded: bool) -> Table:
    """Held-out images that also occur in training."""
    title = "Images shared with training" + (" (their training questions are dropped)" if excluded else " (kept)")
    table = Table("split", title=title, title_justify="left")
    for name in ("images", "identical", "near-identical", "training images concerned"):
        table.add_column(name, justify="right")
    for report in leaks:
        numbers = (report.num_images, report.num_identical, report.num_near, len(report.train_images))
        table.add_row(report.split, *(str(number) for number in numbers))
    return table
