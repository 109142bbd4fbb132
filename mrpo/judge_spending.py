"""What a run has spent on its judge, model by model, and the file that remembers it.

`judge_spending.jsonl` in the run's folder grows by a line a call, as calls end. It says what was paid for, not what the
run kept: a step that is given up or rewound stays on it, so that a resumed run goes on with what is really left.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from mrpo.errors import DataError
from mrpo.json_lines import append, drop_torn_line, read_lines

logger = logging.getLogger(__name__)

SPENDING_FILE = "judge_spending.jsonl"
UNKNOWN_MODEL = "unknown"  # requests that may have been made by an actor that was lost


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """HTTP requests and what their replies said they took."""

    requests: int = 0  # retries and failed ones included
    prompt_tokens: int = 0  # cached ones included
    cached_prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated_requests: int = 0  # of them, those whose reply named no usage: their tokens are estimates

    @property
    def tokens(self) -> int:
        """Prompt and completion."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Spending) -> Spending:
        return Spending(
            requests=self.requests + other.requests,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            cached_prompt_tokens=self.cached_prompt_tokens + other.cached_prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            estimated_requests=self.estimated_requests + other.estimated_requests,
        )


def sum_of(spent: Mapping[str, Spending]) -> Spending:
    """Over all models."""
    return sum(spent.values(), Spending())


class SpendingLedger:
    """The file of one run, written by the process that owns the run."""

    def __init__(self, path: Path | None) -> None:
        """Read what was spent before.

        Args:
            path: of the file; None: nothing is remembered beyond this process.

        Raises:
            DataError: a line is damaged.
        """
        self._path = path
        self.spent: dict[str, Spending] = {} if path is None else read_spending(path)
        if path is not None and drop_torn_line(path):
            logger.warning("%s: a line that a kill cut short is dropped; one call is missing in what was spent", path)

    @property
    def total(self) -> Spending:
        """Over all models."""
        return sum_of(self.spent)

    def add(self, spent: Mapping[str, Spending]) -> None:
        """Put what a call took on record.

        Raises:
            OSError: the file cannot be written; the next call can be put on record as soon as it can be again.
        """
        for model, spending in spent.items():
            self.spent[model] = self.spent.get(model, Spending()) + spending
        if self._path is not None and spent:
            lines = (json.dumps({"model": model, **_without_zeros(item)}) + "\n" for model, item in spent.items())
            append(self._path, "".join(lines))


def read_spending(path: Path) -> dict[str, Spending]:
    """What a file remembers, by model; nothing where there is none. A last line that a kill cut is left out.

    Raises:
        DataError: a whole line is damaged; the message names it.
    """
    spent: dict[str, Spending] = {}
    for number, line in enumerate(read_lines(path).whole, start=1):
        try:
            counts = json.loads(line)
            model = counts.pop("model")
            assert isinstance(model, str) and all(type(count) is int and count >= 0 for count in counts.values())
            spent[model] = spent.get(model, Spending()) + Spending(**counts)
        except (ValueError, KeyError, TypeError, AttributeError, AssertionError):
            raise DataError(
                f"{path} line {number} is damaged: {line[:80]!r}; mend or remove the line (the budget then forgets it)"
            ) from None
    return spent


def _without_zeros(spending: Spending) -> dict[str, int]:
    return {name: count for name, count in asdict(spending).items() if count}
