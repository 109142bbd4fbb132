"""Answer accuracy by set, with intervals; micro mean (over questions) and macro mean (over sets). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mrpo.data.sets import SETS
from mrpo.eval.intervals import Interval, wilson_interval
from mrpo.eval.statistics import bootstrap_macro, bootstrap_mean
from mrpo.trace_row import TraceRow


@dataclass(frozen=True, slots=True, kw_only=True)
class SetResult:
    """The answers to one set's questions, or to those of all sets."""

    num: int  # judge errors included
    num_correct: int
    num_judge_errors: int  # answers without a ruling: in n, not correct
    wilson: Interval
    bootstrap: Interval

    @property
    def accuracy(self) -> float:
        """Correct answers of all questions, in [0, 1]."""
        return self.num_correct / self.num


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkResult:
    """A model on a benchmark."""

    sets: dict[str, SetResult]  # in the order of `mrpo.data.sets`
    micro: SetResult  # every question counts the same
    macro: Interval  # every set counts the same; bootstrap within sets


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeError:
    """A question on which the judge gave no ruling."""

    dataset: str
    prompt_id: str
    question: str
    about: str  # answer | steps
    reason: str  # a FailureReason
    detail: str


def summarise_sets(rows: Sequence[TraceRow], *, seed: int) -> BenchmarkResult:
    """Accuracy of a model's answers.

    Args:
        rows: one a question, at least one.
        seed: of the bootstrap.
    """
    assert rows
    by_set = by_dataset(rows)
    macro = bootstrap_macro([[float(row.correct) for row in part] for part in by_set.values()], seed=seed)
    assert macro is not None
    return BenchmarkResult(
        sets={name: _result(part, seed) for name, part in by_set.items()}, micro=_result(rows, seed), macro=macro
    )


def by_dataset(rows: Sequence[TraceRow]) -> dict[str, list[TraceRow]]:
    """Rows of each set, sets in the order of `mrpo.data.sets`, others behind them by name."""
    names = in_set_order({row.dataset for row in rows})
    parts: dict[str, list[TraceRow]] = {name: [] for name in names}
    for row in rows:
        parts[row.dataset].append(row)
    return parts


def in_set_order(names: Iterable[str]) -> list[str]:
    """Names of sets in the order of `mrpo.data.sets`, others behind them by name."""
    order = {name: number for number, name in enumerate(SETS)}
    return sorted(names, key=lambda name: (order.get(name, len(order)), name))


def set_title(name: str) -> str:
    """A set as tables call it."""
    return SETS[name].title if name in SETS else name


def judge_errors(rows: Sequence[TraceRow]) -> list[JudgeError]:
    """Every question whose answer or steps have no ruling because the judge failed, in the order of the rows."""
    errors = []
    for row in rows:
        for about, reason, detail in (
            ("answer", row.answer_judge_failure, row.answer_judge_detail),
            ("steps", row.judge_failure, row.judge_detail),
        ):
            if reason is not None:
                errors.append(
                    JudgeError(
                        dataset=row.dataset,
                        prompt_id=row.prompt_id,
                        question=row.question,
                        about=about,
                        reason=reason,
                        detail=detail or "",
                    )
                )
    return errors


def _result(rows: Sequence[TraceRow], seed: int) -> SetResult:
    num_correct = sum(row.correct for row in rows)
    wilson = wilson_interval(num_correct, len(rows))
    bootstrap = bootstrap_mean([float(row.correct) for row in rows], seed=seed)
    assert wilson is not None and bootstrap is not None
    return SetResult(
        num=len(rows),
        num_correct=num_correct,
        num_judge_errors=sum(row.answer_judge_failure is not None for row in rows),
        wilson=wilson,
        bootstrap=bootstrap,
    )
