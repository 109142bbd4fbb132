"""Bootstrap intervals (B. Efron, 1979) by percentiles, of means over questions and of means over sets. Pure.

Resampling n values with replacement comes to one multinomial draw of how often each distinct value occurs: 10,000
resamples of 10,000 answers, right or wrong, take a moment and no memory.

Letters: R resamples, U distinct values.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mrpo.eval.intervals import Interval

NUM_RESAMPLES = 10_000
TAILS = (0.025, 0.975)  # of a 95 % interval
MAX_COUNTS = 4_000_000  # counts in memory at one time

Means = NDArray[np.float64]  # [R]


def resampled_means(values: Sequence[float], rng: np.random.Generator) -> Means:
    """[R] means of resamples of `values`, which are not empty."""
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)  # [U], [U]
    num = int(counts.sum())
    chunk = max(1, MAX_COUNTS // len(distinct))
    parts = [
        rng.multinomial(num, counts / num, size=min(chunk, NUM_RESAMPLES - first)) @ distinct / num
        for first in range(0, NUM_RESAMPLES, chunk)
    ]
    return np.concatenate(parts)


def bootstrap_mean(values: Sequence[float], *, seed: int) -> Interval | None:
    """Mean of independent values and its percentile interval; None for no value."""
    if not values:
        return None
    return _interval(float(np.mean(values)), resampled_means(values, np.random.default_rng(seed)), len(values))


def bootstrap_macro(sets: Sequence[Sequence[float]], *, seed: int) -> Interval | None:
    """Mean of the sets' means, each set resampled on its own; None without a set.

    Args:
        sets: the values of each set, none empty.
        seed: of the resampling.
    """
    if not sets:
        return None
    rng = np.random.default_rng(seed)
    means = np.mean([resampled_means(values, rng) for values in sets], axis=0)
    value = float(np.mean([np.mean(values) for values in sets]))
    return _interval(value, means, sum(len(values) for values in sets))


def bootstrap_p(differences: Sequence[float], *, seed: int) -> float:
    """Two-sided p of no difference: twice the smaller share of resamples whose mean lies at or beyond zero.

    The observed sample counts as one resample, so that no p is 0 (A. C. Davison, D. V. Hinkley, 1997, §4.2).
    """
    assert differences
    means = resampled_means(differences, np.random.default_rng(seed))
    tail = min(int((means <= 0).sum()), int((means >= 0).sum()))
    return min(1.0, 2 * (tail + 1) / (NUM_RESAMPLES + 1))


def _interval(value: float, means: Means, num: int) -> Interval:
    low, high = np.quantile(means, TAILS)
    return Interval(value=value, low=float(low), high=float(high), num=num)
