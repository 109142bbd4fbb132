"""What a layout reader makes of a set's files: one item a question, good, bad or left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mrpo.data.checks import clean_text
from mrpo.data.source import SourceFile


@dataclass(frozen=True, slots=True, kw_only=True)
class InlineImage:
    """An image that stands in the row itself, as parquet sets have it."""

    data: bytes
    name: str | None = None  # the name it had, where the set kept it


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRow:
    """One question as the set has it. Layout → prepare."""

    file: SourceFile
    number: int  # row in the file, from 1
    split: str  # train, validation or test
    key: str  # the set's own id, or the row number
    image: str | InlineImage  # path as the set writes it, or the bytes
    question: str
    answer: str
    rationale: str | None = None
    marked_open: bool | None = None  # what the set itself says; None: nothing
    language: str | None = None
    left_out: str | None = None  # why the layout's own rule leaves the question out
    fields: Mapping[str, object]  # the record, for `data.where`


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A record that cannot become a question. Layout → prepare."""

    file: SourceFile
    number: int
    split: str
    reason: str


def texts_of(record: object, names: tuple[str, ...]) -> dict[str, str] | str:
    """These fields of a record as clean, non-empty text, or what is wrong with it."""
    if not isinstance(record, Mapping):
        return f"expected an object, got {type(record).__name__}"
    texts: dict[str, str] = {}
    for name in names:
        if name not in record:
            return f"field {name!r} is missing"
        texts[name] = clean_text(record[name])
        if not texts[name]:
            return f"field {name!r} is empty or not text: {shown(record[name])}"
    return texts


def shown(value: object) -> str:
    """A value cut short for a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def mark_of(value: object) -> bool | None:
    """What a set's OPEN/CLOSED field says."""
    return clean_text(value).lower() == "open" if isinstance(value, str) and value.strip() else None
