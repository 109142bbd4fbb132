"""Whether a judge that is asked again says the same. Pure.

Letters: R askings of every completion, N completions, K steps of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mrpo.calibration.labels import Mark
from mrpo.calibration.resampling import cluster_interval, share
from mrpo.eval.intervals import Interval
from mrpo.types import Verdicts


@dataclass(frozen=True, slots=True, kw_only=True)
class Consistency:
    """Of one mark."""

    mark: str
    num_steps: int  # ruled on twice or more
    agreement: Interval | None  # share of the pairs of askings that agree on a step; bootstrap of completions
    num_changed: int  # steps on which not all askings agree


def consistency(askings: Sequence[Sequence[Verdicts | None]], mark: Mark, *, seed: int) -> Consistency:
    """Hold the askings of each completion against each other; failed ones say nothing.

    Args:
        askings: [R][N]; None where the judge failed.
        mark: to look at.
        seed: of the bootstrap.
    """
    sums, num_steps, num_changed = [], 0, 0
    for rulings in zip(*askings, strict=True):
        said = [mark.of(verdicts) for verdicts in rulings if verdicts is not None]
        if len(said) < 2:
            continue
        marks = np.array(said, dtype=np.int64)  # [asked, K]
        asked, ones = len(said), marks.sum(axis=0)
        pairs = asked * (asked - 1) // 2
        apart = ones * (asked - ones)  # [K] pairs that differ
        sums.append([pairs * len(ones) - apart.sum(), pairs * len(ones)])
        num_steps += len(ones)
        num_changed += int((apart > 0).sum())
    agreement = cluster_interval(np.array(sums, dtype=np.float64).reshape(-1, 2), share, seed=seed)
    return Consistency(mark=mark.value, num_steps=num_steps, agreement=agreement, num_changed=num_changed)
