"""Outputs that were generated elsewhere, in the place of a model: a `mrpo.protocols.RolloutPool` that reads them."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mrpo.data.checks import clean_text
from mrpo.data.rationales import image_key
from mrpo.errors import ConfigError, DataError
from mrpo.families import FAMILIES
from mrpo.steps import segment
from mrpo.types import Completion, EngineDepth, Example, FinishReason, RolloutRequest, ScoreSample

SETTING = "benchmark.generations"
# What others call the fields, our own names first.
OUTPUT_FIELDS = ("text", "output", "prediction", "pred", "response", "model_output", "generated_text", "completion")
ID_FIELDS = ("prompt_id", "id", "question_id", "qid")
QUESTION_FIELDS = ("question", "problem", "prompt")
IMAGE_FIELDS = ("image", "image_path", "image_name", "img_name")
LIST_FIELDS = ("results", "data", "predictions")  # of an object that wraps the rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Generations:
    """What a file of outputs holds for some questions."""

    outputs: dict[str, str]  # by question id, one for each
    unmatched: list[int]  # rows, counted from 1, that belong to none of the questions
    sha256: str  # of the file


def read_generations(file: Path, questions: Mapping[str, Example]) -> Generations:
    """Outputs by question id.

    A row belongs to the question with its id or, where it has none that is known, to the only one with its question and
    its image's name (for SLAKE with the folder, `xmlab1/source.jpg` or `xmlab1_source.jpg`).

    Args:
        file: JSON (a list of objects, an object around one, or an object of them by question id), JSONL or Parquet.
        questions: by id.

    Raises:
        ConfigError: the file is missing.
        DataError: it cannot be read, a row has no output or fits several questions, a question has two outputs or none.
    """
    by_content: dict[tuple[str, str], list[str]] = {}
    for key, example in questions.items():
        by_content.setdefault((_plain(example.question), image_key(example.image)), []).append(key)
    outputs: dict[str, str] = {}
    unmatched: list[int] = []
    data = _read(file)
    for number, row in enumerate(_rows(file, data), start=1):
        if not isinstance(row, dict):
            raise DataError(f"{file}, row {number}: expected an object, got {type(row).__name__}")
        output = _first(row, OUTPUT_FIELDS)
        if not isinstance(output, str):
            raise DataError(f"{file}, row {number}: no output; expected text in one of {', '.join(OUTPUT_FIELDS)}")
        found = _questions_of(row, questions, by_content)
        if len(found) > 1:
            raise DataError(
                f"{file}, row {number} fits {len(found)} questions, among them {found[0]} and {found[1]}; give the "
                f"rows the questions' ids (field {ID_FIELDS[0]})"
            )
        if not found:
            unmatched.append(number)
        elif outputs.setdefault(found[0], output) != output:
            raise DataError(f"{file}, row {number}: a second output for question {found[0]}")
    missing = [key for key in questions if key not in outputs]
    if missing:
        raise DataError(
            f"{file} has no output for {len(missing)} of {len(questions)} questions, the first is {missing[0]}, and "
            f"{len(unmatched)} rows that belong to none; rows are matched by {' / '.join(ID_FIELDS)}, or by question "
            "and image name; a set prepared from Parquet names its images by the MD5 of their bytes: give its rows ids"
        )
    return Generations(outputs=outputs, unmatched=unmatched, sha256=hashlib.sha256(data).hexdigest())


def _questions_of(
    row: Mapping[str, Any], questions: Mapping[str, Example], by_content: Mapping[tuple[str, str], list[str]]
) -> list[str]:
    """The questions a row fits; none for a row about something else."""
    named = [str(row[name]) for name in ID_FIELDS if isinstance(row.get(name), str | int)]
    known = list(dict.fromkeys(key for key in named if key in questions))
    if known:
        return known
    question, image = _first(row, QUESTION_FIELDS), _first(row, IMAGE_FIELDS)
    if not isinstance(question, str) or not isinstance(image, str):
        return []
    return by_content.get((_plain(question.replace("<image>", "")), image_key(image)), [])


def _plain(question: str) -> str:
    return clean_text(question).casefold()


def _first(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{SETTING}={file}: no such file; expected JSON, JSONL or Parquet") from None
    except OSError as error:
        raise ConfigError(f"{SETTING}={file} cannot be read: {error.strerror}") from None


def _rows(file: Path, data: bytes) -> list[Any]:
    try:
        if file.suffix == ".parquet":
            return list(pq.read_table(pa.BufferReader(data)).to_pylist())
        text = data.decode("utf-8")
        if file.suffix == ".jsonl":
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        tree = json.loads(text)
    except (OSError, ValueError, RecursionError, pa.ArrowException) as error:
        raise DataError(f"{file} cannot be read as {file.suffix or 'JSON'}: {error}") from None
    if isinstance(tree, dict):
        wrapped = next((tree[name] for name in LIST_FIELDS if isinstance(tree.get(name), list)), None)
        return wrapped if wrapped is not None else [_row_named(key, value) for key, value in tree.items()]
    if not isinstance(tree, list):
        raise DataError(f"{file}: expected a list of objects, got {type(tree).__name__}")
    return list(tree)


def _row_named(key: str, value: Any) -> Any:
    """A row of an object by question id; text alone is its output."""
    if isinstance(value, str):
        return {ID_FIELDS[0]: key, OUTPUT_FIELDS[0]: value}
    return {**value, ID_FIELDS[0]: key} if isinstance(value, dict) else value


class GeneratedElsewhere:
    """A `mrpo.protocols.RolloutPool` whose completions are there already. They have text and no tokens."""

    def __init__(self, outputs: Mapping[str, str], *, step_strategy: str) -> None:
        """`outputs`: by question id."""
        self._outputs = outputs
        self._step_strategy = step_strategy

    async def generate(self, requests: Sequence[RolloutRequest]) -> AsyncIterator[Completion]:
        """The output of every request, in order."""
        for request in requests:
            yield completion_of(request, self._outputs[request.prompt_id], step_strategy=self._step_strategy)

    async def score(self, samples: Sequence[ScoreSample]) -> list[list[float]]:
        """Not to be had: there is no model."""
        raise NotImplementedError("outputs generated elsewhere have no log-probs")

    async def probe(self, sample: ScoreSample, *, bound: float) -> list[list[float]]:
        """Not to be had either."""
        return await self.score([sample])

    async def receivers(self) -> list[Any]:
        """Nobody needs weights."""
        return []

    async def lost_receivers(self) -> bool:
        """Nobody can be lost."""
        return False

    def depths(self) -> list[EngineDepth]:
        """There is no engine."""
        return []

    @property
    def num_waiting(self) -> int:
        """Nobody waits."""
        return 0

    async def sleep(self) -> None:
        """Nothing to put to sleep."""

    async def wake_up(self) -> None:
        """Nothing sleeps."""

    async def set_policy_version(self, version: int) -> None:
        """Nothing to stamp: there is one version, 0."""


def completion_of(request: RolloutRequest, text: str, *, step_strategy: str) -> Completion:
    """A text as a completion; where it has neither a think block nor an answer tag, all of it is the answer."""
    tags = {family.think_tag for family in FAMILIES.values()}
    think_tag = next((tag for tag in sorted(tags) if f"<{tag}>" in text.lower()), "think")
    found = segment(text, (), think_tag=think_tag, strategy=step_strategy)
    untagged = found.answer is None and f"<{think_tag}>" not in text.lower() and "<answer>" not in text.lower()
    now = time.time()
    return Completion(
        prompt_id=request.prompt_id,
        sample_index=request.sample_index,
        prompt_token_ids=[],
        completion_token_ids=[],
        rollout_logprobs=[],
        text=text,
        steps=found.steps,
        spans=found.spans,
        answer=text.strip() if untagged else found.answer,
        think_tokens=0,
        step_tokens=0,
        finish_reason=FinishReason.STOP,
        policy_version=0,
        started_s=now,
        ended_s=now,
    )
