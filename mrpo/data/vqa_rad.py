"""VQA-RAD as distributed: `train.json`, `test.json` and `images/`. It carries no gold rationales."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from mrpo.data.checks import RowChecks, require_file
from mrpo.errors import DataError
from mrpo.types import Example

logger = logging.getLogger(__name__)

DATASET = "vqa_rad"
LICENSE = "CC0-1.0"


def read_vqa_rad(root: Path, split: str, *, checks: RowChecks) -> list[Example]:
    """Questions of one split ("train" or "test") whose answer is not yes or no.

    Raises:
        DataError: a file or image is missing or unreadable, or a row is bad; names file, row and field.
    """
    file = require_file(root / f"{split}.json", "data.root")
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not JSON ({error}); get the file again") from None
    if not isinstance(rows, list):
        raise DataError(f"{file}: expected a list of records, got {type(rows).__name__}; get the file again")
    examples: list[Example] = []
    seen: set[str] = set()
    for number, row in enumerate(rows, start=1):
        parsed = _parse(row, root, split, checks, seen)
        if isinstance(parsed, str):
            checks.reject(file, number, parsed)
            continue
        seen.add(parsed.id)
        if parsed.answer.lower() not in ("yes", "no"):
            examples.append(parsed)
    logger.info("%s: %d of %d questions have another answer than yes or no", file, len(examples), len(rows))
    return examples


def _parse(row: object, root: Path, split: str, checks: RowChecks, seen: set[str]) -> Example | str:
    if not isinstance(row, dict):
        return f"expected an object, got {type(row).__name__}"
    texts: dict[str, str] = {}
    for name in ("qid", "image_name", "question", "answer"):
        texts[name] = checks.text(row[name]) if name in row else ""
        if not texts[name]:
            return f"field {name!r} is missing or empty"
    example_id = f"{DATASET}-{split}-{texts['qid']}"
    if example_id in seen:
        return f"field 'qid' repeats {texts['qid']!r}"
    image = root / "images" / str(row["image_name"])
    fault = checks.image_fault(image)
    if fault:
        return fault
    return Example(
        id=example_id,
        image=str(image),
        question=texts["question"],
        answer=texts["answer"],
        rationale=None,
        dataset=DATASET,
        split=split,
        license=LICENSE,
    )
