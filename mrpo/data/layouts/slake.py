"""SLAKE: train.json, validation.json (older: validate.json), test.json, and imgs/ or imgs.zip."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mrpo.data.checks import clean_text
from mrpo.data.layouts.splits import named_files
from mrpo.data.records import json_records
from mrpo.data.rows import BadRow, SourceRow, mark_of, texts_of
from mrpo.data.source import SourceTree

FILES = {"train": ("train.json",), "validation": ("validation.json", "validate.json"), "test": ("test.json",)}


def read(tree: SourceTree) -> Iterator[SourceRow | BadRow]:
    """All questions, each with its language.

    Raises:
        DataError: none of the files is there, or one cannot be read.
    """
    for split, file in named_files(tree, FILES, none="no train.json, validation.json (or validate.json) or test.json"):
        for number, record in json_records(tree, file):
            texts = texts_of(record, ("qid", "img_name", "question", "answer", "q_lang"))
            if isinstance(texts, str):
                yield BadRow(file=file, number=number, split=split, reason=texts)
                continue
            assert isinstance(record, Mapping)
            yield SourceRow(
                file=file,
                number=number,
                split=split,
                key=texts["qid"],
                image=clean_text(record["img_name"]),
                question=texts["question"],
                answer=texts["answer"],
                marked_open=mark_of(record.get("answer_type")),
                language=texts["q_lang"].lower(),
                fields=record,
            )
