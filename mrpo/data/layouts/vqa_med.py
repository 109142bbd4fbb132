"""VQA-Med 2021's test: questions by image id, reference answers as `id|answer|other answer`, images named by id.

The questions are a text file `id|question` or the evaluator's JSON. Only questions with one reference answer are kept:
425 of 500.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from mrpo.data.records import json_records, text_lines
from mrpo.data.rows import BadRow, SourceRow, texts_of
from mrpo.data.source import SourceFile, SourceTree
from mrpo.errors import DataError

logger = logging.getLogger(__name__)

EVALUATOR = "evaluator"  # in the name of the file that the official scoring reads
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".dcm")
MANY = "more than one reference answer"


def read(tree: SourceTree) -> Iterator[SourceRow | BadRow]:
    """All questions.

    Raises:
        DataError: no questions or no reference answers, or a file that cannot be read.
    """
    answers_file = _named(tree, "answer", ".txt")
    if answers_file is None:
        raise DataError(f"{tree.root} holds no reference answers (a .txt with 'Answers' in its name, id|answer lines)")
    questions = dict(_questions(tree))
    for number, line in text_lines(tree, answers_file):
        key, *answers = (part.strip() for part in line.split("|"))
        image = next((key + suffix for suffix in IMAGE_SUFFIXES if tree.matching(key + suffix)), f"{key}.jpg")
        if key not in questions or not answers or not answers[0]:
            reason = f"{key!r} has no question" if key not in questions else "no reference answer after the first '|'"
            yield BadRow(file=answers_file, number=number, split="test", reason=reason)
            continue
        yield SourceRow(
            file=answers_file,
            number=number,
            split="test",
            key=key,
            image=image,
            question=questions[key],
            answer=" ".join(answers[0].split()),
            left_out=MANY if len(answers) > 1 else None,
            fields={},
        )


def _questions(tree: SourceTree) -> Iterator[tuple[str, str]]:
    """Pairs of image id and question."""
    if file := _named(tree, "question", ".txt"):
        for number, line in text_lines(tree, file):
            key, separator, question = line.partition("|")
            if not separator or not question.strip():
                raise DataError(f"{tree.root / file.label}, row {number}: expected id|question, got {line[:80]!r}")
            yield key.strip(), " ".join(question.split())
        return
    file = _named(tree, "question", ".json")
    if file is None:
        raise DataError(f"{tree.root} holds no test questions (a .txt or .json with 'Questions' in its name)")
    for number, record in json_records(tree, file, below="questions"):
        texts = texts_of(record, ("question_id", "question"))
        if isinstance(texts, str):
            raise DataError(f"{tree.root / file.label}, row {number}: {texts}")
        yield texts["question_id"], texts["question"]


def _named(tree: SourceTree, word: str, suffix: str) -> SourceFile | None:
    """The file whose name speaks of the answering task's test.

    The archive and the evaluator's folder may both have one: the evaluator's is taken, or any where all say the same.
    """
    found = [
        file
        for file in tree.files()
        if file.name.lower().endswith(suffix)
        and word in file.name.lower().replace("answering", "")  # VQAnswering is the task's name
        and "task2" not in file.name.lower()
        and "vqg" not in file.path.lower()
    ]
    if len(found) < 2:
        return found[0] if found else None
    official = [file for file in found if EVALUATOR in file.name.lower()]
    chosen = official[0] if official else found[0]
    said = _lines(tree, chosen)
    for other in found:
        if other is chosen or _lines(tree, other) == said:
            continue
        if not official or other in official:
            raise DataError(f"{tree.root} holds {chosen.label} and {other.label}; leave only the one that is meant")
        logger.warning("taken: %s; %s differs and is left aside", chosen.label, other.label)
    return chosen


def _lines(tree: SourceTree, file: SourceFile) -> list[str]:
    """What a file says, whatever its order, case and white space."""
    lines = (line.lower().split("|") for _, line in text_lines(tree, file))
    return sorted("|".join(" ".join(part.split()) for part in parts) for parts in lines)
