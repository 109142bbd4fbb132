"""The folder of one evaluation: parts as they come, so that a kill costs a chunk at most, then one Parquet file.

`<out>/`: `evaluation.json` (what is measured), `parts/part_NNNNN.parquet`, `results.parquet` once all are in.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mrpo.atomic import TEMPORARY_SUFFIX, remove_leftovers, write_text
from mrpo.errors import ConfigError, DataError
from mrpo.identity_folder import leaves, make_folder
from mrpo.rows import read_rows, write_rows
from mrpo.run_lock import LOCK_FILE, RunLock
from mrpo.trace_row import TraceRow

IDENTITY_FILE = "evaluation.json"
RESULTS_FILE = "results.parquet"
PARTS = "parts"


class EvaluationStore:
    """An evaluation's folder, open for writing by this process; use as a context manager."""

    def __init__(self, path: Path, lock: RunLock, rows: dict[str, TraceRow], num_parts: int) -> None:
        """Use `open`."""
        self.path = path
        self._lock = lock
        self._rows = rows
        self._num_parts = num_parts

    @classmethod
    def open(cls, path: Path, identity: dict[str, Any]) -> EvaluationStore:
        """Make the folder, or go on in it.

        Args:
            path: of the evaluation.
            identity: what is measured, with which settings; JSON-like.

        Raises:
            ConfigError: the folder holds another evaluation, or something else.
            ResourceError: another process is writing it.
            DataError: a part is damaged.
        """
        file = path / IDENTITY_FILE
        make_folder(path, "benchmark.out")
        if not file.is_file() and not all(_is_of_a_start(item.name) for item in path.iterdir()):
            raise ConfigError(f"{path} is no folder of an evaluation; set benchmark.out=<new folder>")
        lock = RunLock.take(path)
        try:
            if file.is_file():
                _require_same(file, identity)
            else:
                write_text(file, json.dumps(identity, indent=2, ensure_ascii=False) + "\n")
            rows, num_parts = _read_parts(path / PARTS)
        except BaseException:
            lock.release()
            raise
        return cls(path, lock, rows, num_parts)

    @property
    def rows(self) -> dict[str, TraceRow]:
        """What is measured so far, by question id."""
        return dict(self._rows)

    def add(self, rows: Sequence[TraceRow]) -> None:
        """Put a chunk of questions on disk."""
        write_rows(self.path / PARTS / f"part_{self._num_parts:05d}.parquet", rows)
        self._num_parts += 1
        self._rows.update({row.prompt_id: row for row in rows})

    def finish(self, order: Sequence[str]) -> Path:
        """Write `results.parquet`, one row a question in the order given."""
        missing = [key for key in order if key not in self._rows]
        assert not missing, f"{len(missing)} questions are not measured, the first is {missing[0]}"
        path = self.path / RESULTS_FILE
        write_rows(path, [self._rows[key] for key in order])
        return path

    def __enter__(self) -> EvaluationStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.release()


def _is_of_a_start(name: str) -> bool:
    """Whether a file is what a process leaves that is killed before the identity is written."""
    return name == LOCK_FILE or (name.startswith(f".{IDENTITY_FILE}.") and name.endswith(TEMPORARY_SUFFIX))


def _read_parts(folder: Path) -> tuple[dict[str, TraceRow], int]:
    """Rows by question id, and the number of the next part."""
    folder.mkdir(exist_ok=True)
    remove_leftovers(folder)
    rows: dict[str, TraceRow] = {}
    files = sorted(folder.glob("part_*.parquet"))
    for file in files:
        # A later part holds what was asked again.
        rows.update({row.prompt_id: row for row in read_rows(file)})
    return rows, int(files[-1].stem.removeprefix("part_")) + 1 if files else 0


def _require_same(file: Path, identity: dict[str, Any]) -> None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        before, now = dict(leaves(found)), dict(leaves(identity))
        changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{file} is damaged: {error}; set benchmark.out=<new folder>") from None
    if changed:
        key = changed[0]
        raise ConfigError(
            f"{file.parent} holds an evaluation with another {key} ({before.get(key)!r}, now {now.get(key)!r}); "
            "set benchmark.out=<new folder>"
        )
