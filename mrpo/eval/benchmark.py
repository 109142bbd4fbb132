"""All numbers of some evaluations, found once: what tables, report and exports show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mrpo.eval.comparability import difference_notices
from mrpo.eval.evaluation import Evaluation, EvaluationFacts, require_comparable
from mrpo.eval.pairing import PairedResult, Unpaired, all_pairs
from mrpo.eval.reasoning import ReasoningReport, summarise_reasoning
from mrpo.eval.results import BenchmarkResult, JudgeError, judge_errors, summarise_sets


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelResult:
    """One model."""

    facts: EvaluationFacts
    accuracy: BenchmarkResult
    reasoning: ReasoningReport
    judge_errors: list[JudgeError]


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """Some models, and every two of them."""

    models: list[ModelResult]  # in the order given
    pairs: list[PairedResult | Unpaired]

    @property
    def notices(self) -> list[str]:
        """What a reader must know first, each once."""
        differences = difference_notices([item.facts for item in self.models])
        return list(dict.fromkeys([*differences, *(notice for item in self.models for notice in item.facts.notices)]))


def measure(evaluations: Sequence[Evaluation]) -> Benchmark:
    """Find all numbers; seconds for ten thousand questions.

    Args:
        evaluations: one a model; their names differ.

    Raises:
        DataError: there is none, one is empty or holds a question twice, two have one name, or a question differs
            between two.
    """
    require_comparable(evaluations)
    return Benchmark(
        models=[
            ModelResult(
                facts=item.facts,
                accuracy=summarise_sets(item.rows, seed=item.facts.seed),
                reasoning=summarise_reasoning(item.rows, seed=item.facts.seed),
                judge_errors=judge_errors(item.rows),
            )
            for item in evaluations
        ],
        pairs=all_pairs(evaluations),
    )
