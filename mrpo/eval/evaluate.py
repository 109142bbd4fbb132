"""Answer and judge the questions of a benchmark, chunk by chunk, going on where an earlier try ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mrpo.collection import Collector
from mrpo.errors import JudgeUnavailableError
from mrpo.eval.missing_rulings import ask_again
from mrpo.eval.record import record_of
from mrpo.eval.store import EvaluationStore
from mrpo.judge_stop import require_budget_of_rows
from mrpo.sampling_order import greedy_requests
from mrpo.trace_row import TraceRow, row_of_evaluation
from mrpo.types import Example

MIN_JUDGED = 16  # completions; in fewer, failures may be chance


async def evaluate(
    questions: Sequence[Example],
    collector: Collector,
    store: EvaluationStore,
    *,
    max_new_tokens: int,
    chunk_size: int,
    threshold: float,
    max_failure_share: float,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[TraceRow]:
    """Measure every question that the store does not have yet, then ask for the rulings that earlier tries lack.

    Args:
        questions: of all sets; their ids are unique.
        collector: samples greedily and has completions judged.
        store: gets each chunk as it ends.
        max_new_tokens: of a completion.
        chunk_size: questions between two writes.
        threshold: an answer reward above it counts as right.
        max_failure_share: of the judged completions of a chunk that may lack a ruling, `judge.max_failure_share`.
        on_progress: told how many questions are done, of how many.

    Returns:
        One row a question, in the order of the questions.

    Raises:
        JudgeUnavailableError: more of them lack one; the chunk is in the store.
        JudgeBudgetError: the judge may not be paid any more; what was ruled on is in the store.
    """
    found = store.rows
    examples = {example.id: example for example in questions}
    lacking = [row for row in unrated(list(found.values())) if row.prompt_id in examples]
    due = by_image([example for example in questions if example.id not in found])
    done = len(questions) - len(due) - len(lacking)
    on_progress(done, len(questions))
    watch = _JudgeWatch(max_failure_share)
    for first in range(0, len(due), chunk_size):
        chunk = {example.id: example for example in due[first : first + chunk_size]}
        requests = greedy_requests(chunk, max_new_tokens=max_new_tokens)
        traces = await collector.collect(chunk, requests, policy_version=0)
        rows = [row_of_evaluation(record_of(trace, threshold=threshold)) for trace in traces]
        store.add(rows)
        done += len(rows)
        on_progress(done, len(questions))
        require_budget_of_rows(rows)
        watch.see(rows)
    watch = _JudgeWatch(max_failure_share)
    for first in range(0, len(lacking), chunk_size):
        rows = await ask_again(lacking[first : first + chunk_size], examples, collector.judge, threshold=threshold)
        store.add(rows)
        done += len(rows)
        on_progress(done, len(questions))
        require_budget_of_rows(rows)
        if _failure_share(list(store.rows.values())) > max_failure_share:
            watch.see(rows)  # a few questions on which the judge always fails must not keep the others from a page
    measured = store.rows
    return [measured[example.id] for example in questions]


def by_image(questions: Sequence[Example]) -> list[Example]:
    """The questions of an image one after the other, images in the order in which they come first.

    Engine and judge keep what prompts have in common, and the image is most of it; asked far apart, it is computed
    again for every question.
    """
    images: dict[str, list[Example]] = {}
    for example in questions:
        images.setdefault(example.image, []).append(example)
    return [example for group in images.values() for example in group]


def unrated(rows: Sequence[TraceRow]) -> list[TraceRow]:
    """Rows for which the judge failed, on the steps or on the answer."""
    return [row for row in rows if row.judge_failure is not None or row.answer_judge_failure is not None]


class _JudgeWatch:
    """Stops an evaluation whose judge is mostly out; chunks are taken together until there is enough to go by."""

    def __init__(self, max_failure_share: float) -> None:
        self._max_failure_share = max_failure_share
        self._judged: list[TraceRow] = []

    def see(self, rows: Sequence[TraceRow]) -> None:
        """Take in a chunk.

        Raises:
            JudgeUnavailableError: too many of its completions lack a ruling.
        """
        self._judged += _judged(rows)
        if len(self._judged) < MIN_JUDGED:
            return
        judged, self._judged = self._judged, []
        if _failure_share(judged) <= self._max_failure_share:
            return
        failed = unrated(judged)
        reasons = {
            f"{reason}: {detail}"
            for row in failed
            for reason, detail in (
                (row.answer_judge_failure, row.answer_judge_detail),
                (row.judge_failure, row.judge_detail),
            )
            if reason is not None
        }
        raise JudgeUnavailableError(
            f"the judge gave no ruling on {len(failed)} of {len(judged)} completions "
            f"({', '.join(sorted(reasons)[:3])}); what is measured is kept: mend the judge and give the "
            f"same command again, or raise judge.max_failure_share={self._max_failure_share:g}"
        )


def _judged(rows: Sequence[TraceRow]) -> list[TraceRow]:
    return [row for row in rows if row.judge_attempts is not None or row.answer_judge_attempts is not None]


def _failure_share(rows: Sequence[TraceRow]) -> float:
    """Of the judged completions, those without a ruling that was asked for."""
    judged = _judged(rows)
    return len(unrated(judged)) / len(judged) if judged else 0.0
