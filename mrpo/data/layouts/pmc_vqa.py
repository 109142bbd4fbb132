"""PMC-VQA: train.csv and test_clean.csv, and images.zip. The choices are dropped; gold is the answer's text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from mrpo.data.layouts.splits import named_files
from mrpo.data.records import csv_records
from mrpo.data.rows import BadRow, SourceRow, texts_of
from mrpo.data.source import SourceTree

FILES = {"train": ("train.csv",), "test": ("test_clean.csv",)}
_ANSWER = ("Answer", "Anwser")  # the first release misspells it
_LETTERS = "ABCD"


def read(tree: SourceTree) -> Iterator[SourceRow | BadRow]:
    """All questions of the two files.

    Raises:
        DataError: neither file is there, or one cannot be read.
    """
    for split, file in named_files(tree, FILES, none="neither test_clean.csv nor train.csv"):
        for number, record in csv_records(tree, file):
            assert isinstance(record, Mapping)
            texts = texts_of(record, ("Figure_path", "Question"))
            answer = answer_text(record)
            if isinstance(texts, str) or answer is None:
                reason = texts if isinstance(texts, str) else "field 'Answer' is missing or empty"
                yield BadRow(file=file, number=number, split=split, reason=reason)
                continue
            yield SourceRow(
                file=file,
                number=number,
                split=split,
                key=str(number),
                image=str(record["Figure_path"]).strip(),
                question=texts["Question"],
                answer=answer,
                fields=record,
            )


def answer_text(record: Mapping[str, object]) -> str | None:
    """The right choice in words: "B:Focal uptake" and "B" both give choice B's text."""
    for name in _ANSWER:
        texts = texts_of(record, (name,))
        if isinstance(texts, str):
            continue
        answer = texts[name]
        if answer in _LETTERS:
            choice = texts_of(record, (f"Choice {answer}",))
            return None if isinstance(choice, str) else _without_letter(choice[f"Choice {answer}"])
        return _without_letter(answer)
    return None


def _without_letter(text: str) -> str | None:
    return re.sub(rf"^[{_LETTERS}]\s*:\s*", "", text) or None
