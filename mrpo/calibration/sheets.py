"""Labels as a CSV file, one row a step, for those who label in a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from mrpo.errors import DataError

PER_COMPLETION = ("id", "annotator", "image", "question", "answer", "rationale", "dataset", "license")
COLUMNS = (*PER_COMPLETION, "number", "step", "alignment", "contribution")
OPTIONAL_COLUMNS = ("annotator", "image", "dataset", "license")  # an empty cell is none
# A spreadsheet takes a cell that begins so for a formula, and what a model wrote must stay text.
FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r", "'")
QUOTE = "'"


def write_sheet(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows of the JSONL form as CSV; a label that is None becomes an empty cell."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\r\n")
    writer.writeheader()
    for row in rows:
        common = {name: row.get(name) for name in PER_COMPLETION}
        for number, (step, label) in enumerate(zip(row["steps"], row["labels"], strict=True), start=1):
            line = {**common, "number": number, "step": step, **label}
            writer.writerow({name: _cell(value) for name, value in line.items()})
    return out.getvalue()


def read_sheet(file: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Rows of the JSONL form with the line each begins at; commas or semicolons, as spreadsheets save them.

    Raises:
        DataError: the file cannot be read, lacks a column, or numbers the steps of a completion otherwise than 1, 2, ….
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}; LABELS names a JSONL or CSV file of labels") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 (byte {error.start}); save it as CSV in UTF-8") from None
    head = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=";" if head.count(";") > head.count(",") else ",")
    names = reader.fieldnames or []
    unlike = [name for name in COLUMNS if name not in names] or [name for name in names if name not in COLUMNS]
    if unlike:
        raise DataError(f"{file}: column {unlike[0]!r} is missing or unknown; expected {', '.join(COLUMNS)}")
    lines = []
    for line in reader:
        if None in line or None in line.values():
            raise DataError(f"{file} row {reader.line_num}: another number of cells than the {len(names)} columns")
        lines.append(({name: _plain(value) for name, value in line.items()}, reader.line_num))
    for _, group in groupby(lines, key=lambda item: (item[0]["id"], item[0]["annotator"])):
        yield _row(file, list(group))


def _row(file: Path, lines: list[tuple[dict[str, str], int]]) -> tuple[dict[str, Any], int]:
    """The row of one completion by one annotator."""
    first, begins = lines[0]
    for expected, (line, number) in enumerate(lines, start=1):
        if line["number"] != str(expected):
            raise DataError(
                f"{file} row {number}: column 'number' is {line['number']!r}; expected {expected}, the place of the "
                "step in its completion, all steps of one below each other"
            )
        changed = [name for name in PER_COMPLETION if line[name] != first[name]]
        if changed:
            raise DataError(f"{file} row {number}: column {changed[0]!r} differs from row {begins} of the same id")
    row: dict[str, Any] = {name: first[name] for name in PER_COMPLETION}
    for name in OPTIONAL_COLUMNS:
        row[name] = row[name] or None
    row["steps"] = [line["step"] for line, _ in lines]
    row["labels"] = [{name: _label(line[name]) for name in ("alignment", "contribution")} for line, _ in lines]
    return row, begins


def _cell(value: object) -> str:
    text = "" if value is None else str(value)
    return QUOTE + text if text.startswith(FORMULA_SIGNS) else text


def _plain(cell: str) -> str:
    return cell[1:] if cell.startswith(QUOTE) and cell[1:].startswith(FORMULA_SIGNS) else cell


def _label(cell: str) -> int | str | None:
    """What the reader of labels checks: 0 and 1 as numbers, nothing as None, anything else as it stands."""
    text = cell.strip()
    return int(text) if text in ("0", "1") else text or None
