"""What a judge answered in a check: a record a call, put on disk as each ends, so that none is paid for twice."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from mrpo.errors import DataError
from mrpo.json_lines import drop_torn_line, read_lines
from mrpo.protocols import JudgePool
from mrpo.types import (
    AnswerJudgement,
    AnswerRequest,
    FailureReason,
    JudgeFailure,
    Judgement,
    JudgeRequest,
    Verdicts,
)

logger = logging.getLogger(__name__)

RULINGS_FILE = "rulings.jsonl"
MARKS = ("alignment", "contribution")


class RulingFile:
    """`rulings.jsonl`, a line a call; of two lines with one key the later one counts. Written by one process."""

    def __init__(self, path: Path) -> None:
        """Read what is there and go on behind it; a last line that a kill cut short is dropped.

        Raises:
            DataError: a whole line is damaged.
        """
        self._known = read_rulings(path)
        if drop_torn_line(path):
            logger.warning("%s: a line that a kill cut short is dropped; its call is made again", path)
        self._file: TextIO = path.open("a", encoding="utf-8")

    @property
    def known(self) -> Mapping[str, Judgement]:
        """By key."""
        return self._known

    def is_final(self, key: str) -> bool:
        """Whether the same settings bring nothing else: a ruling, or what is too long to be sent to this judge."""
        known = self._known.get(key)
        if known is None or isinstance(known.outcome, Verdicts):
            return known is not None
        return known.outcome.reason == FailureReason.WRONG_COUNT and known.attempts == 0

    def add(self, judgement: Judgement) -> None:
        """Put a call on disk."""
        self._file.write(json.dumps(_row(judgement), ensure_ascii=False) + "\n")
        self._file.flush()
        self._known[judgement.key] = judgement

    def close(self) -> None:
        """Have all of it on disk."""
        os.fsync(self._file.fileno())
        self._file.close()


@dataclass(frozen=True, slots=True)
class RecordedJudge:
    """A `mrpo.protocols.JudgePool` that asks for what its file has nothing final on; most failures are not."""

    judge_pool: JudgePool | None  # None: the file must hold all that is asked for
    file: RulingFile

    async def judge(self, request: JudgeRequest) -> Judgement:
        """What is on file, or a new ruling."""
        if self.file.is_final(request.key):
            return self.file.known[request.key]
        assert self.judge_pool is not None
        judgement = await self.judge_pool.judge(request)
        self.file.add(judgement)
        return judgement

    async def judge_answer(self, request: AnswerRequest) -> AnswerJudgement:
        """Asked, and not kept."""
        assert self.judge_pool is not None
        return await self.judge_pool.judge_answer(request)


def read_rulings(path: Path) -> dict[str, Judgement]:
    """The calls on file by key, none where there is no file; without a last line that a kill cut short.

    Raises:
        DataError: a whole line is damaged.
    """
    found: dict[str, Judgement] = {}
    for number, line in enumerate(read_lines(path).whole, start=1):
        try:
            judgement = _judgement(json.loads(line))
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise DataError(
                f"{path} line {number} is damaged ({type(error).__name__}: {error}); remove the line: the call is made "
                "again"
            ) from None
        found[judgement.key] = judgement
    return found


def _row(judgement: Judgement) -> dict[str, Any]:
    row = asdict(judgement)
    outcome = row.pop("outcome")
    if isinstance(judgement.outcome, Verdicts):  # as 0 and 1, in the order of the steps that were sent
        return {"key": row.pop("key"), **{name: [int(mark) for mark in outcome[name]] for name in MARKS}, **row}
    return {"key": row.pop("key"), "failure": outcome["reason"], "detail": outcome["detail"], **row}


def _judgement(row: dict[str, Any]) -> Judgement:
    if "failure" in row:
        outcome: Verdicts | JudgeFailure = JudgeFailure(
            reason=FailureReason(row.pop("failure")), detail=row.pop("detail")
        )
    else:
        outcome = Verdicts(**{name: [bool(mark) for mark in row.pop(name)] for name in MARKS})
    return Judgement(outcome=outcome, **row)
