"""The calls of a check: every completion several times as it is, and with its steps in other orders."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mrpo.calibration.labels import LabelledCompletion
from mrpo.protocols import JudgePool
from mrpo.tasks import first_failure_ends_all
from mrpo.types import Judgement, JudgeRequest, Verdicts

Progress = Callable[[int, int], None]  # calls that ended, of all


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call to make: a completion as it is, or in another order."""

    completion: int  # its number
    asking: int  # 0 … of the same sort
    order: list[int] | None  # [K] which step stands at each place; None: the completion's own order
    request: JudgeRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A call that was made."""

    call: Call
    judgement: Judgement

    @property
    def verdicts(self) -> Verdicts | None:
        """By the completion's own order; None where the judge failed."""
        outcome, order = self.judgement.outcome, self.call.order
        if not isinstance(outcome, Verdicts):
            return None
        if order is None:
            return outcome
        places = sorted(range(len(order)), key=order.__getitem__)  # where each step stood
        return Verdicts(
            alignment=[outcome.alignment[place] for place in places],
            contribution=[outcome.contribution[place] for place in places],
        )


def calls_of(completions: Sequence[LabelledCompletion], *, repeats: int, orders: int, seed: int) -> list[Call]:
    """All calls of a check; the first asking of all comes before any second one, in case a budget ends.

    Args:
        completions: to be ruled on.
        repeats: askings of each as it is.
        orders: askings of each of more than one step with these in another order.
        seed: of the orders.
    """
    calls = [
        Call(completion=number, asking=asking, order=None, request=_request(item, f"#{asking}", item.steps))
        for asking in range(repeats)
        for number, item in enumerate(completions)
    ]
    for asking in range(orders):
        for number, item in enumerate(completions):
            if len(item.steps) > 1:
                order = other_order(item, asking, seed=seed)
                steps = [item.steps[index] for index in order]
                request = _request(item, f"#reordered-{asking}", steps)
                calls.append(Call(completion=number, asking=asking, order=order, request=request))
    return calls


async def ask(judge: JudgePool, calls: Sequence[Call], *, on_progress: Progress | None = None) -> list[Asked]:
    """Make all calls; the judge bounds how many are in flight.

    Args:
        judge: without a cache, or repeats would say nothing.
        calls: of `calls_of`.
        on_progress: told after every call.

    Returns:
        In the order of the calls.

    Raises:
        DataError: an image cannot be read.
    """
    done = 0

    async def one(call: Call) -> Asked:
        nonlocal done
        asked = Asked(call=call, judgement=await judge.judge(call.request))
        done += 1
        if on_progress is not None:
            on_progress(done, len(calls))
        return asked

    async with first_failure_ends_all() as group:
        tasks = [group.create_task(one(call)) for call in calls]
    return [task.result() for task in tasks]


def other_order(completion: LabelledCompletion, number: int, *, seed: int) -> list[int]:
    """[K] which step stands at each place; never the order as it is, and the same whatever else is asked."""
    digest = hashlib.sha256(f"{seed}/{completion.id}/{number}".encode()).digest()
    size = len(completion.steps)
    order: list[int] = np.random.default_rng(int.from_bytes(digest[:8], "big")).permutation(size).tolist()
    return order if order != list(range(size)) else [*order[1:], order[0]]


def _request(item: LabelledCompletion, suffix: str, steps: list[str]) -> JudgeRequest:
    return JudgeRequest(
        key=f"{item.id}{suffix}",
        image=item.image or "",  # not read where images are not sent, which the command sees to
        question=item.question,
        answer=item.answer,
        rationale=item.rationale,
        steps=steps,
    )
