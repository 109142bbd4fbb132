"""The folder of a variant: its training run, the console's text, and how the attempts to train it ended."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mrpo.ablation.plan import Variant
from mrpo.ablation.trainer import Outcome, VariantStatus
from mrpo.atomic import write_text
from mrpo.errors import DataError, ResourceError
from mrpo.run_lock import RunLock
from mrpo.run_reading import FORMAT, RunStatus, list_checkpoints, read_state

SLUG_LENGTH = 48  # characters of a folder's name that people read


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The content of `variant.json`."""

    key: str
    label: str
    overrides: Sequence[str]
    status: VariantStatus
    error: str | None
    attempts: int
    wall_s: float  # of all attempts


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantFolder:
    """`<runs_dir>/ablation/<study>/<label>-<key>/`."""

    path: Path
    variant: Variant

    @classmethod
    def locate(cls, study_folder: Path, variant: Variant) -> VariantFolder:
        """The variant's folder, made or not: found by its key, whatever it was called by."""
        found = sorted(study_folder.glob(f"*-{variant.key}"))
        slug = re.sub(r"[^\w.=+]+", "-", variant.label)[:SLUG_LENGTH].strip("-")
        return cls(path=found[0] if found else study_folder / f"{slug}-{variant.key}", variant=variant)

    @property
    def log(self) -> Path:
        """What trainings wrote to the console."""
        return self.path / "train.log"

    def run(self) -> Path | None:
        """The newest training run in here."""
        folders = [file.parent for file in self.path.glob("*/*/state.json")]
        return max(folders, key=lambda folder: (read_state(folder).created_s, folder.name), default=None)

    def record(self) -> Record:
        """How the variant stands; the run folder has the last word on whether it is finished.

        Raises:
            DataError: `variant.json` or the run's state is damaged.
        """
        path = self.path / "variant.json"
        record = Record(
            key=self.variant.key,
            label=self.variant.label,
            overrides=self.variant.overrides,
            status=VariantStatus.PENDING,
            error=None,
            attempts=0,
            wall_s=0.0,
        )
        if path.is_file():
            try:
                tree = json.loads(path.read_text(encoding="utf-8"))
                record = Record(**{**tree, "status": VariantStatus(tree["status"])})
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path} is damaged: {error}; remove it to have its run looked at again") from None
        run = self.run()
        if run is not None and read_state(run).status == RunStatus.FINISHED:
            return replace(record, status=VariantStatus.FINISHED, error=None)
        if record.status == VariantStatus.FINISHED:
            said = "training ended well, but its run folder is not marked finished"
            return replace(record, status=VariantStatus.FAILED, error=said)
        return record

    def begin(self) -> list[str]:
        """Note another attempt; returns the overrides to train with: of a resumed run, or of a new one.

        Raises:
            ResourceError: a process that outlived its study still trains this variant.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        run = self.run()
        if run is not None and RunLock.is_held(run):
            raise ResourceError(f"{run} is being written by another process; wait for it or end it first")
        record = self.record()
        self._write(replace(record, status=VariantStatus.RUNNING, error=None, attempts=record.attempts + 1))
        if run is not None and list_checkpoints(run) and read_state(run).format == FORMAT:
            return [f"resume={quoted(str(run))}"]
        own = [line for line in self.variant.overrides if not line.startswith(("runs_dir=", "run_name="))]
        return [*own, f"runs_dir={quoted(str(self.path))}"]

    def end(self, outcome: Outcome) -> Record:
        """Note how the attempt ended."""
        record = self.record()
        status = VariantStatus.FINISHED if record.status == VariantStatus.FINISHED else outcome.status
        error = None if status == VariantStatus.FINISHED else outcome.error
        self._write(replace(record, status=status, error=error, wall_s=record.wall_s + outcome.wall_s))
        return self.record()

    def _write(self, record: Record) -> None:
        write_text(self.path / "variant.json", json.dumps(asdict(record), indent=2, ensure_ascii=False) + "\n")


def quoted(value: str) -> str:
    """A text as a value of Hydra's grammar, whatever is in it."""
    return "'" + re.sub(r"(\\*)'", r"\1\1\\'", value) + "'"
