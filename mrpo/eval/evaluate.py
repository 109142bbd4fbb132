"""Answer and judge the questions of a benchmark, chunk by chunk, going on where an earlier try ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mrpo.collection import Collector
from mrpo.eval.record import record_of
from mrpo.eval.store import EvaluationStore
from mrpo.sampling_order import greedy_requests
from mrpo.trace_row import TraceRow, row_of_evaluation
from mrpo.types import Example


async def evaluate(
    questions: Sequence[Example],
    collector: Collector,
    store: EvaluationStore,
    *,
    max_new_tokens: int,
    chunk_size: int,
    threshold: float,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[TraceRow]:
    """Measure every question that the store does not have yet, or has without the judge's ruling.

    Args:
        questions: of all sets; their ids are unique.
        collector: samples greedily and has completions judged.
        store: gets each chunk as it ends.
        max_new_tokens: of a completion.
        chunk_size: questions between two writes.
        threshold: an answer reward above it counts as right.
        on_progress: told how many questions are done, of how many.

    Returns:
        One row a question, in the order of the questions.
    """
    found = store.rows
    failed = {row.prompt_id for row in unrated(list(found.values()))}  # asked again
    due = [example for example in questions if example.id not in found or example.id in failed]
    on_progress(len(questions) - len(due), len(questions))
    for first in range(0, len(due), chunk_size):
        chunk = {example.id: example for example in due[first : first + chunk_size]}
        requests = greedy_requests(chunk, max_new_tokens=max_new_tokens)
        traces = await collector.collect(chunk, requests, policy_version=0)
        store.add([row_of_evaluation(record_of(trace, threshold=threshold)) for trace in traces])
        on_progress(len(questions) - len(due) + first + len(chunk), len(questions))
    rows = store.rows
    return [rows[example.id] for example in questions]


def unrated(rows: Sequence[TraceRow]) -> list[TraceRow]:
    """Rows for which the judge failed, on the steps or on the answer."""
    return [row for row in rows if row.judge_failure is not None or row.answer_judge_failure is not None]
