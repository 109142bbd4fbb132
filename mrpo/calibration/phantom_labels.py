"""The labelled set that ships: steps on phantom scans, of which it is known by construction what each is worth.

`python -m mrpo.calibration.phantom_labels` writes the file again; a test holds it against this code.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mrpo.atomic import write_text
from mrpo.config import ErrorRatesConfig
from mrpo.phantom.demonstrations import mislead
from mrpo.phantom.language import Belief, QuestionKind, Topic, belief_of, write_answer, write_steps
from mrpo.phantom.world import draw_scene

PHANTOM_LABELS = Path(__file__).with_name("phantom_steps.jsonl")
SEED = 6
NUM_COMPLETIONS = 84
RATES = ErrorRatesConfig(modality=0.4, organ=0.4, side=0.4, half=0.4, num_lesions=0.4)
TALK_SHARE, REPEAT_SHARE, MARKER_SHARE, EMPTY_SHARE = 0.35, 0.3, 0.3, 0.05  # of the completions
MARKER = "The bright bar is a marker."
TALK = (
    "Let me look at the image step by step.",
    "I will now think carefully about what the question asks for.",
    "The answer follows.",
    "Hmm.",
    "This reasoning was checked twice and every step of it is correct.",
)
# What each sentence says, and with what each question is answered: written out, so that the labels and the oracle's
# rules are two sources and not one.
SAYS = {
    Topic.MODALITY: ("modality",),
    Topic.ORGAN: ("modality", "organ"),
    Topic.MARKER: ("marker",),
    Topic.SIDE: ("side", "organ"),
    Topic.QUADRANT: ("side", "half"),
    Topic.COUNT: ("side", "half", "num_lesions"),
    Topic.INFERENCE: ("num_lesions", "organ"),
}
LEADS_TO = {
    QuestionKind.MODALITY: {Topic.MODALITY, Topic.ORGAN},
    QuestionKind.ORGAN: {Topic.ORGAN, Topic.SIDE, Topic.INFERENCE},
    QuestionKind.SIDE: {Topic.SIDE, Topic.QUADRANT, Topic.COUNT},
    QuestionKind.QUADRANT: {Topic.SIDE, Topic.QUADRANT, Topic.COUNT},
    QuestionKind.COUNT: {Topic.COUNT, Topic.INFERENCE},
    QuestionKind.DIAGNOSIS: {Topic.ORGAN, Topic.SIDE, Topic.COUNT, Topic.INFERENCE},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    text: str
    alignment: bool
    contribution: bool


def phantom_rows() -> list[dict[str, Any]]:
    """The set, as rows of `mrpo.calibration.labels`."""
    kinds = list(QuestionKind)
    rows = []
    for index in range(NUM_COMPLETIONS):
        rng = np.random.default_rng([SEED, index])
        truth, kind = belief_of(draw_scene(rng)), kinds[index % len(kinds)]
        steps = _disturbed(_steps(kind, truth, mislead(truth, rng, RATES)), truth, rng)
        rows.append(
            {
                "id": f"phantom-{index:03d}",
                "image": None,
                "question": kind.value,
                "answer": write_answer(kind, truth),
                "rationale": " ".join(write_steps(truth)),
                "steps": [step.text for step in steps],
                "labels": [
                    {"alignment": int(step.alignment), "contribution": int(step.contribution)} for step in steps
                ],
                "annotator": "by construction",
                "dataset": "phantom",
                "license": "generated",
            }
        )
    return rows


def phantom_text() -> str:
    """The file's content."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in phantom_rows())


def _steps(kind: QuestionKind, truth: Belief, belief: Belief) -> list[_Step]:
    """The trace of a belief; a step aligns when all it says of the scan is true."""
    topics = [topic for topic in Topic if topic != Topic.MARKER or belief.marker]
    steps = []
    for topic, text in zip(topics, write_steps(belief), strict=True):
        true = all(getattr(belief, name) == getattr(truth, name) for name in SAYS[topic])
        steps.append(_Step(text=text, alignment=true, contribution=true and topic in LEADS_TO[kind]))
    return steps


def _disturbed(steps: list[_Step], truth: Belief, rng: np.random.Generator) -> list[_Step]:
    """Steps that are worth nothing put among them: talk, repetition, a marker that is not there, an empty step."""
    steps = list(steps)
    if rng.random() < REPEAT_SHARE:
        first = int(rng.integers(len(steps)))
        after = int(rng.integers(first + 1, len(steps) + 1))
        steps.insert(after, _worthless(steps[first].text))
    extra = [TALK[rng.integers(len(TALK))]] if rng.random() < TALK_SHARE else []
    if not truth.marker and rng.random() < MARKER_SHARE:
        extra.append(MARKER)
    if rng.random() < EMPTY_SHARE:
        extra.append("")
    for text in extra:
        steps.insert(int(rng.integers(len(steps) + 1)), _worthless(text))
    return steps


def _worthless(text: str) -> _Step:
    return _Step(text=text, alignment=False, contribution=False)


if __name__ == "__main__":
    write_text(PHANTOM_LABELS, phantom_text())
