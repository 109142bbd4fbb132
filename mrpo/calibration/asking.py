"""The calls of a check: every completion several times as it is, and with its steps in other orders."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from mrpo.calibration.labels import LabelledCompletion
from mrpo.calibration.rulings import Ruling
from mrpo.protocols import JudgePool
from mrpo.tasks import first_failure_ends_all
from mrpo.types import JudgeFailure, Judgement, JudgeRequest, Verdicts

Progress = Callable[[int, int], None]  # calls that ended, of all


async def ask(
    judge: JudgePool,
    completions: Sequence[LabelledCompletion],
    *,
    repeats: int,
    orders: int,
    seed: int,
    on_progress: Progress | None = None,
) -> list[Ruling]:
    """Ask about everything; the first asking of all comes before any second one, in case a budget ends.

    Args:
        judge: without a cache, or repeats would say nothing.
        completions: to be ruled on.
        repeats: askings of each as it is.
        orders: askings of each of more than one step with these in another order.
        seed: of the orders.
        on_progress: told after every call.

    Returns:
        A record a call, in a fixed order.

    Raises:
        DataError: an image cannot be read.
    """
    wanted: list[tuple[LabelledCompletion, int, list[int] | None]] = [
        (item, asking, None) for asking in range(repeats) for item in completions
    ]
    wanted += [
        (item, number, other_order(item, number, seed=seed))
        for number in range(orders)
        for item in completions
        if len(item.steps) > 1
    ]
    done = 0

    async def one(item: LabelledCompletion, asking: int, order: list[int] | None) -> Ruling:
        nonlocal done
        ruling = _ruling(item, asking, order, await judge.judge(_request(item, asking, order)))
        done += 1
        if on_progress is not None:
            on_progress(done, len(wanted))
        return ruling

    async with first_failure_ends_all() as group:
        tasks = [group.create_task(one(*call)) for call in wanted]
    return [task.result() for task in tasks]


def other_order(completion: LabelledCompletion, number: int, *, seed: int) -> list[int]:
    """[K] which step stands at each place; never the order as it is, and the same whatever else is asked."""
    digest = hashlib.sha256(f"{seed}/{completion.id}/{number}".encode()).digest()
    size = len(completion.steps)
    order: list[int] = np.random.default_rng(int.from_bytes(digest[:8], "big")).permutation(size).tolist()
    return order if order != list(range(size)) else [*order[1:], order[0]]


def _request(item: LabelledCompletion, asking: int, order: list[int] | None) -> JudgeRequest:
    variant = "" if order is None else "reordered-"
    return JudgeRequest(
        key=f"{item.id}#{variant}{asking}",
        image=item.image or "",  # not read where send_image is off, which the command sees to
        question=item.question,
        answer=item.answer,
        rationale=item.rationale,
        steps=item.steps if order is None else [item.steps[index] for index in order],
    )


def _ruling(item: LabelledCompletion, asking: int, order: list[int] | None, judgement: Judgement) -> Ruling:
    outcome = judgement.outcome
    verdicts = _put_back(outcome, order) if isinstance(outcome, Verdicts) else None
    failure = outcome if isinstance(outcome, JudgeFailure) else None
    return Ruling(
        id=item.id,
        asking=asking,
        order=order,
        alignment=verdicts.alignment if verdicts else None,
        contribution=verdicts.contribution if verdicts else None,
        failure=failure.reason.value if failure else None,
        detail=failure.detail if failure else "",
        attempts=judgement.attempts,
        prompt_tokens=judgement.prompt_tokens,
        completion_tokens=judgement.completion_tokens,
        started_s=judgement.started_s,
        sent_s=judgement.sent_s,
        ended_s=judgement.ended_s,
    )


def _put_back(verdicts: Verdicts, order: list[int] | None) -> Verdicts:
    """Rulings by the completion's own order."""
    if order is None:
        return verdicts
    places = sorted(range(len(order)), key=order.__getitem__)  # where each step stood
    return Verdicts(
        alignment=[verdicts.alignment[place] for place in places],
        contribution=[verdicts.contribution[place] for place in places],
    )
