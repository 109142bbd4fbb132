"""MIMIC-Ext-MIMIC-CXR-VQA: train.json, valid.json, test.json and the images of MIMIC-CXR-JPG under their own paths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mrpo.data.checks import clean_text
from mrpo.data.layouts.splits import named_files
from mrpo.data.records import json_records
from mrpo.data.rows import BadRow, SourceRow, shown, texts_of
from mrpo.data.source import SourceTree

FILES = {"train": ("train.json",), "validation": ("valid.json",), "test": ("test.json",)}
NOTHING = "the answer is an empty list"  # the questioned thing is not in the image


def read(tree: SourceTree) -> Iterator[SourceRow | BadRow]:
    """All questions; several answers are joined by commas. `data.where` picks the subset.

    Raises:
        DataError: none of the files is there, or one cannot be read.
    """
    for split, file in named_files(tree, FILES, none="no train.json, valid.json or test.json"):
        for number, record in json_records(tree, file):
            texts = texts_of(record, ("idx", "image_path", "question"))
            if isinstance(texts, str):
                yield BadRow(file=file, number=number, split=split, reason=texts)
                continue
            assert isinstance(record, Mapping)
            answer = _answer(record.get("answer"))
            if answer is None:
                reason = f"field 'answer' is empty or not text: {shown(record.get('answer'))}"
                yield BadRow(file=file, number=number, split=split, reason=reason)
                continue
            yield SourceRow(
                file=file,
                number=number,
                split=split,
                key=texts["idx"],
                image=clean_text(record["image_path"]),
                question=texts["question"],
                answer=answer,
                left_out=None if answer else NOTHING,
                fields=record,
            )


def _answer(value: object) -> str | None:
    """One text; empty for an empty list, None for what is no answer."""
    if isinstance(value, list):
        parts = [clean_text(item) for item in value]
        return ", ".join(parts) if all(parts) else None
    return clean_text(value) or None
