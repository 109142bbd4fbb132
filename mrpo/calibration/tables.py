"""The numbers of a check as tables for the screen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.markup import escape
from rich.table import Table

from mrpo.calibration.agreement import RaterAgreement
from mrpo.calibration.calls import CallSummary
from mrpo.calibration.comparison import Comparison
from mrpo.calibration.measure import CheckResult, LabelFacts
from mrpo.console import share_text
from mrpo.eval.intervals import Interval

NONE = "–"


def result_tables(result: CheckResult) -> list[Table]:
    """All tables, agreement first."""
    tables = [_agreement(result), _errors(result), _robustness(result), _calls(result)]
    if result.measures.annotators:
        raters = [*result.measures.annotators, *result.measures.judge_and_annotators]
        tables.append(_raters("Labellers among each other, and the judge with each", raters))
    if result.comparison is not None:
        tables.append(_comparison(result.comparison))
    return tables


def label_tables(facts: LabelFacts, raters: Sequence[RaterAgreement]) -> list[Table]:
    """What labels say of themselves."""
    split = ", ".join(f"{mark} {num}" for mark, num in facts.num_split.items())
    names = ", ".join(name or "without a name" for name in facts.annotators)
    rows = [
        ("completions", str(facts.num_completions)),
        ("steps", str(facts.num_steps)),
        ("labellers", names),
        ("steps on which they are split", split),
    ]
    tables = [_table("Labels", ("", ""), rows)]
    return [*tables, _raters("Agreement of labellers", raters)] if raters else tables


def number_text(interval: Interval | None) -> str:
    """A coefficient and its interval."""
    if interval is None:
        return NONE
    return f"{coefficient_text(interval.value)} ({coefficient_text(interval.low)} to {coefficient_text(interval.high)})"


def coefficient_text(value: float | None) -> str:
    """A coefficient alone."""
    return NONE if value is None else f"{round(value, 3) + 0.0:.3f}".replace("-", "−")  # + 0.0: never −0.000


def shares_text(interval: Interval | None) -> str:
    """A share and its interval, in per cent."""
    return NONE if interval is None else share_text(interval)


def _agreement(result: CheckResult) -> Table:
    rows = [
        (item.mark, str(item.num_steps), shares_text(item.accuracy), number_text(item.kappa))
        for item in result.measures.marks
    ]
    rows += [
        (f"grade, {item.weights}", str(sum(map(sum, item.table))), NONE, number_text(item.kappa))
        for item in result.measures.graded
    ]
    title = f"{result.judge} against {result.measures.labels.num_steps} labelled steps, 95 % intervals"
    return _table(title, ("mark", "steps", "accuracy", "Cohen's kappa"), rows)


def _errors(result: CheckResult) -> Table:
    rows = [
        (item.mark, item.band or NONE, _share(item.too_kind), _share(item.too_strict)) for item in result.measures.marks
    ]
    return _table("Of the steps so labelled", ("mark", "band of kappa", "0, ruled 1", "1, ruled 0"), rows)


def _robustness(result: CheckResult) -> Table:
    measures = result.measures
    rows = [(f"asked again, agrees: {item.mark}", shares_text(item.agreement)) for item in measures.consistency]
    rows += [(f"first to last place, ruled 1: {item.mark}", number_text(item.effect)) for item in measures.position]
    rows += [(f"length and error, correlation: {item.mark}", number_text(item.correlation)) for item in measures.length]
    if result.attacks is not None:
        won, tried = len(result.attacks.succeeded), result.attacks.num_attacks - result.attacks.num_unjudged
        text = NONE if result.attack_success is None else f"{won} of {tried}: {shares_text(result.attack_success)}"
        rows.append(("attacks that succeeded", text))
        if result.attacks.num_unjudged:
            rows.append(("attacks without a ruling", str(result.attacks.num_unjudged)))
        raised = f"{result.attacks.num_raised} of {result.attacks.num_raisable}"
        lowered = f"{result.attacks.num_lowered} of {result.attacks.num_lowerable}"
        rows.append(("steps raised, lowered under attack", f"{raised}, {lowered}"))
    return _table("Repeats, places, lengths, attacks", ("measure", "value"), rows)


def _calls(result: CheckResult) -> Table:
    columns = [("labelled completions", result.calls)]
    if result.attack_calls is not None:
        columns.append(("attacks", result.attack_calls))
    rows = [tuple(cells) for cells in zip(*(_column(calls) for _, calls in columns), strict=True)]
    names = ("calls", "failed", "HTTP requests", "tokens a call", "p50, p90, p99, max", "cost")
    table = _table("Calls", ("", *(name for name, _ in columns)), [])
    for name, cells in zip(names, rows, strict=True):
        if any(cell != NONE for cell in cells):
            table.add_row(name, *map(escape, cells))
    return table


def _column(calls: CallSummary) -> list[str]:
    failed = ", ".join(f"{reason} {num}" for reason, num in calls.failures.items())
    num = max(1, calls.num_calls)
    latency = [f"{calls.latency_s[name]:.2f}" for name in ("p50", "p90", "p99", "max") if calls.latency_s]
    return [
        str(calls.num_calls),
        f"{calls.num_failed} ({failed})" if failed else "0",
        str(calls.num_requests),
        f"{calls.prompt_tokens / num:,.0f}, {calls.completion_tokens / num:,.0f}",
        f"{', '.join(latency)} s" if latency else NONE,
        NONE if calls.cost is None else f"{calls.cost:.4g}",
    ]


def _raters(title: str, raters: Iterable[RaterAgreement]) -> Table:
    rows = [
        (
            f"{item.first or 'without a name'} and {item.second or 'without a name'}",
            item.agreement.mark,
            str(item.agreement.num_steps),
            shares_text(item.agreement.accuracy),
            number_text(item.agreement.kappa),
        )
        for item in raters
    ]
    return _table(title, ("raters", "mark", "steps", "agreement", "Cohen's kappa"), rows)


def _comparison(comparison: Comparison) -> Table:
    rows = []
    for item in comparison.marks:
        shares = (f"{item.accuracy:.1%}", f"{item.other_accuracy:.1%}")
        rows.append((f"accuracy, {item.mark}", *shares, number_text(item.accuracy_difference)))
        kappas = (coefficient_text(item.kappa), coefficient_text(item.other_kappa))
        rows.append((f"kappa, {item.mark}", *kappas, number_text(item.kappa_difference)))
    title = f"{comparison.name} against {comparison.other_name}, on {comparison.num_completions} completions"
    return _table(title, ("measure", "this", "other", "difference"), rows)


def _share(value: float | None) -> str:
    return NONE if value is None else f"{value:.1%}"


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(title=escape(title), title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    return table
