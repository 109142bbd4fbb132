"""An evaluation in lmms-eval's layout, so that its tools and tables read it.

`<folder>/<model>/<time>_results.json` and, for each set, `<time>_samples_<set>.jsonl`. Layout: lmms-eval,
`loggers/evaluation_tracker.py` and `evaluator.py`: results by task under "<metric>,<filter>", and a line a sample.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mrpo.atomic import write_text, write_with
from mrpo.eval.evaluation import Evaluation, EvaluationFacts, require_comparable
from mrpo.eval.results import by_dataset, set_title
from mrpo.trace_row import TraceRow

GROUP = "mrpo"  # all sets together, weighted by their questions
FILTER = "none"
ACCURACY, VALIDITY = "accuracy", "step_validity"
VERSION = 0  # of the tasks, whose prompts are this project's and not lmms-eval's


def write_lmms_eval(folder: Path, evaluation: Evaluation) -> list[Path]:
    """Write an evaluation's aggregate and its samples, each file atomically.

    The names carry the time of the last completion, so that writing again replaces the files. The samples hold
    questions and gold answers: the sets' licenses decide who may get them.

    Returns:
        The paths: results first, then the samples by set.

    Raises:
        DataError: the evaluation is empty or holds a question twice.
    """
    require_comparable([evaluation])
    model = _file_name(evaluation.facts.model)
    target = folder / model
    target.mkdir(parents=True, exist_ok=True)
    ended = max(row.rollout_ended_s for row in evaluation.rows)
    time = datetime.fromtimestamp(ended, UTC).strftime("%Y%m%d_%H%M%S")
    results = target / f"{time}_results.json"
    paths = [results]
    for name, rows in by_dataset(evaluation.rows).items():
        path = target / f"{time}_samples_{re.sub(r'[^A-Za-z0-9_]', '_', name)}.jsonl"
        write_with(path, lambda temporary, rows=rows: _write_lines(temporary, rows))  # type: ignore[misc]
        paths.append(path)
    tree = lmms_eval_tree(evaluation)
    write_text(results, json.dumps(tree, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return paths


def lmms_eval_tree(evaluation: Evaluation) -> dict[str, Any]:
    """The content of `<time>_results.json`."""
    facts, rows = evaluation.facts, evaluation.rows
    parts = by_dataset(rows)
    names = list(parts)
    micro = _metrics(GROUP, rows)
    started, ended = min(row.rollout_started_s for row in rows), max(row.rollout_ended_s for row in rows)
    return {
        "results": {
            GROUP: micro,
            **{name: _metrics(set_title(name), part) for name, part in parts.items()},
        },
        "groups": {GROUP: micro},
        "group_subtasks": {GROUP: names},
        "configs": {name: _task(name, facts) for name in names},
        "versions": dict.fromkeys(names, VERSION),
        "n-shot": dict.fromkeys(names, 0),
        "higher_is_better": {name: {ACCURACY: True, VALIDITY: True} for name in (GROUP, *names)},
        "n-samples": {name: {"original": len(part), "effective": len(part)} for name, part in parts.items()},
        "config": {
            "model": "mrpo",
            "model_args": f"model={facts.model}",
            "gen_kwargs": "temperature=0",
            "limit": None,
            "random_seed": facts.seed,
            "cli": facts.command,
            "judge": facts.judge,
            "step_rubric": facts.step_rubric,
            "answer_rubric": facts.answer_rubric,
        },
        "date": datetime.fromtimestamp(ended, UTC).strftime("%Y%m%d_%H%M%S"),
        "task_hashes": {
            name: _hash("".join(f"sample_{number}{_hash(_document(row))}" for number, row in enumerate(part)))
            for name, part in parts.items()
        },
        "model_source": "mrpo",
        "model_name": facts.model,
        "model_name_sanitized": _file_name(facts.model),
        "start_time": started,
        "end_time": ended,
        "total_evaluation_time_seconds": str(ended - started),
    }


def _task(name: str, facts: EvaluationFacts) -> dict[str, Any]:
    return {
        "task": name,
        "task_alias": set_title(name),
        "test_split": "test",
        "output_type": "generate_until",
        "num_fewshot": 0,
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in (ACCURACY, VALIDITY)
        ],
        "metadata": {"version": VERSION, "open_rule": facts.open_rules.get(name)},
    }


def _metrics(alias: str, rows: Sequence[TraceRow]) -> dict[str, Any]:
    """Means and standard errors; the validity of steps only where something was judged."""
    validity = [sum(valid) / len(valid) for row in rows if (valid := row.valid)]
    metrics: dict[str, Any] = {"alias": alias}
    for name, values in ((ACCURACY, [float(row.correct) for row in rows]), (VALIDITY, validity)):
        if values:
            metrics[f"{name},{FILTER}"] = math.fsum(values) / len(values)
            metrics[f"{name}_stderr,{FILTER}"] = _standard_error(values)
    metrics[f"judge_errors,{FILTER}"] = sum(row.answer_judge_failure is not None for row in rows)
    return metrics


def _standard_error(values: Sequence[float]) -> float | str:
    """Of the mean, by the unbiased deviation; lmms-eval writes N/A for a single value."""
    if len(values) < 2:
        return "N/A"
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def _write_lines(path: Path, rows: Sequence[TraceRow]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for sample in _samples(rows):
            file.write(json.dumps(sample, ensure_ascii=False, allow_nan=False) + "\n")


def _samples(rows: Sequence[TraceRow]) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(rows):
        valid = row.valid
        yield {
            "doc_id": number,
            "target": row.gold_answer,
            "filtered_resps": [row.answer or ""],  # what stands in the answer tags
            "doc_hash": _hash(_document(row)),
            "prompt_hash": _hash(row.question),
            "target_hash": _hash(row.gold_answer),
            ACCURACY: float(row.correct),
            VALIDITY: sum(valid) / len(valid) if valid else None,
            "question_id": row.prompt_id,
            "judge_error": row.answer_judge_failure,
            "input": row.question,
            "resps": [[row.text]],
        }


def _document(row: TraceRow) -> str:
    document = {"id": row.prompt_id, "question": row.question, "answer": row.gold_answer}
    return json.dumps(document, indent=2, ensure_ascii=False)


def _file_name(model: str) -> str:
    """As lmms-eval writes a model's name; never a way out of the folder."""
    return re.sub(r'["<>:/|\\?*\[\]\x00-\x1f]+', "__", model).strip(". ") or "model"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
