"""What a study measured: one row an axis, setting and seed, and the same summed up over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mrpo.ablation.ledger import Record, VariantFolder
from mrpo.ablation.plan import Entry, Plan
from mrpo.ablation.trainer import VariantStatus
from mrpo.eval.intervals import Interval
from mrpo.eval.summary import EvalSummary, summarize
from mrpo.rows import read_rows
from mrpo.run_reading import list_evaluations, read_environment, read_metrics, read_state

END_STEPS = 10  # training steps whose rewards are averaged: one step's completions are few


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultRow:
    """A variant at its place on an axis; the fields are the columns. Shares are in [0, 1], None: not measured (yet)."""

    study: str
    axis: str
    settings: str  # `key=value`, separated by blanks
    label: str  # the same, short
    is_default: bool  # what the axes vary; its run is shared by all axes
    seed: int
    status: str  # a VariantStatus
    accuracy_before: float | None
    accuracy_before_low: float | None  # 95 % Wilson interval over the held-out questions
    accuracy_before_high: float | None
    accuracy_after: float | None
    accuracy_after_low: float | None
    accuracy_after_high: float | None
    early_before: float | None  # judged completions that first fail in the first third of their steps
    early_before_low: float | None
    early_before_high: float | None
    early_after: float | None
    early_after_low: float | None
    early_after_high: float | None
    failing_before: float | None  # judged completions with an invalid step
    failing_after: float | None
    far_before: float | None  # mean share of invalid steps among those after the first failure
    far_after: float | None
    num_questions: int | None  # held-out, after
    num_judged: int | None  # of these, with verdicts
    num_steps: int  # optimizer steps done
    reward_end: float | None  # mean reward of a completion in the last END_STEPS steps; as the variant defines reward
    wall_s: float  # of all attempts
    run_folder: str | None  # relative to the study's folder
    commit: str | None  # of the code, where it ran from a git checkout
    config_hash: str
    error: str | None


MEASURES = (
    "accuracy_before",
    "accuracy_after",
    "early_before",
    "early_after",
    "failing_before",
    "failing_after",
    "far_before",
    "far_after",
    "reward_end",
    "wall_s",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A measure over seeds."""

    mean: float
    low: float  # the smallest
    high: float  # the largest
    num: int  # seeds behind it


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate:
    """One setting over its finished seeds."""

    study: str
    axis: str
    settings: str
    label: str
    is_default: bool
    num_seeds: int  # planned
    num_finished: int
    spreads: dict[str, Spread | None]  # by name in MEASURES; None: no finished seed measured it


def collect_rows(plan: Plan, study_folder: Path) -> list[ResultRow]:
    """The rows of a study as far as it came, axis by axis, seeds side by side.

    Raises:
        DataError: a record or a run is damaged.
    """
    folders = {variant.key: VariantFolder.locate(study_folder, variant) for variant in plan.variants}
    measured = {key: _Measured.of(folder) for key, folder in folders.items()}
    axes = list(dict.fromkeys(entry.axis for entry in plan.entries))
    places = list(dict.fromkeys((entry.axis, entry.settings) for entry in plan.entries))
    entries = sorted(
        plan.entries, key=lambda entry: (axes.index(entry.axis), places.index((entry.axis, entry.settings)))
    )
    return [_row(plan.study, entry, measured[entry.key], study_folder) for entry in entries]


def aggregate(rows: Sequence[ResultRow]) -> list[Aggregate]:
    """Sum up over seeds; only finished variants count, and how many they are is said."""
    groups: dict[tuple[str, str], list[ResultRow]] = {}
    for row in rows:
        groups.setdefault((row.axis, row.settings), []).append(row)
    result = []
    for group in groups.values():
        first = group[0]
        finished = [row for row in group if row.status == VariantStatus.FINISHED]
        result.append(
            Aggregate(
                study=first.study,
                axis=first.axis,
                settings=first.settings,
                label=first.label,
                is_default=first.is_default,
                num_seeds=len(group),
                num_finished=len(finished),
                spreads={name: _spread([getattr(row, name) for row in finished]) for name in MEASURES},
            )
        )
    return result


def short_label(settings: Sequence[str]) -> str:
    """Settings as a plot has room for: the last part of their names, numbers to four digits."""
    parts = []
    for setting in settings:
        name, _, value = setting.partition("=")
        with suppress(ValueError):  # not a number: as it stands
            value = f"{float(value):.4g}"
        parts.append(f"{name.rpartition('.')[2]}={value}")
    return " ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """What is known of one variant, whichever rows it is in."""

    record: Record
    run: Path | None
    before: EvalSummary | None
    after: EvalSummary | None
    num_steps: int
    reward_end: float | None
    commit: str | None

    @classmethod
    def of(cls, folder: VariantFolder) -> _Measured:
        record, run = folder.record(), folder.run()
        if run is None:
            return cls(record=record, run=None, before=None, after=None, num_steps=0, reward_end=None, commit=None)
        files = list_evaluations(run)
        summaries = {name: summarize(read_rows(files[name])) for name in ("before", "after") if name in files}
        rewards = [row["reward/mean"] for row in read_metrics(run).rows if "reward/mean" in row]
        known = [reward for reward in rewards[-END_STEPS:] if reward is not None]
        environment = read_environment(run)
        return cls(
            record=record,
            run=run,
            before=summaries.get("before"),
            after=summaries.get("after"),
            num_steps=read_state(run).step,
            reward_end=sum(known) / len(known) if known else None,
            commit=environment.get("commit"),
        )


def _row(study: str, entry: Entry, measured: _Measured, study_folder: Path) -> ResultRow:
    before, after, record = measured.before, measured.after, measured.record
    return ResultRow(
        study=study,
        axis=entry.axis,
        settings=" ".join(entry.settings),
        label=short_label(entry.settings),
        is_default=entry.is_default,
        seed=entry.seed,
        status=record.status.value,
        **_ends("accuracy_before", before.accuracy if before else None),
        **_ends("accuracy_after", after.accuracy if after else None),
        **_ends("early_before", before.early_share if before else None),
        **_ends("early_after", after.early_share if after else None),
        failing_before=_failing(before),
        failing_after=_failing(after),
        far_before=_value(before.accumulation_rate) if before else None,
        far_after=_value(after.accumulation_rate) if after else None,
        num_questions=after.num_questions if after else None,
        num_judged=after.num_judged if after else None,
        num_steps=measured.num_steps,
        reward_end=measured.reward_end,
        wall_s=record.wall_s,
        run_folder=str(measured.run.relative_to(study_folder)) if measured.run else None,
        commit=measured.commit,
        config_hash=entry.key,
        error=record.error,
    )


def _ends(name: str, interval: Interval | None) -> dict[str, float | None]:
    if interval is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _value(interval: Interval | None) -> float | None:
    return None if interval is None else interval.value


def _failing(summary: EvalSummary | None) -> float | None:
    return summary.num_failing / summary.num_judged if summary is not None and summary.num_judged else None


def _spread(values: Sequence[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Spread(mean=sum(known) / len(known), low=min(known), high=max(known), num=len(known))
