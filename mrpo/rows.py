"""The Parquet files `rollouts/*.parquet` and `eval/*.parquet`: one row a completion.

Training and evaluation share the columns, so that the files can be read together; what one of them lacks is null there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mrpo.atomic import write_with
from mrpo.errors import DataError
from mrpo.trace_row import TraceRow

SPAN = pa.list_(pa.int32())
COLUMNS: dict[str, Any] = {
    "key": pa.string(),
    "prompt_id": pa.string(),
    "sample_index": pa.int32(),
    "dataset": pa.string(),
    "split": pa.string(),
    "image": pa.string(),
    "question": pa.string(),
    "gold_answer": pa.string(),
    "gold_rationale": pa.string(),
    "text": pa.string(),
    "answer": pa.string(),
    "correct": pa.bool_(),
    "finish_reason": pa.string(),
    "num_prompt_tokens": pa.int32(),
    "num_completion_tokens": pa.int32(),
    "num_think_tokens": pa.int32(),
    "num_step_tokens": pa.int32(),
    "steps": pa.list_(pa.string()),
    "char_spans": pa.list_(SPAN),
    "token_spans": pa.list_(SPAN),
    "alignment": pa.list_(pa.bool_()),
    "contribution": pa.list_(pa.bool_()),
    "judge_failure": pa.string(),
    "judge_detail": pa.string(),
    "judge_attempts": pa.int32(),
    "judge_model": pa.string(),
    "judge_rubric": pa.string(),
    "answer_judge_failure": pa.string(),
    "answer_judge_detail": pa.string(),
    "answer_judge_attempts": pa.int32(),
    "answer_judge_model": pa.string(),
    "answer_judge_rubric": pa.string(),
    "answer_reward": pa.float64(),
    "process_reward": pa.float64(),
    "step_count_reward": pa.float64(),
    "reward": pa.float64(),
    "advantage": pa.float64(),
    "token_advantages": pa.list_(pa.float64()),
    "in_baseline": pa.bool_(),
    "policy_version": pa.int32(),
    "rollout_started_s": pa.float64(),
    "rollout_ended_s": pa.float64(),
    "judge_started_s": pa.float64(),
    "judge_sent_s": pa.float64(),
    "judge_ended_s": pa.float64(),
    "answer_judge_started_s": pa.float64(),
    "answer_judge_sent_s": pa.float64(),
    "answer_judge_ended_s": pa.float64(),
}
# Files of an earlier version may lack these: null, as where it is not known.
MAY_LACK = {"judge_model", "judge_rubric", "answer_judge_model", "answer_judge_rubric"}
SCHEMA = pa.schema(list(COLUMNS.items()))


def write_rows(path: Path, rows: Sequence[TraceRow]) -> None:
    """Write rows as one Parquet file, atomically."""
    table = pa.Table.from_pylist([dataclasses.asdict(row) for row in rows], schema=SCHEMA)
    write_with(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))


def read_rows(path: Path) -> list[TraceRow]:
    """Read what `write_rows` wrote, in order.

    Raises:
        DataError: the file is no Parquet file or has other columns.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as a Parquet file of completions: {error}") from None
    if set(table.column_names) | MAY_LACK != set(COLUMNS):
        differing = ", ".join(sorted(set(table.column_names) ^ set(COLUMNS)))
        raise DataError(f"{path}: not the columns of this version (differing: {differing}); read it with pandas")
    lacking: dict[str, Any] = dict.fromkeys(MAY_LACK - set(table.column_names))
    return [TraceRow(**row, **lacking) for row in table.to_pylist()]
