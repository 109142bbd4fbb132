"""A set as VLMEvalKit reads it: one TSV file with index, image (base64), question and answer, and no options.

Format: VLMEvalKit, docs/en/Development.md, and its `ImageBaseDataset`, which loads the file with pandas and takes an
image cell of at most 64 characters for the index of the row that holds the image.
"""

from __future__ import annotations

import base64
import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mrpo.atomic import write_with
from mrpo.errors import DataError
from mrpo.types import Example

COLUMNS = ("index", "id", "image", "question", "answer")
MAX_REFERENCE = 64  # characters of an image cell that names another row
READ_AS_MISSING = frozenset(  # by pandas
    (
        *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>"),
        *("N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TsvCounts:
    """What a file holds."""

    num_questions: int
    num_images: int  # each stands in the file once
    num_guarded: int  # answers such as "None", written with a space behind them, or pandas would read nothing


def write_vlmevalkit_tsv(path: Path, examples: Iterable[Example]) -> TsvCounts:
    """Write a set, one image in memory at a time; image files are taken as they are.

    The file holds the set's images and answers: its license decides who may get it.

    Args:
        path: of the file, `<name>.tsv`.
        examples: questions with readable image files.

    Raises:
        DataError: an image cannot be read, or there is no question. No file is left then.
    """
    counts: list[TsvCounts] = []
    path.parent.mkdir(parents=True, exist_ok=True)
    write_with(path, lambda temporary: counts.append(_write(temporary, path, examples)))
    return counts[0]


def _write(temporary: Path, path: Path, examples: Iterable[Example]) -> TsvCounts:
    first_rows: dict[str, int] = {}
    num_questions = num_guarded = 0
    with temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(COLUMNS)
        for index, example in enumerate(examples):
            first = first_rows.setdefault(example.image, index)
            image = str(first) if first < index else _encoded(example)
            num_guarded += example.answer in READ_AS_MISSING
            writer.writerow((index, example.id, image, example.question, _guarded(example.answer)))
            num_questions += 1
    if not num_questions:
        raise DataError(f"{path}: no question to write; prepare the set first")
    return TsvCounts(num_questions=num_questions, num_images=len(first_rows), num_guarded=num_guarded)


def _encoded(example: Example) -> str:
    try:
        text = base64.b64encode(Path(example.image).read_bytes()).decode("ascii")
    except OSError as error:
        raise DataError(f"question {example.id}: cannot read image {example.image!r}: {error.strerror}") from None
    if len(text) <= MAX_REFERENCE:
        raise DataError(f"question {example.id}: {example.image!r} is too short for an image; get it again")
    return text


def _guarded(text: str) -> str:
    return f"{text} " if text in READ_AS_MISSING else text
