"""Parquet with columns image {bytes, path}, question, answer.

PathVQA, Quilt-VQA, RadImageNet-VQA's benchmark, and VQA-RAD in one of its variants.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from mrpo.data.layouts.splits import in_name_order, split_of
from mrpo.data.records import parquet_records
from mrpo.data.rows import BadRow, InlineImage, SourceRow, mark_of, shown, texts_of
from mrpo.data.source import SourceFile, SourceTree
from mrpo.errors import DataError

COLUMNS = ("image", "question", "answer", "answer_type", "question_type", "metadata")
MARKS = ("answer_type", "question_type")  # where a set says OPEN or open


def files(tree: SourceTree) -> list[SourceFile]:
    """The parquet files of the tree."""
    return [file for file in tree.files() if file.name.lower().endswith(".parquet")]


def read(tree: SourceTree, *, only_split: str | None = None) -> Iterator[SourceRow | BadRow]:
    """All questions; the split is in the files' names unless `only_split` says what the set is.

    Ids count the rows of a split through its files in the order of their names, in whatever folders they lie.

    Raises:
        DataError: no parquet file, one without the columns or a split in its name, one that cannot be read, or two of
            one name and split.
    """
    found = files(tree)
    if not found:
        raise DataError(f"{tree.root} holds no parquet file (train-….parquet, validation-….parquet, test-….parquet)")
    places: Counter[str] = Counter()  # split: rows so far
    named: dict[tuple[str, str], SourceFile] = {}
    for file in in_name_order(found):
        split = only_split or split_of(file)
        if split is None:
            raise DataError(f"{tree.root / file.label}: expected train, validation or test in the file's name")
        other = named.setdefault((split, file.name), file)
        if other is not file:
            raise DataError(f"{tree.root} holds {other.label} and {file.label}; leave only the one that is meant")
        for number, record in parquet_records(tree, file, COLUMNS):
            places[split] += 1
            yield _row(file, number, split, record, key=str(places[split]))


def read_test(tree: SourceTree) -> Iterator[SourceRow | BadRow]:
    """As `read`, for sets that are a test as a whole, whatever their files are called."""
    return read(tree, only_split="test")


def _row(file: SourceFile, number: int, split: str, record: object, *, key: str) -> SourceRow | BadRow:
    texts = texts_of(record, ("question", "answer"))
    if isinstance(texts, str):
        return BadRow(file=file, number=number, split=split, reason=texts)
    assert isinstance(record, Mapping)
    image = _image(record.get("image"))
    if isinstance(image, str):
        return BadRow(file=file, number=number, split=split, reason=image)
    marks = [mark for name in MARKS if (mark := mark_of(record.get(name))) is not None]
    return SourceRow(
        file=file,
        number=number,
        split=split,
        key=key,
        image=image,
        question=texts["question"],
        answer=texts["answer"],
        marked_open=marks[0] if marks else None,
        fields={**record, **_nested(record.get("metadata"))},
    )


def _image(value: object) -> InlineImage | str:
    """The image of a row, or what is wrong with it."""
    data, name = (value.get("bytes"), value.get("path")) if isinstance(value, Mapping) else (value, None)
    if not isinstance(data, bytes) or not data:
        return f"field 'image' holds no bytes: {shown(value)}"
    return InlineImage(data=data, name=name if isinstance(name, str) and name else None)


def _nested(metadata: object) -> Mapping[str, object]:
    return metadata if isinstance(metadata, Mapping) else {}
