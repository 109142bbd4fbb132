"""Measures of failure cascades: where a chain of reasoning first fails, and what that does to the rest (algorithm §6).

Letters: K steps of one completion; verdicts [K] say whether each step is valid.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

NUM_FAR_BINS = 5


class Stage(StrEnum):
    """The third of the chain in which it first fails."""

    EARLY = "early"
    MID = "mid"
    LATE = "late"


@dataclass(frozen=True, slots=True, kw_only=True)
class FarBin:
    """One bin of the FAR curve."""

    low: float  # first-failure points in [low, high); the last bin includes 1
    high: float
    mean_far: float | None  # None: no completion with a step after its first failure
    num: int  # completions behind the mean


def first_failure_point(verdicts: Sequence[bool]) -> float | None:
    """(k* − 1)/(K − 1) of the first invalid step k*, in [0, 1]; 0 where K = 1; None where all steps are valid."""
    first = _first_failure(verdicts)
    if first is None:
        return None
    return first / (len(verdicts) - 1) if len(verdicts) > 1 else 0.0


def failure_stage(verdicts: Sequence[bool]) -> Stage | None:
    """Early where the first-failure point is below 1/3, mid below 2/3, late otherwise; None where all are valid."""
    point = first_failure_point(verdicts)
    if point is None:
        return None
    return Stage.EARLY if point < 1 / 3 else Stage.MID if point < 2 / 3 else Stage.LATE


def failure_accumulation_rate(verdicts: Sequence[bool]) -> float | None:
    """Share of invalid steps among those after the first invalid one, in [0, 1]; None where no step follows it."""
    first = _first_failure(verdicts)
    if first is None or first + 1 == len(verdicts):
        return None
    following = verdicts[first + 1 :]
    return sum(not valid for valid in following) / len(following)


def far_curve(all_verdicts: Iterable[Sequence[bool]]) -> list[FarBin]:
    """Mean failure accumulation rate in five equal bins of the first-failure point, early to late."""
    rates: list[list[float]] = [[] for _ in range(NUM_FAR_BINS)]
    for verdicts in all_verdicts:
        first, rate = _first_failure(verdicts), failure_accumulation_rate(verdicts)
        if first is not None and rate is not None:
            # In whole numbers: a point on an edge must not fall below it by rounding. A rate implies K > 1.
            rates[min(first * NUM_FAR_BINS // (len(verdicts) - 1), NUM_FAR_BINS - 1)].append(rate)
    return [
        FarBin(low=index / NUM_FAR_BINS, high=(index + 1) / NUM_FAR_BINS, mean_far=_mean(values), num=len(values))
        for index, values in enumerate(rates)
    ]


def _first_failure(verdicts: Sequence[bool]) -> int | None:
    """Index of the first invalid step."""
    return next((index for index, valid in enumerate(verdicts) if not valid), None)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
