"""Whether a ruling depends on where a step stands, or on how long it is. Pure.

Letter: K steps of a completion.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mrpo.calibration.agreement import Pair
from mrpo.calibration.asking import Asked
from mrpo.calibration.labels import LabelledCompletion, Mark
from mrpo.calibration.resampling import cluster_interval, correlation, moments, share
from mrpo.eval.intervals import Interval
from mrpo.types import Verdicts

QUARTERS = (0.25, 0.5, 0.75)


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionBias:
    """What becomes of the ruling on a step that stands elsewhere among the same steps. Intervals: bootstrap."""

    mark: str
    num_pairs: int  # rulings on a step at its own place and at another
    changed: Interval | None  # share of them that differ
    effect: Interval | None  # change in the share ruled 1, of a step that moves from first to last


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthQuarter:
    """A quarter of the steps, by length."""

    shortest: int  # characters
    longest: int
    num_steps: int
    labelled: float  # share labelled 1
    ruled: float  # share ruled 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthBias:
    """Whether longer steps are ruled 1 more often than they are labelled 1."""

    mark: str
    num_steps: int
    correlation: Interval | None  # of length with ruling − label; None: no step is ruled against its label
    quarters: list[LengthQuarter]


def position_bias(
    completions: Sequence[LabelledCompletion],
    first: Sequence[Verdicts | None],
    reordered: Sequence[Asked],
    mark: Mark,
    *,
    seed: int,
) -> PositionBias:
    """Compare every step with itself at another place.

    The effect is the slope of the change in ruling over the change in place (0 the first, 1 the last), so that what a
    step says cancels out. Steps with equal text are left out: only the first of them can count, wherever it stands.

    Args:
        completions: what was ruled on.
        first: rulings on each in its own order.
        reordered: calls in other orders.
        mark: to look at.
        seed: of the bootstrap.
    """
    moved: dict[int, list[float]] = {}  # by completion: Σ place·ruling changes, Σ place², rulings changed, rulings
    for asked in reordered:
        own, other, order = first[asked.call.completion], asked.verdicts, asked.call.order
        assert order is not None
        if own is None or other is None:
            continue
        steps = completions[asked.call.completion].steps
        texts = Counter(_folded(step) for step in steps)
        before, after = mark.of(own), mark.of(other)
        sums = moved.setdefault(asked.call.completion, [0.0] * 4)
        for place, index in enumerate(order):
            if texts[_folded(steps[index])] > 1:
                continue
            shift, change = (place - index) / (len(order) - 1), after[index] - before[index]
            for column, value in enumerate((shift * change, shift**2, change != 0, 1)):
                sums[column] += value
    rows = np.array(list(moved.values()), dtype=np.float64).reshape(-1, 4)
    return PositionBias(
        mark=mark.value,
        num_pairs=int(rows[:, 3].sum()),
        changed=cluster_interval(rows[:, 2:], share, seed=seed),
        effect=cluster_interval(rows[:, :2], share, seed=seed),
    )


def length_bias(pairs: Sequence[Pair], mark: Mark, *, seed: int) -> LengthBias:
    """Hold the error of every ruling against the length of its step."""
    lengths: dict[int, list[float]] = {}
    errors: dict[int, list[float]] = {}
    for pair in pairs:
        lengths.setdefault(pair.completion, []).append(pair.length)
        errors.setdefault(pair.completion, []).append(pair.ruling - pair.label)
    rows = [moments(np.array(lengths[number]), np.array(errors[number])) for number in lengths]
    sums = np.array(rows, dtype=np.float64).reshape(-1, 6)
    return LengthBias(
        mark=mark.value,
        num_steps=len(pairs),
        correlation=cluster_interval(sums, correlation, seed=seed),
        quarters=_quarters(pairs),
    )


def _quarters(pairs: Sequence[Pair]) -> list[LengthQuarter]:
    """From the shortest; steps of one length stay together, so that a quarter may be larger, or missing."""
    if not pairs:
        return []
    edges = np.quantile([pair.length for pair in pairs], QUARTERS)
    groups: list[list[Pair]] = [[] for _ in range(len(QUARTERS) + 1)]
    for pair in pairs:
        groups[int(np.searchsorted(edges, pair.length))].append(pair)
    return [
        LengthQuarter(
            shortest=min(pair.length for pair in group),
            longest=max(pair.length for pair in group),
            num_steps=len(group),
            labelled=sum(pair.label for pair in group) / len(group),
            ruled=sum(pair.ruling for pair in group) / len(group),
        )
        for group in groups
        if group
    ]


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())
