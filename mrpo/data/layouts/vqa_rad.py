"""VQA-RAD: the official JSON, its variant in train.json and test.json, or parquet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mrpo.data.checks import clean_text
from mrpo.data.layouts import parquet
from mrpo.data.records import json_records
from mrpo.data.rows import BadRow, SourceRow, mark_of, texts_of
from mrpo.data.source import SourceFile, SourceTree
from mrpo.errors import DataError

OFFICIAL = "VQA_RAD Dataset Public.json"  # all rows; `phrase_type` names the split


def read(tree: SourceTree) -> Iterator[SourceRow | BadRow]:
    """All questions.

    Raises:
        DataError: none of the three layouts is there, or a file cannot be read.
    """
    if file := tree.first(OFFICIAL, "VQA_RAD_Dataset_Public.json"):
        yield from _rows(tree, file, None)
        return
    files = {split: tree.first(f"{split}.json") for split in ("train", "test")}
    if any(files.values()):
        for split, file in files.items():
            if file is not None:
                yield from _rows(tree, file, split)
        return
    if not parquet.files(tree):
        raise DataError(f"{tree.root} holds neither {OFFICIAL!r} nor train.json and test.json nor *.parquet")
    yield from parquet.read(tree)


def _rows(tree: SourceTree, file: SourceFile, split: str | None) -> Iterator[SourceRow | BadRow]:
    for number, record in json_records(tree, file):
        own_split = split or _official_split(record)
        texts = texts_of(record, ("qid", "image_name", "question", "answer"))
        if isinstance(texts, str):
            yield BadRow(file=file, number=number, split=own_split, reason=texts)
            continue
        assert isinstance(record, Mapping)
        yield SourceRow(
            file=file,
            number=number,
            split=own_split,
            key=texts["qid"],
            image=str(record["image_name"]).strip(),
            question=texts["question"],
            answer=texts["answer"],
            marked_open=mark_of(record.get("answer_type")),
            fields=record,
        )


def _official_split(record: object) -> str:
    phrase = clean_text(record.get("phrase_type")) if isinstance(record, Mapping) else ""
    return "test" if phrase.lower().startswith("test") else "train"
