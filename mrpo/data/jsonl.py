"""The internal format: JSONL rows `{id, image, question, answer, rationale, dataset, split, license}`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

from mrpo.data.checks import RowChecks, require_file
from mrpo.types import Example

FIELDS = ("id", "image", "question", "answer", "rationale", "dataset", "split", "license")


def write_jsonl(examples: Iterable[Example], file: Path, *, root: Path) -> None:
    """Write examples with image paths relative to `root`."""
    with file.open("w", encoding="utf-8") as out:
        for example in examples:
            row = asdict(replace(example, image=Path(example.image).relative_to(root).as_posix()))
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_jsonl(file: Path, *, root: Path, checks: RowChecks) -> list[Example]:
    """Read and check every row; image paths become absolute.

    Raises:
        DataError: the file is missing, or has more bad rows than allowed. The message names file, row and field.
    """
    examples: list[Example] = []
    seen: set[str] = set()
    with require_file(file, "data.root").open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            parsed = _parse(line, root, checks, seen)
            if isinstance(parsed, str):
                checks.reject(file, number, parsed)
            else:
                seen.add(parsed.id)
                examples.append(parsed)
    return examples


def _parse(line: bytes, root: Path, checks: RowChecks, seen: set[str]) -> Example | str:
    """One row as an example, or what is wrong with it."""
    try:
        row = json.loads(line.decode("utf-8").rstrip())
    except UnicodeDecodeError as error:
        return f"not UTF-8 (byte {error.start})"
    except json.JSONDecodeError as error:
        return f"not JSON ({error.msg}, column {error.colno})"
    except (ValueError, RecursionError) as error:
        return f"JSON that cannot be read ({error})"
    if not isinstance(row, dict):
        return f"expected an object, got {type(row).__name__}"
    missing = [name for name in FIELDS if name not in row]
    if missing:
        return f"field {missing[0]!r} is missing"
    texts = {name: checks.text(row[name]) for name in FIELDS if name != "rationale"}
    empty = [name for name, value in texts.items() if not value]
    if empty:
        return f"field {empty[0]!r} is empty or not text: {row[empty[0]]!r}"
    rationale = row["rationale"]
    if rationale is not None and not (isinstance(rationale, str) and checks.text(rationale)):
        return f"field 'rationale' must be text or null, got {rationale!r}"
    if texts["id"] in seen:
        return f"field 'id' repeats {texts['id']!r}"
    image = root / str(row["image"])  # as written: a file name may hold more than single spaces
    fault = checks.image_fault(image)
    if fault:
        return fault
    return replace(Example(**texts, rationale=rationale), image=str(image))
