"""Published training files: JSON or JSONL records {image, problem, solution}, images beside them.

The solution holds the reasoning in `<think>` and the answer in `<answer>`. Where a record has a field `answer` of its
own, that is the answer and the solution is the rationale; where it has neither, the solution is the answer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping

from mrpo.data.checks import clean_text
from mrpo.data.layouts.splits import in_name_order, split_of
from mrpo.data.records import json_lines, json_records
from mrpo.data.rows import BadRow, SourceRow, shown, texts_of
from mrpo.data.source import SourceFile, SourceTree
from mrpo.errors import DataError

_THINK = re.compile(r"<think>(.*?)</think>", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_TAG = re.compile(r"</?(?:think|answer)>")


def read(tree: SourceTree) -> Iterator[SourceRow | BadRow]:
    """All questions; a file without train, validation or test in its name is training data.

    Ids count the rows of a split through its files in the order of their names.

    Raises:
        DataError: no JSON file, or one that cannot be read.
    """
    files = [file for file in tree.files() if file.name.lower().endswith((".json", ".jsonl"))]
    if not files:
        raise DataError(f"{tree.root} holds no .json or .jsonl file with records {{image, problem, solution}}")
    places: Counter[str] = Counter()  # split: rows so far
    for file in in_name_order(files):
        split = split_of(file) or "train"
        records = json_lines if file.name.lower().endswith(".jsonl") else json_records
        for number, record in records(tree, file):
            places[split] += 1
            yield _row(file, number, split, record, key=str(places[split]))


def _row(file: SourceFile, number: int, split: str, record: object, *, key: str) -> SourceRow | BadRow:
    if isinstance(record, DataError):
        return BadRow(file=file, number=number, split=split, reason=str(record))
    texts = texts_of(record, ("problem", "solution"))
    reason = texts if isinstance(texts, str) else None
    if reason is None:
        assert isinstance(record, Mapping) and isinstance(texts, dict)
        image = _image(record.get("image"))
        answer, rationale = parts_of(texts["solution"], clean_text(record.get("answer")))
        if image and answer:
            return SourceRow(
                file=file,
                number=number,
                split=split,
                key=key,
                image=image,
                question=" ".join(texts["problem"].replace("<image>", " ").split()),
                answer=answer,
                rationale=rationale,
                fields=record,
            )
        reason = "the answer is empty" if image else f"field 'image' names no one file: {shown(record.get('image'))}"
    return BadRow(file=file, number=number, split=split, reason=reason)


def parts_of(solution: str, answer: str) -> tuple[str, str | None]:
    """Answer and rationale of a solution; `answer` is the record's own, or empty."""
    thought = _THINK.findall(solution)
    answers = _ANSWER.findall(solution)
    rationale = " ".join(" ".join(thought).split()) or None
    if answer:
        return answer, rationale or " ".join(_TAG.sub(" ", solution).split()) or None
    if answers:
        return " ".join(answers[-1].split()), rationale
    rest = _TAG.sub(" ", _THINK.sub(" ", solution))
    return " ".join(rest.split()), rationale


def _image(value: object) -> str | None:
    """The path of the one image, which some files keep in a list."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value.strip() or None if isinstance(value, str) else None
