"""The ten traces of the report: chosen to teach something, and shaped for display.

Choice is by rule and in order of prompt id: the same run always shows the same ones, losses as well as wins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mrpo.eval.cascade import Stage, failure_stage
from mrpo.report.load import RunData
from mrpo.rows import read_rows
from mrpo.trace_row import TraceRow

T = TypeVar("T")
NUM_TRACES = 10
NUM_TRAINING = 3  # of them from training, where tokens have advantages


@dataclass(frozen=True, slots=True, kw_only=True)
class StepView:
    """One reasoning step."""

    number: int
    text: str
    valid: bool | None  # None: not judged
    why: str  # the two rulings in words
    advantage: float | None  # of the step's tokens; None in an evaluation, or without a token
    bar: float  # |advantage| relative to the largest of the trace, in [0, 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceView:
    """One completion."""

    label: str
    answer: str | None
    correct: bool
    is_truncated: bool
    steps: list[StepView]
    text: str
    note: str  # why nothing was ruled on, or where the reasoning first fails
    rewards: str  # in words; empty in an evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceCard:
    """One question with one completion, or with the one before and the one after."""

    heading: str
    key: str
    dataset: str
    image: str  # path
    question: str
    gold_answer: str
    gold_rationale: str | None
    views: list[TraceView]


Pair = tuple[TraceRow, TraceRow]


def choose_traces(run: RunData) -> list[TraceCard]:
    """At most ten cards: pairs of before and after where both are there, single completions otherwise."""
    training = _training_cards(run)
    before, after = run.evaluations.get("before", []), run.evaluations.get("after", [])
    right = {row.prompt_id: row for row in after}
    pairs = [(row, right[row.prompt_id]) for row in sorted(before, key=_prompt) if row.prompt_id in right]
    room = NUM_TRACES - min(len(training), NUM_TRAINING)
    if pairs:
        cards = _pick(pairs, PAIR_RULES, room, _pair_card)
    else:
        last = list(run.evaluations.items())[-1:]
        singles = [(name, row) for name, rows in last for row in sorted(rows, key=_prompt)]
        cards = _pick(singles, SINGLE_RULES, room, lambda heading, item: _single_card(heading, item[0], item[1]))
    return cards + training[: NUM_TRACES - len(cards)]


def _is_early(row: TraceRow) -> bool:
    return bool(row.valid) and failure_stage(row.valid or []) == Stage.EARLY


def _is_clean(row: TraceRow) -> bool:
    return bool(row.valid) and all(row.valid or [])


PAIR_RULES: list[tuple[str, int, Callable[[Pair], bool]]] = [
    (
        "Mended: an early failure and a wrong answer before, sound reasoning and the right answer after",
        3,
        lambda pair: not pair[0].correct and pair[1].correct and _is_early(pair[0]) and _is_clean(pair[1]),
    ),
    ("Wrong before, right after", 1, lambda pair: not pair[0].correct and pair[1].correct),
    (
        "No early failure any more, though the answer is still wrong",
        1,
        lambda pair: _is_early(pair[0]) and not _is_early(pair[1]) and not pair[1].correct,
    ),
    ("Lost: right before, wrong after", 1, lambda pair: pair[0].correct and not pair[1].correct),
    ("Still fails early", 1, lambda pair: _is_early(pair[1])),
    ("Other questions", NUM_TRACES, lambda pair: True),
]
SINGLE_RULES: list[tuple[str, int, Callable[[tuple[str, TraceRow]], bool]]] = [
    ("An early failure and a wrong answer", 4, lambda item: _is_early(item[1]) and not item[1].correct),
    ("Right, with sound reasoning", 2, lambda item: item[1].correct and _is_clean(item[1])),
    ("Right, though the reasoning fails early", 1, lambda item: item[1].correct and _is_early(item[1])),
    ("A wrong answer", 2, lambda item: not item[1].correct),
    ("Other questions", NUM_TRACES, lambda item: True),
]


def _pick(
    items: Sequence[T],
    rules: Iterable[tuple[str, int, Callable[[T], bool]]],
    room: int,
    card: Callable[[str, T], TraceCard],
) -> list[TraceCard]:
    """Fill `room` rule by rule, each item once."""
    left = list(items)
    cards: list[TraceCard] = []
    for heading, quota, fits in rules:
        for item in [item for item in left if fits(item)][: min(quota, room - len(cards))]:
            left.remove(item)
            cards.append(card(heading, item))
    return cards


def _training_cards(run: RunData) -> list[TraceCard]:
    """Wrong completions with shaped penalties, of the first and the last steps of training."""
    cards: list[TraceCard] = []
    steps = list(run.rollouts)
    for step in dict.fromkeys([*steps[:2], *steps[-1:]]):
        rows = [row for row in read_rows(run.rollouts[step]) if row.in_baseline and row.advantage and not row.correct]
        judged = [row for row in rows if row.valid]
        mixed = [row for row in judged if not _is_clean(row) and any(row.valid or [])]  # rewards and penalties in one
        early = [row for row in mixed if _is_early(row)]
        for row in (early or mixed or judged or rows)[:1]:
            label = f"training step {step}, sample {row.sample_index + 1}"
            cards.append(_card("From training: what each step was taught", row, [_view(label, row)]))
    return cards[:NUM_TRAINING]


def _pair_card(heading: str, pair: Pair) -> TraceCard:
    return _card(heading, pair[0], [_view("before", pair[0]), _view("after", pair[1])])


def _single_card(heading: str, name: str, row: TraceRow) -> TraceCard:
    return _card(heading, row, [_view(name.replace("_", " "), row)])


def _card(heading: str, row: TraceRow, views: list[TraceView]) -> TraceCard:
    return TraceCard(
        heading=heading,
        key=row.key,
        dataset=row.dataset,
        image=row.image,
        question=row.question,
        gold_answer=row.gold_answer,
        gold_rationale=row.gold_rationale,
        views=views,
    )


def _view(label: str, row: TraceRow) -> TraceView:
    tokens = row.token_advantages
    advantages = [tokens[start] if tokens is not None and end > start else None for start, end in row.token_spans]
    largest = max((abs(item) for item in advantages if item is not None), default=0.0)
    valid = row.valid
    steps = [
        StepView(
            number=index + 1,
            text=text,
            valid=valid[index] if valid else None,
            why=_ruling(row, index),
            advantage=advantages[index],
            bar=abs(advantages[index] or 0.0) / largest if largest else 0.0,
        )
        for index, text in enumerate(row.steps)
    ]
    return TraceView(
        label=label,
        answer=row.answer,
        correct=row.correct,
        is_truncated=row.finish_reason == "truncated",
        steps=steps,
        text=row.text,
        note=_note(row),
        rewards=_rewards(row),
    )


def _ruling(row: TraceRow, index: int) -> str:
    if row.alignment is None or row.contribution is None:
        return "not judged"
    alignment = "agrees" if row.alignment[index] else "does not agree"
    contribution = "contributes" if row.contribution[index] else "does not contribute"
    return f"{alignment} with the gold rationale, {contribution} to the answer"


def _note(row: TraceRow) -> str:
    note = _note_on_steps(row)
    if row.answer_judge_failure is not None:
        note += f"; the answer is not rated: the judge failed ({row.answer_judge_failure})"
    return note


def _note_on_steps(row: TraceRow) -> str:
    if not row.steps:
        return "no reasoning steps found"
    if row.judge_failure is not None:
        return f"no verdicts: the judge failed ({row.judge_failure})"
    if row.valid is None:
        return "not judged"
    stage = failure_stage(row.valid)
    if stage is None:
        return f"all {len(row.steps)} steps valid"
    return f"first fails at step {row.valid.index(False) + 1} of {len(row.steps)} ({stage})"


def _rewards(row: TraceRow) -> str:
    if row.reward is None or row.advantage is None:
        return ""
    parts = [("answer", row.answer_reward), ("process", row.process_reward), ("step count", row.step_count_reward)]
    shown = " + ".join(f"{name} {value:.2f}" for name, value in parts if value is not None)
    return f"reward {row.reward:.2f} ({shown}), group advantage {row.advantage:+.2f}".replace("-", "−")


def _prompt(row: TraceRow) -> str:
    return row.prompt_id
