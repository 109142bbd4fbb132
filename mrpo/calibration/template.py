"""A blank sheet for people who label steps, and the instructions that go with it.

The steps are real ones, of a run or an evaluation, or of outputs that were generated elsewhere.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mrpo.atomic import write_text
from mrpo.calibration.sheets import COLUMNS, write_sheet
from mrpo.config import BenchmarkConfig
from mrpo.data.sets import NO_EXTERNAL_JUDGE
from mrpo.errors import ConfigError, DataError
from mrpo.eval.generations import read_generations
from mrpo.eval.questions import load_question_sets
from mrpo.eval.store import RESULTS_FILE
from mrpo.families import FAMILIES
from mrpo.rows import read_rows
from mrpo.run_reading import list_evaluations, list_rollouts
from mrpo.steps import split_steps
from mrpo.trace_row import TraceRow
from mrpo.types import Example

INSTRUCTIONS = Path(__file__).with_name("labelling.md")
SUFFIXES = (".csv", ".jsonl")
# The rows of a run name no license, and what is not known to be allowed is refused (`mrpo.judge_permission`).
UNKNOWN_LICENSE = f"unknown; {NO_EXTERNAL_JUDGE} until filled in"
PHANTOM_LICENSE = "generated"
BLANK = {"alignment": None, "contribution": None}


def write_template(path: Path, rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Write the sheet and, beside it, `<name>.instructions.md`.

    Returns:
        Both paths, the sheet first.

    Raises:
        ConfigError: the file is there already, cannot be written, or is neither CSV nor JSONL.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"check.template={path}: give a name ending in .csv (for a spreadsheet) or .jsonl")
    if path.exists():
        raise ConfigError(f"check.template={path} is there already, and may hold somebody's labels; name a new file")
    rows = [{**row, "image": _beside(row["image"], path.parent)} for row in rows]
    if path.suffix.lower() == ".csv":
        text = "\ufeff" + write_sheet(rows)  # the mark by which spreadsheets know UTF-8
    else:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    instructions = path.with_name(f"{path.stem}.instructions.md")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
        write_text(instructions, instructions_text(path.name, num_completions=len(rows)))
    except OSError as error:
        raise ConfigError(f"check.template={path} cannot be written: {error.strerror}; name another place") from None
    return [path, instructions]


def rows_of_source(source: Path, *, num_completions: int, seed: int) -> list[dict[str, Any]]:
    """Completions of a run, an evaluation or a Parquet file of either, as blank rows.

    Only those with a step and a gold rationale; of several of one question one is drawn.

    Args:
        source: folder or file.
        num_completions: at most so many, drawn.
        seed: of the draw.

    Raises:
        ConfigError: there is no such thing.
        DataError: a damaged file, or no completion that could be judged.
    """
    files = _files(source)
    usable = [row for file in files for row in read_rows(file) if row.steps and row.gold_rationale]
    if not usable:
        raise DataError(f"{source}: no completion with steps and a gold rationale; only these can be judged on steps")
    by_question: dict[str, list[TraceRow]] = {}
    for row in usable:
        by_question.setdefault(row.prompt_id, []).append(row)
    draw = random.Random(seed)
    chosen = [draw.choice(rows) for rows in by_question.values()]
    return [_of_trace(row) for row in _some(chosen, num_completions, draw)]


def rows_of_sets(benchmark: BenchmarkConfig, *, num_completions: int, seed: int) -> list[dict[str, Any]]:
    """Questions of prepared sets as blank rows, with the steps of outputs that were generated elsewhere.

    Without outputs (`benchmark.generations`) each question has one empty step, for steps that are written by hand.

    Raises:
        ConfigError: a set is not prepared, or the file of outputs is missing.
        DataError: damaged files, or no question that could be judged.
    """
    sets = load_question_sets(Path(benchmark.root).expanduser(), benchmark.sets, num_questions=benchmark.num_questions)
    examples = {example.id: example for item in sets for example in item.examples}
    steps = {key: [""] for key in examples}
    if benchmark.generations is not None:
        found = read_generations(Path(benchmark.generations).expanduser(), examples)
        steps = {key: _steps_of(output) for key, output in found.outputs.items()}
    usable = [example for key, example in examples.items() if example.rationale and steps.get(key)]
    if not usable:
        raise DataError(
            f"{', '.join(benchmark.sets)}: no question has a gold rationale and an output with steps; only these can "
            "be judged on steps (make data with rationales: docs/data.md)"
        )
    return [_of_example(example, steps[example.id]) for example in _some(usable, num_completions, random.Random(seed))]


def instructions_text(sheet: str, *, num_completions: int) -> str:
    """What a labeller is told, in Markdown."""
    return INSTRUCTIONS.read_text(encoding="utf-8").format(
        sheet=sheet, columns=", ".join(f"`{name}`" for name in COLUMNS), num_completions=num_completions
    )


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if (source / RESULTS_FILE).is_file():
        return [source / RESULTS_FILE]
    evaluations = list(list_evaluations(source).values()) if source.is_dir() else []
    rollouts = list(list_rollouts(source).values()) if source.is_dir() else []
    if not evaluations and not rollouts:
        raise ConfigError(
            f"check.source={source}: no completions there; give the folder of a run (runs/<experiment>/<time>) "
            "or of an evaluation, or a Parquet file of one"
        )
    return evaluations[-1:] or rollouts[-1:]  # the newest policy's


def _some(items: Sequence[Any], num: int, draw: random.Random) -> list[Any]:
    """So many of them, in their order."""
    chosen = sorted(draw.sample(range(len(items)), min(num, len(items))))
    return [items[index] for index in chosen]


def _of_trace(row: TraceRow) -> dict[str, Any]:
    return {
        "id": row.key,
        "image": row.image,
        "question": row.question,
        "answer": row.gold_answer,
        "rationale": row.gold_rationale,
        "steps": row.steps,
        "labels": [dict(BLANK) for _ in row.steps],
        "annotator": None,
        "dataset": row.dataset,
        "license": PHANTOM_LICENSE if row.dataset == "phantom" else UNKNOWN_LICENSE,
    }


def _of_example(example: Example, steps: Sequence[str]) -> dict[str, Any]:
    return {
        "id": example.id,
        "image": example.image,
        "question": example.question,
        "answer": example.answer,
        "rationale": example.rationale,
        "steps": list(steps),
        "labels": [dict(BLANK) for _ in steps],
        "annotator": None,
        "dataset": example.dataset,
        "license": example.license,
    }


def _steps_of(output: str) -> list[str]:
    """Of an output of any family."""
    for tag in sorted({family.think_tag for family in FAMILIES.values()}):
        steps = split_steps(output, think_tag=tag)
        if steps:
            return [step.text for step in steps]
    return []


def _beside(image: str | None, folder: Path) -> str | None:
    """An image's path as the sheet has it: from the sheet's folder, where it lies in or below it."""
    if not image:
        return None
    relative = os.path.relpath(image, folder)
    return str(Path(image).resolve()) if relative.startswith("..") else relative
