"""What a judge answered in a check, one record a call, and the file `rulings.jsonl` of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from mrpo.errors import DataError
from mrpo.types import Verdicts


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """One call about one completion. Made by `mrpo.calibration.asking`."""

    id: str  # of the completion
    asking: int  # 0 … of the same order of steps
    order: list[int] | None  # [K] which step stood at each place; None: the completion's own order
    alignment: list[bool] | None  # [K] by the completion's own order; None: the judge failed
    contribution: list[bool] | None
    failure: str | None  # a FailureReason
    detail: str
    attempts: int  # HTTP requests
    prompt_tokens: int
    completion_tokens: int
    started_s: float  # time.time() when it was handed to the judge
    sent_s: float | None  # of the first request; None: none was made
    ended_s: float

    @property
    def verdicts(self) -> Verdicts | None:
        """What it ruled; None where it failed."""
        if self.alignment is None or self.contribution is None:
            return None
        return Verdicts(alignment=self.alignment, contribution=self.contribution)


def write_rulings(rulings: Iterable[Ruling]) -> str:
    """The content of `rulings.jsonl`."""
    return "".join(json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in rulings)


def read_rulings(file: Path) -> list[Ruling]:
    """Read what `write_rulings` wrote.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        return [Ruling(**json.loads(line)) for line in file.read_text(encoding="utf-8").split("\n") if line]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{file}: cannot be read as rulings of a judge check ({error}); run the check again") from None
