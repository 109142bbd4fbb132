"""Records of JSON, CSV and parquet files, streamed: a file is never whole in memory."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

import ijson
import pyarrow
import pyarrow.parquet

from mrpo.data.archive import ARCHIVE_FAULTS
from mrpo.data.source import SourceFile, SourceTree
from mrpo.errors import DataError

BATCH_ROWS = 64  # parquet rows in memory at one time; a row may hold an image
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Record = tuple[int, object]  # row number from 1, what stands there


def json_records(tree: SourceTree, file: SourceFile, *, below: str | None = None) -> Iterator[Record]:
    """The items of a top-level list, the values of a top-level object, or the items of the list it has under `below`.

    Half a surrogate pair, which JSON can spell and nothing can write, reads as "?".

    Raises:
        DataError: not JSON, not UTF-8, cut off, or neither list nor object.
    """
    number = 0
    with tree.open(file) as stream:
        head = stream.read(len(BYTE_ORDER_MARK))
        stream.seek(len(head) if head == BYTE_ORDER_MARK else 0)
        start = stream.tell()
        first = stream.read(64).lstrip()[:1]
        stream.seek(start)
        if first not in (b"[", b"{"):
            raise DataError(f"{tree.root / file.label} is not JSON: expected a list or an object; get it again")
        try:
            if below is not None:
                values = ijson.items(stream, f"{below}.item", use_float=True)
            elif first == b"[":
                values = ijson.items(stream, "item", use_float=True)
            else:
                values = (value for _, value in ijson.kvitems(stream, "", use_float=True))
            for number, value in enumerate(values, start=1):
                yield number, value
        except (ijson.JSONError, RecursionError, *ARCHIVE_FAULTS) as error:
            raise DataError(
                f"{tree.root / file.label}, after row {number}: not whole, valid UTF-8 JSON ({_reason(error)}); "
                "get it again"
            ) from None


def json_lines(tree: SourceTree, file: SourceFile) -> Iterator[Record]:
    """The lines of a JSONL file; one that is not JSON is given as a `DataError` in its place."""
    with tree.open(file) as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                (value,) = ijson.items(io.BytesIO(line), "", use_float=True)
            except (ijson.JSONError, ValueError, RecursionError) as error:
                yield number, DataError(f"not JSON in UTF-8 ({_reason(error)})")
            else:
                yield number, value


def csv_records(tree: SourceTree, file: SourceFile) -> Iterator[Record]:
    """The rows of a CSV file with a header, as objects.

    Raises:
        DataError: not UTF-8, or not CSV.
    """
    number = 0
    with tree.open(file) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        try:
            for number, row in enumerate(csv.DictReader(text, strict=True), start=1):
                yield number, {key: value for key, value in row.items() if key is not None}
        except (csv.Error, *ARCHIVE_FAULTS) as error:
            raise DataError(
                f"{tree.root / file.label}, after row {number}: not valid UTF-8 CSV ({error}); get it again"
            ) from None


def text_lines(tree: SourceTree, file: SourceFile) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank.

    Raises:
        DataError: not UTF-8.
    """
    number = 0
    with tree.open(file) as stream:
        try:
            for number, line in enumerate(io.TextIOWrapper(stream, encoding="utf-8-sig"), start=1):
                if line.strip():
                    yield number, line.strip()
        except ARCHIVE_FAULTS as error:
            raise DataError(
                f"{tree.root / file.label}, after line {number}: not UTF-8 text ({error}); get it again"
            ) from None


def parquet_records(tree: SourceTree, file: SourceFile, columns: tuple[str, ...]) -> Iterator[Record]:
    """The rows of a parquet file as objects of those of `columns` that it has.

    Raises:
        DataError: not parquet, damaged, or inside an archive.
    """
    if file.member is not None:
        raise DataError(f"{tree.root / file.label}: parquet is not read from archives; unpack {file.file.name} first")
    number = 0
    with tree.open(file) as stream:
        try:
            with pyarrow.parquet.ParquetFile(stream, pre_buffer=False) as parquet:
                wanted = [name for name in parquet.schema_arrow.names if name in columns]
                for batch in parquet.iter_batches(batch_size=BATCH_ROWS, columns=wanted, use_threads=False):
                    for row in _rows(batch):
                        number += 1
                        yield number, row
        except (pyarrow.ArrowException, MemoryError, OverflowError, *ARCHIVE_FAULTS) as error:
            reason = str(error).split("\n")[0][:200]
            raise DataError(
                f"{tree.root / file.label}, after row {number}: not a whole parquet file ({reason}); get it again"
            ) from None


def _reason(error: BaseException) -> str:
    """The first line; ijson quotes the place below it, and gives bytes where the place is not UTF-8."""
    said = error.args[0] if error.args else ""
    text = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(error)
    return text.strip().split("\n")[0][:200]


def _rows(batch: Any) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = batch.to_pylist()
    return rows
