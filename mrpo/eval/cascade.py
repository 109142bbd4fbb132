"""Measures of failure cascades: where a chain of reasoning first fails, and what that does to the rest (algorithm §6).

Letters: K steps of one completion; verdicts [K] say whether each step is valid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from mrpo.eval.intervals import Interval, wilson_interval
from mrpo.eval.statistics import bootstrap_mean

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


@dataclass(frozen=True, slots=True, kw_only=True)
class CascadeSummary:
    """Where the reasoning of some judged completions first fails. An interval is None where nothing was observed."""

    num_judged: int
    num_failing: int  # with at least one invalid step
    failing: Interval | None  # share of the judged; Wilson, as the shares below
    of_failing: dict[Stage, Interval | None]  # shares of the failing: they sum to 1
    of_all: dict[Stage, Interval | None]  # shares of all judged: a model that never fails has none
    accumulation: Interval | None  # mean FAR where a step follows the first failure; bootstrap
    curve: list[Interval | None]  # [NUM_FAR_BINS] mean FAR by bin of the first-failure point; bootstrap


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


def far_bins(all_verdicts: Iterable[Sequence[bool]]) -> list[list[float]]:
    """Failure accumulation rates in five equal bins of the first-failure point, early to late."""
    rates: list[list[float]] = [[] for _ in range(NUM_FAR_BINS)]
    for verdicts in all_verdicts:
        first, rate = _first_failure(verdicts), failure_accumulation_rate(verdicts)
        if first is not None and rate is not None:
            # In whole numbers: a point on an edge must not fall below it by rounding. A rate implies K > 1.
            rates[min(first * NUM_FAR_BINS // (len(verdicts) - 1), NUM_FAR_BINS - 1)].append(rate)
    return rates


def far_curve(all_verdicts: Iterable[Sequence[bool]]) -> list[FarBin]:
    """Mean failure accumulation rate in five equal bins of the first-failure point, early to late."""
    return [
        FarBin(low=index / NUM_FAR_BINS, high=(index + 1) / NUM_FAR_BINS, mean_far=_mean(values), num=len(values))
        for index, values in enumerate(far_bins(all_verdicts))
    ]


def summarise_cascades(all_verdicts: Sequence[Sequence[bool]], *, seed: int) -> CascadeSummary:
    """Stages by both denominators and failure accumulation, with intervals.

    Args:
        all_verdicts: of each judged completion, at least one step each.
        seed: of the bootstrap.
    """
    stages = Counter(stage for verdicts in all_verdicts if (stage := failure_stage(verdicts)) is not None)
    num_judged, num_failing = len(all_verdicts), stages.total()
    rates = [rate for verdicts in all_verdicts if (rate := failure_accumulation_rate(verdicts)) is not None]
    return CascadeSummary(
        num_judged=num_judged,
        num_failing=num_failing,
        failing=wilson_interval(num_failing, num_judged),
        of_failing={stage: wilson_interval(stages[stage], num_failing) for stage in Stage},
        of_all={stage: wilson_interval(stages[stage], num_judged) for stage in Stage},
        accumulation=bootstrap_mean(rates, seed=seed),
        curve=[bootstrap_mean(values, seed=seed) for values in far_bins(all_verdicts)],
    )


def _first_failure(verdicts: Sequence[bool]) -> int | None:
    """Index of the first invalid step."""
    return next((index for index, valid in enumerate(verdicts) if not valid), None)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
