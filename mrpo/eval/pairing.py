"""Two models on the same questions: who is right where the other is not, and whether that can be chance. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from mrpo.errors import DataError
from mrpo.eval.comparability import rated_differently
from mrpo.eval.evaluation import Evaluation
from mrpo.eval.intervals import Interval, mcnemar_p
from mrpo.eval.statistics import bootstrap_mean, bootstrap_p
from mrpo.trace_row import TraceRow


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedResult:
    """The answers of two models to the questions both were asked. A judge error counts as not correct."""

    first: str
    second: str
    num_paired: int
    num_both: int  # both right
    num_only_first: int
    num_only_second: int
    num_judge_errors: int  # pairs in which an answer has no ruling
    difference: Interval  # accuracy of the second minus that of the first; paired bootstrap
    bootstrap_p: float  # two-sided
    mcnemar_p: float  # exact, two-sided


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpaired:
    """Two models whose answers are not compared."""

    first: str
    second: str
    reason: str


def compare_models(first: Evaluation, second: Evaluation, *, dataset: str | None = None) -> PairedResult | None:
    """Pair two evaluations by question; None where they share none.

    Args:
        first: resampling goes by its seed.
        second: the other model.
        dataset: only this set; None: all.

    Raises:
        DataError: a question of the same id has another text, gold answer or set.
    """
    known = {row.prompt_id: row for row in first.rows}
    pairs = [
        (known[row.prompt_id], row)
        for row in second.rows
        if row.prompt_id in known and (dataset is None or row.dataset == dataset)
    ]
    if not pairs:
        return None
    for one, other in pairs:
        if _question(one) != _question(other):
            raise DataError(
                f"question {one.prompt_id} is not the same for {first.facts.model!r} and {second.facts.model!r}: "
                f"{_question(one)!r} and {_question(other)!r}; evaluate both on the same prepared sets"
            )
    outcomes = [(one.correct, other.correct) for one, other in pairs]
    differences = [float(b) - float(a) for a, b in outcomes]
    seed = first.facts.seed
    difference = bootstrap_mean(differences, seed=seed)
    assert difference is not None
    only_first, only_second = outcomes.count((True, False)), outcomes.count((False, True))
    return PairedResult(
        first=first.facts.model,
        second=second.facts.model,
        num_paired=len(pairs),
        num_both=outcomes.count((True, True)),
        num_only_first=only_first,
        num_only_second=only_second,
        num_judge_errors=sum(any(row.answer_judge_failure is not None for row in pair) for pair in pairs),
        difference=difference,
        bootstrap_p=bootstrap_p(differences, seed=seed),
        mcnemar_p=mcnemar_p(only_second, only_first),
    )


def all_pairs(evaluations: Sequence[Evaluation]) -> list[PairedResult | Unpaired]:
    """Every two of the evaluations, in their order; those that were not rated alike are not paired."""
    return [_pair(first, second) for first, second in combinations(evaluations, 2)]


def _pair(first: Evaluation, second: Evaluation) -> PairedResult | Unpaired:
    result = compare_models(first, second)
    if result is None:
        reason = "no question in common"
    elif differences := rated_differently(first.facts, second.facts):
        reason = f"not rated alike: {', '.join(differences)}"
    else:
        return result
    return Unpaired(first=first.facts.model, second=second.facts.model, reason=reason)


def _question(row: TraceRow) -> tuple[str, str, str]:
    return row.dataset, row.question, row.gold_answer
