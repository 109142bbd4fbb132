"""Intervals and tests by resampling, for measures whose spread has no formula; Wilson's for shares. Pure, seeded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mrpo.eval.intervals import Interval, mcnemar_p, wilson_interval

__all__ = ["Interval", "bootstrap_interval", "mcnemar_p", "paired_bootstrap", "wilson_interval"]

NUM_RESAMPLES = 10_000
_CHUNK = 1_000_000  # resampled values held at one time


def bootstrap_interval(values: Sequence[float], *, seed: int, num_resamples: int = NUM_RESAMPLES) -> Interval | None:
    """The mean and its 95 % percentile interval over resamples of `values` (B. Efron, 1979).

    Args:
        values: one number an observation, e.g. 1.0 for a right answer.
        seed: the same seed gives the same interval.
        num_resamples: more give a steadier interval.

    Returns:
        None where there is no value.
    """
    if not values:
        return None
    data = np.asarray(values, dtype=np.float64)
    low, high = np.quantile(_resampled_means(data, seed, num_resamples), [0.025, 0.975])
    return Interval(value=float(data.mean()), low=float(low), high=float(high), num=len(data))


def paired_bootstrap(
    before: Sequence[float], after: Sequence[float], *, seed: int, num_resamples: int = NUM_RESAMPLES
) -> tuple[Interval, float] | None:
    """The mean gain of `after` over `before` on the same questions, its 95 % interval, and a two-sided p.

    Args:
        before: one number a question.
        after: the same questions in the same order.
        seed: the same seed gives the same result.
        num_resamples: the smallest p there can be is 2/(num_resamples + 1).

    Returns:
        (interval of the gain, p that the gain is no other than 0); None where there is no question.
    """
    assert len(before) == len(after)
    if not before:
        return None
    gains = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    means = _resampled_means(gains, seed, num_resamples)
    low, high = np.quantile(means, [0.025, 0.975])
    tail = min(int((means <= 0).sum()), int((means >= 0).sum()))
    interval = Interval(value=float(gains.mean()), low=float(low), high=float(high), num=len(gains))
    return interval, min(1.0, 2 * (tail + 1) / (num_resamples + 1))


def _resampled_means(data: NDArray[np.float64], seed: int, num_resamples: int) -> NDArray[np.float64]:
    """[num_resamples] means of draws with replacement."""
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // len(data))
    means = [
        data[rng.integers(len(data), size=(min(rows, num_resamples - first), len(data)))].mean(axis=1)
        for first in range(0, num_resamples, rows)
    ]
    return np.concatenate(means)
