"""How many rows were read, left out and why, and kept: nothing goes missing without a count."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrpo.choices import OpenRule
from mrpo.errors import DataError

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class SplitFunnel:
    """Counts of one split. read = bad + the sum of left_out + kept."""

    read: int = 0
    bad: int = 0
    left_out: Counter[str] = field(default_factory=Counter)  # reason: rows
    kept: int = 0
    joined: int = 0  # kept rows with a rationale
    by_rule: Counter[OpenRule] = field(default_factory=Counter)  # open-ended rule: good rows that it keeps


@dataclass(slots=True, kw_only=True)
class Funnel:
    """Counts of all splits, and the bad rows themselves."""

    root: Path
    max_bad_rows: int
    splits: dict[str, SplitFunnel] = field(default_factory=dict)
    bad_rows: list[str] = field(default_factory=list)

    def of(self, split: str) -> SplitFunnel:
        """The counts of a split."""
        return self.splits.setdefault(split, SplitFunnel())

    def reject(self, split: str, label: str, number: int, reason: str) -> None:
        """Count and report one bad row.

        Raises:
            DataError: more rows are bad than `data.max_bad_rows`.
        """
        self.of(split).bad += 1
        self.report(label, number, reason)

    def report(self, label: str, number: int, reason: str) -> None:
        """As `reject`, for a row of a file that belongs to no split's count."""
        message = f"{label}, row {number}: {reason}"
        self.bad_rows.append(message)
        if len(self.bad_rows) > self.max_bad_rows:
            raise DataError(
                f"{self.root}/{message} ({len(self.bad_rows)} bad so far, data.max_bad_rows={self.max_bad_rows}; "
                "mend the row or raise data.max_bad_rows to drop bad rows with a report)"
            )
        logger.warning("dropped: %s", message)

    def facts(self) -> dict[str, Any]:
        """The counts as JSON-like data."""
        return {
            split: {
                "read": counts.read,
                "bad": counts.bad,
                "left_out": dict(counts.left_out),
                "kept": counts.kept,
                "joined": counts.joined,
                "by_rule": {rule.value: counts.by_rule[rule] for rule in OpenRule},
            }
            for split, counts in sorted(self.splits.items())
        }

    def lines(self) -> Iterator[tuple[str, str, int]]:
        """Split, what, how many: the rows of the table, from all that was read down to what is kept."""
        for split, counts in self.splits.items():
            yield split, "rows read", counts.read
            if counts.bad:
                yield split, "bad rows", -counts.bad
            for reason, count in sorted(counts.left_out.items()):
                yield split, reason, -count
            yield split, "kept", counts.kept
            if counts.joined:
                yield split, "with a rationale", counts.joined
