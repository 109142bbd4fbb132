"""The rows that a run began with, `data.json` in its folder: a resumed run goes on with the same ones, or not at all.

The order of prompts follows from seed, step and the number of rows, so that one row more makes it another one in
silence. Images are known by their names here: what is in them is not compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from mrpo.atomic import write_text
from mrpo.data.load import Dataset
from mrpo.errors import DataError, first_few
from mrpo.record_errors import recording
from mrpo.types import Example

FILE = "data.json"

Noted = dict[str, dict[str, int | str]]  # split → number of rows, and sha256 over them in their order


def note_data(run: Path, dataset: Dataset) -> None:
    """Write `data.json` into a run folder that has none.

    Raises:
        ResourceError: it cannot be written.
    """
    path = run / FILE
    if not path.exists():
        with recording(path):
            write_text(path, json.dumps(_noted(dataset), indent=2) + "\n")


def require_same_data(run: Path, dataset: Dataset) -> None:
    """Refuse to go on with a run on other rows than it began with; one without `data.json` is taken as it is.

    Raises:
        DataError: names the splits with how many rows they had and have, and the remedy.
    """
    path = run / FILE
    if not path.exists():
        return
    try:
        began: Noted = json.loads(path.read_text(encoding="utf-8"))
        texts = [
            f"{split} ({began[split]['rows']:,} rows then, {now['rows']:,} now"
            f"{'' if began[split]['rows'] != now['rows'] else ': others, or in another order'})"
            for split, now in _noted(dataset).items()
            if began[split] != now
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error!r}); remove it to go on with the data as they are now") from None
    if not texts:
        return
    dropped = f"; dropped under data.max_bad_rows: {first_few(dataset.bad_rows)}" if dataset.bad_rows else ""
    raise DataError(
        f"the data in {dataset.root} are not those that {run} began with: {', '.join(texts)}{dropped}. Its order of "
        "prompts would be another one: give it the earlier data (data.root=<them>), or start a new run"
    )


def _noted(dataset: Dataset) -> Noted:
    return {
        split: {"rows": len(examples), "sha256": _digest(examples, dataset.root)}
        for split, examples in (("train", dataset.train), ("test", dataset.test))
    }


def _digest(examples: Sequence[Example], root: Path) -> str:
    """Over what a run takes of each row; image paths below `root` are relative to it, because data may move."""
    digest = hashlib.sha256()
    for item in examples:
        image = Path(item.image)
        name = image.relative_to(root) if image.is_relative_to(root) else image
        row = [item.id, name.as_posix(), item.question, item.answer, item.rationale]
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()
