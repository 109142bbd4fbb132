"""Where evaluations were rated differently, so that their numbers do not compare. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from mrpo.eval.evaluation import EvaluationFacts
from mrpo.eval.results import in_set_order, set_title

RATING: Mapping[str, Callable[[EvaluationFacts], object]] = {
    "judge": lambda facts: facts.judge,
    "rubric for steps": lambda facts: facts.step_rubric,
    "rubric for answers": lambda facts: facts.answer_rubric,
    "answers rated by": lambda facts: facts.answer_kind,
    "threshold of a right answer": lambda facts: facts.threshold,
}


def rated_differently(first: EvaluationFacts, second: EvaluationFacts) -> list[str]:
    """What of the rating differs between two evaluations."""
    return [label for label, value in RATING.items() if value(first) != value(second)]


def difference_notices(all_facts: Sequence[EvaluationFacts]) -> list[str]:
    """A sentence for each thing that differs, with everybody's value."""
    notices = []
    for label, value in RATING.items():
        if len({value(facts) for facts in all_facts}) > 1:
            values = "; ".join(f"{facts.model}: {_shown(value(facts))}" for facts in all_facts)
            notices.append(
                f"Not rated alike, {label} ({values}). These models' numbers do not compare, and they are not paired."
            )
    for name in in_set_order({name for facts in all_facts for name in facts.open_rules}):
        rules = {facts.model: facts.open_rules[name] for facts in all_facts if name in facts.open_rules}
        if len(set(rules.values())) > 1:
            values = "; ".join(f"{model}: {rule}" for model, rule in rules.items())
            notices.append(
                f"Not the same questions, {set_title(name)} by another open-ended rule ({values}). Pairs are of the "
                "questions that both were asked."
            )
    return notices


def _shown(value: object) -> str:
    return "none" if value is None else str(value)
