"""The loss on held-out demonstrations, epoch by epoch: `heldout.json` of a run folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from mrpo.atomic import write_text
from mrpo.errors import DataError
from mrpo.record_errors import recording

FILE = "heldout.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutLoss:
    """One measurement."""

    step: int  # optimizer steps done
    epoch: int  # epochs done; 0: before training
    loss: float  # mean negative log-prob of a target token, nats
    num_tokens: int
    num_examples: int


def read_heldout(run: Path) -> list[HeldOutLoss]:
    """All measurements of a run, in order; none where it has none.

    Raises:
        DataError: the file is damaged.
    """
    file = run / FILE
    if not file.is_file():
        return []
    try:
        return [HeldOutLoss(**item) for item in json.loads(file.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise DataError(f"{file} is damaged: {error}; remove it, it is measured again") from None


def write_heldout(run: Path, losses: list[HeldOutLoss]) -> None:
    """Put all measurements on disk at once."""
    with recording(run / FILE):
        write_text(run / FILE, json.dumps([asdict(item) for item in losses], indent=2) + "\n")


def rewind_heldout(run: Path, step: int) -> None:
    """Forget what was measured after `step`."""
    kept = [item for item in read_heldout(run) if item.step <= step]
    if (run / FILE).is_file():
        write_heldout(run, kept)
