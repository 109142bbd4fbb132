"""Tables of one or more evaluations, the published numbers beside them: cells of text, whatever they are printed as."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mrpo.eval import published
from mrpo.eval.benchmark import Benchmark
from mrpo.eval.cascade import Stage
from mrpo.eval.intervals import Interval
from mrpo.eval.pairing import PairedResult, Unpaired
from mrpo.eval.reasoning import ReasoningReport, ReasoningResult
from mrpo.eval.results import BenchmarkResult, in_set_order, set_title

MISSING = "–"
PUBLISHED = "published"
COMPUTED = "†"  # a mean that was not printed
ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A value, and its interval or what else stands small beside it."""

    text: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A row of a table."""

    cells: list[Cell]  # one a column
    is_published: bool = False
    begins_group: bool = False  # a rule stands above it


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table with what its numbers mean."""

    name: str  # for file names and labels
    title: str
    note: str
    num_labels: int  # leading columns of text; the others are numbers
    columns: list[Cell]
    lines: list[Line]


def result_tables(benchmark: Benchmark) -> list[Table]:
    """Accuracy, counts, paired comparison, reasoning and cascades, as far as there is something to show."""
    results = {item.facts.model: item.accuracy for item in benchmark.models}
    reports = {item.facts.model: item.reasoning for item in benchmark.models}
    tables = [
        accuracy_table(results),
        counts_table(results, {item.facts.model: item.facts.open_rules for item in benchmark.models}),
        paired_table(benchmark.pairs),
        reasoning_table(reports),
        cascade_table(reports),
    ]
    return [table for table in tables if table is not None]


def accuracy_table(results: Mapping[str, BenchmarkResult]) -> Table:
    """Accuracy of each model on each set, and the published rows on the same sets; means where there are several.

    Args:
        results: by model.
    """
    names = in_set_order({name for result in results.values() for name in result.sets})
    has_means = len(names) > 1
    columns = [Cell(text="Model"), *(Cell(text=set_title(name), detail=_size(name, results)) for name in names)]
    lines = [
        Line(
            cells=[
                Cell(text=model),
                *(_share(result.sets[name].wilson if name in result.sets else None, digits=2) for name in names),
                *((_share(result.micro.wilson, digits=2), _share(result.macro, digits=2)) if has_means else ()),
            ]
        )
        for model, result in results.items()
    ]
    rows = [(row, {name: row.accuracy[name] for name in names if name in row.accuracy}) for row in published.ACCURACIES]
    family = None
    for row, shown in rows:
        if shown:
            lines.append(
                Line(
                    cells=[
                        Cell(text=row.name, detail=PUBLISHED),
                        *(Cell(text=f"{shown[name]:.2f}" if name in shown else MISSING) for name in names),
                        *(_published_means(row, shown) if has_means else ()),
                    ],
                    is_published=True,
                    begins_group=row.family != family,
                )
            )
            family = row.family
    return Table(
        name="accuracy",
        title="Answer accuracy (%)",
        note="In brackets 95 % intervals: Wilson's for the sets and the micro mean (over questions), bootstrap for the "
        "macro mean (over sets). Judge errors stay in n and count as not correct. Published rows are as printed in "
        f"arXiv 2606.31825; a mean with {COMPUTED} is computed from them and the paper's n. A mean is over a row's own "
        "sets.",
        num_labels=1,
        columns=[*columns, *((Cell(text="Micro"), Cell(text="Macro")) if has_means else ())],
        lines=lines,
    )


def counts_table(results: Mapping[str, BenchmarkResult], open_rules: Mapping[str, Mapping[str, str]]) -> Table:
    """What the accuracies are made of.

    Args:
        results: by model.
        open_rules: by model and set, which questions count as open-ended.
    """
    lines = []
    for model, result in results.items():
        entries = [
            (name, set_title(name), open_rules[model].get(name, MISSING), part) for name, part in result.sets.items()
        ]
        if len(entries) > 1:
            entries.append((ALL, ALL, "", result.micro))
        for number, (_, title, rule, part) in enumerate(entries):
            lines.append(
                Line(
                    cells=[
                        Cell(text=model if number == 0 else ""),
                        Cell(text=title, detail=rule),
                        Cell(text=f"{part.num:,}"),
                        Cell(text=f"{part.num_correct:,}"),
                        Cell(text=f"{part.num_judge_errors:,}"),
                        Cell(text=f"{part.accuracy * 100:.2f}"),
                        Cell(text=_ends(part.wilson)),
                        Cell(text=_ends(part.bootstrap)),
                    ],
                    begins_group=number == 0,
                )
            )
    names = ("Model", "Set", "n", "Correct", "Judge errors", "Accuracy (%)", "Wilson 95 %", "Bootstrap 95 %")
    return Table(
        name="counts",
        title="Answers by set",
        note="Beside the set: which questions count as open-ended. Judge errors: answers on which the judge gave no "
        "ruling; they stay in n and are not correct.",
        num_labels=2,
        columns=[Cell(text=name) for name in names],
        lines=lines,
    )


def reasoning_table(reports: Mapping[str, ReasoningReport]) -> Table | None:
    """The judge's rulings on steps, over all and by set and kind of question; None where nothing was judged.

    Args:
        reports: by model.
    """
    return _by_group(
        reports,
        name="reasoning",
        title="Reasoning quality (%)",
        note="In brackets 95 % intervals. Aligned, contributing, valid: mean share of a completion's steps (bootstrap "
        "over completions); a step is valid when it aligns with the gold rationale or contributes to the answer. "
        "An interval is missing (–) where there is one value, or no two differ.",
        columns=("n", "Judged", "Judge errors", "Without steps", "Aligned", "Contributing", "Valid"),
        cells=lambda part: [
            *(
                Cell(text=f"{count:,}")
                for count in (part.num, part.num_judged, part.num_judge_errors, part.num_without_steps)
            ),
            *(_share(interval) for interval in (part.alignment, part.contribution, part.validity)),
        ],
    )


def cascade_table(reports: Mapping[str, ReasoningReport]) -> Table | None:
    """Failure cascades, over all and by set and kind of question; None where nothing was judged.

    Args:
        reports: by model.
    """
    return _by_group(
        reports,
        name="cascade",
        title="Failure cascades (%)",
        note="In brackets 95 % intervals. Failing: judged completions with an invalid step. Early, mid, late: where "
        "the first of them lies, below 1/3, below 2/3 or later, as shares of the failing completions and, “of all”, of "
        "all judged ones (Wilson). FAR: mean share of invalid steps after the first one (bootstrap). An interval is "
        "missing (–) where there is one value, or no two differ.",
        columns=("Judged", "Failing", "Early", "Mid", "Late", "Early of all", "Mid of all", "Late of all", "FAR"),
        cells=lambda part: [
            Cell(text=f"{part.num_judged:,}"),
            _share(part.cascade.failing),
            *(_share(part.cascade.of_failing[stage]) for stage in Stage),
            *(_share(part.cascade.of_all[stage]) for stage in Stage),
            _share(part.cascade.accumulation),
        ],
    )


def paired_table(pairs: Sequence[PairedResult | Unpaired]) -> Table | None:
    """Every two models on the questions they share, or why they are not paired; None where there are no two."""
    if not pairs:
        return None
    names = ("Model A", "Model B", "n", "Both right", "Only A", "Only B", "B − A (points)", "McNemar p", "Bootstrap p")
    return Table(
        name="paired",
        title="Paired comparison",
        note="Answers to the same questions. The difference of accuracies has a paired bootstrap 95 % interval; "
        "McNemar's test is exact and two-sided, the bootstrap's p two-sided. The p values are not corrected for the "
        "number of pairs. Models that were not rated alike, or share no question, are not paired.",
        num_labels=2,
        columns=[Cell(text=name) for name in names],
        lines=[Line(cells=_pair_cells(pair, num_numbers=len(names) - 2)) for pair in pairs],
    )


def _pair_cells(pair: PairedResult | Unpaired, *, num_numbers: int) -> list[Cell]:
    if isinstance(pair, Unpaired):
        labels = [Cell(text=pair.first), Cell(text=pair.second, detail=pair.reason)]
        return [*labels, *[Cell(text=MISSING)] * num_numbers]
    return [
        Cell(text=pair.first),
        Cell(text=pair.second),
        Cell(text=f"{pair.num_paired:,}"),
        Cell(text=f"{pair.num_both:,}"),
        Cell(text=f"{pair.num_only_first:,}"),
        Cell(text=f"{pair.num_only_second:,}"),
        Cell(text=_signed(pair.difference.value), detail=_ends(pair.difference)),
        Cell(text=p_value(pair.mcnemar_p)),
        Cell(text=p_value(pair.bootstrap_p)),
    ]


def p_value(p: float) -> str:
    """Three decimals, or that it is smaller."""
    return f"{p:.3f}" if p >= 0.0005 else "< 0.001"


def _by_group(
    reports: Mapping[str, ReasoningReport],
    *,
    name: str,
    title: str,
    note: str,
    columns: Sequence[str],
    cells: Callable[[ReasoningResult], list[Cell]],
) -> Table | None:
    """A table with a line for all questions of a model, for each of its sets and for each kind of question."""
    lines = []
    for model, report in reports.items():
        if not report.overall.num_judged:
            continue
        groups: list[tuple[str, str, ReasoningResult]] = [(ALL, "", report.overall)]
        if len(report.by_set) > 1:
            groups += [(set_title(key), "set", part) for key, part in report.by_set.items()]
        groups += [(kind.value.replace("_", " "), "kind", part) for kind, part in report.by_kind.items()]
        for number, (label, detail, part) in enumerate(groups):
            labels = [Cell(text=model if number == 0 else ""), Cell(text=label, detail=detail)]
            lines.append(Line(cells=[*labels, *cells(part)], begins_group=number == 0))
    if not lines:
        return None
    return Table(
        name=name,
        title=title,
        note=note,
        num_labels=2,
        columns=[Cell(text=column) for column in ("Model", "Questions", *columns)],
        lines=lines,
    )


def _published_means(row: published.PublishedAccuracy, shown: Mapping[str, float]) -> list[Cell]:
    """Micro mean, as printed where all its sets are shown, and macro mean."""
    is_printed = shown == row.accuracy
    micro = f"{row.average:.2f}" if is_printed else f"{published.micro_mean(shown):.2f}{COMPUTED}"
    return [Cell(text=micro), Cell(text=f"{published.macro_mean(shown):.2f}{COMPUTED}")]


def _share(interval: Interval | None, *, digits: int = 1) -> Cell:
    if interval is None:
        return Cell(text=MISSING)
    return Cell(text=f"{interval.value * 100:.{digits}f}", detail=_ends(interval))


def _ends(interval: Interval) -> str:
    if not interval.has_width:
        return MISSING
    return f"[{interval.low * 100:.1f}, {interval.high * 100:.1f}]".replace("-", "−")


def _signed(value: float) -> str:
    return f"{value * 100:+.2f}".replace("-", "−")


def _size(name: str, results: Mapping[str, BenchmarkResult]) -> str:
    """How many questions the models answered; the paper's number where it is another."""
    sizes = sorted({result.sets[name].num for result in results.values() if name in result.sets})
    ours = "n = " + ", ".join(f"{size:,}" for size in sizes)
    paper = published.SET_SIZES.get(name)
    return ours if paper is None or sizes == [paper] else f"{ours} (paper {paper:,})"
