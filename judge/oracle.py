"""The oracle: rules on phantom data exactly, because every phantom sentence can be checked. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from mrpo.phantom.language import QuestionKind, rule_steps
from mrpo.rewards.normalise import normalise_answer
from mrpo.types import Verdicts


class Oracle:
    """A `judge.local_app.Ruler`. Whatever is not phantom data is a ValueError."""

    def rule_steps(self, steps: Sequence[str], *, question: str, answer: str, rationale: str) -> Verdicts:
        """See `mrpo.phantom.language.rule_steps`."""
        _check(question)
        return rule_steps(steps, question=question, answer=answer, rationale=rationale)

    def rule_answer(self, generated: str, *, question: str, answer: str) -> bool:
        """Equal after normalisation: a phantom answer has no synonyms, and a hedge equals nothing."""
        _check(question)
        return normalise_answer(generated) == normalise_answer(answer)


def _check(question: str) -> None:
    if question not in set(QuestionKind):
        raise ValueError(f"not a phantom question: {question!r}")
