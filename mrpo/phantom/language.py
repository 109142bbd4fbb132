"""The closed language of phantom rationales: every sentence can be made, read back and checked exactly.

A trace reads a scan in one order — modality, organ, (marker), side, quadrant, count, inference — and each sentence
names what the sentences before it found, so that one wrong early step makes those after it wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from mrpo.demonstration import write_demonstration
from mrpo.phantom.world import Modality, Organ, Scene
from mrpo.types import Verdicts

NUMBER_WORDS = {1: "one", 2: "two", 3: "three"}
_NUMBERS = {word: number for number, word in NUMBER_WORDS.items()}

SINGLE_DIAGNOSIS = {
    Organ.LIVER: "hemangioma",
    Organ.LUNG: "carcinoma",
    Organ.KIDNEY: "cyst",
    Organ.BRAIN: "glioma",
}
MULTIPLE_DIAGNOSIS = {
    Organ.LIVER: "metastases",
    Organ.LUNG: "granulomas",
    Organ.KIDNEY: "infarcts",
    Organ.BRAIN: "abscesses",
}


class QuestionKind(StrEnum):
    """What is asked; the value is the question."""

    MODALITY = "Which modality is this?"
    ORGAN = "Which organ is shown?"
    SIDE = "Which side is abnormal?"
    QUADRANT = "Which quadrant is affected?"
    COUNT = "How many lesions are there?"
    DIAGNOSIS = "What is the diagnosis?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Belief:
    """What a writer holds to be true of a scan; the truth itself, or an error carried along."""

    modality: str
    organ: str
    side: str
    half: str
    num_lesions: int
    marker: bool


def belief_of(scene: Scene) -> Belief:
    """The true belief."""
    return Belief(
        modality=scene.modality.value,
        organ=scene.organ.value,
        side=scene.side.value,
        half=scene.half.value,
        num_lesions=scene.num_lesions,
        marker=scene.marker,
    )


def diagnosis(organ: str, num_lesions: int) -> str:
    """The phantom world's rule: the organ and whether there is one lesion or several decide."""
    table = SINGLE_DIAGNOSIS if num_lesions == 1 else MULTIPLE_DIAGNOSIS
    return table[Organ(organ)]


def write_steps(belief: Belief) -> list[str]:
    """The trace of a belief: six sentences, seven with a marker."""
    number = NUMBER_WORDS[belief.num_lesions]
    noun = "lesion" if belief.num_lesions == 1 else "lesions"
    verb = "suggests" if belief.num_lesions == 1 else "suggest"
    return [
        f"The modality is {belief.modality}.",
        f"The {belief.modality} shows the {belief.organ}.",
        *(["The bright bar is a marker."] if belief.marker else []),
        f"The {belief.side} {belief.organ} is abnormal.",
        f"The {belief.side} {belief.half} quadrant is affected.",
        f"The {belief.side} {belief.half} quadrant holds {number} {noun}.",
        f"{number.capitalize()} {belief.organ} {noun} {verb} {diagnosis(belief.organ, belief.num_lesions)}.",
    ]


def write_answer(kind: QuestionKind, belief: Belief) -> str:
    """The answer that follows from a belief."""
    match kind:
        case QuestionKind.MODALITY:
            return belief.modality
        case QuestionKind.ORGAN:
            return belief.organ
        case QuestionKind.SIDE:
            return belief.side
        case QuestionKind.QUADRANT:
            return f"{belief.side} {belief.half}"
        case QuestionKind.COUNT:
            return NUMBER_WORDS[belief.num_lesions]
        case QuestionKind.DIAGNOSIS:
            return diagnosis(belief.organ, belief.num_lesions)


def write_completion(kind: QuestionKind, belief: Belief, think_tag: str) -> str:
    """A whole completion in the asked form."""
    steps = " ".join(write_steps(belief))
    return write_demonstration(steps, write_answer(kind, belief), think_tag=think_tag, separator="")


class Topic(StrEnum):
    """What a sentence is about."""

    MODALITY = "modality"
    ORGAN = "organ"
    MARKER = "marker"
    SIDE = "side"
    QUADRANT = "quadrant"
    COUNT = "count"
    INFERENCE = "inference"


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence read back: its topic and every value it names."""

    topic: Topic
    values: tuple[str, ...]


_MODALITY_NAMES = {m.value.lower(): m.value for m in Modality}  # "X-ray" and "CT" keep their capitals
_MODALITIES = "|".join(m.value for m in Modality)
_ORGANS = "|".join(o.value for o in Organ)
_NUMBER = "|".join(_NUMBERS)
_DIAGNOSES = "|".join(sorted({*SINGLE_DIAGNOSIS.values(), *MULTIPLE_DIAGNOSIS.values()}))
_PATTERNS: list[tuple[Topic, re.Pattern[str]]] = [
    (topic, re.compile(pattern, re.IGNORECASE | re.ASCII))  # without ASCII, "ſ" would pass for "s"
    for topic, pattern in (
        (Topic.MODALITY, rf"the modality is ({_MODALITIES})\."),
        (Topic.ORGAN, rf"the ({_MODALITIES}) shows the ({_ORGANS})\."),
        (Topic.MARKER, r"the bright bar is a marker\."),
        (Topic.SIDE, rf"the (left|right) ({_ORGANS}) is abnormal\."),
        (Topic.QUADRANT, r"the (left|right) (upper|lower) quadrant is affected\."),
        (Topic.COUNT, rf"the (left|right) (upper|lower) quadrant holds ({_NUMBER}) lesions?\."),
        (Topic.INFERENCE, rf"({_NUMBER}) ({_ORGANS}) lesions? suggests? ({_DIAGNOSES})\."),
    )
]


def read_step(sentence: str) -> Claim | None:
    """The claim a sentence makes; None where it is not of the language."""
    text = " ".join(sentence.split())
    for topic, pattern in _PATTERNS:
        match = pattern.fullmatch(text)
        if match:
            return Claim(topic, tuple(value.lower() for value in match.groups()))
    return None


def read_rationale(rationale: str) -> Belief:
    """Recover the facts from a gold rationale.

    Raises:
        ValueError: the text is not a complete phantom rationale, or contradicts itself.
    """
    facts: dict[str, str] = {}
    claims: list[Claim] = []
    for sentence in re.findall(r"[^.]+\.?|\.", rationale.strip()):
        claim = read_step(sentence)
        if claim is None:
            raise ValueError(f"not a phantom rationale: cannot read {sentence.strip()!r}")
        claims.append(claim)
        facts.update(zip(_NAMED[claim.topic], claim.values, strict=True))
    missing = {"modality", "organ", "side", "half", "number"} - facts.keys()
    if missing:
        raise ValueError(f"not a phantom rationale: it does not state {', '.join(sorted(missing))}")
    belief = Belief(
        modality=_MODALITY_NAMES[facts["modality"]],
        organ=facts["organ"],
        side=facts["side"],
        half=facts["half"],
        num_lesions=_NUMBERS[facts["number"]],
        marker=any(claim.topic == Topic.MARKER for claim in claims),
    )
    if not all(is_true(claim, belief) for claim in claims):
        raise ValueError(f"not a phantom rationale: its sentences contradict each other: {rationale!r}")
    return belief


_NAMED: dict[Topic, tuple[str, ...]] = {
    Topic.MODALITY: ("modality",),
    Topic.ORGAN: ("modality", "organ"),
    Topic.MARKER: (),
    Topic.SIDE: ("side", "organ"),
    Topic.QUADRANT: ("side", "half"),
    Topic.COUNT: ("side", "half", "number"),
    Topic.INFERENCE: ("number", "organ", "diagnosis"),
}
_NEEDED: dict[QuestionKind, frozenset[str]] = {
    QuestionKind.MODALITY: frozenset({"modality"}),
    QuestionKind.ORGAN: frozenset({"organ"}),
    QuestionKind.SIDE: frozenset({"side"}),
    QuestionKind.QUADRANT: frozenset({"side", "half"}),
    QuestionKind.COUNT: frozenset({"number"}),
    QuestionKind.DIAGNOSIS: frozenset({"number", "organ", "diagnosis"}),
}


def is_true(claim: Claim, truth: Belief) -> bool:
    """Whether every value a sentence names holds."""
    if claim.topic == Topic.MARKER:
        return truth.marker
    facts = {
        "modality": truth.modality.lower(),
        "organ": truth.organ.lower(),
        "side": truth.side.lower(),
        "half": truth.half.lower(),
        "number": NUMBER_WORDS[truth.num_lesions],
        "diagnosis": diagnosis(truth.organ, truth.num_lesions),
    }
    return all(facts[name] == value for name, value in zip(_NAMED[claim.topic], claim.values, strict=True))


def rule_steps(steps: Sequence[str], *, question: str, answer: str, rationale: str) -> Verdicts:
    """Rule on every step of a phantom completion exactly.

    A step aligns when it is a sentence of the language, all it says is true of the scan, and no earlier step said it.
    It contributes when it aligns and names something the question asks for. Everything else is 0/0.

    Args:
        steps: [K] sentences.
        question: one of `QuestionKind`.
        answer: gold answer; a rationale that does not imply it is refused.
        rationale: gold rationale, from which the facts are read.

    Raises:
        ValueError: question, answer and rationale are not of one phantom scan.
    """
    kind = QuestionKind(question)
    truth = read_rationale(rationale)
    if write_answer(kind, truth).lower() != answer.lower():
        raise ValueError(f"gold answer {answer!r} does not follow from the gold rationale {rationale!r}")
    seen: set[Claim] = set()
    alignment: list[bool] = []
    contribution: list[bool] = []
    for step in steps:
        claim = read_step(step)
        true = claim is not None and claim not in seen and is_true(claim, truth)
        if claim is not None:
            seen.add(claim)
        alignment.append(true)
        contribution.append(true and claim is not None and bool(_NEEDED[kind] & set(_NAMED[claim.topic])))
    return Verdicts(alignment=alignment, contribution=contribution)
