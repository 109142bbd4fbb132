"""Steps that people labelled, or that are known exactly: what a judge is held against.

JSONL, a row for each completion and annotator: `{id, image, question, answer, rationale, steps: [text, …],
labels: [{alignment: 0 | 1, contribution: 0 | 1}, …]}`, and where they are known `annotator`, `dataset`, `license`.
CSV, a row for each step, holds the same (`mrpo.calibration.sheets`).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from mrpo.calibration.sheets import read_sheet
from mrpo.data.rows import shown
from mrpo.errors import DataError
from mrpo.types import Verdicts

REQUIRED = ("id", "image", "question", "answer", "rationale", "steps", "labels")
OPTIONAL = ("annotator", "dataset", "license")
UNNAMED = ""  # an annotator who gives no name
HOW_TO_LABEL = "a blank template and instructions: docs/calibration.md"


class Mark(StrEnum):
    """What a step is marked for."""

    ALIGNMENT = "alignment"
    CONTRIBUTION = "contribution"
    VALID = "valid"  # either of them

    def of(self, verdicts: Verdicts) -> list[bool]:
        """[K] this mark of every step."""
        match self:
            case Mark.ALIGNMENT:
                return verdicts.alignment
            case Mark.CONTRIBUTION:
                return verdicts.contribution
            case Mark.VALID:
                return verdicts.valid


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledCompletion:
    """The steps of one completion with everybody's labels. Made by `read_labels`, read by the check of a judge."""

    id: str
    image: str | None  # path; None: the judge gets text alone
    question: str
    answer: str  # gold
    rationale: str  # gold
    steps: list[str]  # [K], K ≥ 1
    labels: Mapping[str, Verdicts]  # by annotator, in the file's order
    dataset: str | None = None
    license: str | None = None

    def reference(self, mark: Mark) -> list[bool | None]:
        """[K] what most annotators say of each step; None where they are split."""
        columns = zip(*(mark.of(verdicts) for verdicts in self.labels.values()), strict=True)
        return [majority(column) for column in columns]


def majority(votes: Sequence[bool]) -> bool | None:
    """What more than half say; None where as many say the one as the other."""
    counts = Counter(votes)
    return None if counts[True] == counts[False] else counts[True] > counts[False]


def read_labels(file: Path) -> list[LabelledCompletion]:
    """Read and check every row; images become absolute, found from the file's folder.

    Raises:
        DataError: the file is missing or empty, or a row is not of the form above, is not labelled yet, or contradicts
            another with its id. The message names file, row, field and value.
    """
    found: dict[str, LabelledCompletion] = {}
    for row, number in _rows(file):
        where = f"{file} row {number}"
        completion = _completion(row, where, file.parent)
        known = found.get(completion.id)
        found[completion.id] = completion if known is None else _joined(known, completion, where)
    if not found:
        raise DataError(f"{file}: no labelled completion; {HOW_TO_LABEL}")
    return list(found.values())


def digest_of_labels(completions: Sequence[LabelledCompletion]) -> str:
    """Hash of what was judged and how it was labelled; where files lie is left out."""
    digest = hashlib.sha256()
    for item in completions:
        labels = [[name, item.labels[name].alignment, item.labels[name].contribution] for name in item.labels]
        digest.update(json.dumps([item.id, item.question, item.answer, item.rationale, item.steps, labels]).encode())
    return digest.hexdigest()


def _rows(file: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Rows with the number of their (first) line."""
    if file.suffix.lower() == ".csv":
        yield from read_sheet(file)
        return
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise DataError(
            f"{file}: {error.strerror}; LABELS names a JSONL or CSV file of labels, {HOW_TO_LABEL}"
        ) from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file} row {number}: not JSON in UTF-8 ({error}); expected one object a line") from None
        if not isinstance(row, dict):
            raise DataError(f"{file} row {number}: expected an object, got {type(row).__name__}; {HOW_TO_LABEL}")
        yield row, number


def _completion(row: Mapping[str, Any], where: str, folder: Path) -> LabelledCompletion:
    for name in REQUIRED:
        if name not in row:
            raise DataError(f"{where}: field {name!r} is missing; expected {', '.join(REQUIRED)}")
    for name in row:
        if name not in REQUIRED + OPTIONAL:
            raise DataError(f"{where}: unknown field {name!r}; known are {', '.join(REQUIRED + OPTIONAL)}")
    texts = {name: _text(row[name], name, where) for name in ("id", "question", "answer", "rationale")}
    known = {name: _text(row[name], name, where) for name in OPTIONAL if row.get(name) is not None}
    steps = _steps(row["steps"], where)
    annotator = known.pop("annotator", UNNAMED)
    return LabelledCompletion(
        **texts,
        **known,
        image=_image(row["image"], where, folder),
        steps=steps,
        labels={annotator: _labels(row["labels"], len(steps), where)},
    )


def _text(value: object, name: str, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: field {name!r} is {shown(value)}; expected text")
    return value


def _image(value: object, where: str, folder: Path) -> str | None:
    if value is None:
        return None
    path = folder / Path(_text(value, "image", where)).expanduser()
    if not path.is_file():
        raise DataError(f"{where}: field 'image' names {path}, which is no file; correct it, or give null for none")
    return str(path.resolve())


def _steps(value: object, where: str) -> list[str]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: field 'steps' is {shown(value)}; expected a list of one text or more")
    for index, step in enumerate(value):
        if not isinstance(step, str):
            raise DataError(f"{where}: field 'steps[{index}]' is {shown(step)}; expected text (it may be empty)")
    return value


def _labels(value: object, num_steps: int, where: str) -> Verdicts:
    if not isinstance(value, list) or len(value) != num_steps:
        got = f"{len(value)} labels" if isinstance(value, list) else shown(value)
        raise DataError(f"{where}: field 'labels' has {got} for {num_steps} steps; expected one for each")
    for index, label in enumerate(value):
        if not isinstance(label, dict) or label.keys() != {"alignment", "contribution"}:
            raise DataError(
                f"{where}: field 'labels[{index}]' is {shown(label)}; expected "
                '{"alignment": 0 or 1, "contribution": 0 or 1}'
            )
    return Verdicts(
        alignment=[_mark(label["alignment"], f"labels[{k}].alignment", where) for k, label in enumerate(value)],
        contribution=[
            _mark(label["contribution"], f"labels[{k}].contribution", where) for k, label in enumerate(value)
        ],
    )


def _mark(value: object, name: str, where: str) -> bool:
    if value is None:
        raise DataError(f"{where}: field {name!r} is not labelled yet; give 0 or 1, or leave the completion out")
    if type(value) is not int or value not in (0, 1):
        raise DataError(f"{where}: field {name!r} is {shown(value)}; expected 0 or 1")
    return bool(value)


def _joined(known: LabelledCompletion, more: LabelledCompletion, where: str) -> LabelledCompletion:
    """One completion with the labels of both."""
    for name in ("image", "question", "answer", "rationale", "steps", "dataset", "license"):
        ours, theirs = getattr(known, name), getattr(more, name)
        if ours != theirs:
            raise DataError(
                f"{where}: id {more.id!r} came before with another {name} ({shown(ours)}, now {shown(theirs)}); "
                "annotators of one id label the same steps, other completions need ids of their own"
            )
    (annotator,) = more.labels
    if annotator in known.labels or UNNAMED in (annotator, *known.labels):
        raise DataError(
            f"{where}: id {more.id!r} is labelled twice by annotator {annotator or 'without a name'!r}; name each "
            "annotator of an id in 'annotator', or remove a row"
        )
    return replace(known, labels={**known.labels, **more.labels})


def annotators_of(completions: Sequence[LabelledCompletion]) -> list[str]:
    """Who labelled any of them, each once."""
    return list(dict.fromkeys(name for item in completions for name in item.labels))
