"""From questions with gold rationales to demonstrations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mrpo.choices import DataKind
from mrpo.demonstration import write_demonstration
from mrpo.errors import DataError, first_few
from mrpo.families import Family
from mrpo.types import Example, SftSample

TAGS = re.compile(r"</?\s*(think|thinking|answer)\s*>", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A demonstration and the question it was made of."""

    id: str  # of the question
    sample: SftSample


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstrations:
    """What a split gives to learn from."""

    shown: list[Demonstration]
    num_without_rationale: int

    @property
    def num_questions(self) -> int:
        """All questions of the split."""
        return len(self.shown) + self.num_without_rationale

    @property
    def samples(self) -> list[SftSample]:
        """What the learner gets."""
        return [item.sample for item in self.shown]

    def left_out(self, split: str) -> str | None:
        """One line about what is left out; None where nothing is."""
        if not self.num_without_rationale:
            return None
        num, of = self.num_without_rationale, self.num_questions
        return f"{num} of {of} {split} questions have no rationale and are left out"


def demonstrations_of(examples: Sequence[Example], family: Family, kind: DataKind) -> Demonstrations:
    """A demonstration for every question with a gold rationale, in order.

    Raises:
        DataError: a rationale or answer holds a tag of the asked form; the message names the rows.
    """
    shown: list[Demonstration] = []
    faults: list[str] = []
    # A phantom policy is warm-started on completions without a line break, and its judge's world knows no other form.
    separator = "" if kind == DataKind.PHANTOM else "\n"
    with_rationale = [(example, example.rationale) for example in examples if (example.rationale or "").strip()]
    for example, rationale in with_rationale:
        assert rationale is not None
        faults += [
            f"{example.id}: its {name} holds {found[0]!r}"
            for name, text in (("rationale", rationale), ("answer", example.answer))
            if (found := TAGS.search(text))
        ]
        target = write_demonstration(rationale.strip(), example.answer, think_tag=family.think_tag, separator=separator)
        sample = SftSample(image=example.image, question=example.question, target=target)
        shown.append(Demonstration(id=example.id, sample=sample))
    if faults:
        raise DataError(
            f"{first_few(faults)}; the tags around reasoning and answer are written here: remove them from the text"
        )
    return Demonstrations(shown=shown, num_without_rationale=len(examples) - len(shown))
