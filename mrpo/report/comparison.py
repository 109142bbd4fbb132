"""The held-out part of the report: headlines, the table of measures, and where reasoning first fails.

`shown` maps an evaluation's name to its summary, the older first: usually before and after, or just one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mrpo.eval.cascade import Stage
from mrpo.eval.intervals import Interval
from mrpo.eval.summary import EvalSummary
from mrpo.report.charts import BarPlot, bar_plot

MAX_POSITIONS = 10  # step numbers with a bar of their own
MISSING = "–"
STAGE_HINTS = {Stage.EARLY: "below 1/3", Stage.MID: "1/3 to below 2/3", Stage.LATE: "2/3 and above"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """A number at the top: the newest value, and what it was before."""

    label: str
    value: str
    interval: str
    before: str | None
    is_better: bool | None  # None: nothing to compare with, or the intervals overlap


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """A line of the table, one cell an evaluation."""

    label: str
    hint: str
    cells: list[str]
    is_main: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StageBar:
    """All judged completions of one evaluation, by the stage of their first failure."""

    name: str
    parts: list[tuple[str, float]]  # (early | mid | late | none, share)


def headlines(shown: Mapping[str, EvalSummary]) -> list[Headline]:
    """The three numbers to read first, as far as they were observed."""
    summaries = list(shown.values())
    if not summaries:
        return []
    first, last = summaries[0], summaries[-1]
    measures = [
        ("Answer accuracy", first.accuracy, last.accuracy, False),
        ("Early failures, of all judged", first.early_share, last.early_share, True),
        ("Valid steps", first.valid_share, last.valid_share, False),
    ]
    is_compared = len(summaries) > 1
    return [
        _headline(label, old if is_compared else None, new, lower_is_better=lower)
        for label, old, new, lower in measures
        if new is not None
    ]


def _headline(label: str, old: Interval | None, new: Interval, *, lower_is_better: bool) -> Headline:
    apart = old is not None and (new.low > old.high or new.high < old.low)
    return Headline(
        label=label,
        value=f"{new.value * 100:.1f}\u00a0%",
        interval=f"{new.low * 100:.1f} to {new.high * 100:.1f} %",
        before=f"{old.value * 100:.1f}\u00a0%" if old is not None else None,
        is_better=(new.value < old.value) == lower_is_better if old is not None and apart else None,
    )


def comparison_table(shown: Mapping[str, EvalSummary]) -> list[TableRow]:
    """Every measure with its interval; measures nobody observed are left out."""
    items = list(shown.values())
    shares = [
        ("Answer accuracy", "of all questions", [item.accuracy for item in items]),
        ("Early failures", "of all judged completions", [item.early_share for item in items]),
        *(
            (f"First failure {stage}", f"{hint}; of failing completions", [item.stage_shares[stage] for item in items])
            for stage, hint in STAGE_HINTS.items()
        ),
        ("Valid steps", "of all judged steps, taken as independent", [item.valid_share for item in items]),
        ("Failure accumulation", "invalid among the steps after the first", [item.accumulation_rate for item in items]),
    ]
    means = [
        ("Valid steps a completion", "mean number", [item.valid_steps for item in items]),
        ("Steps a completion", "mean number", [item.steps for item in items]),
    ]
    numbers = [
        ("Judged", "completions with verdicts", [item.num_judged for item in items]),
        ("Judge failed", "no verdicts, never counted as zero", [item.num_judge_failed for item in items]),
        ("Without steps", "nothing to judge", [item.num_without_steps for item in items]),
        ("Truncated", "cut by the token limit", [item.num_truncated for item in items]),
    ]
    unrated = [item.num_answer_judge_failed for item in items]
    if any(unrated):
        numbers.insert(2, ("Answer not rated", "the judge failed; counted as not correct", unrated))
    rows = [
        TableRow(label=label, hint=hint, cells=[_share(cell) for cell in cells], is_main=number < 2)
        for number, (label, hint, cells) in enumerate(shares)
    ]
    rows += [TableRow(label=label, hint=hint, cells=[_number(cell) for cell in cells]) for label, hint, cells in means]
    rows = [row for row in rows if set(row.cells) != {MISSING}]
    return rows + [
        TableRow(label=label, hint=hint, cells=[f"{count:,}" for count in counts]) for label, hint, counts in numbers
    ]


def position_plot(shown: Mapping[str, EvalSummary]) -> BarPlot | None:
    """Judged completions by the number of the step that fails first; None where nothing was judged."""
    judged = {name: item for name, item in shown.items() if item.num_judged}
    if not judged:
        return None
    deepest = max((step for item in judged.values() for step in item.first_failures), default=1)
    last = min(deepest, MAX_POSITIONS)
    columns = []
    for number, (name, item) in enumerate(judged.items()):
        counts = [0] * last
        beyond = 0
        for step, count in item.first_failures.items():
            if step <= last:
                counts[step - 1] = count
            else:
                beyond += count
        never = item.num_judged - item.num_failing
        values = [count / item.num_judged for count in (*counts, *([beyond] if deepest > last else []), never)]
        columns.append((name, "before" if number == 0 and len(judged) > 1 else "after", values))
    groups = [*(str(step) for step in range(1, last + 1)), *([f"> {last}"] if deepest > last else []), "never"]
    return bar_plot(groups, columns, what="Share of judged completions by the step that fails first")


def accumulation_plot(shown: Mapping[str, EvalSummary]) -> BarPlot | None:
    """Mean share of invalid steps after the first failure, by where that lies; None where nothing was observed."""
    observed = {name: item for name, item in shown.items() if item.accumulation_rate is not None}
    if not observed:
        return None
    bins = next(iter(observed.values())).accumulation_curve
    columns = [
        (
            name,
            "before" if number == 0 and len(observed) > 1 else "after",
            [part.mean_far for part in item.accumulation_curve],
        )
        for number, (name, item) in enumerate(observed.items())
    ]
    groups = [f"{part.low:.1f}–{part.high:.1f}" for part in bins]
    return bar_plot(groups, columns, what="Mean share of invalid steps after the first failure, by first failure point")


def stage_bars(shown: Mapping[str, EvalSummary]) -> list[StageBar]:
    """One bar for each evaluation with verdicts."""
    bars = []
    for name, item in shown.items():
        if item.num_judged:
            failing = item.num_failing / item.num_judged
            parts = [
                (stage.value, share.value * failing if share is not None else 0.0)
                for stage, share in item.stage_shares.items()
            ]
            bars.append(StageBar(name=name, parts=[*parts, ("none", 1 - failing)]))
    return bars


def _share(interval: Interval | None) -> str:
    if interval is None:
        return MISSING
    return f"{interval.value * 100:.1f}\u00a0% [{interval.low * 100:.1f},\u00a0{interval.high * 100:.1f}]"


def _number(interval: Interval | None) -> str:
    return MISSING if interval is None else f"{interval.value:.2f} [{interval.low:.2f},\u00a0{interval.high:.2f}]"
