"""One model's evaluation: its rows, and what has to be known to read them. Made by the command, read by the tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from mrpo.atomic import write_text
from mrpo.errors import DataError
from mrpo.eval.store import RESULTS_FILE
from mrpo.rows import read_rows
from mrpo.trace_row import TraceRow

FACTS_FILE = "facts.json"  # beside `RESULTS_FILE`


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationFacts:
    """What was measured, and how."""

    model: str  # as it is called in tables
    seed: int  # of the evaluation; resampling goes by it too
    judge: str | None  # the judge's model; None: none was asked
    step_rubric: str | None  # version
    answer_rubric: str | None  # version; None: answers were not rated by the judge
    open_rules: Mapping[str, str]  # set: which of its questions count as open-ended
    command: str  # that makes these numbers again
    answer_kind: str | None = None  # what rated answers, an AnswerKind; None: not recorded
    threshold: float | None = None  # a reward above it counts as right; None: not recorded
    notices: tuple[str, ...] = ()  # what a reader must know first, such as a judge that is a stand-in
    settings: Mapping[str, str] = field(default_factory=dict)  # more to show, in words


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """A model on the questions of one set or more."""

    facts: EvaluationFacts
    rows: Sequence[TraceRow]  # one a question
    folder: Path | None = field(default=None, compare=False)  # None: not read from one


def write_facts(folder: Path, facts: EvaluationFacts) -> Path:
    """Put the facts beside an evaluation's rows, for `read_evaluation`; returns the file."""
    path = folder / FACTS_FILE
    write_text(path, json.dumps(asdict(facts), indent=2, ensure_ascii=False) + "\n")
    return path


def read_evaluation(folder: Path) -> Evaluation:
    """Read a finished evaluation from its folder.

    Raises:
        DataError: it is not finished, or a file in it is damaged.
    """
    path = folder / FACTS_FILE
    if not path.is_file() or not (folder / RESULTS_FILE).is_file():
        missing = RESULTS_FILE if path.is_file() else FACTS_FILE
        raise DataError(f"{folder} holds no finished evaluation: no {missing}; run make eval to its end")
    try:
        facts = TypeAdapter(EvaluationFacts).validate_json(path.read_bytes(), extra="forbid")
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"])) or "the file"
        raise DataError(f"{path} is damaged: {place}: {fault['msg']}; run make eval again") from None
    return Evaluation(facts=facts, rows=read_rows(folder / RESULTS_FILE), folder=folder)


def require_comparable(evaluations: Sequence[Evaluation]) -> None:
    """Check that the evaluations can stand in one table.

    Raises:
        DataError: there is none, one has no row or a question twice, or two go by the same name.
    """
    if not evaluations:
        raise DataError("no evaluation to report on; name at least one folder that make eval wrote")
    names = [evaluation.facts.model for evaluation in evaluations]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        places = " and ".join(str(item.folder) for item in evaluations if item.facts.model == twice and item.folder)
        raise DataError(
            f"two evaluations are named {twice!r}{f' ({places})' if places else ''}; give each model a name of its "
            "own: its make eval command again with benchmark.name=<name>, which keeps what is measured"
        )
    for evaluation in evaluations:
        if not evaluation.rows:
            raise DataError(f"the evaluation of {evaluation.facts.model!r} holds no question; run make eval again")
        seen: set[str] = set()
        for row in evaluation.rows:
            if row.prompt_id in seen:
                raise DataError(
                    f"the evaluation of {evaluation.facts.model!r} holds question {row.prompt_id} twice; "
                    "expected one row a question"
                )
            seen.add(row.prompt_id)
