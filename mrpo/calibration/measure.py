"""All numbers of a check, found once: what the page, the tables and `result.json` show. Pure.

Letter: N completions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mrpo.calibration.agreement import (
    Agreement,
    GradedAgreement,
    PlaceAgreement,
    RaterAgreement,
    agreement,
    annotator_pairs,
    by_index,
    by_third,
    graded_agreement,
    judge_and_annotators,
    pairs_of,
)
from mrpo.calibration.asking import Asked
from mrpo.calibration.attacks import AttackSummary
from mrpo.calibration.bias import LengthBias, PositionBias, length_bias, position_bias
from mrpo.calibration.calls import CallSummary
from mrpo.calibration.comparison import Comparison
from mrpo.calibration.consistency import Consistency, consistency
from mrpo.calibration.labels import LabelledCompletion, Mark, annotators_of
from mrpo.errors import JudgeUnavailableError
from mrpo.eval.intervals import Interval
from mrpo.types import Verdicts


@dataclass(frozen=True, slots=True, kw_only=True)
class Disagreement:
    """A step on which the judge and the labels differ."""

    id: str
    number: int  # of the step, from 1
    question: str
    answer: str  # gold
    rationale: str  # gold
    step: str
    label: dict[str, bool | None]  # alignment, contribution; None: annotators are split
    ruling: dict[str, bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelFacts:
    """What a judge is held against."""

    num_completions: int
    num_steps: int
    num_split: dict[str, int]  # by mark: steps on which annotators are split, which are in no agreement
    annotators: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """Of one judge on one set of labels. Agreement goes by the first asking of each completion."""

    labels: LabelFacts
    num_unjudged: int  # completions whose first asking failed: in no agreement, and never counted as wrong
    marks: list[Agreement]
    graded: list[GradedAgreement]
    thirds: list[PlaceAgreement]
    places: list[PlaceAgreement]
    consistency: list[Consistency]  # empty where each was asked once
    position: list[PositionBias]  # empty where no order was tried
    length: list[LengthBias]
    annotators: list[RaterAgreement]  # between every two; empty where there is one
    judge_and_annotators: list[RaterAgreement]
    disagreements: list[Disagreement]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """A check as `result.json` has it."""

    judge: str
    rubric: str | None  # version; None: it goes by rules of its own
    labels: str  # file
    labels_sha256: str
    seed: int
    repeats: int
    orders: int
    command: str
    notices: list[str]
    settings: dict[str, str]
    measures: Measures
    calls: CallSummary  # about labelled completions
    attack_calls: CallSummary | None
    attacks: AttackSummary | None  # None: not tried
    attack_success: Interval | None  # share of the judged attacks; None: not tried, or none judged
    comparison: Comparison | None


def label_facts(completions: Sequence[LabelledCompletion]) -> LabelFacts:
    """Count what is labelled."""
    return LabelFacts(
        num_completions=len(completions),
        num_steps=sum(len(item.steps) for item in completions),
        num_split={mark.value: sum(item.reference(mark).count(None) for item in completions) for mark in Mark},
        annotators=annotators_of(completions),
    )


def first_rulings(num_completions: int, asked: Sequence[Asked]) -> list[Verdicts | None]:
    """[N] the first asking of each completion in its own order; None where the judge failed."""
    return rulings_by_asking(num_completions, asked)[0]


def rulings_by_asking(num_completions: int, asked: Sequence[Asked]) -> list[list[Verdicts | None]]:
    """[asking][N] in the completions' own order; None where the judge failed."""
    own = [item for item in asked if item.call.order is None]
    found: list[list[Verdicts | None]] = [
        [None] * num_completions for _ in range(1 + max((item.call.asking for item in own), default=0))
    ]
    for item in own:
        found[item.call.asking][item.call.completion] = item.verdicts
    return found


def measure(completions: Sequence[LabelledCompletion], asked: Sequence[Asked], *, seed: int) -> Measures:
    """Find all numbers; a second or two for ten thousand steps.

    Args:
        completions: [N] with their labels.
        asked: every call about them.
        seed: of the bootstraps.
    """
    askings = rulings_by_asking(len(completions), asked)
    first, reordered = askings[0], [item for item in asked if item.call.order is not None]
    pairs = {mark: pairs_of(completions, first, mark) for mark in Mark}
    annotators = annotator_pairs(completions, seed=seed)
    return Measures(
        labels=label_facts(completions),
        num_unjudged=first.count(None),
        marks=[agreement(pairs[mark], mark, seed=seed) for mark in Mark],
        graded=graded_agreement(completions, first, seed=seed),
        thirds=[place for mark in Mark for place in by_third(pairs[mark], mark)],
        places=[place for mark in Mark for place in by_index(pairs[mark], mark)],
        consistency=[consistency(askings, mark, seed=seed) for mark in Mark] if len(askings) > 1 else [],
        position=[position_bias(completions, first, reordered, mark, seed=seed) for mark in Mark] if reordered else [],
        length=[length_bias(pairs[mark], mark, seed=seed) for mark in Mark],
        annotators=annotators,
        judge_and_annotators=judge_and_annotators(completions, first, seed=seed) if annotators else [],
        disagreements=_disagreements(completions, first),
    )


def require_some_ruling(judge: str, measures: Measures, calls: CallSummary) -> None:
    """Refuse to report on a judge that ruled on nothing.

    Raises:
        JudgeUnavailableError: every first asking failed; the message has the most frequent reason.
    """
    if measures.num_unjudged == measures.labels.num_completions:
        reason = next(iter(calls.failures))
        raise JudgeUnavailableError(
            f"{judge} gave no ruling: {calls.num_failed} calls failed, {calls.failures[reason]} by {reason} "
            f"({calls.examples[reason]}); the same command asks again"
        )


def _disagreements(completions: Sequence[LabelledCompletion], rulings: Sequence[Verdicts | None]) -> list[Disagreement]:
    found = []
    for item, said in zip(completions, rulings, strict=True):
        if said is None:
            continue
        references = {mark: item.reference(mark) for mark in (Mark.ALIGNMENT, Mark.CONTRIBUTION)}
        for k, step in enumerate(item.steps):
            label = {mark.value: marks[k] for mark, marks in references.items()}
            ruling = {mark.value: mark.of(said)[k] for mark in references}
            if any(label[name] is not None and label[name] != ruling[name] for name in label):
                found.append(
                    Disagreement(
                        id=item.id,
                        number=k + 1,
                        question=item.question,
                        answer=item.answer,
                        rationale=item.rationale,
                        step=step,
                        label=label,
                        ruling=ruling,
                    )
                )
    return found
